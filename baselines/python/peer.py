#!/usr/bin/env python3
"""The peer `torch`: PyTorch's ways to compute a problem, asked and answered as docs/peers.md says.

Reads requests on standard input until its end. Exit code 4 when the asker cannot be answered, 5 when a CUDA error left
the process without a usable device. Options of `hello`: `ways` (names separated by commas; others are not prepared) and
`compile_mode` (`max-autotune-no-cudagraphs`, or `default`, which compiles in a fraction of the time).
"""

import gc
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import traceback

PROTOCOL = 2
# The first with the names that are used here, and with grouped heads and flex_attention.
OLDEST = (2, 6)
WAYS = ("eager", "compile", "addmm", "sdpa-cudnn", "sdpa-flash", "sdpa-efficient")
# Of packages that may be installed.
WAYS += ("flash-attn-3", "flashinfer", "cudnn")
COMPILE_MODES = ("max-autotune-no-cudagraphs", "default")


class Refusal(Exception):
    """A request that is not answered."""

    def __init__(self, kind, why, fix=None):
        super().__init__(why)
        self.kind, self.why, self.fix = kind, why, fix


def reason(error):
    """An exception in one line: its type, and the first lines of what it says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:3]) or "no message"
    return f"{type(error).__name__}: {text if len(text) <= 400 else text[:400] + '…'}"


def refusal_of(error):
    """The refusal that an exception means; an unforeseen one is shown in full on standard error."""
    if isinstance(error, Refusal):
        return error
    if hasattr(error, "refusal_kind"):
        return Refusal(error.refusal_kind, str(error))
    traceback.print_exception(error, file=sys.stderr)
    return Refusal("failed", reason(error))


def device_of(text):
    """A device's kind and number."""
    kind, _, number = str(text).partition(":")
    if kind not in ("cuda", "cpu") or not number.isdecimal() or (kind == "cpu" and int(number) < 1):
        raise Refusal("failed", f"`{text}` is no device: cuda:ORDINAL or cpu:THREADS")
    return kind, int(number)


def import_torch(kind, number, oldest):
    """The module torch, of a version that is not too old, where it sees the device."""
    for module in ("torch", "numpy"):
        if importlib.util.find_spec(module) is None:
            raise Refusal("missing", f"this Python has no {module}", f"python3 -m pip install {module}")
    try:
        import torch
    except (ImportError, OSError, ValueError) as e:
        why = f"torch is installed and does not load: {reason(e)}"
        raise Refusal("missing", why, "python3 -m pip install --force-reinstall torch") from e
    if tuple(map(int, torch.__version__.split(".")[:2])) < oldest:
        why = f"torch {torch.__version__} is too old; this peer needs {oldest[0]}.{oldest[1]}"
        raise Refusal("missing", why, "python3 -m pip install --upgrade torch")
    if kind == "cuda":
        if not torch.cuda.is_available():
            why = f"torch {torch.__version__} sees no CUDA device"
            raise Refusal("missing", why, "python3 -m pip install torch")
        if number >= torch.cuda.device_count():
            raise Refusal("failed", f"there is no cuda:{number} among {torch.cuda.device_count()} devices")
    return torch


