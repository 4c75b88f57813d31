"""Tests of the peer `torch`, asked as jitune asks it: `python3 -m unittest -v test_peer` in this folder.

What needs torch is skipped where it is not installed. Expectations are computed here in f64, from what is stored in the
files that the peer reads.
"""

import importlib.util
import itertools
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

HERE = pathlib.Path(__file__).resolve().parent
LACKING = [name for name in ("torch", "numpy") if importlib.util.find_spec(name) is None]
if "numpy" not in LACKING:
    import numpy as np

# Largest root mean square of the errors over that of the reference: those of jitune's own check.
LIMITS = {"bf16": 4e-3, "f16": 6e-4, "tf32": 1e-3, "f32": 5e-6}
# Not the default of any norm.
EPS = 1e-3
SLACK = {"attention": 2, "decode": 2, "paged_attention": 2, "softmax": 2}


class Process:
    """A peer that is running."""

    def __init__(self, *flags, env=None):
        self.number = 0
        self.errors = tempfile.TemporaryFile("w+")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        command = [sys.executable, *flags, str(HERE / "peer.py")]
        self.process = subprocess.Popen(command, text=True, env={**os.environ, **(env or {})}, **pipes)

    def line(self, text):
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            self.errors.seek(0)
            raise AssertionError(f"no answer to {text[:200]}; standard error:\n{self.errors.read()[-4000:]}")
        return json.loads(answer)

    def ask(self, ask, **fields):
        self.number += 1
        answer = self.line(json.dumps({"id": self.number, "ask": ask, **fields}))
        if answer.pop("id") != self.number:
            raise AssertionError(f"the answer to another request than {self.number}: {answer}")
        return answer

    def hello(self, device="cpu:2", **options):
        return self.ask("hello", protocol=2, device=device, options=options)

    def end(self):
        """Closes its input; its exit code."""
        self.process.stdin.close()
        code = self.process.wait(60)
        self.process.stdout.close()
        self.errors.close()
        return code


