#!/usr/bin/env python3
"""An engine that goes wrong in the way of its name, in front of one that does not: $RIGHT is the command of the latter."""

import json
import os
import subprocess
import sys
import threading
import time

way = os.path.basename(sys.argv[0]).removeprefix("jitune-engine-")
right = subprocess.Popen(os.environ["RIGHT"].split("\n"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
held, asked, submitted, cut = {}, {}, [], set()
lock = threading.Lock()


def ask():
    for line in sys.stdin:
        said = json.loads(line)
        if said["ask"] == "submit":
            submitted.append(said["id"])
            asked[said["id"]] = said["most"]
            # The warm-up is answered.
            if way == "drops" and len(submitted) % 10 == 0:
                tell({"id": said["id"], "tell": "end", "why": "failed", "error": "dropped"})
                continue
            if way == "counts" and len(submitted) > 1:
                said["most"] += 1
                line = json.dumps(said) + "\n"
        if said["ask"] == "logits":
            held[said["id"]] = said["file"]
        right.stdin.write(line.encode())
        right.stdin.flush()
    right.stdin.close()


def tell(said):
    with lock:
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()


threading.Thread(target=ask, daemon=True).start()
pieces = {}
for line in right.stdout:
    said = json.loads(line)
    number = said["id"]
    if said["tell"] == "hello":
        said["engine"] = way
        said["device"] = "a device by another name"
    if said["tell"] == "logits" and way == "wrong":
        # The neighbour's logits.
        with open(held[number], "r+b") as file:
            rows = file.read()
            file.seek(0)
            file.write(rows[4:] + rows[:4])
    if way == "stalls" and len(submitted) > 4 and said["tell"] in ("tokens", "end"):
        continue
    if way == "bundles" and said["tell"] == "tokens":
        pieces.setdefault(number, []).extend(said["ids"])
        if len(pieces[number]) < 4:
            continue
        said["ids"] = pieces.pop(number)
    if way == "bundles" and said["tell"] == "end" and number in pieces:
        tell({"id": number, "tell": "tokens", "ids": pieces.pop(number), "at_us": 0})
    if way == "dies" and len(submitted) > 3 and said["tell"] == "tokens":
        sys.exit("there is no more of it")
    tell(said)
