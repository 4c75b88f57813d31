#!/usr/bin/env python3
"""A peer for the tests of `jitune compare`. What it does follows from the name it was started by:

jitune-peer-right   y = x·Wᵀ in plain Python
jitune-peer-wrong   the same, one element off
jitune-peer-crash   dies when it is asked for its second round
jitune-peer-slow    takes its time for every round
jitune-peer-partial says that it covers something that nobody can compare
jitune-peer-stuck   does not come to an end of setting up
"""
import array
import json
import os
import sys
import time

name = os.path.basename(sys.argv[0]).removeprefix("jitune-peer-")
y, rounds = [], 0


def answer(**fields):
    print(json.dumps(fields), flush=True)


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
                time.sleep(1000)
            y = product(ask)
            if name == "wrong":
                y[0] += 1.0
            covers = "product" if name == "partial" else "all"
            answer(answer="prepared", ways=[{"way": "plain", "how": "a sum", "covers": covers, "captured": False}], refused=[])
        case "read":
            answer(answer="values", values=[y[i] for i in ask["indices"]])
        case "round":
            rounds += 1
            if name == "crash" and rounds == 2:
                print("about to die", file=sys.stderr, flush=True)
                os.kill(os.getpid(), 11)
            if name == "slow":
                time.sleep(0.3)
            answer(answer="round", kernel_us=50.0, called_us=50.0, calls=1)
        case "quit":
            break
        case _:
            answer(answer="done")
