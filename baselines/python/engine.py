#!/usr/bin/env python3
"""An engine in Python, asked and told as docs/engines.md says: `engine.py transformers` or `engine.py vllm`.

Reads requests on standard input until its end or `quit`. Exit code 4 when the asker cannot be answered. A module of an engine has
`start(device, options)`, which answers `hello` and gives the engine: an object with the methods of `engine_batches.Static`.
"""

import importlib
import json
import os
import queue
import sys
import threading
import time
import traceback

from peer import Refusal, reason, refusal_of

PROTOCOL = 1
# The longest line, either way, in bytes.
MAX_LINE = 4 << 20
ENGINES = {"transformers": "engine_transformers", "vllm": "engine_vllm"}


class Unusable:
    """Why the asker cannot be answered any more."""

    def __init__(self, why):
        self.why = why


class Teller:
    """Tells, from any thread. Nothing that is told waits for a reader."""

    def __init__(self, to, inbox):
        self.begun = time.monotonic()
        self.lines = queue.SimpleQueue()
        self.thread = threading.Thread(target=self.write, args=(to, inbox), name="tells", daemon=True)
        self.thread.start()

    def tokens(self, number, ids):
        at_us = int((time.monotonic() - self.begun) * 1e6)
        self.lines.put(f'{{"id":{number},"tell":"tokens","ids":[{",".join(map(str, ids))}],"at_us":{at_us}}}\n')

    def end(self, number, why, error=None, cached=None):
        held = {"error": error, "cached": cached}
        self.tell(number, "end", why=why, **{k: v for k, v in held.items() if v is not None})

    def tell(self, number, tell, **fields):
        self.lines.put(json.dumps({"id": number, "tell": tell, **fields}) + "\n")

    def write(self, to, inbox):
        try:
            while (line := self.lines.get()) is not None:
                to.write(line.encode())
                if self.lines.empty():
                    to.flush()
            to.flush()
        except OSError as e:
            inbox.put(Unusable(f"standard output: {e}"))

    def finish(self):
        """Waits until all is written."""
        self.lines.put(None)
        self.thread.join()


def read(asks, inbox):
    """Reads lines until there are no more, or one is no request."""
    while line := asks.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            return inbox.put(Unusable(f"a line of over {MAX_LINE} bytes"))
        if not line.strip():
            continue
        try:
            ask = json.loads(line)
        except ValueError as e:
            return inbox.put(Unusable(f"not understood: {e}"))
        if not isinstance(ask, dict) or not natural(ask.get("id")):
            return inbox.put(Unusable("not understood: no object with an `id`"))
        inbox.put(ask)
    return inbox.put(None)


def natural(value):
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


