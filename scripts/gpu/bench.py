#!/usr/bin/env python3
"""What the rows of `jitune bench` say beside the limits of one H100: bench.py engines.jsonl. Exit code 1 where one is missed."""

import json
import statistics
import sys

# Ratio of the peer's figure to ours, or of ours to the peer's where more is better: (workload, figure, in one process, over HTTP).
BESIDE_VLLM = {
    "llama-3.2-1b": [
        ("batch-1", "tpot", 1.8, 1.6),
        ("batch-32", "tpot", 2.0, 1.7),
        ("sustained-128", "output", 1.8, 1.8),
        ("sustained-1024", "output", 1.2, 1.2),
    ],
    "llama-3.1-8b": [("batch-1", "tpot", 1.15, 1.15), ("sustained-1024", "output", 1.1, 1.1)],
}
# The same engine twice.
TWIN = {"output": 0.03, "ttft": 0.05}


def figure(cell, name):
    measured = cell["measured"]
    return measured["output_throughput"] if name == "output" else measured[f"{name}_ms"]["median"]


def main(path):
    run, starts, cells = None, {}, {}
    for line in open(path):
        line = json.loads(line)
        match line["kind"]:
            case "run":
                run = line
            case "start":
                starts[line["engine"]] = line
            case "cell" if line["measured"] and line["state"] == "ok":
                cells.setdefault((line["workload"], line["engine"]), []).append(line)
    of = lambda workload, engine, name: statistics.median(figure(c, name) for c in cells[workload, engine])
    missed = False
    print(f"{'workload':<16} {'engine':<16} {'tokens/s':>10} {'TTFT ms':>9} {'p99':>9} {'TPOT ms':>8} {'ITL p99':>8} {'goodput':>8}")
    for workload, engine in cells:
        m = cells[workload, engine][-1]["measured"]
        goodput = f"{m['goodput']:8.2f}" if m["goodput"] is not None else f"{'-':>8}"
        print(f"{workload:<16} {engine:<16} {m['output_throughput']:10.1f} {m['ttft_ms']['median']:9.2f} {m['ttft_ms']['p99']:9.2f} {m['tpot_ms']['median']:8.3f} {m['itl_ms']['p99']:8.2f} {goodput}")
    for workload in {workload for workload, _ in cells}:
        if not {(workload, "jitune"), (workload, "jitune#2")} <= cells.keys():
            continue
        for name, most in TWIN.items():
            one, two = of(workload, "jitune", name), of(workload, "jitune#2", name)
            differs = abs(one - two) / max(one, two)
            word = "ok" if differs <= most else "MISSED"
            missed |= word != "ok"
            print(f"{workload}: {name} of the same engine twice differs by {100 * differs:.1f}% (limit {100 * most:.0f}): {word}")
    name = next((name for name in BESIDE_VLLM if name in run["model"]), None)
    for workload, measure, process, http in BESIDE_VLLM.get(name, []):
        if not {(workload, "jitune"), (workload, "vllm")} <= cells.keys():
            continue
        ours, theirs = of(workload, "jitune", measure), of(workload, "vllm", measure)
        ratio = theirs / ours if measure != "output" else ours / theirs
        limit = http if starts["vllm"]["transport"] == "http" else process
        word = "ok" if ratio >= limit else "MISSED"
        missed |= word != "ok"
        print(f"{workload}: {measure} beside vLLM's {ratio:.2f}x (limit {limit}): {word}")
    for workload in {workload for workload, _ in cells}:
        best = max((engine for w, engine in cells if w == workload), key=lambda engine: of(workload, engine, "output"))
        if not best.startswith("jitune"):
            missed = True
            print(f"{workload}: {best} gives more tokens a second than jitune: MISSED")
    return missed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
