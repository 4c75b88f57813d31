"""The engine `transformers`: its models as its users run them, and its own continuous batching.

Options of `hello`: `mode` (`static`: a static cache and a compiled decode step, the default on a GPU; `dynamic`: a cache that grows, the
default on a processor; `continuous`: its continuous batching), and of `static` `batch_sizes` (numbers separated by commas, compiled at the
load; others are filled up), `compile_mode` (`reduce-overhead`, or another of torch.compile's) and `backend` (`inductor`).
"""

import gc
import importlib.util
import inspect
import os
import pathlib
import resource

from engine_batches import Static
from peer import Refusal, device_of, import_torch, processor, reason

# The first with caches that are made of layers, and with `dtype`.
OLDEST = (4, 56)
OLDEST_TORCH = (2, 6)
DTYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
OPTIONS = {"mode", "batch_sizes", "compile_mode", "backend"}
MODES = ("static", "dynamic", "continuous")


def start(device, options):
    """Opens the device; who the engine is, and the engine."""
    kind, number = device_of(device)
    for name in options:
        if name not in OPTIONS:
            raise Refusal("failed", f"no option `{name}`; there are: {', '.join(sorted(OPTIONS))}")
    mode = options.get("mode", "static" if kind == "cuda" else "dynamic")
    if mode not in MODES:
        raise Refusal("failed", f"no mode `{mode}`; there are: {', '.join(MODES)}")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(min(16, os.cpu_count() or 1)))
    torch = import_torch(kind, number, OLDEST_TORCH)
    if importlib.util.find_spec("transformers") is None:
        raise Refusal("missing", "this Python has no transformers", "python3 -m pip install transformers")
    try:
        import transformers
    except Exception as e:
        why = f"transformers is installed and does not load: {reason(e)}"
        raise Refusal("missing", why, "python3 -m pip install --force-reinstall transformers") from e
    if tuple(map(int, transformers.__version__.split(".")[:2])) < OLDEST:
        why = f"transformers {transformers.__version__} is too old; this engine needs {OLDEST[0]}.{OLDEST[1]}"
        raise Refusal("missing", why, "python3 -m pip install --upgrade transformers")
    if kind == "cpu":
        torch.set_num_threads(number)
        where = torch.device("cpu")
    else:
        where = torch.device("cuda", number)
        torch.cuda.set_device(where)
    model = Model(torch, transformers, where)
    libraries = {"torch": torch.__version__, **({"cuda": torch.version.cuda} if kind == "cuda" else {})}
    about = {
        "engine": "transformers",
        "version": transformers.__version__,
        "device": torch.cuda.get_device_name(where) if kind == "cuda" else processor(),
        "libraries": libraries,
        "dtypes": list(DTYPES),
    }
    if mode == "continuous":
        from engine_continuous import Continuous

        return about, Continuous(model)
    return about, Static(Generation(model, mode, options))