class Server:
    def __init__(self):
        self.device = self.modules = self.timer = None
        self.ways = {}
        self.chosen, self.compile_mode = set(WAYS), COMPILE_MODES[0]

    def answer(self, ask):
        handlers = {
            "hello": self.hello,
            "prepare": self.prepare,
            "read": self.read,
            "round": self.round,
            "once": self.once,
            "release": self.release,
            "quit": lambda _: None,
        }
        handler = handlers.get(str(ask.get("ask"))) if isinstance(ask, dict) else None
        if handler is None:
            raise Refusal("failed", "not understood: the object has no `ask` that this peer knows")
        return handler(ask)

    def hello(self, ask):
        if ask.get("protocol") != PROTOCOL:
            fix = "take jitune and its peers from one version"
            raise Refusal("missing", f"this peer speaks protocol {PROTOCOL}, not {ask.get('protocol')}", fix)
        kind, number = device_of(ask.get("device"))
        options = ask.get("options") or {}
        chosen = [way.strip() for way in options.get("ways", ",".join(WAYS)).split(",") if way.strip()]
        mode = options.get("compile_mode", COMPILE_MODES[0])
        for what, given, known in (("way", chosen, WAYS), ("compile_mode", [mode], COMPILE_MODES)):
            for name in given:
                if name not in known:
                    raise Refusal("failed", f"no {what} `{name}`; there are: {', '.join(known)}")
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(min(16, os.cpu_count() or 1)))
        torch = import_torch(kind, number, OLDEST)
        import torch_ops
        import torch_timer

        self.modules = torch, torch_ops, torch_timer
        self.chosen, self.compile_mode = set(chosen), mode
        self.device = torch_timer.open_device(kind, number)
        on_gpu = kind == "cuda"
        return {
            "answer": "hello",
            "peer": "torch",
            "version": torch.__version__,
            "device": torch.cuda.get_device_name(self.device) if on_gpu else processor(),
            "libraries": libraries(torch) if on_gpu else {},
        }

    def prepare(self, task):
        if self.device is None:
            raise Refusal("failed", "`hello` comes first")
        self.release()
        _, torch_ops, torch_timer = self.modules
        candidates = torch_ops.candidates(task, self.device, self.chosen, self.compile_mode)
        self.timer = torch_timer.Timer(task, self.device)
        ways, refused = [], []
        for candidate in candidates:
            try:
                way = candidate.make()
                captured = self.timer.warm(way)
            except Exception as e:
                if not self.device_works():
                    raise
                refusal = refusal_of(e)
                refused.append({"way": candidate.name, "kind": refusal.kind, "why": refusal.why})
                continue
            self.ways[way.name] = way
            ways.append({"way": way.name, "how": way.how, "covers": "all", "captured": captured})
        return {"answer": "prepared", "ways": ways, "refused": refused}

    def way(self, ask):
        if self.timer is None:
            raise Refusal("failed", "`prepare` comes first")
        if ask.get("way") not in self.ways:
            raise Refusal("failed", f"no way `{ask.get('way')}` was prepared")
        return self.ways[ask["way"]]

    def read(self, ask):
        way = self.way(ask)
        import numpy

        torch = self.modules[0]
        # No tensor travels as text: both are files of eight bytes a number.
        indices = numpy.fromfile(str(ask.get("indices")), "<u8")
        if len(indices) != ask.get("count"):
            raise Refusal("failed", f"{ask.get('indices')} has {len(indices)} numbers, not {ask.get('count')}")
        values = self.timer.read(way, ask.get("tensor"), torch.from_numpy(indices.astype(numpy.int64)))
        values.numpy().astype("<f8").tofile(str(ask.get("values")))
        return {"answer": "values", "count": len(indices)}

    def round(self, ask):
        way = self.way(ask)
        kernel_us, called_us, calls = self.timer.round(way)
        return {"answer": "round", "kernel_us": kernel_us, "called_us": called_us, "calls": calls}

    def once(self, ask):
        way = self.way(ask)
        self.timer.once(way)
        return {"answer": "done"}

    def release(self, _=None):
        self.timer, self.ways = None, {}
        gc.collect()
        if self.modules:
            torch = self.modules[0]
            # Compiled code is kept by the function it came from, so that other shapes would count as recompilations.
            torch.compiler.reset()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        return {"answer": "done"}

    def device_works(self):
        """Whether the last error left the device usable. Some CUDA errors come back from every later call."""
        if self.device is None or self.device.type != "cuda":
            return True
        try:
            self.modules[0].cuda.synchronize()
        except Exception:
            return False
        return True


def processor():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            return next(line.split(":", 1)[1].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def libraries(torch):
    found = {"cuda": torch.version.cuda}
    if (cudnn := torch.backends.cudnn.version()) is not None:
        found["cudnn"] = f"{cudnn // 10000}.{cudnn // 100 % 100}.{cudnn % 100}"
    packages = {
        "triton": ("triton", "triton"),
        "flash_attn_interface": ("flash_attn_interface", "flash_attn_3"),
        "flashinfer": ("flashinfer", "flashinfer-python"),
        "cudnn-frontend": ("cudnn", "nvidia-cudnn-frontend"),
    }
    for name, (module, package) in packages.items():
        if importlib.util.find_spec(module) is not None:
            try:
                found[name] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                found[name] = "unknown"
    return found


def respond(server, line):
    """The number of the request on one line, its answer, and whether the process can go on."""
    try:
        ask = json.loads(line)
    except ValueError as e:
        return 0, refused(Refusal("failed", f"not understood: {e}")), True
    number = ask.get("id", 0) if isinstance(ask, dict) else 0
    try:
        return number, server.answer(ask), True
    except Exception as e:
        return number, refused(refusal_of(e)), server.device_works()


def refused(refusal):
    answer = {"answer": "refused", "kind": refusal.kind, "why": refusal.why}
    return {**answer, "fix": refusal.fix} if refusal.fix else answer


def main():
    # Libraries print to descriptor 1 as they like; the answers go where it pointed at the start.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)
    server = Server()
    for line in sys.stdin:
        if not line.strip():
            continue
        number, answer, usable = respond(server, line)
        if answer is None:
            break
        try:
            answers.write(json.dumps({"id": number, **answer}, ensure_ascii=False) + "\n")
            answers.flush()
        except OSError as e:
            print(f"peer: {e}", file=sys.stderr)
            return 4
        if not usable:
            # What would be freed at an ordinary end meets the same error, and would end the process otherwise.
            os._exit(5)
    return 0


if __name__ == "__main__":
    sys.exit(main())
