"""An engine of a library that computes batches: those that wait are taken together, and run to their end.

The same as `Static` of the crate `jitune-peer`. A library has `load(ask)`, which gives the fields of `loaded`, `begin(prompts, samplings)` and
`next(place)`, which give the next token of each row, `logits(prompt, file)`, `ends`, `stats()`, `reset()` and `close()`.
"""

import traceback

from peer import reason


class Row:
    def __init__(self, number, request):
        self.number, self.request, self.ended = number, request, False


class Static:
    def __init__(self, library):
        self.library = library
        self.most, self.waiting, self.batch = 1, [], []
        # Tokens of each answer so far.
        self.place = 0
        self.steps = self.prompt_tokens = self.answer_tokens = 0

    def load(self, ask):
        """Loads a model; the fields of `loaded`."""
        loaded = self.library.load(ask)
        self.most = loaded["sequences"]
        self.steps = self.prompt_tokens = self.answer_tokens = 0
        return {"batching": "static", **loaded}

    def submit(self, number, request, teller):
        """Takes a request; its tokens and its end are told under `number`, at any time and from any thread."""
        self.waiting.append(Row(number, request))

    def cancel(self, number, teller):
        """Ends a request early. Nothing happens to one that has ended."""
        for row in self.waiting + self.batch:
            if row.number == number and not row.ended:
                row.ended = True
                teller.end(number, "cancelled")
        self.waiting = [row for row in self.waiting if not row.ended]
        self.let_go()

    def work(self, teller):
        """One step of the batch; whether there is more to do. An engine with threads of its own has nothing to do here."""
        if not self.batch and not self.waiting:
            return False
        try:
            self.step(teller)
        except Exception as e:
            # The batch is lost, and not who waits: the next may be smaller.
            traceback.print_exc()
            for row in self.batch:
                if not row.ended:
                    teller.end(row.number, "failed", error=reason(e))
            self.batch = []
        return bool(self.batch or self.waiting)

    def step(self, teller):
        if self.batch:
            tokens = self.library.next(self.place)
        else:
            self.gather()
            self.prompt_tokens += sum(len(row.request["prompt"]) for row in self.batch)
            tokens = self.library.begin(*zip(*((row.request["prompt"], row.request["sampling"]) for row in self.batch)))
        if len(tokens) != len(self.batch):
            raise ValueError(f"{len(tokens)} tokens for {len(self.batch)} answers")
        self.steps += 1
        self.place += 1
        for row, token in zip(self.batch, tokens):
            if row.ended:
                continue
            teller.tokens(row.number, [token])
            self.answer_tokens += 1
            stops = not row.request["ignore_eos"] and token in self.library.ends
            row.ended = stops or self.place >= row.request["most"]
            if row.ended:
                teller.end(row.number, "stop" if stops else "length")
        self.let_go()

    def gather(self):
        """The next batch: the oldest that waits, and those of its length."""
        length, left = len(self.waiting[0].request["prompt"]), []
        for row in self.waiting:
            fits = len(row.request["prompt"]) == length and len(self.batch) < self.most
            (self.batch if fits else left).append(row)
        self.waiting, self.place = left, 0

    def let_go(self):
        if all(row.ended for row in self.batch):
            self.batch = []

    def logits(self, prompt, file):
        """Writes rows of little-endian f32, one a position of the prompt."""
        self.library.logits(prompt, file)

    def stats(self):
        return {
            "waiting": len(self.waiting),
            "running": sum(not row.ended for row in self.batch),
            "steps": self.steps,
            "prompt_tokens": self.prompt_tokens,
            "answer_tokens": self.answer_tokens,
            **self.library.stats(),
        }

    def reset(self):
        """Forgets what is kept of earlier prompts."""
        self.library.reset()

    def close(self):
        self.library.close()