def stored(values, dtype):
    """The bytes that hold values, and the values that they hold."""
    if dtype == "bf16":
        bits = np.asarray(values, np.float32).view(np.uint32)
        bits = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        return bits, (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if dtype == "e4m3":
        # All finite values of one sign, in order; the nearest, and with the sign its byte.
        table = np.array([(b & 7) * 2.0**-9 if b < 8 else (8 + (b & 7)) * 2.0 ** ((b >> 3) - 10) for b in range(0x7F)])
        size = np.abs(table[:, None] - np.abs(values).reshape(1, -1)).argmin(0).reshape(np.shape(values))
        negative = np.signbit(values)
        return (size + 128 * negative).astype(np.uint8), np.where(negative, -table[size], table[size])
    kind = {"f16": np.float16, "i32": np.int32}.get(dtype, np.float32)
    kept = np.asarray(values, kind)
    return kept, kept.astype(np.int64 if dtype == "i32" else np.float64)


class Problem:
    """A task with files of its own, and what its outputs should hold: NaN where nothing may be written."""

    def __init__(self, folder, op, dtype, dims, words=None, sets=2, flush_bytes=0):
        self.op, self.dtype, self.dims, self.words = op, dtype, dims, words or {}
        self.folder, self.tensors, self.values = pathlib.Path(folder), [], {}
        self.random = np.random.default_rng(7)
        self.expected = {}
        getattr(self, op)()
        names = {**dims, **self.words}
        self.text = f"{op} {' '.join(f'{k}={v}' for k, v in names.items())} dtype={dtype}"
        self.task = {
            "problem": self.text, "op": op, "dtype": dtype, "dims": dims, "words": self.words,
            "reals": {"eps": EPS}, "tensors": self.tensors,
            "sets": sets, "flush_bytes": flush_bytes, "round_us": 200, "warm_s": 0.05,
        }  # fmt: skip

    def dim(self, *names):
        return [self.dims[name] for name in names]

    def put(self, name, values, dtype=None):
        dtype = dtype or ("f32" if self.dtype == "tf32" else self.dtype)
        data, held = stored(values, dtype)
        file = self.folder / name
        data.tofile(file)
        entry = {"name": name, "dtype": dtype, "shape": list(data.shape), "role": "in", "file": str(file)}
        self.tensors.append(entry)
        self.values[name] = held
        return held

    def uniform(self, name, shape, scale=3**0.5):
        return self.put(name, self.random.uniform(-scale, scale, shape))

    def out(self, name, expected, dtype=None):
        dtype = dtype or ("f32" if self.dtype == "tf32" else self.dtype)
        self.tensors.append({"name": name, "dtype": dtype, "shape": list(expected.shape), "role": "out"})
        self.expected[name] = expected

    def angles(self, count, half, max_pos):
        positions = self.put("positions", self.random.integers(0, max_pos, count), "i32")
        angle = np.arange(max_pos)[:, None] * 10000.0 ** (-np.arange(half) / half)
        return positions, angle

    @staticmethod
    def turned(x, table):
        """x [rows, heads, d] with its pairs rotated by table [rows, d/2, 2]."""
        y = np.empty_like(x)
        for row, j in itertools.product(range(x.shape[0]), range(x.shape[2] // 2)):
            cos, sin = table[row, j]
            a, b = x[row, :, 2 * j], x[row, :, 2 * j + 1]
            y[row, :, 2 * j], y[row, :, 2 * j + 1] = a * cos - b * sin, a * sin + b * cos
        return y

    def matmul(self):
        m, n, k = self.dim("m", "n", "k")
        epilogue = self.words.get("epilogue", "")
        product = self.uniform("x", (m, k)) @ self.uniform("w", (n, k), (3 / k) ** 0.5).T
        if self.dtype == "e4m3":
            # Of the operands alone.
            self.dtype = "bf16"
        if epilogue.startswith("bias") or self.dims.get("bias"):
            product = product + self.uniform("bias", n)
        if epilogue.endswith("residual"):
            product = product + self.uniform("residual", (m, n))
        if epilogue.endswith("swiglu"):
            gate, up = product[:, 0::2], product[:, 1::2]
            product = gate / (1 + np.exp(-gate)) * up
        if self.op == "qkv":
            self.heads(product)
        else:
            self.out("y", product)

    def qkv(self):
        self.matmul()

    def heads(self, product):
        m = len(product)
        heads, kv, d, page, pages, max_pos = self.dim("heads", "kv_heads", "head_dim", "page", "pages", "max_pos")
        positions, angle = self.angles(m, d // 2, max_pos)
        slots = self.put("slots", self.random.permutation(pages * page)[:m], "i32")
        table = self.put("cos_sin", np.stack([np.cos(angle), np.sin(angle)], -1), "f32")[positions]
        product = product.reshape(m, heads + 2 * kv, d)
        if self.dims["qk_norm"]:
            for name, some in (("q_norm", slice(heads)), ("k_norm", slice(heads, heads + kv))):
                scale = 1 / np.sqrt((product[:, some] ** 2).mean(2, keepdims=True) + EPS)
                product[:, some] *= scale * self.uniform(name, d)
        self.out("y", self.turned(product[:, :heads], table).reshape(m, heads * d))
        keys, values = self.turned(product[:, heads : heads + kv], table), product[:, heads + kv :]
        for name, rows in (("k_cache", keys), ("v_cache", values)):
            cache = np.full((pages, kv, page, d), np.nan)
            for i, slot in enumerate(slots):
                cache[slot // page, :, slot % page] = rows[i]
            self.out(name, cache)

    @staticmethod
    def average(q, k, v):
        if len(k) == 0:
            return np.zeros_like(q)
        weights = np.exp(k @ q / math.sqrt(len(q)))
        return weights @ v / weights.sum()

    def attention(self):
        batch, queries, kv, heads, kv_heads, d, causal = self.dim(
            "batch", "q", "kv", "heads", "kv_heads", "head_dim", "causal"
        )
        q = self.uniform("q", (batch, queries, heads, d), 12**0.5)
        k, v = self.uniform("k", (batch, kv_heads, kv, d)), self.uniform("v", (batch, kv_heads, kv, d))
        o = np.empty_like(q)
        for b, i, h in np.ndindex(batch, queries, heads):
            seen = min(max(i + 1 + kv - queries, 0), kv) if causal else kv
            g = h // (heads // kv_heads)
            o[b, i, h] = self.average(q[b, i, h], k[b, g, :seen], v[b, g, :seen])
        self.out("o", o)

    def decode(self):
        batch, context, heads, kv_heads, d, page = self.dim("batch", "context", "heads", "kv_heads", "head_dim", "page")
        max_pages = -(-context // page)
        self.dims = {**self.dims, "max_pages": max_pages, "pages": batch * max_pages}
        q = self.uniform("q", (batch, heads, d), 12**0.5)
        k, v = (self.uniform(name, (batch * max_pages, kv_heads, page, d)) for name in ("k_cache", "v_cache"))
        table = self.put("block_table", self.random.permutation(batch * max_pages).reshape(batch, max_pages), "i32")
        lens = [context if self.words["lens"] == "full" else context - context * b // batch for b in range(batch)]
        lens = self.put("lens", lens, "i32")
        o = np.empty_like(q)
        for b, h in np.ndindex(batch, heads):
            g = h // (heads // kv_heads)
            rows = [np.stack([c[table[b, t // page], g, t % page] for t in range(lens[b])]) for c in (k, v)]
            o[b, h] = self.average(q[b, h], *rows)
        self.out("o", o)

    def paged_attention(self):
        tokens, batch, context, heads, kv_heads, d, page = self.dim(
            "tokens", "batch", "context", "heads", "kv_heads", "head_dim", "page"
        )
        max_pages = -(-context // page)
        self.dims = {**self.dims, "max_pages": max_pages, "pages": batch * max_pages}
        q = self.uniform("q", (tokens, heads, d), 12**0.5)
        k, v = (self.uniform(name, (batch * max_pages, kv_heads, page, d)) for name in ("k_cache", "v_cache"))
        table = self.put("block_table", self.random.permutation(batch * max_pages).reshape(batch, max_pages), "i32")
        starts = self.put("q_starts", [tokens * b // batch for b in range(batch + 1)], "i32")
        self.put("kv_lens", [context] * batch, "i32")
        o = np.empty_like(q)
        for b in range(batch):
            for i, h in itertools.product(range(starts[b], starts[b + 1]), range(heads)):
                g, seen = h // (heads // kv_heads), context - (starts[b + 1] - 1 - i)
                rows = [np.stack([c[table[b, t // page], g, t % page] for t in range(seen)]) for c in (k, v)]
                o[i, h] = self.average(q[i, h], *rows)
        self.out("o", o)

    def norm(self, layer):
        rows, cols, residual = self.dim("rows", "cols", "residual")
        h = self.uniform("x", (rows, cols))
        if residual:
            h = h + self.uniform("residual", (rows, cols))
        weight = self.uniform("weight", cols)
        shift = self.uniform("bias", cols) if layer else 0
        centred = h - (h.mean(1, keepdims=True) if layer else 0)
        self.out("y", centred / np.sqrt((centred**2).mean(1, keepdims=True) + EPS) * weight + shift)
        if residual:
            self.out("h", h)

    def rmsnorm(self):
        self.norm(False)

    def layernorm(self):
        self.norm(True)

    def silu_mul(self):
        rows, cols = self.dim("rows", "cols")
        x = self.uniform("x", (rows, 2 * cols))
        self.out("y", x[:, 0::2] / (1 + np.exp(-x[:, 0::2])) * x[:, 1::2])

    def gelu(self):
        x = self.uniform("x", self.dim("rows", "cols"))
        self.out("y", 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))))

    def rope(self):
        tokens, heads, d, max_pos = self.dim("tokens", "heads", "head_dim", "max_pos")
        x = self.uniform("x", (tokens, heads, d))
        positions, angle = self.angles(tokens, d // 2, max_pos)
        table = self.put("cos_sin", np.stack([np.cos(angle), np.sin(angle)], -1), "f32")
        self.out("y", self.turned(x, table[positions]))

    def softmax(self):
        e = np.exp(self.uniform("x", self.dim("rows", "cols"), 4))
        self.out("y", e / e.sum(1, keepdims=True))

    def embedding(self):
        tokens, vocab, hidden = self.dim("tokens", "vocab", "hidden")
        ids = self.put("ids", self.random.integers(0, vocab, tokens), "i32")
        self.out("y", self.uniform("table", (vocab, hidden))[ids])

    def argmax(self):
        # Few values, so that every row has equals.
        x = self.put("x", self.random.integers(-3, 4, self.dim("rows", "cols")))
        self.out("y", np.array([next(c for c, v in enumerate(row) if v == row.max()) for row in x]), "i32")


QKV = {"heads": 4, "kv_heads": 2, "head_dim": 6, "page": 4, "pages": 3, "max_pos": 50}


def shapes():
    """Small problems of every op, with nothing a multiple of anything."""
    for epilogue in ("none", "bias", "residual", "swiglu", "bias_residual", "bias_swiglu"):
        yield "matmul", {"m": 5, "n": 14, "k": 37}, {"epilogue": epilogue}
    for bias, qk_norm in ((0, 0), (1, 0), (0, 1), (1, 1)):
        yield "qkv", {"m": 7, "n": 48, "k": 21, **QKV, "bias": bias, "qk_norm": qk_norm}, {}
    heads = {"heads": 4, "kv_heads": 2, "head_dim": 24}
    for q, kv, causal in ((9, 9, 1), (9, 9, 0), (3, 11, 1), (1, 11, 1), (5, 3, 1)):
        yield "attention", {"batch": 2, "q": q, "kv": kv, **heads, "causal": causal}, {}
    yield "attention", {"batch": 1, "q": 7, "kv": 7, "heads": 3, "kv_heads": 3, "head_dim": 16, "causal": 1}, {}
    for lens in ("full", "mixed"):
        yield "decode", {"batch": 3, "context": 19, **heads, "page": 8}, {"lens": lens}
    for tokens, batch, context in ((9, 1, 9), (5, 1, 19), (8, 2, 19)):
        sizes = {"tokens": tokens, "batch": batch, "context": context}
        yield "paged_attention", {**sizes, **heads, "page": 8}, {"lens": "full"}
    for op, residual in itertools.product(("rmsnorm", "layernorm"), (0, 1)):
        yield op, {"rows": 5, "cols": 67, "residual": residual}, {}
    for op in ("silu_mul", "gelu", "softmax", "argmax"):
        yield op, {"rows": 5, "cols": 67}, {}
    yield "rope", {"tokens": 5, "heads": 3, "head_dim": 10, "max_pos": 40}, {}
    yield "embedding", {"tokens": 9, "vocab": 31, "hidden": 13}, {}


NORM = {"rows": 5, "cols": 13, "residual": 0}
NORMS = {"rms_norm": ("weight",), "layer_norm": ("weight", "bias")}


class Protocol(unittest.TestCase):
    """What needs no torch."""

    def setUp(self):
        # Isolated and without site-packages, so that this Python has neither torch nor numpy.
        self.peer = Process("-S", env={"PYTHONPATH": ""})

    def tearDown(self):
        self.assertEqual(self.peer.end(), 0)

    def test_a_python_without_torch_is_told_what_brings_it(self):
        answer = self.peer.hello()
        self.assertEqual((answer["answer"], answer["kind"]), ("refused", "missing"))
        self.assertEqual(answer["fix"], "python3 -m pip install torch")
        self.assertIn("torch", answer["why"])

    def test_what_is_not_understood_is_refused_and_the_next_request_answered(self):
        for line in ("{", "[]", "null", '{"ask":"dance"}', '{"ask":["hello"]}', '{"nothing":1}', '"\u00e9"'):
            answer = self.peer.line(line)
            self.assertEqual((answer["answer"], answer["kind"]), ("refused", "failed"), line)
            self.assertIn("not understood", answer["why"])
        for ask in ("prepare", "read", "round", "once"):
            self.assertIn("comes first", self.peer.ask(ask)["why"])
        self.assertEqual(self.peer.ask("release"), {"answer": "done"})

    def test_a_wrong_hello_says_what_is_wrong(self):
        wrong = [
            ({"protocol": 1, "device": "cpu:2"}, "protocol 2"),
            ({"protocol": 2, "device": "tpu:0"}, "`tpu:0` is no device"),
            ({"protocol": 2, "device": "cpu:0"}, "`cpu:0` is no device"),
            ({"protocol": 2}, "is no device"),
            ({"protocol": 2, "device": "cpu:1", "options": {"ways": "eager,magic"}}, "no way `magic`"),
            ({"protocol": 2, "device": "cpu:1", "options": {"compile_mode": "fast"}}, "no compile_mode `fast`"),
        ]
        for fields, said in wrong:
            answer = self.peer.ask("hello", **fields)
            self.assertEqual(answer["answer"], "refused")
            self.assertIn(said, answer["why"])

    def test_quit_ends_it_without_an_answer(self):
        self.peer.process.stdin.write('{"ask":"quit"}\n')
        self.peer.process.stdin.flush()
        self.assertEqual(self.peer.process.stdout.read(), "")


@unittest.skipIf(LACKING, f"SKIPPED: this Python has no {' and no '.join(LACKING)}")
class OnProcessor(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.peer = Process()
        self.addCleanup(self.folder.cleanup)

    def tearDown(self):
        self.assertEqual(self.peer.end(), 0)

    def prepared(self, problem):
        answer = self.peer.ask("prepare", **problem.task)
        self.assertEqual(answer["answer"], "prepared", (problem.text, answer))
        return {w["way"]: w for w in answer["ways"]}, {r["way"]: r for r in answer["refused"]}

    def values(self, way, tensor, indices):
        answer = self.read(indices, way=way, tensor=tensor)
        self.assertEqual(answer, {"answer": "values", "count": len(indices)})
        values = np.fromfile(pathlib.Path(self.folder.name) / "values", "<f8")
        return [v if np.isfinite(v) else None for v in values.tolist()]

    def read(self, indices, count=None, **fields):
        files = {name: str(pathlib.Path(self.folder.name) / name) for name in ("indices", "values")}
        np.asarray(indices, "<i8").tofile(files["indices"])
        return self.peer.ask("read", count=len(indices) if count is None else count, **files, **fields)

    def check_outputs(self, problem, way):
        for tensor, expected in problem.expected.items():
            expected = expected.reshape(-1)
            got = self.values(way, tensor, list(range(expected.size)))
            place = f"{problem.text}, {way}, {tensor}"
            if problem.op == "argmax":
                self.assertEqual(got, expected.tolist(), place)
                continue
            self.assertEqual([v is None for v in got], np.isnan(expected).tolist(), place)
            error = np.array([v for v in got if v is not None]) - expected[~np.isnan(expected)]
            scale = np.sqrt((expected[~np.isnan(expected)] ** 2).mean())
            limit = LIMITS[problem.dtype] * SLACK.get(problem.op, 1)
            self.assertLess(np.sqrt((error**2).mean()) / scale, limit, place)

    def check(self, compiled):
        ways = "compile" if compiled else "eager,addmm,sdpa-cudnn,sdpa-flash,sdpa-efficient"
        about = self.peer.hello(ways=ways, compile_mode="default")
        self.assertEqual((about["answer"], about["peer"]), ("hello", "torch"), about)
        compiled_dtypes = {"matmul": ("bf16",), "attention": ("bf16",), "decode": ("f16",)}
        for op, dims, words in shapes():
            for dtype in compiled_dtypes.get(op, ("f32",)) if compiled else LIMITS:
                with self.subTest(op=op, **dims, **words, dtype=dtype):
                    problem = Problem(self.folder.name, op, dtype, dims, words)
                    problem.task["dims"] = problem.dims
                    ways, refused = self.prepared(problem)
                    self.assertEqual("compile" if compiled else "eager", next(iter(ways)))
                    self.check_ways(problem, ways, refused)

    def check_ways(self, problem, ways, refused):
        if problem.op in ("attention", "decode") and "compile" not in ways:
            self.assertEqual(refused["sdpa-cudnn"]["kind"], "unsupported")
            if problem.dims.get("q", 1) <= problem.dims.get("kv", 1):
                self.assertIn("sdpa-flash", ways, refused)
        if problem.words.get("epilogue") == "residual" and "compile" not in ways:
            self.assertIn("addmm", ways)
        for way in ways:
            self.assertEqual((ways[way]["covers"], ways[way]["captured"]), ("all", False))
            self.check_outputs(problem, way)
            self.assertEqual(self.peer.ask("once", way=way), {"answer": "done"})
            answer = self.peer.ask("round", way=way)
            self.assertEqual(answer["answer"], "round", answer)
            self.assertEqual(answer["kernel_us"], answer["called_us"])
            self.assertGreater(answer["called_us"], 0)
            self.assertTrue(answer["calls"] > 0 and answer["calls"] % problem.task["sets"] == 0, answer)
            # A round leaves what a call computes as it is.
            self.check_outputs(problem, way)

    def test_every_op_and_dtype_as_it_is_written(self):
        self.check(compiled=False)

    def test_products_of_8_bits(self):
        self.peer.hello(ways="eager,compile", compile_mode="default")
        for epilogue in ("none", "bias", "residual", "bias_residual"):
            # PyTorch takes multiples of 16.
            problem = Problem(self.folder.name, "matmul", "e4m3", {"m": 5, "n": 32, "k": 48}, {"epilogue": epilogue})
            ways, refused = self.prepared(problem)
            self.assertEqual((list(ways), refused), (["eager", "compile"], {}))
            for way in ways:
                self.check_outputs(problem, way)
        other = Problem(self.folder.name, "gelu", "f32", {"rows": 2, "cols": 3})
        answer = self.peer.ask("prepare", **{**other.task, "dtype": "e4m3"})
        self.assertEqual((answer["answer"], answer["kind"]), ("refused", "unsupported"))

    def test_every_op_compiled(self):
        self.check(compiled=True)

    def test_max_autotune_compiles(self):
        self.peer.hello(ways="compile")
        dims, words = {"m": 4, "n": 32, "k": 64}, {"epilogue": "bias"}
        problem = Problem(self.folder.name, "matmul", "f32", dims, words, sets=3, flush_bytes=1 << 20)
        ways, _ = self.prepared(problem)
        self.assertIn("max-autotune-no-cudagraphs", ways["compile"]["how"])
        self.check_outputs(problem, "compile")
        self.assertEqual(self.peer.ask("round", way="compile")["calls"] % 3, 0)

    def test_impossible_requests_are_refused_and_the_next_one_answered(self):
        self.peer.hello(ways="eager")
        good = Problem(self.folder.name, "gelu", "f32", {"rows": 2, "cols": 3})
        for change, kind, said in (
            ({"op": "convolution"}, "unsupported", "no convolution"),
            ({"dtype": "f64"}, "unsupported", "of f64"),
            ({"tensors": [{**good.tensors[0], "file": "/nowhere/x"}]}, "failed", "/nowhere/x"),
            ({"tensors": [{**good.tensors[0], "shape": [2, 4]}]}, "failed", "holds 6 values"),
            ({"sets": None}, "failed", "TypeError"),
        ):
            answer = self.peer.ask("prepare", **{**good.task, **change})
            self.assertEqual((answer["answer"], answer["kind"]), ("refused", kind), answer)
            self.assertIn(said, answer["why"])
            self.assertIn("comes first", self.peer.ask("round", way="eager")["why"])
        self.prepared(good)
        for fields, said in (
            ({"way": "magic", "tensor": "y", "indices": [0]}, "no way `magic`"),
            ({"way": "eager", "tensor": "z", "indices": [0]}, "no output `z`"),
            ({"way": "eager", "tensor": "y", "indices": [6]}, "6 elements"),
            ({"way": "eager", "tensor": "y", "indices": [-1]}, "6 elements"),
            ({"way": "eager", "tensor": "y", "indices": [0], "count": 2}, "has 1 numbers, not 2"),
        ):
            answer = self.read(**fields)
            self.assertEqual(answer["answer"], "refused")
            self.assertIn(said, answer["why"])
        self.check_outputs(good, "eager")
        self.assertEqual(self.peer.ask("release"), {"answer": "done"})
        self.assertIn("comes first", self.peer.ask("round", way="eager")["why"])

    def test_cudnn_is_not_offered_on_a_processor(self):
        pathlib.Path(self.folder.name, "cudnn.py").touch()
        peer = Process(env={"PYTHONPATH": self.folder.name})
        self.addCleanup(peer.end)
        peer.hello(ways="eager,cudnn")
        answer = peer.ask("prepare", **Problem(self.folder.name, "rmsnorm", "f32", NORM).task)
        self.assertEqual(([w["way"] for w in answer["ways"]], answer["refused"]), (["eager"], []))

    def test_a_missing_gpu_is_said(self):
        import torch

        if torch.cuda.is_available():
            self.skipTest("there is a GPU")
        answer = self.peer.hello("cuda:0")
        self.assertEqual((answer["answer"], answer["kind"]), ("refused", "missing"))
        self.assertEqual(answer["fix"], "python3 -m pip install torch")


class StandIn:
    """A graph that computes as cuDNN's do, in the last of its three plans; the first cannot be built."""

    def __init__(self, fuses):
        self.fuses, self.added, self.built = fuses, None, []

    def tensor(self, **_):
        return mock.MagicMock()

    def add(self, a, b, name):
        self.added = a, b, mock.MagicMock()
        return self.added[2]

    def rmsnorm(self, input, scale, epsilon, bias=None, **_):
        self.norm = input, scale, bias, epsilon, mock.MagicMock()
        return self.norm[-1], None

    layernorm = rmsnorm

    def validate(self):
        pass

    build_operation_graph = check_support = validate

    def create_execution_plans(self, _):
        if self.added and not self.fuses:
            raise NotSupported("no engine adds")

    def get_execution_plan_count(self):
        return 3

    def build_plan_at_index(self, plan):
        if plan == 0:
            raise NotSupported("not this one")
        self.built.append(plan)

    def get_workspace_size_plan_at_index(self, plan):
        return 0

    def execute_plan_at_index(self, buffers, workspace, plan, handle):
        if self.added:
            a, b, h = self.added
            buffers[h].copy_(buffers[a] + buffers[b])
        x, scale, bias, epsilon, y = self.norm
        x = buffers[x]
        centred = x - x.mean(1, keepdim=True) if bias else x
        normed = centred / ((centred**2).mean(1, keepdim=True) + buffers[epsilon].item()).sqrt() * buffers[scale]
        buffers[y].copy_(normed + buffers[bias] if bias else normed)


class NotSupported(Exception):
    pass


@unittest.skipIf(LACKING, f"SKIPPED: this Python has no {' and no '.join(LACKING)}")
class CudnnNorms(unittest.TestCase):
    def test_the_form_computes_the_norm_with_the_addition_in_the_graph_or_before(self):
        import torch
        import torch_cudnn
        from torch_forms import Candidate

        task, options = {"dtype": "f32", "dims": NORM}, {"generator": torch.Generator().manual_seed(7)}
        t = {name: torch.randn(5, 13, **options) for name in ("x", "residual")}
        t |= {name: torch.randn(13, **options) for name in ("weight", "bias")}
        for (name, params), residual, fuses in itertools.product(NORMS.items(), (0, 1), (True, False)):
            cudnn = mock.MagicMock(cudnnGraphNotSupportedError=NotSupported)
            cudnn.pygraph.side_effect = [StandIn(fuses), StandIn(fuses)]
            task["dims"] = {**NORM, "residual": residual}
            with (
                mock.patch.dict(sys.modules, cudnn=cudnn),
                mock.patch.multiple(torch_cudnn, has=lambda *_: True, handle=mock.MagicMock()),
                mock.patch.object(torch_cudnn.Norm, "timed", lambda norm, _: 3 - norm.plan),
                self.subTest(name=name, residual=residual, fuses=fuses),
            ):
                (form,) = torch_cudnn.norm(task, t, name, params, 1e-5)
                way = Candidate(form, [t], None).make()
                h = t["x"] + t["residual"] * residual
                weights = [t[p] for p in params]
                norm = getattr(torch.nn.functional, name)
                torch.testing.assert_close(way.output("y"), norm(h, (13,), *weights, eps=1e-5))
                if residual:
                    torch.testing.assert_close(way.output("h"), h)
                    self.assertEqual("graph of add and" in way.how, fuses)
                if fuses:
                    self.assertEqual((way.function.plan, way.function.graph.built), (2, [1, 2]))

    @unittest.skipIf(importlib.util.find_spec("cudnn") is None, "SKIPPED: this Python has no nvidia-cudnn-frontend")
    def test_cudnn_takes_the_graphs(self):
        import cudnn
        import torch_cudnn

        # Validation does not touch the handle, and newer versions open a device where none is given.
        where = {"handle": cudnn.Handle(0)} if hasattr(cudnn, "Handle") else {}
        for (name, params), residual, dtype in itertools.product(NORMS.items(), (0, 1), LIMITS):
            with self.subTest(name=name, residual=residual, dtype=dtype):
                params = ("residual",) * residual + params
                graph, taken, given = torch_cudnn.norm_graph(cudnn, name, dtype, (5, 13), params, **where)
                graph.validate()
                self.assertEqual(list(taken), ["x", *params, "epsilon"])
                self.assertEqual(list(given), ["y", "h"][: 1 + residual])
                self.assertTrue(all(tensor.get_dim() == [5, 13, 1, 1] for tensor in given.values()))


if __name__ == "__main__":
    unittest.main()