class Model:
    """A model of transformers, and what it holds on its device."""

    def __init__(self, torch, transformers, device):
        self.torch, self.transformers, self.device = torch, transformers, device
        self.net = None

    def load(self, ask):
        """Loads a folder or a GGUF file."""
        torch = self.torch
        self.release()
        if ask.get("dtype") not in DTYPES:
            raise Refusal("unsupported", f"transformers computes in {', '.join(DTYPES)}, not {ask.get('dtype')}")
        dtype = getattr(torch, DTYPES[ask["dtype"]])
        if self.device.type == "cuda" and ask.get("memory"):
            total = torch.cuda.get_device_properties(self.device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, ask["memory"] / total), self.device)
        path = pathlib.Path(ask["folder"])
        names = {"pretrained_model_name_or_path": str(path), "local_files_only": True}
        if path.is_file():
            if importlib.util.find_spec("gguf") is None:
                raise Refusal("missing", "transformers reads GGUF with the package gguf", "python3 -m pip install gguf")
            names |= {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
        if importlib.util.find_spec("accelerate") is not None:
            # To the device at once, without a copy of the weights in the host's memory.
            names["device_map"] = {"": self.device}
        net = self.transformers.AutoModelForCausalLM.from_pretrained(**names, dtype=dtype, attn_implementation="sdpa")
        self.net = net.to(self.device).eval()
        self.config = self.net.config.get_text_config()
        self.vocab = self.config.vocab_size
        ends = self.net.generation_config.eos_token_id
        ends = self.config.eos_token_id if ends is None else ends
        self.ends = set(ends if isinstance(ends, list) else [] if ends is None else [ends])
        parameters = inspect.signature(self.net.forward).parameters
        # Later versions name it after what it is.
        self.cache_name = "cache" if "cache" in parameters else "past_key_values"
        self.takes_positions = "cache_position" in parameters

    def logits(self, prompt, file):
        """Writes rows of little-endian f32, one a position of the prompt."""
        with self.torch.no_grad():
            logits = self.net(input_ids=self.torch.tensor([prompt], device=self.device), use_cache=False).logits[0]
            for rows in logits.split(256):
                rows.float().cpu().numpy().astype("<f4").tofile(file)

    def memory(self):
        """Bytes on the device now, and the most so far; of a processor those of the process."""
        if self.device.type == "cuda":
            cuda = self.torch.cuda
            held = cuda.memory_reserved(self.device), cuda.max_memory_reserved(self.device)
        else:
            with open("/proc/self/statm", encoding="ascii") as f:
                now = int(f.read().split()[1]) * resource.getpagesize()
            held = now, max(now, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        return dict(zip(("memory_bytes", "peak_bytes"), held))

    def release(self):
        self.net = None
        gc.collect()
        self.torch.compiler.reset()
        if self.device.type == "cuda":
            self.torch.cuda.empty_cache()
            self.torch.cuda.reset_peak_memory_stats(self.device)


class Generation:
    """A loop around the model's forward, as `generate` has it, one token a step; each token is known on the host before the next step."""

    def __init__(self, model, mode, options):
        self.model, self.static = model, mode == "static"
        try:
            self.asked_sizes = [int(size) for size in options.get("batch_sizes", "").split(",") if size.strip()]
        except ValueError:
            self.asked_sizes = [0]
        if any(size < 1 for size in self.asked_sizes):
            raise Refusal("failed", f"batch_sizes are numbers from 1 on, not `{options['batch_sizes']}`")
        self.backend = options.get("backend", "inductor")
        self.compile_mode = options.get("compile_mode", "reduce-overhead")
        self.caches, self.cache, self.ends = {}, None, set()

    def load(self, ask):
        torch, model = self.model.torch, self.model
        self.close()
        model.load(ask)
        self.ends = model.ends
        sequences, notes = ask["sequences"], ["attention: sdpa"]
        if self.static:
            sizes = self.asked_sizes or [4**i for i in range(16) if 4**i < sequences] + [sequences]
            self.sizes = sorted(set(size for size in sizes if size <= sequences) | {sequences})
            self.compile(len(self.sizes))
            # The largest first: its memory is the others' too.
            for size in reversed(self.sizes):
                self.caches[size] = self.static_cache(size, ask["context"])
                self.warm(size, ask["context"])
            notes += [
                f"static cache of {ask['context']} tokens; decode compiled: mode {self.compile_mode}, backend {self.backend}, fullgraph",
                f"compiled for batches of {', '.join(map(str, self.sizes))}; others are filled up to the next",
            ]
        else:
            self.decode = model.net
            self.warm(sequences, ask["context"])
            notes.append("dynamic cache; not compiled")
        planned = torch.cuda.memory_reserved(model.device) if model.device.type == "cuda" else None
        return {"sequences": sequences, "vocab": model.vocab, "memory_bytes": planned, "notes": notes}

    def compile(self, count):
        torch = self.model.torch
        # Each size of a batch is compiled for itself, as for who has one size.
        name = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"
        setattr(torch._dynamo.config, name, max(getattr(torch._dynamo.config, name), 2 * count))
        mode = {"mode": self.compile_mode} if self.backend == "inductor" else {}
        self.decode = torch.compile(self.model.net.forward, backend=self.backend, fullgraph=True, dynamic=False, **mode)

    def static_cache(self, size, context):
        """A cache for batches of one size: the first rows of the largest one's memory."""
        torch, model = self.model.torch, self.model
        cache = model.transformers.StaticCache(config=model.config, max_cache_len=context)
        if not self.caches:
            return cache
        for layer, largest in zip(cache.layers, self.caches[self.sizes[-1]].layers):
            if getattr(largest, "keys", None) is None:
                continue
            shape = largest.keys[:size, :, :0]
            arguments = inspect.signature(layer.lazy_initialization).parameters
            layer.lazy_initialization(*[shape] * len(arguments))
            layer.keys, layer.values = largest.keys[:size], largest.values[:size]
            torch._dynamo.mark_static_address(layer.keys)
            torch._dynamo.mark_static_address(layer.values)
        return cache

    def warm(self, size, context):
        """A batch of this size, so often as compiling and capturing take."""
        prompts = [[0] * max(1, min(16, context - 4))] * size
        for _ in range(2):
            self.begin(prompts, [{"temperature": 0.0}] * size)
            for place in range(1, 4):
                self.next(place)
        self.cache = None

    def begin(self, prompts, samplings):
        """Computes prompts of one length; the first token of each answer."""
        torch, model = self.model.torch, self.model
        self.cache = self.last = None
        self.count, length = len(prompts), len(prompts[0])
        size = self.count
        if self.static:
            size = next(size for size in self.sizes if size >= self.count)
            self.cache = self.caches[size]
            self.cache.reset()
        else:
            self.cache = model.transformers.DynamicCache(config=model.config)
        self.choose = choice(torch, samplings, model.device)
        ids = torch.tensor(list(prompts) + [prompts[0]] * (size - self.count), device=model.device)
        self.position = torch.arange(length, device=model.device)
        return self.pass_over(model.net, ids)

    def next(self, place):
        """Computes the last tokens; the next of each answer."""
        self.position = self.position[-1:] + 1
        return self.pass_over(self.decode, self.last)

    def pass_over(self, forward, ids):
        torch, model = self.model.torch, self.model
        held = {model.cache_name: self.cache}
        if model.takes_positions:
            held["cache_position"] = self.position
        with torch.no_grad():
            logits = forward(input_ids=ids, use_cache=True, logits_to_keep=1, return_dict=True, **held).logits[:, -1]
            # Rows that fill a batch up go on with any token.
            self.last = logits.argmax(-1, keepdim=True)
            if self.choose is not None:
                self.last[: self.count, 0] = self.choose(logits[: self.count])
            return self.last[: self.count, 0].tolist()

    def logits(self, prompt, file):
        self.model.logits(prompt, file)

    def stats(self):
        return self.model.memory()

    def reset(self):
        """Nothing is kept of a prompt after its batch."""

    def close(self):
        self.caches, self.cache, self.last, self.decode = {}, None, None, None
        self.model.release()


def choice(torch, samplings, device):
    """What chooses the tokens of a batch by its logits; none where all take the most likely one."""
    if all(s["temperature"] <= 0 for s in samplings):
        return None
    column = lambda name, kind: torch.tensor([s[name] for s in samplings], dtype=kind, device=device)[:, None]
    temperature, top_p, top_k = column("temperature", torch.float32), column("top_p", torch.float32), column("top_k", torch.int64)
    filtered = any(s["top_p"] < 1 or s["top_k"] > 0 for s in samplings)
    generators = [torch.Generator(device).manual_seed(s["seed"] % 2**63) for s in samplings]

    def choose(logits):
        scores = logits.float() / temperature.clamp_min(1e-6)
        if filtered:
            sorted_scores, order = torch.sort(scores, dim=-1, descending=True, stable=True)
            likely = sorted_scores.softmax(-1)
            rank = torch.arange(scores.shape[-1], device=device)
            # The tokens before a kept one have less than `top_p` together.
            dropped = (likely.cumsum(-1) - likely >= top_p) & (rank > 0)
            dropped |= (top_k > 0) & (rank >= top_k)
            scores = torch.full_like(scores, -torch.inf).scatter(-1, order, sorted_scores.masked_fill(dropped, -torch.inf))
        # The least of exponential times, each with the rate of its token's probability, falls on a token as often as it is likely.
        times = torch.empty_like(scores)
        for row, generator in zip(times, generators):
            row.exponential_(generator=generator)
        drawn = (scores.softmax(-1) / times).argmax(-1)
        return torch.where(temperature[:, 0] > 0, drawn, logits.argmax(-1))

    return choose
