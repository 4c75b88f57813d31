"""Tests of the engines in Python, asked as jitune asks them: `python3 -m unittest -v test_engine` in this folder.

What needs torch and transformers is skipped where they are not installed, and the golden models where JITUNE does not name the program
that makes their weights.
"""

import contextlib
import importlib.util
import json
import os
import pathlib
import queue
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from collections import Counter

HERE = pathlib.Path(__file__).resolve().parent
GOLDEN = HERE.parent.parent / "program/tests/golden/models.json"
LACKING = [name for name in ("torch", "numpy", "transformers") if importlib.util.find_spec(name) is None]
JITUNE = os.environ.get("JITUNE")
if "numpy" not in LACKING:
    import numpy as np


class Process:
    """An engine that is running: what it tells, by the number of what it was asked."""

    def __init__(self, *command, env=None):
        self.number, self.told, self.lines = 0, {}, queue.Queue()
        self.errors = tempfile.TemporaryFile("w+")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        self.process = subprocess.Popen([sys.executable, *command], cwd=HERE, env={**os.environ, **(env or {})}, **pipes)
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def write(self, data):
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def send(self, ask, **fields):
        """Asks; the number of the request."""
        self.number += 1
        self.write(json.dumps({"id": self.number, "ask": ask, **fields}).encode() + b"\n")
        return self.number

    def take(self, seconds=240):
        """The next line that is told; none at the end."""
        try:
            line = self.lines.get(timeout=seconds)
        except queue.Empty:
            raise AssertionError(f"nothing is told; standard error:\n{self.said()}") from None
        if line is None:
            return None
        told = json.loads(line)
        self.told.setdefault(told.pop("id"), []).append(told)
        return told

    def wait(self, number, tells):
        """The first of these that is told under a number; all that is told before is kept."""
        while True:
            for told in self.told.get(number, []):
                if told["tell"] in tells:
                    return told
            if self.take() is None:
                raise AssertionError(f"it ended; standard error:\n{self.said()}")

    def ask(self, ask, **fields):
        number = self.send(ask, **fields)
        return self.wait(number, ("hello", "loaded", "logits", "stats", "done", "refused"))

    def hello(self, device="cpu:2", protocol=1, **options):
        return self.ask("hello", protocol=protocol, device=device, options=options)

    def load(self, folder, dtype="f32", context=400, sequences=4, **fields):
        fields = {"folder": str(folder), "dtype": dtype, "context": context, "sequences": sequences, "prefix": False, **fields}
        return self.ask("load", **fields)

    def submit(self, prompt, most, ignore_eos=True, **sampling):
        return self.send("submit", prompt=prompt, most=most, ignore_eos=ignore_eos, sampling={"temperature": 0.0, **sampling})

    def end_of(self, number):
        return self.wait(number, ("end",))

    def answer(self, number):
        """The tokens of an answer that has its length; nothing comes after its end."""
        end = self.end_of(number)
        if end != {"tell": "end", "why": "length"}:
            raise AssertionError(f"{end}; standard error:\n{self.said()}")
        return [token for told in self.told[number] if told["tell"] == "tokens" for token in told["ids"]]

    def answers(self, prompts, most, **sampling):
        return [self.answer(number) for number in [self.submit(prompt, most, **sampling) for prompt in prompts]]

    def said(self):
        self.errors.seek(0)
        return self.errors.read()[-4000:]

    def end(self):
        """Closes its input; its exit code."""
        self.process.stdin.close()
        code = self.process.wait(60)
        self.process.stdout.close()
        self.errors.close()
        return code


