"""What a way is made of: named tensors in sets, a function over them, and how it is first called."""

import contextlib
import importlib.util
import math
import warnings

import torch


class Unsupported(RuntimeError):
    """PyTorch has no such thing."""

    refusal_kind = "unsupported"


def has(module, device):
    """Whether a package that is for GPUs alone can be used."""
    return device.type == "cuda" and importlib.util.find_spec(module) is not None


class Form:
    """A function over the tensors `takes` that gives the outputs `gives` and changes the tensors `writes`. `variants`:
    what is called and the function, tried in order. `refused`: why it is not even tried."""

    def __init__(self, name, variants, takes, gives=("y",), writes=(), context=contextlib.nullcontext, refused=None):
        self.name, self.variants, self.takes, self.gives, self.writes = name, variants, takes, gives, writes
        self.context, self.refused = context, refused


@contextlib.contextmanager
def spoken_reasons():
    """PyTorch says why a backend does not run in warnings, and in the error only that none does: says both."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            yield
        except RuntimeError as e:
            said = [str(w.message).split(" (Triggered internally")[0].strip() for w in heard]
            said = [s for s in said if " not used because" not in s and "runtime disabled" not in s]
            if "No available kernel" in str(e) and said:
                raise Unsupported(" ".join(dict.fromkeys(said))) from e
            raise


class Way:
    """One way over all sets. `call` keeps a set's outputs until the set's next call, so that outputs rotate too."""

    def __init__(self, form, how, function, sets):
        self.name, self.how, self.form, self.function = form.name, how, form, function
        self.arguments = [[tensors[name] for name in form.takes] for tensors in sets]
        self.written = {name: sets[0][name] for name in form.writes}
        self.results = [None] * len(sets)

    def context(self):
        return self.form.context()

    def call(self, at):
        self.results[at] = self.function(*self.arguments[at])

    def forget(self):
        self.results = [None] * len(self.results)

    def poison(self):
        self.results[0] = None
        for tensor in self.written.values():
            tensor.fill_(math.nan)

    def output(self, name):
        if name in self.written:
            return self.written[name]
        result = self.results[0]
        results = dict(zip(self.form.gives, result if isinstance(result, tuple) else (result,)))
        if name not in results:
            raise Unsupported(f"there is no output `{name}`")
        return results[name]


class Candidate:
    """A way that may work: `make` calls it once, with the first of its forms that runs."""

    def __init__(self, form, sets, compile_mode):
        self.name, self.form, self.sets, self.compile_mode = form.name, form, sets, compile_mode

    def make(self):
        if self.form.refused:
            raise Unsupported(self.form.refused)
        for how, function in self.form.variants[:-1]:
            with contextlib.suppress(RuntimeError):
                return self.first_call(how, function)
        return self.first_call(*self.form.variants[-1])

    def first_call(self, how, function):
        if self.name == "compile":
            how = f'torch.compile(mode="{self.compile_mode}") of {how}'
            function = torch.compile(function, mode=self.compile_mode, dynamic=False, fullgraph=True)
        way = Way(self.form, how, function, self.sets)
        with spoken_reasons(), way.context():
            way.call(0)
            if way.arguments[0][0].is_cuda:
                torch.cuda.synchronize()
        return way


def both(how, function, takes, gives=("y",), writes=(), compiled=None, compiled_how=None):
    """The eager form, and the one that is compiled: the same unless given."""
    return [
        Form("eager", [(how, function)], takes, gives, writes),
        Form("compile", [(compiled_how or how, compiled or function)], takes, gives, writes),
    ]
