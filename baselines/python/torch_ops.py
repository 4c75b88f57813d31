"""PyTorch's ways to compute each op: what is set up and what is called.

An op is a function from a task and its first set of tensors to forms. It may add to that set what a caller has ready
before a call (weights in another order, indices as int64, a mask); the other sets are copies. What a caller has to do
on every call is inside of a form's function.
"""

import math

import numpy
import torch
import torch.nn.functional as F

import torch_attention
import torch_cudnn
from torch_forms import Candidate, Form, Unsupported, both

FILES = {
    "bf16": numpy.int16,
    "e4m3": numpy.uint8,
    "f16": numpy.float16,
    "f32": numpy.float32,
    "tf32": numpy.float32,
    "i32": numpy.int32,
}
# What numpy has no type for is read as bits; to PyTorch these are:
VIEWS = {"bf16": torch.bfloat16, "e4m3": torch.float8_e4m3fn}


def candidates(task, device, chosen, compile_mode):
    """The ways that a problem may be computed in; setting up is done here, but for compiling."""
    op, dtype = task.get("op"), task.get("dtype")
    known = ("bf16", "f16", "f32", "tf32") + (("e4m3",) if op == "matmul" else ())
    if op not in OPS or dtype not in known:
        raise Unsupported(f"this peer has no {op} of {dtype}")
    configure(dtype, device)
    tensors = {t["name"]: load(t).to(device) for t in task["tensors"] if t["role"] == "in"}
    forms = [form for form in OPS[op](task, tensors) if form.name in chosen]
    used = {name for form in forms for name in form.takes}
    first = {name: tensor for name, tensor in tensors.items() if name in used}
    sets = [first] + [{n: t.clone() for n, t in first.items()} for _ in range(1, max(1, int(task["sets"])))]
    return [Candidate(form, sets, compile_mode) for form in forms]


def configure(dtype, device):
    torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
    # Every problem is a new shape of the same few functions.
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 4096
    if device.type == "cuda":
        from torch._inductor import config, select_algorithm

        config.max_autotune_gemm_backends = "ATEN,TRITON"
        select_algorithm.PRINT_AUTOTUNE = False


def load(t):
    values = numpy.fromfile(t["file"], FILES[t["dtype"]])
    if values.size != math.prod(t["shape"]):
        raise ValueError(f"{t['file']} holds {values.size} values, not those of {t['shape']}")
    values = torch.from_numpy(values)
    return values.view(VIEWS.get(t["dtype"], values.dtype)).reshape(t["shape"])


def swiglu(gate_up):
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