class Counting:
    """A library that counts up from the last token of each prompt, modulo 100; 13 ends answers."""

    ends = {13}

    def __init__(self, options):
        self.pause, self.noise, self.rows = float(options.get("pause", 0)), "noise" in options, []
        self.batches = []

    def load(self, ask):
        print("a library prints")
        os.write(1, b"and writes to descriptor 1\n")
        subprocess.run([sys.executable, "-c", "print('as do processes that it starts'); input()"], check=False)
        return {"sequences": ask["sequences"], "vocab": 100, "memory_bytes": None, "notes": []}

    def begin(self, prompts, samplings):
        if any(prompt[-1] == 66 for prompt in prompts):
            raise MemoryError("no room\nfor this")
        self.batches.append([len(prompt) for prompt in prompts])
        self.rows = [prompt[-1] for prompt in prompts]
        return self.next(0)

    def next(self, place):
        print("noise at each step")
        time.sleep(self.pause)
        self.rows = [(row + 1) % 100 for row in self.rows]
        return list(self.rows)

    def logits(self, prompt, file):
        for token in prompt:
            file.write(struct.pack("<3f", token, 0.5, -1.0))

    def stats(self):
        return {"pages": len(self.batches)}

    def reset(self):
        self.batches = []

    def close(self):
        pass


def start_counting(device, options):
    from engine_batches import Static

    return {"engine": "counting", "version": "1", "device": str(device), "libraries": {}, "dtypes": []}, Static(Counting(options))


