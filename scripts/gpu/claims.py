#!/usr/bin/env python3
"""Holds a tuned database's winners against their floors: claims.py WINNERS.jsonl CUBLASLT.jsonl [--out TABLE.md]

WINNERS is what `jitune db list --json` with ceilings (`jitune db export-journal --winners`) writes; CUBLASLT what
jitune-peer-cublaslt printed for the same products in the same run. Exit code 1 when a floor is missed.
"""
import json
import math
import sys

winners, peers = {}, {}
for line in open(sys.argv[1]):
    body = json.loads(line)
    body = body.get("rec", body)
    body = body.get("body", body)
    if "problem" in body and "evidence" in body:
        winners[body["problem"]] = body
for line in open(sys.argv[2]):
    if line.startswith("{"):
        row = json.loads(line)
        peers[row["problem"].replace(" epilogue=none", "")] = row

missed = []


def floor(what, value, least):
    good = value >= least
    print(f"{'ok  ' if good else 'MISS'} {what}: {value:.3f} (floor {least})")
    if not good:
        missed.append(what)


def field(problem, name):
    return next((int(w.split("=")[1]) for w in problem.split() if w.startswith(name + "=")), 0)


print("| problem | winner | jitune us | cuBLASLt best us | ratio |\n|---|---|---|---|---|")
small, large = [], {}
for problem, w in sorted(winners.items(), key=lambda kv: (field(kv[0], "m"), kv[0])):
    if problem not in peers or not problem.startswith("matmul"):
        continue
    us, peer = w["evidence"]["median_us"], peers[problem]["best_us"]
    ratio = peer / us
    print(f"| {problem} | {w['description']['name']} | {us:.2f} | {peer:.2f} | {ratio:.2f} |")
    if field(problem, "m") <= 32:
        small.append(ratio)
    elif field(problem, "m") >= 512:
        large[problem] = ratio
if small:
    floor(f"products with M <= 32, geometric mean of {len(small)} over cuBLASLt", math.exp(sum(map(math.log, small)) / len(small)), 1.0)
for problem, ratio in large.items():
    floor(f"{problem} over cuBLASLt", ratio, 0.75)
for problem, w in winners.items():
    e, c = w["evidence"], w["device"]["ceilings"]
    us = e["median_us"]
    if problem.startswith("rmsnorm") and field(problem, "residual") and field(problem, "rows") >= 4096:
        moved = 4 * field(problem, "rows") * field(problem, "cols") * 2
        floor(f"{problem}: {moved / us / 1e3:.0f} GB/s, share of the copy ceiling", moved / us * 1e6 / c["copy"], 0.9)
    if problem.startswith("decode"):
        cache = 2 * 2 * field(problem, "batch") * field(problem, "context") * field(problem, "kv_heads") * field(problem, "head_dim")
        if cache >= 64e6:
            floor(f"{problem}: {us:.1f} us, share of the read ceiling", cache / us * 1e6 / c["read"], 0.8)
    if problem.startswith("attention") and field(problem, "q") >= 4096 and field(problem, "head_dim") == 64:
        pairs = field(problem, "q") * (field(problem, "q") + 1) / 2
        flops = 4 * field(problem, "batch") * field(problem, "heads") * field(problem, "head_dim") * pairs
        floor(f"{problem}: TFLOP/s", flops / us / 1e6, 300)
sys.exit(1 if missed else 0)
