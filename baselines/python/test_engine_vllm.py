"""Tests of the engine `vllm`, with a stand-in for vLLM, which needs a GPU: `python3 -m unittest -v test_engine_vllm` in this folder."""

import sys
import tempfile
import time
import unittest

from test_engine import HERE, LACKING, Process

if "numpy" not in LACKING:
    import numpy as np


class Vllm:
    """A vLLM of a few lines, with the names and the order of calls of version 0.26: it counts up from the last token of a prompt, modulo 100,
    and two tokens come at once from the third on. A prompt with 66 breaks it."""

    log = []

    class SamplingParams:
        def __init__(self, **fields):
            self.__dict__.update({"prompt_logprobs": None, "logprobs": None, **fields})

    class LogprobsProcessor:
        def _update_prompt_logprobs(self, scores):
            raise AssertionError("a Python object of each score")

        _update_sample_logprobs = _update_prompt_logprobs

        def update(self, prompt, parameters):
            width = lambda ids: np.array([[token, *reversed(range(100))] for token in ids])
            if parameters.prompt_logprobs == -1:
                ids = width(prompt[1:])
                self._update_prompt_logprobs((ids, ids + 100.0 * np.arange(len(ids))[:, None], None, None))
            if parameters.logprobs == -1:
                self._update_sample_logprobs((width([5]), width([5]) + 0.5, None, None))

    @staticmethod
    def outputs(prompt, parameters, name):
        """What comes of a request, one a step."""
        from types import SimpleNamespace as Fields

        if prompt["type"] != "token" or 66 in prompt["prompt_token_ids"]:
            raise ValueError("no room")
        Vllm.log.append({k: v for k, v in vars(parameters).items()})
        Vllm.LogprobsProcessor().update(prompt["prompt_token_ids"], parameters)
        left, token = parameters.max_tokens, prompt["prompt_token_ids"][-1]
        step = 0
        while left:
            count = min(left, 1 if step < 2 else 2)
            ids = [(token + i + 1) % 100 for i in range(count)]
            token, left, step = ids[-1], left - count, step + 1
            part = Fields(token_ids=ids, finish_reason=None if left else "length")
            yield Fields(request_id=name, outputs=[part], finished=not left, num_cached_tokens=0)

    class Engine:
        def __init__(self, arguments, usage_context):
            from types import SimpleNamespace as Fields

            if arguments.load_format == "broken":
                raise RuntimeError("Engine core initialization failed.\nSee root cause above.")
            print("vLLM prints", arguments, usage_context)
            self.vllm_config = Fields(
                model_config=Fields(get_vocab_size=lambda: 100, max_model_len=arguments.max_model_len),
                cache_config=Fields(num_gpu_blocks=50, block_size=16),
                scheduler_config=Fields(max_num_seqs=arguments.max_num_seqs, max_num_batched_tokens=2048),
                use_v2_model_runner=True,
            )
            self.requests, self.engine_core = {}, self

        from_engine_args = classmethod(lambda cls, arguments, usage_context: cls(arguments, usage_context))

        def shutdown(self):
            print("vLLM ends")

    class AsyncLLM(Engine):
        async def generate(self, prompt, parameters, name):
            import asyncio

            try:
                for output in Vllm.outputs(prompt, parameters, name):
                    await asyncio.sleep(0.02)
                    yield output
            except (asyncio.CancelledError, GeneratorExit):
                print("aborted", name)
                raise

        async def reset_prefix_cache(self):
            print("reset")

    class LLMEngine(Engine):
        def add_request(self, name, prompt, parameters):
            if 66 in prompt["prompt_token_ids"]:
                raise ValueError("no room")
            self.requests[name] = Vllm.outputs(prompt, parameters, name)

        def step(self):
            time.sleep(0.02)
            outputs = [next(r, None) for r in self.requests.values()]
            self.requests = {o.request_id: self.requests[o.request_id] for o in outputs if o and not o.finished}
            return [o for o in outputs if o]

        def has_unfinished_requests(self):
            return bool(self.requests)

        def abort_request(self, names):
            print("aborted", *names)
            for name in names:
                self.requests.pop(name, None)

        def reset_prefix_cache(self):
            print("reset")

    @staticmethod
    def install():
        """Makes them importable under vLLM's names."""
        import dataclasses
        import enum
        import importlib.machinery
        import types

        fields = ("model", "skip_tokenizer_init", "dtype", "quantization", "max_model_len", "max_num_seqs", "enable_prefix_caching",
                  "max_logprobs", "logprobs_mode", "disable_log_stats", "load_format", "gpu_memory_utilization")
        arguments = dataclasses.make_dataclass("AsyncEngineArgs", [(name, object, None) for name in fields])
        kinds = enum.Enum("RequestOutputKind", ["CUMULATIVE", "DELTA", "FINAL_ONLY"])
        contexts = enum.Enum("UsageContext", ["LLM_CLASS", "OPENAI_API_SERVER"])
        modules = {
            "vllm": {"__version__": "0.26.0"}, "vllm.engine": {}, "vllm.usage": {}, "vllm.v1": {}, "vllm.v1.engine": {},
            "vllm.engine.arg_utils": {"AsyncEngineArgs": arguments, "EngineArgs": arguments},
            "vllm.platforms": {"current_platform": types.SimpleNamespace(get_device_name=lambda: "a GPU")},
            "vllm.sampling_params": {"SamplingParams": Vllm.SamplingParams, "RequestOutputKind": kinds},
            "vllm.usage.usage_lib": {"UsageContext": contexts},
            "vllm.v1.engine.async_llm": {"AsyncLLM": Vllm.AsyncLLM},
            "vllm.v1.engine.llm_engine": {"LLMEngine": Vllm.LLMEngine},
            "vllm.v1.engine.logprobs": {"LogprobsProcessor": Vllm.LogprobsProcessor},
        }
        for name, held in modules.items():
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
            vars(sys.modules[name]).update(held)