class Protocol(unittest.TestCase):
    """The loop, with a library that only counts."""

    def setUp(self):
        self.engine = Process(__file__, "--counting")

    def tearDown(self):
        if self.engine.process.poll() is None:
            self.engine.end()

    def open(self, sequences=4, **options):
        self.assertEqual(self.engine.hello(**options)["engine"], "counting")
        loaded = self.engine.load(HERE, sequences=sequences, context=64)
        self.assertEqual((loaded["batching"], loaded["sequences"]), ("static", sequences), loaded)
        return self.engine

    def test_what_a_library_prints_is_no_line_of_the_protocol(self):
        engine = self.open()
        self.assertEqual(engine.answers([[1, 2]], 3), [[3, 4, 5]])
        # A line on standard output that is no JSON would have failed to be read by now.
        said = engine.said()
        for noise in ("a library prints", "and writes to descriptor 1", "as do processes", "noise at each step"):
            self.assertIn(noise, said)

    def test_prompts_of_other_lengths_wait_for_the_next_batch(self):
        engine = self.open(sequences=2, pause="0.05")
        first = engine.submit([9], 4)
        engine.wait(first, ("tokens",))
        rest = [engine.submit(prompt, most) for prompt, most in (([1, 2], 2), ([5], 1), ([3, 4], 5), ([6, 8], 1))]
        self.assertEqual([engine.answer(n) for n in [first, *rest]], [[10, 11, 12, 13], [3, 4], [6], [5, 6, 7, 8, 9], [9]])
        stats = engine.ask("stats")
        self.assertEqual((stats["answer_tokens"], stats["prompt_tokens"]), (13, 8), stats)
        self.assertEqual((stats["waiting"], stats["running"]), (0, 0))
        # [9], [1 2 | 3 4], [5], [6 8].
        self.assertEqual((stats["pages"], stats["steps"]), (4, 11), stats)
        self.assertEqual(engine.ask("reset"), {"tell": "done"})
        self.assertEqual(engine.ask("stats")["pages"], 0)

    def test_tokens_come_one_by_one_and_answers_end_at_a_token_that_ends_them(self):
        engine = self.open()
        number = engine.submit([11], 5, ignore_eos=False)
        self.assertEqual(engine.end_of(number), {"tell": "end", "why": "stop"})
        tokens = [told for told in engine.told[number] if told["tell"] == "tokens"]
        self.assertEqual([told["ids"] for told in tokens], [[12], [13]])
        self.assertLessEqual(tokens[0]["at_us"], tokens[1]["at_us"])

    def test_a_request_is_cancelled_while_it_runs_and_while_it_waits(self):
        engine = self.open(sequences=2, pause="0.05")
        numbers = [engine.submit([1], 50), engine.submit([2], 4), engine.submit([3], 50)]
        engine.wait(numbers[0], ("tokens",))
        for number in (numbers[0], numbers[2]):
            self.assertEqual(engine.ask("cancel", request=number), {"tell": "done"})
            self.assertEqual(engine.told[number][-1], {"tell": "end", "why": "cancelled"})
        self.assertEqual(engine.answer(numbers[1]), [3, 4, 5, 6])
        self.assertEqual(engine.ask("cancel", request=numbers[0]), {"tell": "done"})
        self.assertEqual(engine.ask("cancel", request=999), {"tell": "done"})
        after = engine.answers([[7]], 2)
        self.assertEqual(after, [[8, 9]])
        # Nothing is told of one that has ended, and the batch of cancelled ones does not run on.
        self.assertEqual([told["tell"] for told in engine.told[numbers[0]]].count("end"), 1)
        self.assertLess(engine.ask("stats")["steps"], 20)

    def test_stats_are_told_between_steps(self):
        engine = self.open(sequences=1, pause="0.05")
        engine.submit([1], 30)
        waits = engine.submit([2], 1)
        engine.wait(1 + 2, ("tokens",))
        stats = engine.ask("stats")
        self.assertEqual((stats["running"], stats["waiting"]), (1, 1))
        self.assertNotIn(waits, engine.told)

    def test_a_batch_that_fails_is_lost_alone(self):
        engine = self.open()
        bad = engine.submit([66], 2)
        self.assertEqual(engine.end_of(bad), {"tell": "end", "why": "failed", "error": "MemoryError: no room for this"})
        self.assertEqual(engine.answers([[1]], 2), [[2, 3]])

    def test_impossible_requests_are_refused_and_the_next_one_answered(self):
        engine = self.engine
        refused = engine.hello(protocol=2)
        self.assertEqual((refused["tell"], refused["kind"]), ("refused", "missing"))
        self.assertIn("one version", refused["fix"])
        self.assertIn("`hello` comes first", engine.load(HERE)["why"])
        engine.hello()
        self.assertIn("`load` comes first", engine.ask("stats")["why"])
        self.assertIn("`load` comes first", engine.end_of(engine.submit([1], 1))["error"])
        self.assertIn("/nowhere", engine.load("/nowhere")["why"])
        self.assertIn("sequences", engine.load(HERE, sequences=0)["why"])
        self.open()
        refused = engine.ask("dance")
        self.assertEqual((refused["tell"], refused["kind"]), ("refused", "failed"))
        self.assertIn("`dance`", refused["why"])
        for prompt, most, said in (
            ([], 1, "at least one"), ([1], 0, "at least one"), ([1], 64, "context of 64"), ([100], 1, "no token 100"),
            ([-1], 1, "no token -1"), ([1.5], 1, "no token 1.5"), ([None], 1, "no token None"), ([1], None, "at least one"),
        ):
            end = engine.end_of(engine.submit(prompt, most))
            self.assertEqual(end["why"], "failed")
            self.assertIn(said, end["error"])
        self.assertIn("/nowhere/x", engine.ask("logits", prompt=[1], file="/nowhere/x")["why"])
        self.assertEqual(engine.answers([[1]], 63)[0][-1], 64)

    def test_logits_are_written_row_by_row(self):
        engine = self.open()
        with tempfile.NamedTemporaryFile() as file:
            self.assertEqual(engine.ask("logits", prompt=[7, 8], file=file.name), {"tell": "logits", "rows": 2, "vocab": 3})
            self.assertEqual(struct.unpack("<6f", file.read()), (7.0, 0.5, -1.0, 8.0, 0.5, -1.0))

    def test_the_end_of_the_input_and_quit_end_it_while_it_works(self):
        for end in (lambda: None, lambda: self.engine.send("quit")):
            self.tearDown()
            self.engine = Process(__file__, "--counting")
            engine = self.open(pause="0.05")
            engine.wait(engine.submit([1], 60), ("tokens",))
            begun = time.monotonic()
            end()
            self.assertEqual(engine.end(), 0)
            self.assertLess(time.monotonic() - begun, 2)

    def test_what_is_no_request_ends_it_with_a_reason(self):
        from engine import MAX_LINE

        for line, said in (
            (b"{\n", "not understood"), (b"[1]\n", "not understood"), (b'{"ask":"stats"}\n', "`id`"),
            (b'{"id":1,"ask":"submit","prompt":[' + b"1," * (MAX_LINE // 2) + b"1]}\n", "a line of over 4194304 bytes"),
        ):
            engine = Process(__file__, "--counting")
            # It may have read enough before the end of the line.
            with contextlib.suppress(BrokenPipeError):
                engine.write(line)
            self.assertIsNone(engine.take(20))
            self.assertEqual(engine.process.wait(20), 4)
            self.assertIn(said, engine.said())
            with contextlib.suppress(BrokenPipeError):
                engine.end()

    def test_a_line_of_the_greatest_length_is_read(self):
        from engine import MAX_LINE

        engine = self.open()
        text = b'{"id":77,"ask":"stats"'
        engine.write(text + b" " * (MAX_LINE - len(text) - 2) + b"}\n")
        self.assertEqual(engine.wait(77, ("stats", "refused"))["tell"], "stats")

    def test_an_engine_that_is_not_there_is_named(self):
        done = subprocess.run([sys.executable, "engine.py", "magic"], cwd=HERE, capture_output=True, text=True)
        self.assertEqual(done.returncode, 1)
        self.assertIn("transformers|vllm", done.stderr)

    def test_what_is_missing_is_said_with_the_command_that_brings_it(self):
        for name in ("transformers", "vllm"):
            # Neither this Python's packages nor those of its user.
            engine = Process("-S", "-s", "engine.py", name)
            refused = engine.hello()
            engine.end()
            self.assertEqual((refused["tell"], refused["kind"]), ("refused", "missing"), refused)
            self.assertIn("python3 -m pip install", refused["fix"])


def prompts(count, length, vocab=97):
    return [[(7 * row + 3 * i * i + i) % vocab for i in range(length)] for row in range(count)]


@unittest.skipIf(LACKING, f"SKIPPED: this Python has no {' and no '.join(LACKING)}")
class Transformers(unittest.TestCase):
    """The engine `transformers`, on a processor."""

    @classmethod
    def setUpClass(cls):
        import torch
        import transformers

        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
        config = transformers.LlamaConfig(**sizes, vocab_size=97, max_position_embeddings=512, eos_token_id=[5, 96], initializer_range=0.3)
        torch.manual_seed(7)
        cls.net = transformers.LlamaForCausalLM(config).eval()
        cls.net.save_pretrained(cls.folder.name)

    def open(self, folder=None, dtype="f32", sequences=4, context=400, **options):
        engine = Process("engine.py", "transformers")
        self.addCleanup(engine.end)
        about = engine.hello(**options)
        self.assertEqual((about["tell"], about.get("engine")), ("hello", "transformers"), about)
        loaded = engine.load(folder or self.folder.name, dtype, sequences=sequences, context=context)
        self.assertEqual(loaded["tell"], "loaded", f"{loaded}\n{engine.said()}")
        self.assertEqual((loaded["sequences"], loaded["vocab"]), (sequences, 97))
        return engine

    def greedy(self, prompt, most):
        """The most likely tokens, each computed from all before it, and how far the next best is at least."""
        import torch

        ids, margin = list(prompt), float("inf")
        with torch.no_grad():
            for _ in range(most):
                logits = self.net(torch.tensor([ids])).logits[0, -1]
                best = logits.topk(2).values
                margin = min(margin, float(best[0] - best[1]))
                ids.append(int(logits.argmax()))
        return ids[len(prompt) :], margin

    def logits(self, engine, prompt):
        with tempfile.NamedTemporaryFile() as file:
            told = engine.ask("logits", prompt=prompt, file=file.name)
            self.assertEqual((told["tell"], told.get("rows")), ("logits", len(prompt)), told)
            return np.fromfile(file.name, "<f4").reshape(told["rows"], told["vocab"])

    @unittest.skipIf(JITUNE is None, "SKIPPED: JITUNE does not name the program that makes the golden models' weights")
    def test_golden_models_have_the_logits_and_tokens_that_are_stored(self):
        for name, golden in json.loads(GOLDEN.read_text())["models"].items():
            with self.subTest(name), tempfile.TemporaryDirectory() as folder:
                folder = pathlib.Path(folder)
                (folder / "config.json").write_text(json.dumps(golden["config"]))
                make = [JITUNE, "model", folder, "--init", f"random:{golden['seed']}", "--dtype", golden["dtype"], "-o", folder / "w"]
                subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
                engine = self.open(folder / "w")
                for stored in golden["prompts"]:
                    rows = self.logits(engine, stored["ids"])[stored["rows"]]
                    self.assertLess(np.abs(rows - np.array(stored["logits"])).max(), 1e-4 * stored["rms"])
                    sure = next((i for i, m in enumerate(stored["margins"]) if m < 1e-3 * stored["rms"]), len(stored["margins"]))
                    answer = engine.answers([stored["ids"]], len(stored["tokens"]))[0]
                    self.assertEqual(answer[:sure], stored["tokens"][:sure])
                engine.ask("reset")

    def check_mode(self, **options):
        """Answers in a batch are those that each has alone, and those of the plain computation, with the lengths that were asked for."""
        engine = self.open(**options)
        asked = prompts(3, 9)
        together = engine.answers(asked, 20)
        for prompt, answer in zip(asked, together):
            alone, margin = self.greedy(prompt, 20)
            self.assertGreater(margin, 1e-3)
            self.assertEqual(answer, alone)
            self.assertEqual(engine.answers([prompt], 20), [alone])
        mixed = [engine.submit(prompt, most) for prompt, most in zip([*prompts(2, 5), *prompts(1, 40), *asked], (1, 7, 30, 2, 9, 350))]
        self.assertEqual([len(engine.answer(n)) for n in mixed], [1, 7, 30, 2, 9, 350])
        self.assertEqual(engine.answer(mixed[4]), together[1][:9])
        self.assertEqual(engine.answer(mixed[5])[:20], together[2])
        return engine

    def test_dynamic(self):
        engine = self.check_mode(mode="dynamic")
        stats = engine.ask("stats")
        self.assertGreater(stats["peak_bytes"], 1 << 20)
        self.assertEqual(stats["answer_tokens"], 2 * 60 + 399)

    def test_static_as_written(self):
        # Traced whole, and not compiled: no C++ compiler is needed.
        engine = self.check_mode(mode="static", backend="eager", batch_sizes="1,3")
        self.assertEqual(engine.answers(prompts(2, 9), 20), engine.answers(prompts(3, 9), 20)[:2])

    def test_static_compiled(self):
        engine = self.open(mode="static", compile_mode="default", sequences=2)
        asked = prompts(2, 9)
        self.assertEqual(engine.answers(asked, 20), [self.greedy(prompt, 20)[0] for prompt in asked])

    def test_continuous(self):
        engine = self.check_mode(mode="continuous")
        number = engine.submit([1, 2, 3], 300)
        engine.wait(number, ("tokens",))
        engine.ask("cancel", request=number)
        self.assertEqual(engine.end_of(number)["why"], "cancelled")
        sampled = engine.answers(prompts(2, 9), 5, temperature=0.8, top_p=0.9, top_k=20)
        self.assertEqual([len(answer) for answer in sampled], [5, 5])
        self.assertEqual(engine.answers(prompts(1, 9), 5), [self.greedy(prompts(1, 9)[0], 5)[0]])

    def test_half_precision_is_near(self):
        exact = self.logits(self.open(), prompts(1, 30)[0])
        for dtype, most in (("bf16", 0.05), ("f16", 0.01)):
            engine = self.open(dtype=dtype)
            near = self.logits(engine, prompts(1, 30)[0])
            error = np.sqrt(np.square(near - exact).mean() / np.square(exact).mean())
            self.assertTrue(0 < error < most, f"{dtype}: {error}")
            self.assertEqual(len(engine.answers(prompts(1, 9), 7)[0]), 7)

    def test_tokens_that_end_answers(self):
        engine = self.open(mode="dynamic")
        for prompt in prompts(40, 3):
            plain, _ = self.greedy(prompt, 30)
            ends = [i for i, token in enumerate(plain) if token in (5, 96)]
            if not ends:
                continue
            number = engine.submit(prompt, 30, ignore_eos=False)
            self.assertEqual(engine.end_of(number)["why"], "stop")
            told = [token for t in engine.told[number] if t["tell"] == "tokens" for token in t["ids"]]
            self.assertEqual(told, plain[: ends[0] + 1])
            return
        self.fail("no answer has an end")

    def test_tokens_come_as_often_as_they_are_likely(self):
        import torch

        engine = self.open(mode="dynamic", sequences=500)
        prompt = prompts(1, 9)[0]
        with torch.no_grad():
            likely = self.net(torch.tensor([prompt])).logits[0, -1].double()
        for settings in ({"temperature": 2.0}, {"temperature": 2.0, "top_k": 3}, {"temperature": 2.0, "top_p": 0.6}):
            scores, order = (likely / settings["temperature"]).sort(descending=True)
            weights = scores.softmax(0)
            kept = settings.get("top_k", len(order))
            if "top_p" in settings:
                kept = int((weights.cumsum(0) < settings["top_p"]).sum()) + 1
            weights[kept:] = 0
            expected = torch.zeros_like(likely).scatter(0, order, weights / weights.sum())
            numbers = [engine.submit(prompt, 1, seed=seed, **settings) for seed in range(2000)]
            drawn = Counter(engine.answer(number)[0] for number in numbers)
            for token, p in enumerate(expected.tolist()):
                slack = 4.5 * (p * (1 - p) / 2000) ** 0.5
                self.assertLessEqual(abs(drawn[token] / 2000 - p), slack, f"{settings}: token {token}")
        alike = engine.answers([prompt] * 3, 12, temperature=1.5, seed=11)
        self.assertEqual(alike[0], alike[1])
        self.assertNotEqual(alike[0], engine.answers([prompt], 12, temperature=1.5, seed=12)[0])
        # One that samples changes nothing for those beside it.
        numbers = [engine.submit(prompt, 12, temperature=t) for t in (0.0, 1.5)]
        self.assertEqual(engine.answer(numbers[0]), self.greedy(prompt, 12)[0])

    def test_impossible_requests_are_refused(self):
        engine = Process("engine.py", "transformers")
        self.addCleanup(engine.end)
        for fields, kind, said in (
            ({"device": "tpu:0"}, "failed", "no device"), ({"mode": "magic"}, "failed", "there are: static"),
            ({"speed": "11"}, "failed", "no option `speed`"), ({"mode": "static", "batch_sizes": "1,x"}, "failed", "batch_sizes"),
        ):
            refused = engine.hello(**fields)
            self.assertEqual((refused["tell"], refused.get("kind")), ("refused", kind), refused)
            self.assertIn(said, refused["why"])
        engine.hello()
        refused = engine.load(self.folder.name, "int4")
        self.assertEqual((refused["tell"], refused["kind"]), ("refused", "unsupported"))
        with tempfile.TemporaryDirectory() as empty:
            self.assertEqual(engine.load(empty)["kind"], "failed")
        self.assertEqual(engine.load(self.folder.name)["tell"], "loaded")
        self.assertEqual(engine.load(self.folder.name)["tell"], "loaded")
        self.assertEqual(len(engine.answers([[1, 2]], 3)[0]), 3)

    @unittest.skipIf(importlib.util.find_spec("gguf") is None, "SKIPPED: this Python has no gguf")
    @unittest.skipIf("JITUNE_SMOLLM2" not in os.environ, "SKIPPED: JITUNE_SMOLLM2 does not name a GGUF file")
    def test_a_file_of_gguf(self):
        golden = json.loads(GOLDEN.with_name("smollm2.json").read_text())["prompts"][0]
        engine = Process("engine.py", "transformers")
        self.addCleanup(engine.end)
        engine.hello()
        self.assertEqual(engine.load(os.environ["JITUNE_SMOLLM2"])["tell"], "loaded")
        # The stored answer goes on where the model would have ended it, after seven tokens.
        self.assertEqual(engine.answers([golden["ids"]], 7), [golden["tokens"][:7]])


if __name__ == "__main__":
    if sys.argv[1:] == ["--counting"]:
        import engine

        engine.main(start_counting)
    unittest.main()
