"""How calls are timed: rounds of calls that rotate through the sets, with a cold cache before each.

Does what the Rust peers' timer does (the crate `jitune-peer`), with PyTorch's graphs, events and streams.
"""

import math
import time

import torch

# Most calls of one round.
MAX_CALLS = 256
# A pass over the sets counts as settled when it takes at most this share of the best one; warm-up ends with the third.
SETTLED = 1.1
# Cycles that the GPU waits before a round's first event, some 60 us: the host's cost of a replay falls into the wait.
HEAD_START = 100_000


def open_device(kind, number):
    """The device, with the settings of a process that only infers."""
    torch.set_grad_enabled(False)
    if kind == "cpu":
        torch.set_num_threads(number)
        return torch.device("cpu")
    device = torch.device("cuda", number)
    torch.cuda.set_device(device)
    # The default stream cannot be captured; all work goes to one other.
    torch.cuda.set_stream(torch.cuda.Stream())
    return device


class Timer:
    """Times the ways of one problem. A way has `call(set)`, `context()` and `poison()`."""

    def __init__(self, task, device):
        self.sets = max(1, int(task["sets"]))
        self.round_us, self.warm_s = float(task["round_us"]), float(task["warm_s"])
        self.gpu = device.type == "cuda"
        self.ready = {}
        self.flushed = None
        if words := int(task.get("flush_bytes") or 0) // 8:
            self.flushed = torch.zeros(words, dtype=torch.int64, device=device)
            self.sum = torch.zeros((), dtype=torch.int64, device=device)

    def warm(self, way):
        """Warms a way up, and captures it where it can be. Says whether it was captured."""
        if way.name not in self.ready:
            with way.context():
                self.ready[way.name] = self.make_ready(way)
        return self.ready[way.name][1] is not None

    def make_ready(self, way):
        begun, best, settled = time.perf_counter(), math.inf, 0
        while settled < 3:
            us = self.called(way, self.sets)
            settled += us <= best * SETTLED and math.isfinite(best)
            best = min(best, us)
            if time.perf_counter() - begun > self.warm_s:
                break
        graph = self.capture(way, self.sets) if self.gpu else None
        if graph is None:
            return self.calls_for(best), None
        # The graph's calls may be much quicker than single ones, so how many fill a round is found from it.
        self.replay(graph)
        calls = self.calls_for(self.replay(graph) / self.sets)
        if calls > self.sets:
            graph = None
            graph = self.capture(way, calls)
            if graph is None:
                return calls, None
            self.replay(graph)
        return max(calls, self.sets), graph

    def calls_for(self, us):
        """A multiple of the sets that fills a round."""
        wanted = min(max(math.ceil(self.round_us / max(us, 0.1)), 1), MAX_CALLS)
        return -(-wanted // self.sets) * self.sets

    def capture(self, way, calls):
        """A graph of so many calls; None where they do something that cannot be captured."""
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        try:
            # Relaxed: libraries may allocate or query while they enqueue.
            graph.capture_begin(capture_error_mode="relaxed")
            try:
                for i in range(calls):
                    way.call(i % self.sets)
            finally:
                graph.capture_end()
        except Exception as e:
            way.forget()
            torch.cuda.synchronize()
            print(f"{way.name} cannot be captured: {e}", flush=True)
            return None
        return graph

    def replay(self, graph):
        """Microseconds between two events around a replay."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self.flush()
        torch.cuda._sleep(HEAD_START)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e3

    def flush(self):
        """Reads memory of its own, so that the cache holds nothing else; no line of it becomes dirty."""
        if self.flushed is not None:
            torch.sum(self.flushed, 0, out=self.sum)

    def wait(self):
        if self.gpu:
            torch.cuda.synchronize()

    def called(self, way, calls):
        """Microseconds a call by the host's clock."""
        self.flush()
        self.wait()
        start = time.perf_counter()
        for i in range(calls):
            way.call(i % self.sets)
        self.wait()
        return (time.perf_counter() - start) * 1e6 / calls

    def round(self, way):
        calls, graph = self.ready[way.name]
        with way.context():
            kernel_us = self.replay(graph) / calls if graph is not None else None
            called_us = self.called(way, calls)
        return (kernel_us if self.gpu else called_us), called_us, calls

    def once(self, way):
        """One call between a profiler's marks."""
        with way.context():
            way.call(0)
            self.flush()
            self.wait()
            if not self.gpu:
                way.call(0)
                return
            torch.cuda.profiler.start()
            try:
                way.call(0)
                self.wait()
            finally:
                torch.cuda.profiler.stop()

    def read(self, way, tensor, indices):
        """Elements, as doubles, of an output of one call on the first set, made with poisoned outputs."""
        with way.context():
            way.poison()
            way.call(0)
            self.wait()
        values = way.output(tensor).reshape(-1)
        if len(indices) and not (0 <= int(indices.min()) and int(indices.max()) < values.numel()):
            raise IndexError(f"{tensor} has {values.numel()} elements")
        return values[indices.to(values.device)].double().cpu()
