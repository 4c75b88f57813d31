"""Normalization by cuDNN's own graphs, through the package `nvidia-cudnn-frontend` where it is installed."""

import contextlib
import functools
import math

import torch

from torch_forms import Form, Unsupported, has

# Calls of a plan that are timed, and the cycles that the GPU waits before, so that all of them are enqueued by then.
TIMED_CALLS = 20
HEAD_START = 2_000_000


def norm(task, t, name, params, eps):
    """The form of a normalization; the addition of a residual is in the graph where cuDNN has an engine for that."""
    if not has("cudnn", t["x"].device):
        return []
    if task["dims"].get("residual", 0) == 0:
        how = f"cudnn graph of {name}, its plans timed in set-up"
        return [Form("cudnn", [(how, Norm(name, task["dtype"], params, eps))], ("x",) + params)]
    fused = Norm(name, task["dtype"], ("residual",) + params, eps)
    plain = Norm(name, task["dtype"], params, eps)

    def added(x, residual, *weights):
        h = x + residual
        return plain(h, *weights), h

    variants = [
        (f"cudnn graph of add and {name}, its plans timed in set-up", fused),
        (f"h = x + residual; cudnn graph of {name}, its plans timed in set-up", added),
    ]
    return [Form("cudnn", variants, ("x", "residual") + params, ("y", "h"))]


def norm_graph(cudnn, name, dtype, shape, params, **where):
    """A graph over x and `params`, not yet built; the tensors that it takes and those that it gives."""
    kinds = {"bf16": cudnn.data_type.BFLOAT16, "f16": cudnn.data_type.HALF}
    kind, single = kinds.get(dtype, cudnn.data_type.FLOAT), cudnn.data_type.FLOAT
    graph = cudnn.pygraph(io_data_type=kind, intermediate_data_type=single, compute_data_type=single, **where)
    (rows, cols), taken = shape, {}
    for tensor in ("x",) + params:
        dim = [rows if tensor in ("x", "residual") else 1, cols, 1, 1]
        taken[tensor] = graph.tensor(name=tensor, dim=dim, stride=[cols, 1, cols, cols], data_type=kind)
    epsilon = {"name": "epsilon", "dim": [1] * 4, "stride": [1] * 4, "data_type": single, "is_pass_by_value": True}
    taken["epsilon"] = graph.tensor(**epsilon)
    x, given = taken["x"], {}
    if "residual" in params:
        x = given["h"] = graph.add(a=x, b=taken["residual"], name="add")
    options = {"scale": taken["weight"], "epsilon": taken["epsilon"], "name": name}
    if "bias" in params:
        options["bias"] = taken["bias"]
    call = graph.layernorm if name == "layer_norm" else graph.rmsnorm
    y = call(norm_forward_phase=cudnn.norm_forward_phase.INFERENCE, input=x, **options)[0]
    given = {"y": y, **given}
    for tensor in given.values():
        tensor.set_output(True).set_data_type(kind)
    return graph, taken, given


@functools.cache
def handle():
    """One for the process, on the stream that all work goes to."""
    import cudnn

    made = cudnn.create_handle()
    cudnn.set_stream(made, torch.cuda.current_stream().cuda_stream)
    return made


class Norm:
    """A normalization of x, which is set up when it is first called."""

    def __init__(self, name, dtype, params, eps):
        self.name, self.dtype, self.params = name, dtype, params
        self.epsilon = torch.full((1, 1, 1, 1), eps)
        self.plan = None

    def __call__(self, *inputs):
        if self.plan is None:
            self.set_up(inputs)
        return self.run(inputs)

    def set_up(self, inputs):
        import cudnn

        unsupported = cudnn.cudnnGraphNotSupportedError
        shape = inputs[0].shape
        try:
            graph, self.taken, self.given = norm_graph(
                cudnn, self.name, self.dtype, shape, self.params, handle=handle()
            )
            graph.validate()
            graph.build_operation_graph()
            graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
            graph.check_support()
        except unsupported as e:
            raise Unsupported(f"cuDNN: {e}") from e
        self.graph, best = graph, (math.inf, None, None)
        for self.plan in range(graph.get_execution_plan_count()):
            # Not every plan that the heuristics give can be built.
            with contextlib.suppress(unsupported, RuntimeError):
                graph.build_plan_at_index(self.plan)
                bytes_needed = graph.get_workspace_size_plan_at_index(self.plan)
                self.workspace = torch.empty(max(bytes_needed, 1), dtype=torch.uint8, device=inputs[0].device)
                best = min(best, (self.timed(inputs), self.plan, self.workspace), key=lambda b: b[0])
        _, self.plan, self.workspace = best
        if self.plan is None:
            raise Unsupported("cuDNN has plans for this graph, and none of them runs")

    def run(self, inputs):
        outputs = [torch.empty_like(inputs[0]) for _ in self.given]
        buffers = dict(zip(self.taken.values(), (*inputs, self.epsilon)))
        buffers.update(zip(self.given.values(), outputs))
        self.graph.execute_plan_at_index(buffers, self.workspace, self.plan, handle())
        return tuple(outputs) if len(outputs) > 1 else outputs[0]

    def timed(self, inputs):
        """Milliseconds of the plan's calls, after a first one that may load code."""
        self.run(inputs)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(HEAD_START)
        start.record()
        for _ in range(TIMED_CALLS):
            self.run(inputs)
        end.record()
        end.synchronize()
        return start.elapsed_time(end)