@unittest.skipIf([n for n in LACKING if n != "transformers"], "SKIPPED: this Python has no torch and no numpy")
class VllmEngine(unittest.TestCase):
    """The engine `vllm`, with the stand-in for vLLM."""

    def open(self, **options):
        engine = Process(__file__, "--vllm")
        self.addCleanup(lambda: engine.process.poll() is None and engine.end())
        about = engine.hello(**options)
        self.assertEqual((about["tell"], about.get("version")), ("hello", "0.26.0"), about)
        return engine

    def test_answers_cancels_and_failures(self):
        for core in ("process", "inline"):
            with self.subTest(core):
                engine = self.open(core=core, **{"gpu-memory-utilization": "0.5"})
                loaded = engine.load(HERE, "bf16", sequences=3)
                self.assertEqual((loaded["batching"], loaded["sequences"], loaded["vocab"]), ("continuous", 3, 100), loaded)
                self.assertIn('"gpu_memory_utilization": 0.5', " ".join(loaded["notes"]))
                long = engine.submit([9, 8], 90)
                engine.wait(long, ("tokens",))
                others = [engine.submit([1], 1), engine.submit([2, 3], 6, temperature=0.8, top_p=0.9, seed=2**64 - 1)]
                ends = [engine.end_of(n) for n in others]
                self.assertEqual(ends, [{"tell": "end", "why": "length", "cached": 0}] * 2)
                self.assertEqual([self.tokens(engine, n) for n in others], [[2], [4, 5, 6, 7, 8, 9]])
                self.assertEqual([len(t["ids"]) for t in engine.told[others[1]][:-1]], [1, 1, 2, 2])
                self.assertEqual(engine.ask("stats")["running"], 1)
                self.assertEqual(engine.ask("logits", prompt=[1], file="/tmp/x")["tell"], "refused")
                engine.ask("cancel", request=long)
                self.assertEqual(engine.end_of(long)["why"], "cancelled")
                at_once = engine.submit([7], 90)
                engine.ask("cancel", request=at_once)
                self.assertEqual(engine.end_of(at_once)["why"], "cancelled")
                failed = engine.end_of(engine.submit([66], 1))
                self.assertEqual(failed["why"], "failed")
                self.assertIn("no room", failed["error"])
                number = engine.submit([98], 3)
                engine.end_of(number)
                self.assertEqual(self.tokens(engine, number), [99, 0, 1])
                self.assertEqual(engine.told[long][-1]["tell"], "end")
                self.assertEqual(engine.ask("reset"), {"tell": "done"})
                stats = engine.ask("stats")
                self.assertEqual((stats["pages"], stats["page_tokens"], stats["running"]), (50, 16, 0), stats)
                said = engine.said()
                self.assertIn("aborted", said)
                self.assertIn({"process": "OPENAI_API_SERVER", "inline": "LLM_CLASS"}[core], said)
                self.assertEqual(engine.load(HERE, "f32")["tell"], "loaded")
                self.assertIn("vLLM ends", engine.said())
                self.assertEqual(engine.end(), 0)

    def tokens(self, engine, number):
        return [token for told in engine.told[number] if told["tell"] == "tokens" for token in told["ids"]]

    def test_all_logits_are_written_in_the_order_of_the_tokens(self):
        for core in ("process", "inline"):
            engine = self.open(core=core)
            engine.load(HERE)
            for prompt in ([3, 1, 4], [7]):
                with tempfile.NamedTemporaryFile() as file:
                    told = engine.ask("logits", prompt=prompt, file=file.name)
                    self.assertEqual(told, {"tell": "logits", "rows": len(prompt), "vocab": 100}, engine.said())
                    rows = np.fromfile(file.name, "<f4").reshape(-1, 100)
                expected = [np.arange(100) + 100.0 * row for row in range(len(prompt) - 1)] + [np.arange(100) + 0.5]
                np.testing.assert_array_equal(rows, expected)

    def test_impossible_requests_are_refused(self):
        engine = self.open()
        for options, said in (({"magic": "1"}, "no option `magic`"), ({"core": "x"}, "process, inline")):
            self.assertIn(said, engine.hello(**options)["why"])
        engine.hello()
        self.assertEqual(engine.load(HERE, "int4")["kind"], "unsupported")
        self.assertEqual(engine.load(__file__)["kind"], "unsupported")
        for core in ("process", "inline"):
            engine.hello(core=core, load_format="broken")
            refused = engine.load(HERE)
            self.assertEqual((refused["kind"], refused["why"]),
                             ("failed", "RuntimeError: Engine core initialization failed. See root cause above."))


if __name__ == "__main__":
    if sys.argv[1:] == ["--vllm"]:
        import engine
        import engine_vllm

        Vllm.install()
        engine.main(engine_vllm.start)
    unittest.main()
