"""The engine `vllm`: vLLM's own engine, asked in token ids without its HTTP server.

Options of `hello`: `core` (`process`, as in its server: scheduling and model in a process of their own, the default; `inline`: all in this
one), `log_stats` (`true` has vLLM keep its own statistics, as its server does, at some cost a step; `stats` tells nothing of them), and
whatever vLLM's EngineArgs has, such as `max_num_seqs`, `gpu_memory_utilization`, `max_num_batched_tokens`, `load_format` or
`attention_backend`: numbers, `true`, `false` and objects as JSON.
"""

import asyncio
import dataclasses
import importlib.util
import json
import os
import pathlib
import threading
import traceback

from peer import Refusal, device_of, import_torch, processor, reason

OLDEST_TORCH = (2, 6)
DTYPES = {
    "f32": {"dtype": "float32"},
    "bf16": {"dtype": "bfloat16"},
    "f16": {"dtype": "float16"},
    "fp8": {"dtype": "bfloat16", "quantization": "fp8"},
}
# What runs on a machine without network and without a CUDA toolkit; who sets another value before the start has it.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "VLLM_USE_DEEP_GEMM": "0",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}
CORES = ("process", "inline")


def start(device, options):
    """Finds vLLM and the device; who the engine is, and the engine."""
    kind, number = device_of(device)
    options = {name.replace("-", "_"): value for name, value in options.items()}
    core = options.pop("core", CORES[0])
    if core not in CORES:
        raise Refusal("failed", f"no core `{core}`; there are: {', '.join(CORES)}")
    if importlib.util.find_spec("vllm") is None:
        raise Refusal("missing", "this Python has no vllm", "python3 -m pip install vllm")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1" if core == "process" else "0"
    if kind == "cuda":
        # vLLM takes the first device that it sees.
        seen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        if seen and number >= len(seen):
            raise Refusal("failed", f"there is no cuda:{number} among the devices {','.join(seen)}")
        os.environ["CUDA_VISIBLE_DEVICES"] = seen[number] if seen else str(number)
    else:
        os.environ["OMP_NUM_THREADS"] = str(number)
    torch = import_torch(kind, 0, OLDEST_TORCH)
    try:
        import vllm
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform
    except Exception as e:
        why = f"vllm is installed and does not load: {reason(e)}"
        raise Refusal("missing", why, "python3 -m pip install --force-reinstall vllm") from e
    known = {field.name for field in dataclasses.fields(AsyncEngineArgs)} | {"log_stats"}
    for name in options:
        if name not in known:
            raise Refusal("failed", f"no option `{name}`: neither this engine nor EngineArgs of vllm {vllm.__version__} has it")
    # The device's name comes from its driver: no context is opened beside that of the core's process.
    name = processor() if kind == "cpu" else current_platform.get_device_name()
    libraries = {"torch": torch.__version__, **({"cuda": torch.version.cuda} if kind == "cuda" else {})}
    about = {"engine": "vllm", "version": vllm.__version__, "device": name, "libraries": libraries, "dtypes": list(DTYPES)}
    settings = {name: value_of(value) for name, value in options.items()}
    return about, (Process if core == "process" else Inline)(kind, settings)