def rotate_complex(x, cos_sin):
    """Adjacent pairs as complex numbers, as Llama's own code does it: the fewest kernels without a compiler."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.view_as_complex(cos_sin).unsqueeze(1)).flatten(-2).to(x.dtype)


def rotate_real(x, cos_sin):
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos_sin.unsqueeze(1).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)


def matmul_8_bits(task, t):
    one = torch.ones((), device=t["x"].device)

    def product(x, w, bias=None):
        return torch._scaled_mm(x, w.t(), scale_a=one, scale_b=one, bias=bias, out_dtype=torch.bfloat16)

    epilogue = task["words"].get("epilogue", "none")
    biased = ("bias",) if epilogue.startswith("bias") else ()
    how = f"torch._scaled_mm(x, w.t(){', bias' if biased else ''}), scales of 1"
    if epilogue.endswith("residual"):
        takes = ("x", "w", "residual") + biased
        return both(f"residual + {how}", lambda x, w, r, *b: r + product(x, w, *b), takes)
    return both(how, product, ("x", "w") + biased)


def matmul(task, t):
    if task["dtype"] == "e4m3":
        return matmul_8_bits(task, t)
    epilogue = task["words"].get("epilogue", "none")
    if epilogue == "none":
        return both("F.linear(x, w)", F.linear, ("x", "w"))
    if epilogue == "bias":
        return both("F.linear(x, w, bias)", F.linear, ("x", "w", "bias"))
    if epilogue == "residual":
        takes = ("x", "w", "residual")
        addmm = Form("addmm", [("torch.addmm(residual, x, w.t())", lambda x, w, r: torch.addmm(r, x, w.t()))], takes)
        return both("residual + F.linear(x, w)", lambda x, w, r: r + F.linear(x, w), takes) + [addmm]
    if epilogue == "bias_residual":
        takes = ("x", "w", "bias", "residual")
        return both("residual + F.linear(x, w, bias)", lambda x, w, b, r: r + F.linear(x, w, b), takes)
    if epilogue not in ("swiglu", "bias_swiglu"):
        raise Unsupported(f"this peer has no matmul with the epilogue {epilogue}")
    # Gate and up alternate in our layout; models in PyTorch have one after the other.
    biased = ("bias",) if epilogue == "bias_swiglu" else ()
    for name in ("w",) + biased:
        t[name] = torch.cat([t[name][0::2], t[name][1::2]])
    how = f"gate, up = F.linear(x, w{', bias' if biased else ''}).chunk(2); F.silu(gate) * up"
    return both(how, lambda x, w, *b: swiglu(F.linear(x, w, *b)), ("x", "w") + biased)


def qkv(task, t):
    if task["words"].get("padding") == "some":
        raise Unsupported("this peer has no rows without a slot")
    heads, kv_heads, head_dim, page = (task["dims"][name] for name in ("heads", "kv_heads", "head_dim", "page"))
    biased, normed = (tuple(n for n in names if n in t) for names in (("bias",), ("q_norm", "k_norm")))
    eps = task["reals"]["eps"]
    # A model has these once a step for all its layers, so that they are not part of a call.
    t["positions"] = t["positions"].long()
    t["page"], t["row"] = t["slots"].long() // page, t["slots"].long() % page
    dtype = t["x"].dtype
    for cache in (c for c in task["tensors"] if c["name"] in ("k_cache", "v_cache")):
        t[cache["name"]] = torch.full(cache["shape"], math.nan, dtype=dtype, device=t["x"].device)

    def chain(rotate):
        def call(x, w, positions, page, row, cos_sin, k_cache, v_cache, *rest):
            product = F.linear(x, w, rest[0] if biased else None).view(len(x), heads + 2 * kv_heads, head_dim)
            q, k, v = product.split([heads, kv_heads, kv_heads], 1)
            if normed:
                q, k = (F.rms_norm(h, (head_dim,), weight, eps) for h, weight in zip((q, k), rest[-2:], strict=True))
            angles = cos_sin[positions]
            k_cache.transpose(1, 2).index_put_((page, row), rotate(k, angles))
            v_cache.transpose(1, 2).index_put_((page, row), v)
            return rotate(q, angles).view(len(x), heads * head_dim)

        return call

    takes = ("x", "w", "positions", "page", "row", "cos_sin", "k_cache", "v_cache") + biased + normed
    how = f"F.linear, split, {'F.rms_norm, ' if normed else ''}rotation ({{}}) by cos_sin[positions], index_put_ into the caches (slots split in set-up)"
    return both(
        how.format("complex"),
        chain(rotate_complex),
        takes,
        writes=("k_cache", "v_cache"),
        compiled=chain(rotate_real),
        compiled_how=how.format("real"),
    )


def norm(task, t, name, params):
    cols = (task["dims"]["cols"],)
    layer = name == "layer_norm"
    eps = task["reals"]["eps"]
    by_cudnn = torch_cudnn.norm(task, t, name, params, eps)

    def plain(x, *weights):
        return F.layer_norm(x, cols, *weights, eps) if layer else F.rms_norm(x, cols, *weights, eps)

    if task["dims"].get("residual", 0) == 0:
        return both(f"F.{name}(x, weight{', bias' if layer else ''})", plain, ("x",) + params) + by_cudnn

    def added(x, residual, *weights):
        h = x + residual
        return plain(h, *weights), h

    how = f"h = x + residual; F.{name}(h, …)"
    return both(how, added, ("x", "residual") + params, gives=("y", "h")) + by_cudnn


def silu_mul(task, t):
    # The halves as a model in PyTorch has them.
    t["x"] = torch.cat([t["x"][:, 0::2], t["x"][:, 1::2]], 1)
    return both("gate, up = x.chunk(2); F.silu(gate) * up", swiglu, ("x",))


def rope(task, t):
    t["positions"] = t["positions"].long()
    how = "rotation ({}) by cos_sin[positions]"
    return both(
        how.format("complex"),
        lambda x, positions, cos_sin: rotate_complex(x, cos_sin[positions]),
        ("x", "positions", "cos_sin"),
        compiled=lambda x, positions, cos_sin: rotate_real(x, cos_sin[positions]),
        compiled_how=how.format("real"),
    )


OPS = {
    "matmul": matmul,
    "qkv": qkv,
    "attention": torch_attention.attention,
    "decode": torch_attention.decode,
    "paged_attention": torch_attention.paged_attention,
    "rmsnorm": lambda task, t: norm(task, t, "rms_norm", ("weight",)),
    "layernorm": lambda task, t: norm(task, t, "layer_norm", ("weight", "bias")),
    "silu_mul": silu_mul,
    "gelu": lambda task, t: both("F.gelu(x)", F.gelu, ("x",)),
    "rope": rope,
    "softmax": lambda task, t: both("torch.softmax(x, -1)", lambda x: torch.softmax(x, -1), ("x",)),
    "embedding": lambda task, t: both("F.embedding(ids, table)", F.embedding, ("ids", "table")),
    "argmax": lambda task, t: both("torch.argmax(x, -1), in int64", lambda x: torch.argmax(x, -1), ("x",)),
}
