#!/usr/bin/env python3
"""A peer for the tests of `jitune compare`. What it does follows from the name it was started by:

jitune-peer-right   y = x·Wᵀ in plain Python
jitune-peer-wrong   the same, one element off
jitune-peer-crash   dies when it is asked for its second round
jitune-peer-slow    takes its time for every round
jitune-peer-partial says that it covers something that nobody can compare
jitune-peer-stuck   does not come to an end of setting up
jitune-peer-us=X    says that a call takes X microseconds
jitune-peer-none    says that a round made no call
jitune-peer-twice   answers a round twice
jitune-peer-stale   answers with the number of the request before
jitune-peer-endless never stops answering a round
jitune-peer-wide    answers with a line that has no end
jitune-peer-many    has a hundred thousand ways
jitune-peer-count   says that it wrote three million values
jitune-peer-short   writes one value too few
jitune-peer-nofile  writes none
"""
import array
import json
import os
import sys
import time

name = os.path.basename(sys.argv[0]).removeprefix("jitune-peer-")
y, rounds, ask = [], 0, {}


def answer(**fields):
    number = ask["id"] - 1 if name == "stale" and ask["ask"] == "round" else ask["id"]
    print(json.dumps({"id": number, **fields}), flush=True)


def e4m3(byte):
    exponent, mantissa = byte >> 3 & 15, byte & 7
    size = (8 + mantissa) * 2.0 ** (exponent - 10) if exponent else mantissa * 2.0**-9
    return -size if byte & 128 else size


def product(task):
    m, n, k = (task["dims"][d] for d in "mnk")
    values = {}
    for tensor in task["tensors"]:
        if tensor["role"] == "in":
            with open(tensor["file"], "rb") as file:
                content = file.read()
            if tensor["dtype"] == "e4m3":
                values[tensor["name"]] = [e4m3(byte) for byte in content]
            else:
                values[tensor["name"]] = array.array("f", content)
    x, w = values["x"], values["w"]
    return [sum(x[i * k + l] * w[j * k + l] for l in range(k)) for i in range(m) for j in range(n)]


for line in sys.stdin:
    ask = json.loads(line)
    match ask["ask"]:
        case "hello":
            answer(answer="hello", peer=name, version="1", device="here", libraries={})
        case "prepare":
            if name == "stuck":
                open(os.path.join(os.path.dirname(sys.argv[0]), "is-stuck"), "w").close()
                time.sleep(1000)
            y = product(ask)
            if name == "wrong":
                y[0] += 1.0
            covers = "product" if name == "partial" else "all"
            ways = [{"way": "plain", "how": "a sum", "covers": covers, "captured": False}]
            if name == "many":
                ways = [{**ways[0], "way": str(i), "how": ""} for i in range(100_000 if ask["dims"]["m"] == 4 else 100)]
            answer(answer="prepared", ways=ways, refused=[])
        case "read":
            indices = array.array("Q")
            with open(ask["indices"], "rb") as file:
                indices.frombytes(file.read())
            assert len(indices) == ask["count"]
            values = array.array("d", (y[i] for i in indices))
            if name == "short":
                values.pop()
            if name != "nofile":
                with open(ask["values"], "wb") as file:
                    values.tofile(file)
            answer(answer="values", count=3_000_000 if name == "count" else ask["count"])
        case "round":
            rounds += 1
            if name == "crash" and rounds == 2:
                print("about to die", file=sys.stderr, flush=True)
                os.kill(os.getpid(), 11)
            if name == "slow":
                time.sleep(0.3)
            if name == "wide":
                while True:
                    print("x" * 4096, end="")
            if name == "endless":
                while True:
                    answer(answer="round", kernel_us=50.0, called_us=50.0, calls=1)
            time.sleep(0.0001)
            us = float(name.partition("us=")[2] or 50.0)
            answer(answer="round", kernel_us=us, called_us=us, calls=0 if name == "none" else 1)
            if name == "twice":
                answer(answer="round", kernel_us=0.001, called_us=0.001, calls=1)
        case "quit":
            break
        case _:
            answer(answer="done")
