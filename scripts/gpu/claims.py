#!/usr/bin/env python3
"""Holds the rows of a comparison against their floors: claims.py rows.jsonl

The rows are those of `jitune compare --plan claims.plan --peers cublaslt`. Exit code 1 when a floor is missed or nothing
was measured.
"""
import json
import math
import sys

device, problems, rows = None, {}, {}
for line in open(sys.argv[1]):
    line = json.loads(line)
    if line["kind"] == "run":
        device = line["device"]
    elif line["kind"] == "problem":
        problems[line["problem"]] = line
    elif line["kind"] == "row" and line["state"] == "ok":
        rows[line["problem"], line["peer"], line["way"]] = line

missed, held = [], 0


def floor(what, value, least):
    global held
    held += 1
    good = value >= least
    print(f"{'ok  ' if good else 'MISS'} {what}: {value:.3f} (floor {least})")
    if not good:
        missed.append(what)


def field(problem, name):
    return next((int(w.split("=")[1]) for w in problem.split() if w.startswith(name + "=")), 0)


def us(problem, peer="jitune", way="tuned"):
    row = rows.get((problem, peer, way))
    return row["kernel"]["median_us"] if row and row["kernel"] else None


read, copy = device["ceilings"]["read"], device["ceilings"]["copy"]
print(f"{device['name']}: read {read / 1e9:.0f} GB/s, copy {copy / 1e9:.0f} GB/s\n")
print("| problem | winner | jitune us | cuBLASLt best us | ratio |\n|---|---|---|---|---|")
small, large = [], {}
for problem, line in sorted(problems.items(), key=lambda kv: (field(kv[0], "m"), kv[0])):
    ours, peer = us(problem), us(problem, "cublaslt", "best")
    if not problem.startswith("matmul") or ours is None:
        continue
    if peer is None:
        print(f"MISS {problem}: cuBLASLt was not measured")
        missed.append(problem)
        continue
    ratio = peer / ours
    print(f"| {problem} | {line['winner']['template']} | {ours:.2f} | {peer:.2f} | {ratio:.2f} |")
    if field(problem, "m") <= 32:
        small.append(ratio)
    elif field(problem, "m") >= 512:
        large[problem] = ratio
print()
if small:
    mean = math.exp(sum(map(math.log, small)) / len(small))
    floor(f"products with M <= 32, geometric mean of {len(small)} over cuBLASLt", mean, 1.0)
for problem, ratio in large.items():
    floor(f"{problem} over cuBLASLt", ratio, 0.75)
for problem in problems:
    ours = us(problem)
    if ours is None:
        print(f"MISS {problem}: not measured")
        missed.append(problem)
        continue
    if problem.startswith("rmsnorm") and field(problem, "residual") and field(problem, "rows") >= 4096:
        moved = 4 * field(problem, "rows") * field(problem, "cols") * 2
        floor(f"{problem}: {moved / ours / 1e3:.0f} GB/s, share of the copy ceiling", moved / ours * 1e6 / copy, 0.9)
    if problem.startswith("decode"):
        cache = 4 * field(problem, "batch") * field(problem, "context") * field(problem, "kv_heads") * field(problem, "head_dim")
        if cache >= 64e6:
            floor(f"{problem}: {ours:.1f} us, share of the read ceiling", cache / ours * 1e6 / read, 0.8)
    if problem.startswith("attention") and field(problem, "q") >= 4096 and field(problem, "head_dim") == 64:
        pairs = field(problem, "q") * (field(problem, "q") + 1) / 2
        flops = 4 * field(problem, "batch") * field(problem, "heads") * field(problem, "head_dim") * pairs
        floor(f"{problem}: TFLOP/s", flops / ours / 1e6, 300)
sys.exit(1 if missed or not held else 0)