class Loop:
    """Answers what is asked, between pieces of the engine's work."""

    def __init__(self, start, teller):
        self.start, self.teller = start, teller
        self.engine = None
        # Of the model that is loaded: tokens, and the most tokens of a prompt and its answer.
        self.vocab = self.context = 0

    def run(self, inbox):
        """Answers until the asker ends; the exit code."""
        busy = False
        while True:
            try:
                ask = inbox.get(block=not busy)
            except queue.Empty:
                busy = self.engine.work(self.teller)
                continue
            if isinstance(ask, Unusable):
                print(f"engine: {ask.why}", file=sys.stderr)
                return 4
            if ask is None or ask.get("ask") == "quit":
                return 0
            busy |= self.answer(ask)

    def answer(self, ask):
        """Answers one request; whether there is work now."""
        number, name = ask["id"], str(ask.get("ask"))
        if name == "submit":
            try:
                self.submit(number, ask)
                return True
            except Exception as e:
                self.teller.end(number, "failed", error=refusal_of(e).why)
                return False
        handlers = {
            "hello": self.hello,
            "load": self.load,
            "cancel": self.cancel,
            "logits": self.logits,
            "stats": lambda _: ("stats", self.loaded().stats()),
            "reset": self.reset,
        }
        try:
            if name not in handlers:
                raise Refusal("failed", f"not understood: there is no ask `{name}`")
            tell, fields = handlers[name](ask)
            self.teller.tell(number, tell, **fields)
        except Exception as e:
            refusal = refusal_of(e)
            fix = {"fix": refusal.fix} if refusal.fix else {}
            self.teller.tell(number, "refused", kind=refusal.kind, why=refusal.why, **fix)
        return False

    def hello(self, ask):
        if ask.get("protocol") != PROTOCOL:
            why = f"this engine speaks protocol {PROTOCOL}, not {ask.get('protocol')}"
            raise Refusal("missing", why, "take jitune and its engines from one version")
        self.close()
        options = {str(k): str(v) for k, v in (ask.get("options") or {}).items()}
        about, self.engine = self.start(ask.get("device"), options)
        return "hello", about

    def load(self, ask):
        if self.engine is None:
            raise Refusal("failed", "`hello` comes first")
        for name in ("context", "sequences"):
            if not natural(ask.get(name)) or ask[name] < 1:
                raise Refusal("failed", f"`{name}` is a number from 1 on, not {ask.get(name)!r}")
        if not os.path.exists(str(ask.get("folder"))):
            raise Refusal("failed", f"there is no {ask.get('folder')}")
        self.vocab = 0
        loaded = self.engine.load(ask)
        self.vocab, self.context = loaded["vocab"], ask["context"]
        return "loaded", loaded

    def loaded(self):
        if not self.vocab:
            raise Refusal("failed", "`load` comes first")
        return self.engine

    def tokens(self, prompt):
        """The tokens of a prompt. One that the model has not may end a device's context, not only this request."""
        if not isinstance(prompt, list) or not prompt:
            raise Refusal("failed", "a prompt has at least one token")
        if strange := [token for token in prompt if not natural(token) or token >= self.vocab]:
            raise Refusal("failed", f"the model has no token {strange[0]}")
        if len(prompt) > self.context:
            raise Refusal("failed", f"{len(prompt)} tokens in a context of {self.context}")
        return prompt

    def submit(self, number, ask):
        engine, prompt, most = self.loaded(), self.tokens(ask.get("prompt")), ask.get("most")
        if not natural(most) or most < 1:
            raise Refusal("failed", "an answer has at least one token")
        if len(prompt) + most > self.context:
            raise Refusal("failed", f"{len(prompt)} and {most} tokens in a context of {self.context}")
        sampling = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "seed": 0, **(ask.get("sampling") or {})}
        request = {"prompt": prompt, "most": most, "sampling": sampling, "ignore_eos": bool(ask.get("ignore_eos"))}
        engine.submit(number, request, self.teller)

    def cancel(self, ask):
        self.loaded().cancel(ask.get("request"), self.teller)
        return "done", {}

    def logits(self, ask):
        engine, prompt, path = self.loaded(), self.tokens(ask.get("prompt")), str(ask.get("file"))
        with open(path, "wb") as file:
            engine.logits(prompt, file)
            size = file.tell()
        width = size // (4 * len(prompt))
        if size == 0 or size != 4 * len(prompt) * width:
            raise Refusal("failed", f"{size} bytes of logits for {len(prompt)} positions")
        return "logits", {"rows": len(prompt), "vocab": width}

    def reset(self, _):
        self.loaded().reset()
        return "done", {}

    def close(self):
        engine, self.engine, self.vocab = self.engine, None, 0
        if engine is not None:
            engine.close()


def serve(start, asks, answers):
    """Serves the engine that `start` gives until the asker ends; the exit code."""
    inbox = queue.SimpleQueue()
    teller = Teller(answers, inbox)
    threading.Thread(target=read, args=(asks, inbox), name="asks", daemon=True).start()
    loop = Loop(start, teller)
    try:
        code = loop.run(inbox)
    except Exception:
        # What goes wrong here went wrong for all that run.
        traceback.print_exc()
        code = 4
    teller.finish()
    try:
        loop.close()
    except Exception as e:
        print(f"engine: at its end: {reason(e)}", file=sys.stderr)
    return code


def main(start):
    """Serves on standard input and output, and ends the process."""
    # Libraries, and processes that they start, print to descriptor 1 and may read descriptor 0 as they like.
    asks, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # As they come: whoever ends this process reads what was said before.
    sys.stdout.reconfigure(line_buffering=True)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    # A thread that computes in Python would keep tokens from being written for 5 ms, the default.
    sys.setswitchinterval(1e-4)
    code = serve(start, asks, answers)
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of libraries, and a device in error, may hold up an ordinary end.
    os._exit(code)


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in ENGINES:
        sys.exit(f"usage: {sys.argv[0]} {'|'.join(ENGINES)}")
    main(importlib.import_module(ENGINES[sys.argv[1]]).start)
