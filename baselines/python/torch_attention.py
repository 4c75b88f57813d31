"""Attention over a prompt and of one token: PyTorch's backends, flex_attention, and other packages where installed."""

import math

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, bias, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from torch_forms import Form, Unsupported, has

BACKENDS = {
    "sdpa-cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa-flash": SDPBackend.FLASH_ATTENTION,
    "sdpa-efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def attention(task, t):
    names = ("batch", "q", "kv", "heads", "kv_heads", "head_dim", "causal")
    _, queries, kv, heads, kv_heads, _, causal = (task["dims"][name] for name in names)
    later, device = kv - queries, t["q"].device
    masked = causal == 1 and queries > 1
    if masked and later != 0:
        t["seen"] = torch.ones(queries, kv, dtype=torch.bool, device=device).tril(later)

    def sdpa(said, gqa):
        def call(q, k, v, seen=None):
            if not gqa and heads != kv_heads:
                k, v = (x.repeat_interleave(heads // kv_heads, 1) for x in (k, v))
            given = bias.causal_lower_right(queries, kv) if said == "causal_lower_right" else seen
            options = {"is_causal": said == "is_causal", "enable_gqa": gqa}
            o = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, given, **options)
            return o.transpose(1, 2).contiguous()

        return call

    forms = []
    for name in ("eager", *BACKENDS):
        said, takes = "", ("q", "k", "v")
        if masked and later == 0:
            said = "is_causal"
        elif masked and name in ("eager", "sdpa-cudnn"):
            said, takes = "attn_mask", ("q", "k", "v", "seen")
        elif masked:
            said = "causal_lower_right"
        how = f"F.scaled_dot_product_attention({said})"
        variants = [(how, sdpa(said, False))]
        if heads != kv_heads:
            expanded = (f"{how}, K and V expanded in each call", sdpa(said, False))
            variants = [(f"{how}, enable_gqa", sdpa(said, True)), expanded]
        forms.append(backend_form(name, variants, takes, device))
        if masked and later < 0 and name != "eager":
            forms[-1].refused = "its causal masks are for at least as many keys as queries"

    def sees(_, __, i, j):
        return i + later >= j

    blocks = create_block_mask(sees, None, None, queries, kv, device=device) if masked else None

    def flex(q, k, v):
        o = flex_attention(q.transpose(1, 2), k, v, block_mask=blocks, enable_gqa=heads != kv_heads)
        return o.transpose(1, 2).contiguous()

    how = f"flex_attention({'block_mask made in set-up' if masked else ''})"
    forms.append(Form("compile", [(how, flex)], ("q", "k", "v"), ("o",)))
    return forms + packaged_prefill(task, t)


def gather(task, t, context):
    """Makes `k` and `v` of the pages: a contiguous cache, as PyTorch's models have it. Not timed."""
    batch, kv_heads, head_dim = (task["dims"][name] for name in ("batch", "kv_heads", "head_dim"))
    for name, cache in (("k", t["k_cache"]), ("v", t["v_cache"])):
        rows = cache[t["block_table"].long()].transpose(1, 2).reshape(batch, kv_heads, -1, head_dim)
        t[name] = rows[:, :, :context].contiguous()


def paged_attention(task, t):
    batch, heads, head_dim = (task["dims"][name] for name in ("batch", "heads", "head_dim"))
    counts, lens = t["q_starts"].diff(), t["kv_lens"]
    queries, context = int(counts[0]), int(lens[0])
    if bool((counts != queries).any()) or bool((lens != context).any()) or batch * queries != len(t["q"]):
        raise Unsupported("sequences of unequal lengths, or rows that are padding, are no batch of PyTorch's attention")
    gather(task, t, context)
    t["q"] = t["q"].view(batch, queries, heads, head_dim)
    dims = {**task["dims"], "q": queries, "kv": context, "causal": 1}
    return attention({**task, "dims": dims}, t)


def decode(task, t):
    batch, heads, kv_heads, head_dim = (task["dims"][name] for name in ("batch", "heads", "kv_heads", "head_dim"))
    lens, device = t["lens"], t["q"].device
    context = int(lens.max())
    gather(task, t, context)
    mixed, takes = bool((lens != context).any()), ("q", "k", "v")
    if mixed:
        t["seen"] = (torch.arange(context, device=device) < lens.unsqueeze(1)).view(batch, 1, 1, context)

    def sdpa(group, gqa):
        def call(q, k, v, seen=None):
            q = q.view(batch, heads // group, group, head_dim)
            return F.scaled_dot_product_attention(q, k, v, seen, enable_gqa=gqa).reshape(batch, heads, head_dim)

        return call

    how = f"F.scaled_dot_product_attention({'attn_mask' if mixed else ''}) over a contiguous cache"
    variants = [(how, sdpa(1, False))]
    if heads != kv_heads:
        # For a backend that knows no groups, the query heads of a KV head are its queries: the same product.
        folded = (f"{how}, the query heads of a KV head as its queries", sdpa(heads // kv_heads, False))
        variants = [(f"{how}, enable_gqa", sdpa(1, True)), folded]
    masked = takes + (("seen",) if mixed else ())
    forms = [backend_form(name, variants, masked, device) for name in ("eager", *BACKENDS)]

    def sees(b, _, __, j):
        return j < lens[b]

    blocks = create_block_mask(sees, batch, None, 1, context, device=device) if mixed else None

    def flex(q, k, v):
        o = flex_attention(q.unsqueeze(2), k, v, block_mask=blocks, enable_gqa=heads != kv_heads)
        return o.reshape(batch, heads, head_dim)

    how = f"flex_attention({'block_mask made in set-up' if mixed else ''}) over a contiguous cache"
    forms.append(Form("compile", [(how, flex)], takes, ("o",)))
    return forms + packaged_decode(task, t)


def backend_form(name, variants, takes, device):
    if name == "eager":
        how = [(f"{how}, by the backend that PyTorch chooses", call) for how, call in variants]
        return Form(name, how, takes, ("o",))
    form = Form(name, variants, takes, ("o",), context=lambda: sdpa_kernel(BACKENDS[name]))
    if device.type != "cuda" and name != "sdpa-flash":
        form.refused = "it runs on CUDA devices alone"
    return form


def only(result):
    """Some versions give the log of the sum too."""
    return result[0] if isinstance(result, tuple) else result


def packaged_prefill(task, t):
    batch, queries, kv, heads, kv_heads, head_dim, causal = (
        task["dims"][name] for name in ("batch", "q", "kv", "heads", "kv_heads", "head_dim", "causal")
    )
    device, forms = t["q"].device, []
    if has("flash_attn_interface", device):

        def flash(q, k, v):
            import flash_attn_interface as fa3

            return only(fa3.flash_attn_func(q, k.transpose(1, 2), v.transpose(1, 2), causal=causal == 1))

        forms.append(Form("flash-attn-3", [("flash_attn_func", flash)], ("q", "k", "v"), ("o",)))
    if has("flashinfer", device):
        plan = []

        def prefill(q, k, v):
            if not plan:
                import flashinfer

                wrapper = flashinfer.BatchPrefillWithRaggedKVCacheWrapper(workspace(device), "NHD")
                ends = torch.arange(batch + 1, dtype=torch.int32, device=device)
                types = {"q_data_type": q.dtype, "kv_data_type": k.dtype}
                wrapper.plan(ends * queries, ends * kv, heads, kv_heads, head_dim, causal=causal == 1, **types)
                plan.append(wrapper)
            return only(plan[0].run(q.view(-1, heads, head_dim), k, v)).view(q.shape)

        for name in ("k", "v"):
            t[f"{name}_by_token"] = t[name].transpose(1, 2).reshape(-1, kv_heads, head_dim)
        how = "BatchPrefillWithRaggedKVCacheWrapper.run, planned in set-up"
        forms.append(Form("flashinfer", [(how, prefill)], ("q", "k_by_token", "v_by_token"), ("o",)))
    return forms


def packaged_decode(task, t):
    heads, kv_heads, head_dim, page = (task["dims"][name] for name in ("heads", "kv_heads", "head_dim", "page"))
    device, forms = t["q"].device, []
    if has("flash_attn_interface", device):

        def flash(q, k, v, lens, table):
            import flash_attn_interface as fa3

            pages = (x.transpose(1, 2) for x in (k, v))
            o = fa3.flash_attn_with_kvcache(q.unsqueeze(1), *pages, cache_seqlens=lens, page_table=table)
            return only(o).squeeze(1)

        takes = ("q", "k_cache", "v_cache", "lens", "block_table")
        forms.append(Form("flash-attn-3", [("flash_attn_with_kvcache over the pages", flash)], takes, ("o",)))
    if has("flashinfer", device):
        plan = []
        lens, table = t["lens"].tolist(), t["block_table"]

        def paged(q, k, v):
            if not plan:
                import flashinfer

                wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace(device), "HND", use_tensor_cores=True)
                used = [math.ceil(n / page) for n in lens]
                ends = torch.tensor([0] + used, dtype=torch.int32).cumsum(0, dtype=torch.int32)
                last = torch.tensor([n - (u - 1) * page for n, u in zip(lens, used)], dtype=torch.int32)
                rows = torch.cat([table[b, :u] for b, u in enumerate(used)])
                types = {"q_data_type": q.dtype, "kv_data_type": k.dtype}
                wrapper.plan(ends.to(device), rows, last.to(device), heads, kv_heads, head_dim, page, **types)
                plan.append(wrapper)
            return only(plan[0].run(q, (k, v)))

        how = "BatchDecodeWithPagedKVCacheWrapper.run over the pages, planned in set-up"
        forms.append(Form("flashinfer", [(how, paged)], ("q", "k_cache", "v_cache"), ("o",)))
    return forms


def workspace(device):
    return torch.zeros(128 * 2**20, dtype=torch.uint8, device=device)
