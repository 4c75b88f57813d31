#!/usr/bin/env python3
"""Times for engine.sh, and the tables of what it measured. The exit code is 1 where a limit is missed or nothing was measured.

    engine.py timed FILE LABEL [--memory] COMMAND…   runs a command and appends a line of JSON to FILE: the seconds to its first line of output
    engine.py steps FOLDER                 whole steps and answers
    engine.py load FOLDER                  many requests at once
    engine.py ttft FOLDER                  prompts one at a time
    engine.py long FOLDER                  a long prompt among requests that decode
    engine.py trace FOLDER                 gaps between graphs
    engine.py start FOLDER                 from exec to the first token, and memory
"""
import glob
import json
import pathlib
import statistics
import subprocess
import sys
import threading
import time

# Microseconds of a whole step on an H100, by model, phase, rows and context.
STEP_US = {
    ("llama-3.2-1b", "decode", 1, 160): 900, ("llama-3.2-1b", "decode", 32, 160): 1100,
    ("llama-3.2-1b", "decode", 1, 4096): 950, ("llama-3.1-8b", "decode", 1, 160): 5300,
}
STEP_RATIO, LOADED_RATIO, TTFT_RATIO, LONG_RATIO, OF_ALLOWED = 1.03, 1.05, 1.08, 1.4, 0.85
TTFT_MS = {("llama-3.2-1b", 2048): 7.5, ("llama-3.1-8b", 2048): 42}
LONG_ITL_MS, GAP_US, MEMORY = 25, 5, 0.01
START_S = {"llama-3.2-1b": 5, "llama-3.1-8b": 10}

missed = held = 0


def limit(value, most=None, least=None):
    """Says whether a value is within its limit."""
    global missed, held
    if value is None or most is None and least is None:
        return ""
    held += 1
    good = value <= most if least is None else value >= least
    missed += not good
    return f"{'ok' if good else 'MISS'} {'<=' if least is None else '>='} {most if least is None else least}"


def number(value, digits=1):
    return "-" if value is None else f"{value:.{digits}f}"