def value_of(text):
    """An option's value: JSON where it is, otherwise the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


class Vllm:
    """What both ways to run vLLM have in common."""

    def __init__(self, kind, settings):
        self.kind, self.settings = kind, settings
        self.engine, self.serial, self.steps = None, 0, None
        # The requests on their way: their names in vLLM by number.
        self.running = {}
        self.counted = {}

    def load(self, ask):
        path = pathlib.Path(ask["folder"])
        if path.is_file():
            raise Refusal("unsupported", "vLLM is driven here with a folder of safetensors, not with a file")
        if ask.get("dtype") not in DTYPES:
            raise Refusal("unsupported", f"vLLM is driven here in {', '.join(DTYPES)}, not {ask.get('dtype')}")
        self.close()
        self.counted = {"prompt_tokens": 0, "answer_tokens": 0}
        arguments = {
            "model": str(path),
            "skip_tokenizer_init": True,
            **DTYPES[ask["dtype"]],
            "max_model_len": ask["context"],
            "max_num_seqs": ask["sequences"],
            "enable_prefix_caching": bool(ask.get("prefix")),
            # All logits can be asked for; requests that do not ask are computed as without.
            "max_logprobs": -1,
            "logprobs_mode": "raw_logits",
        }
        if ask.get("memory") and self.kind == "cuda":
            from vllm.platforms import current_platform

            arguments["gpu_memory_utilization"] = min(0.98, ask["memory"] / current_platform.get_device_total_memory())
        arguments |= self.settings
        arguments["disable_log_stats"] = not arguments.pop("log_stats", False)
        self.open(arguments)
        config = self.engine.vllm_config
        self.vocab = config.model_config.get_vocab_size()
        self.pages = {"pages": config.cache_config.num_gpu_blocks, "page_tokens": config.cache_config.block_size}
        self.warm()
        return {
            "batching": "continuous",
            "sequences": config.scheduler_config.max_num_seqs,
            "vocab": self.vocab,
            "memory_bytes": None,
            "notes": notes(config, arguments, self.name),
        }

    def warm(self):
        """What is compiled at the first request is compiled now."""
        for sampling in ({"temperature": 0.0}, {"temperature": 0.8, "top_p": 0.9, "top_k": 50}):
            end = Ended()
            sampling = {"top_p": 1.0, "top_k": 0, "seed": 0, **sampling}
            prompt = [0] * max(1, min(8, self.engine.vllm_config.model_config.max_model_len - 4))
            self.submit(0, {"prompt": prompt, "most": 3, "sampling": sampling, "ignore_eos": True}, end)
            self.finish(end)
            if end.why != "length":
                raise Refusal("failed", f"a first request ended as {end.why}: {end.error}")
        self.counted = {"prompt_tokens": 0, "answer_tokens": 0}
        self.steps = None if self.steps is None else 0

    def parameters(self, request):
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        sampling = request["sampling"]
        greedy = sampling["temperature"] <= 0
        chosen = {"temperature": 0.0} if greedy else {
            **{name: sampling[name] for name in ("temperature", "top_p", "top_k")},
            "seed": sampling["seed"] % 2**63,
        }
        return SamplingParams(
            **chosen,
            max_tokens=request["most"],
            ignore_eos=request["ignore_eos"],
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )

    def take(self, number, request):
        """A name for a request that is on its way, since a number may come again."""
        self.serial += 1
        self.counted["prompt_tokens"] += len(request["prompt"])
        return f"{number}-{self.serial}"

    def tell(self, number, output, teller):
        """Tells what came of a request; whether that was its end."""
        completion = output.outputs[0]
        if ids := list(completion.token_ids):
            teller.tokens(number, ids)
            self.counted["answer_tokens"] += len(ids)
        if output.finished:
            why = completion.finish_reason
            error = None if why in ("length", "stop") else f"vLLM ended it: {why}"
            teller.end(number, "failed" if error else why, error=error, cached=output.num_cached_tokens)
        return output.finished

    def work(self, teller):
        return False

    def logits(self, prompt, file):
        """All logits: those that choose the prompt's tokens, and those of the token after it."""
        import numpy
        from vllm.sampling_params import SamplingParams

        if self.running:
            raise Refusal("failed", "logits are written when nothing runs")
        asked = {"prompt_logprobs": -1} if len(prompt) > 1 else {}
        parameters = SamplingParams(
            temperature=0.0, max_tokens=1, ignore_eos=True, detokenize=False, logprobs=-1, **asked
        )
        rows = numpy.full((len(prompt), self.vocab), -numpy.inf, "<f4")
        with Kept() as kept:
            self.once(prompt, parameters)
        found = 0
        for ids, values in kept.prompt + kept.sample:
            ids, values = numpy.asarray(ids).astype(numpy.int64), numpy.asarray(values, numpy.float32)
            numpy.put_along_axis(rows[found : found + len(ids)], ids, values, 1)
            found += len(ids)
        if found != len(prompt) or numpy.isneginf(rows).all(1).any():
            raise Refusal("unsupported", f"vLLM gave the logits of {found} of {len(prompt)} positions")
        rows.tofile(file)

    def stats(self):
        held = {**self.pages, **self.counted, "running": len(self.running), "steps": self.steps}
        return {name: value for name, value in held.items() if value is not None}


class Ended:
    """The end of a request of the engine's own."""

    def __init__(self):
        self.event, self.why, self.error = threading.Event(), None, None

    def tokens(self, number, ids):
        pass

    def end(self, number, why, error=None, cached=None):
        self.why, self.error = why, error
        self.event.set()


class Kept:
    """Keeps scores as the core gives them: vLLM would make a Python object of each."""

    def __enter__(self):
        from vllm.v1.engine.logprobs import LogprobsProcessor

        self.owner, self.prompt, self.sample = LogprobsProcessor, [], []
        names = {"_update_prompt_logprobs": self.prompt, "_update_sample_logprobs": self.sample}
        if missing := [name for name in names if not hasattr(LogprobsProcessor, name)]:
            raise Refusal("unsupported", f"this version of vLLM hands scores on in another way: it has no {missing[0]}")
        self.held = {name: getattr(LogprobsProcessor, name) for name in names}
        for name, kept in names.items():
            setattr(LogprobsProcessor, name, lambda _, scores, kept=kept: kept.append((scores[0], scores[1])))
        return self

    def __exit__(self, *_):
        for name, method in self.held.items():
            setattr(self.owner, name, method)