def table(header, rows):
    rows = [header] + [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    for row in rows:
        print("  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))).rstrip())


def read(pattern):
    """The lines of the files of a pattern, each with the name of its model and the file."""
    found = []
    for file in sorted(glob.glob(pattern)):
        for line in open(file):
            if line.startswith("{"):
                line = json.loads(line)
                line["file"] = pathlib.Path(file).name
                line["model"] = pathlib.Path(line["model"]).name if "model" in line else None
                found.append(line)
    return found


def median(values):
    values = [v for v in values if v is not None]
    return statistics.median(values) if values else None


def grouped(lines, key):
    groups = {}
    for line in lines:
        groups.setdefault(key(line), []).append(line)
    return groups


def steps_of(pattern):
    """Of each step the medians over processes, and what of its kernels is portable."""
    found = {}
    for key, lines in grouped(read(pattern), lambda l: (l["model"], l["phase"], l["bucket"], l["context"])).items():
        kinds = lines[0]["kernels"]
        found[key] = {
            "us": median(l["median_us"] for l in lines), "kernels_us": median(l["kernels_us"] for l in lines),
            "ratio": median(l["median_us"] / l["kernels_us"] for l in lines), "floor_us": median(l["floor_us"] for l in lines),
            "portable": sum(k["calls"] for k in kinds if k["portable"]), "calls": sum(k["calls"] for k in kinds),
            "processes": len(lines),
        }
    return found


def steps(folder):
    rows = []
    for key, s in steps_of(f"{folder}/steps-*.jsonl").items():
        model, phase, bucket, context = key
        rows.append([model, phase, bucket, context, number(s["us"]), limit(s["us"], STEP_US.get(key)), number(s["kernels_us"]),
                     number(s["ratio"], 3), limit(s["ratio"], STEP_RATIO), number(s["floor_us"]), number(s["us"] / s["floor_us"], 2),
                     f"{s['portable']}/{s['calls']}"])
    table(["model", "phase", "rows", "ctx", "step us", "", "kernels", "ratio", "", "floor", "ratio", "portable"], rows)
    print()
    answers = grouped(read(f"{folder}/answers-*.jsonl"), lambda l: l["file"].split("answers-")[1].rsplit("-", 1)[0])
    table(["answers of 128 tokens to 32", "processes", "ms a token, median", "each", "first token ms"],
          [[name, len(lines), number(median(l["tpot_ms"] for l in lines), 4), " ".join(number(l["tpot_ms"], 3) for l in lines),
            number(median(l["ttft_ms"] for l in lines))] for name, lines in answers.items()])


def spread(values):
    return [number(values[k], 2) for k in ("mean", "median", "p99", "max")]


def load(folder):
    kernels = steps_of(f"{folder}/load-steps-*.jsonl")
    rows, more = [], []
    for model, lines in grouped(read(f"{folder}/load-rounds-*.jsonl"), lambda l: l["model"]).items():
        prefill = [(key[2], s) for key, s in kernels.items() if key[:2] == (model, "prefill")]
        for line in lines:
            # Each token of an answer is a step of all sequences, half-way between the shortest and the longest context.
            middle = line["prompt"] + line["answer"] // 2
            decode = kernels.get((model, "decode", line["requests"], middle))
            allowed = floor = None
            if decode and prefill:
                tokens, part = prefill[0]
                prompts = line["requests"] * line["prompt"] / tokens
                seconds = [line["answer"] * decode[k] + prompts * part[k] for k in ("kernels_us", "floor_us")]
                allowed, floor = [line["output_tokens"] / s * 1e6 for s in seconds]
            rate = line["output_tokens_per_s"]
            share = rate / allowed if allowed else None
            # Only the first round binds and captures steps.
            gate = limit(share, least=OF_ALLOWED) if line is lines[-1] else ""
            rows.append([model, line["round"], number(line["wall_s"], 2), number(rate, 0), number(allowed, 0), number(share, 3), gate,
                         number(floor, 0), line["steps"], line["preempted"], f"{line['portable']}/{line['kernels']}"])
            more += [[model, line["round"], what, *spread(line[key])] for what, key in
                     (("TTFT", "ttft_ms"), ("ITL", "itl_ms"), ("ITL while all decode", "steady_itl_ms"))]
    table(["model", "round", "wall s", "tokens/s", "by kernels", "share", "", "by bytes", "steps", "preempted", "portable"], rows)
    print()
    table(["model", "round", "ms", "mean", "median", "p99", "max"], more)


def ttft(folder):
    kernels, rows = steps_of(f"{folder}/ttft-steps-*.jsonl"), []
    for (model, prompt), lines in grouped(read(f"{folder}/ttft-rounds-*.jsonl"), lambda l: (l["model"], l["prompt"])).items():
        warm = [l["ttft_ms"] for l in lines[-9:]]
        step = kernels.get((model, "prefill", prompt, prompt))
        value, sum_ms = median(warm), step["kernels_us"] / 1e3 if step else None
        ratio = value / sum_ms if sum_ms else None
        rows.append([model, prompt, len(warm), number(value, 3), limit(value, TTFT_MS.get((model, prompt))), number(min(warm), 3),
                     number(max(warm), 3), number(sum_ms, 3), number(ratio, 3), limit(ratio, TTFT_RATIO)])
    table(["model", "prompt", "of", "TTFT ms", "", "least", "most", "kernels ms", "ratio", ""], rows)


def long(folder):
    rows = []
    for (model, tokens), lines in grouped(read(f"{folder}/long-*.jsonl"), lambda l: (l["model"], l["tokens"])).items():
        for line in lines:
            itl, last = line["itl_ms"], line is lines[-1]
            rows.append([model, tokens, line["prompt"], line["beside"], line["round"], number(line["alone_ttft_ms"]), number(line["ttft_ms"]),
                         number(line["ratio"], 2), limit(line["ratio"], LONG_RATIO) if last else "", number(line["itl_without_ms"]["median"], 2),
                         number(itl["median"]), number(itl["p99"]), number(itl["max"]), limit(itl["max"], LONG_ITL_MS) if last else ""])
    print("ITL of the requests beside, in ms: `before` without the long prompt, the rest while it is read; `budget` is tokens of a step")
    table(["model", "budget", "prompt", "beside", "round", "alone", "TTFT", "ratio", "", "before", "median", "p99", "max", ""], rows)


def gaps_of(file):
    """Of the steady part, microseconds from the end of what runs to the start of what comes next, and microseconds of each graph."""
    launches = sorted((int(start), int(end), graph) for graph, _, start, end in (line.split() for line in open(file)) if start != "0")
    times = {}
    for at, (_, _, graph) in enumerate(launches):
        if graph != "0":
            times.setdefault(graph, []).append(at)
    if not times:
        return [], []
    # The steady part is where the graph runs that runs most often, but for a tenth at either end.
    most = max(times.values(), key=len)
    cut = len(most) // 10
    steady = launches[most[cut]:most[-1 - cut] + 1]
    gaps, end = [], steady[0][1]
    for start, then, _ in steady[1:]:
        gaps.append((start - end) / 1e3)
        end = max(end, then)
    return gaps, [(end - start) / 1e3 for start, end, graph in steady if graph != "0"]


def trace(folder):
    global missed
    rows, more = [], []
    kernels = steps_of(f"{folder}/trace-steps-*.jsonl")
    files = [file for what in ("graphs", "idle") for file in glob.glob(f"{folder}/{what}-*.txt")]
    for file in sorted(files, key=lambda f: (int(f.rsplit("-", 1)[1][:-4]), f)):
        what, name = pathlib.Path(file).stem.split("-", 1)
        model, batch = name.rsplit("-", 1)
        what = {"graphs": "between graphs", "idle": "nothing runs"}[what]
        gaps, graphs = gaps_of(file)
        if len(gaps) < 10:
            rows.append([model, batch, what, len(gaps), *"-------", "MISS few"])
            missed += 1
            continue
        gaps.sort()
        share = [gaps[min(len(gaps) - 1, int(len(gaps) * s))] for s in (0.5, 0.9, 0.99)]
        rows.append([model, batch, what, len(gaps), number(median(graphs)), *(number(g, 2) for g in (gaps[0], *share, gaps[-1])),
                     sum(g > GAP_US for g in gaps), limit(gaps[-1], GAP_US)])
    if not rows:
        missed += 1
        print("no graph was traced")
    print("us from the end of a graph to the start of the next, and us in which neither a graph nor a kernel by itself runs")
    table(["model", "batch", "gaps", "count", "graph us", "least", "median", "p90", "p99", "max", f"> {GAP_US}", ""], rows)
    print()
    for line in read(f"{folder}/untraced-*.jsonl"):
        step = kernels.get((line["model"], "decode", line["requests"], line["prompt"] + line["answer"] // 2))
        itl = line["steady_itl_ms"]["median"]
        if step is None or itl is None:
            continue
        ratio = itl * 1e3 / step["kernels_us"]
        more.append([line["model"], line["requests"], number(itl * 1e3), number(step["us"]), number(step["kernels_us"]), number(ratio, 3),
                     limit(ratio, LOADED_RATIO)])
    table(["untraced", "batch", "ITL us, median", "step us", "kernels us", "ITL/kernels", ""], more)


def start(folder):
    lines = grouped(read(f"{folder}/start.jsonl"), lambda l: l["label"])
    rows = []
    for label, these in lines.items():
        what, _, name = label.partition(" ")
        if what == "memory":
            continue
        value = median(l["first_line_s"] for l in these)
        rows.append([name, what, len(these), number(value, 2), limit(value, START_S.get(name)), " ".join(number(l["first_line_s"], 2) for l in these)])
    table(["model", "from exec to the end of", "processes", "s, median", "", "each"], rows)
    print()
    rows, mib = [], 1 << 20
    for label, these in lines.items():
        if not label.startswith("memory ") or label.endswith("/one-layer"):
            continue
        name = label.split()[1]
        small = lines.get(f"{label}/one-layer", [None])[-1]
        took = [l and l["used_mib"] for l in (these[-1], small)]
        planned = [l and l["said"]["memory_bytes"] / mib for l in (these[-1], small)]
        # What a process takes besides: the context, the loaded code. Another one that runs the same code says it.
        rest = took[1] - planned[1] if took[1] is not None else None
        taken = took[0] - rest if took[0] is not None and rest is not None else None
        off = taken / planned[0] - 1 if taken else None
        rows.append([name, number(planned[0]), number(took[0], 0), number(rest), number(taken), number(off and 100 * off, 2),
                     limit(off and abs(off), MEMORY)])
    table(["MiB", "planned", "taken", "context and code", "taken for the plan", "% off", ""], rows)


def memory_used():
    """Mebibytes in use on the GPU; none where there is none."""
    try:
        out = subprocess.run(["nvidia-smi", "-i", "0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"], capture_output=True, text=True)
        return int(out.stdout.split()[0])
    except (OSError, ValueError, IndexError):
        return None


def timed(file, label, *command):
    watch = command[0] == "--memory"
    command, before, samples = command[watch:], None, None
    if watch and (before := memory_used()) is not None:
        samples, done = [before], threading.Event()
        watcher = threading.Thread(target=lambda: [samples.append(memory_used() or 0) for _ in iter(lambda: done.wait(0.02), True)])
        watcher.start()
    begun = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    first = process.stdout.readline()
    first_s = time.monotonic() - begun
    process.stdout.read()
    code = process.wait()
    used = None
    if samples:
        done.set()
        watcher.join()
        used = max(samples) - before
    if code or not first:
        sys.exit(f"{label}: exit code {code}, and it said {first.strip() or 'nothing'}")
    line = {"label": label, "first_line_s": first_s, "wall_s": time.monotonic() - begun, "used_mib": used, "said": json.loads(first)}
    with open(file, "a") as out:
        print(json.dumps(line), file=out)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    name, rest = sys.argv[1], sys.argv[2:]
    if name == "timed":
        timed(*rest)
        sys.exit()
    {"steps": steps, "load": load, "ttft": ttft, "long": long, "trace": trace, "start": start}[name](*rest)
    if not held:
        print("nothing was held against a limit")
    sys.exit(1 if missed or not held else 0)