class Process(Vllm):
    """AsyncLLM, as vLLM's server has it, in a loop of a thread of its own."""

    name = "AsyncLLM, the core in a process of its own"

    def __init__(self, kind, settings):
        super().__init__(kind, settings)
        # As its server has it, where that is installed.
        if importlib.util.find_spec("uvloop") is not None:
            import uvloop

            self.loop = uvloop.new_event_loop()
        else:
            self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name="vllm", daemon=True).start()

    def wait(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    def open(self, arguments):
        self.wait(self.make(arguments))

    async def make(self, arguments):
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        # Its defaults are those of its server.
        context = UsageContext.OPENAI_API_SERVER
        self.engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments), usage_context=context)

    def submit(self, number, request, teller):
        answer = self.answer(number, self.take(number, request), request["prompt"], self.parameters(request), teller)
        self.loop.call_soon_threadsafe(self.begin, number, answer)

    def begin(self, number, answer):
        self.running[number] = self.loop.create_task(answer)

    async def answer(self, number, name, prompt, parameters, teller):
        ended, error = False, "vLLM ended the request without a reason"
        try:
            # To its own end: vLLM aborts a request that is left before.
            async for output in self.engine.generate(tokens(prompt), parameters, name):
                if output.finished:
                    # Who is told the end may ask for what is refused while something runs.
                    self.running.pop(number, None)
                ended = self.tell(number, output, teller)
        except Exception as e:
            traceback.print_exc()
            error = reason(e)
        if not ended:
            self.running.pop(number, None)
            teller.end(number, "failed", error=error)

    def finish(self, end):
        end.event.wait()

    def cancel(self, number, teller):
        self.loop.call_soon_threadsafe(self.stop, number, teller)

    def stop(self, number, teller):
        if (task := self.running.pop(number, None)) is not None:
            # Nothing is told of a task after this: it meets the cancellation where it waits.
            task.cancel()
            teller.end(number, "cancelled")

    def once(self, prompt, parameters):
        async def run():
            async for _ in self.engine.generate(tokens(prompt), parameters, self.take(0, {"prompt": []})):
                pass

        self.wait(run())

    def reset(self):
        self.wait(self.engine.reset_prefix_cache())

    def close(self):
        if self.engine is not None:
            engine, self.engine = self.engine, None
            engine.shutdown()


class Inline(Vllm):
    """LLMEngine, one step after the other in this process."""

    name = "LLMEngine, the core in the same process"

    def open(self, arguments):
        from vllm.engine.arg_utils import EngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.llm_engine import LLMEngine

        self.engine = LLMEngine.from_engine_args(EngineArgs(**arguments), usage_context=UsageContext.LLM_CLASS)
        self.steps = 0

    def submit(self, number, request, teller):
        name, parameters = self.take(number, request), self.parameters(request)
        self.engine.add_request(name, tokens(request["prompt"]), parameters)
        self.running[number] = (name, teller)

    def work(self, teller):
        if not self.running:
            return False
        try:
            self.step()
        except Exception as e:
            # What goes wrong in a step goes wrong for all that run.
            traceback.print_exc()
            running, self.running = self.running, {}
            self.engine.abort_request([name for name, _ in running.values()])
            for number, (_, teller) in running.items():
                teller.end(number, "failed", error=reason(e))
        return bool(self.running)

    def step(self):
        numbers = {name: number for number, (name, _) in self.running.items()}
        self.steps += 1
        for output in self.engine.step():
            number = numbers.get(output.request_id)
            if number is None:
                continue
            teller = self.running[number][1]
            if output.finished:
                del self.running[number]
            self.tell(number, output, teller)

    def finish(self, end):
        while not end.event.is_set():
            self.step()

    def cancel(self, number, teller):
        if number in self.running:
            name, _ = self.running.pop(number)
            self.engine.abort_request([name])
            teller.end(number, "cancelled")

    def once(self, prompt, parameters):
        self.engine.add_request(self.take(0, {"prompt": []}), tokens(prompt), parameters)
        while self.engine.has_unfinished_requests():
            self.engine.step()

    def reset(self):
        self.engine.reset_prefix_cache()

    def close(self):
        if self.engine is not None:
            engine, self.engine = self.engine, None
            self.running = {}
            engine.engine_core.shutdown()


def tokens(prompt):
    """A prompt of token ids, as vLLM's server hands it to the engine."""
    return {"type": "token", "prompt_token_ids": prompt}


def notes(config, arguments, name):
    """How vLLM was set up, for a reader of the report."""
    scheduler, cache = config.scheduler_config, config.cache_config
    runner = {True: "V2", False: "V1"}.get(getattr(config, "use_v2_model_runner", None), "of an unknown version")
    held = {name: os.environ.get(name) for name in ENVIRONMENT if name.startswith("VLLM_USE")}
    return [
        f"{name}; model runner {runner}",
        f"{cache.num_gpu_blocks} pages of {cache.block_size} tokens; max_num_batched_tokens {scheduler.max_num_batched_tokens}",
        f"settings: {json.dumps({k: v for k, v in arguments.items() if k != 'model'}, sort_keys=True, default=str)}",
        f"environment: {', '.join(f'{k}={v}' for k, v in held.items())}",
    ]
