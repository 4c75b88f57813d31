"""Attention over a prompt and of one token: PyTorch's backends, written out, and other packages where installed."""
import importlib.util
import math

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, bias, sdpa_kernel

from torch_forms import Form, both

BACKENDS = {
    "sdpa-cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa-flash": SDPBackend.FLASH_ATTENTION,
    "sdpa-efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def by_hand(batch, queries, heads, kv_heads, head_dim, hidden, unseeing):
    """softmax(q·kᵀ)·v written out. Query heads that share a KV head are rows of one product, so that K and V are read
    as they are. `hidden`: whether a mask of what is not seen is given. `unseeing`: whether a query sees no key."""
    group, scale = heads // kv_heads, 1 / math.sqrt(head_dim)

    def call(q, k, v, mask=None):
        q = q.view(batch, queries, kv_heads, group, head_dim).permute(0, 2, 3, 1, 4)
        scores = (q * scale).reshape(batch, kv_heads, group * queries, head_dim) @ k.transpose(-1, -2)
        if hidden:
            scores = scores.view(batch, kv_heads, group, queries, -1).masked_fill(mask, -math.inf)
            scores = scores.view(batch, kv_heads, group * queries, -1)
        weights = torch.softmax(scores, -1, dtype=torch.float32).to(v.dtype)
        if unseeing:
            weights = weights.nan_to_num(0.0)
        o = (weights @ v).view(batch, kv_heads, group, queries, head_dim)
        return o.permute(0, 3, 1, 2, 4).reshape(batch, queries, heads, head_dim)

    return call


def attention(task, t):
    names = ("batch", "q", "kv", "heads", "kv_heads", "head_dim", "causal")
    batch, queries, kv, heads, kv_heads, head_dim, causal = (task["dims"][name] for name in names)
    masked = causal == 1 and queries > 1
    takes = ("q", "k", "v")
    how = "softmax((q * scale) @ k.T) @ v written out, softmax in f32"
    if masked:
        seen = torch.ones(queries, kv, dtype=torch.bool, device=t["q"].device).tril(kv - queries)
        t["seen"], t["hidden"] = seen, ~seen
    written = by_hand(batch, queries, heads, kv_heads, head_dim, masked, causal == 1 and queries > kv)
    forms = both(how, written, takes + (("hidden",) if masked else ()), gives=("o",))
    held = batch * heads * queries * kv * (2 * t["q"].element_size() + 4)
    if held > spare(t["q"].device):
        for form in forms:
            form.refused = f"the scores written out take {held / 2**30:.0f} GiB, more than this device has to spare"

    def call(causal, gqa):
        def run(q, k, v, seen=None):
            if not gqa and heads != kv_heads:
                k, v = (x.repeat_interleave(heads // kv_heads, 1) for x in (k, v))
            given = bias.causal_lower_right(queries, kv) if causal == "causal_lower_right" else seen
            options = {"is_causal": causal == "is_causal", "enable_gqa": gqa}
            o = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, given, **options)
            return o.transpose(1, 2).contiguous()

        return run

    for name in BACKENDS:
        said, extra = "", ()
        if masked and queries == kv:
            said = "is_causal"
        elif masked and name == "sdpa-cudnn":
            said, extra = "attn_mask", ("seen",)
        elif masked:
            said = "causal_lower_right"
        how = f"F.scaled_dot_product_attention({said})"
        variants = [(how, call(said, False))]
        if heads != kv_heads:
            expanded = (f"{how}, K and V expanded in each call", call(said, False))
            variants = [(f"{how}, enable_gqa", call(said, True)), expanded]
        forms.append(sdpa(name, variants, takes + extra, t["q"].device))
        if masked and queries > kv:
            forms[-1].refused = "its causal masks are for at least as many keys as queries"
    return forms + packaged_prefill(task, t)


def decode(task, t):
    batch, heads, kv_heads, head_dim = (task["dims"][name] for name in ("batch", "heads", "kv_heads", "head_dim"))
    lens, table = t["lens"], t["block_table"].long()
    context, device = int(lens.max()), t["q"].device
    for name, cache in (("k", t["k_cache"]), ("v", t["v_cache"])):
        rows = cache[table].transpose(1, 2).reshape(batch, kv_heads, -1, head_dim)
        t[name] = rows[:, :, :context].contiguous()
    mixed = bool((lens != context).any())
    takes = ("q", "k", "v")
    if mixed:
        t["seen"] = (torch.arange(context, device=device) < lens.unsqueeze(1)).view(batch, 1, 1, context)
        t["hidden"] = ~t["seen"].view(batch, 1, 1, 1, context)
    product = by_hand(batch, 1, heads, kv_heads, head_dim, mixed, False)

    def written(q, k, v, mask=None):
        return product(q.unsqueeze(1), k, v, mask).squeeze(1)

    how = "softmax((q * scale) @ k.T) @ v written out, softmax in f32, over a contiguous cache"
    forms = both(how, written, takes + (("hidden",) if mixed else ()), gives=("o",))

    def call(kv_group, gqa):
        def run(q, k, v, seen=None):
            q = q.view(batch, heads // kv_group, kv_group, head_dim)
            o = F.scaled_dot_product_attention(q, k, v, seen, enable_gqa=gqa)
            return o.reshape(batch, heads, head_dim)

        return run

    how = f"F.scaled_dot_product_attention({'attn_mask' if mixed else ''}) over a contiguous cache"
    variants = [(how, call(1, False))]
    if heads != kv_heads:
        # For a backend that knows no groups, the query heads of a KV head are its queries: the same product.
        folded = (f"{how}, the query heads of a KV head as its queries", call(heads // kv_heads, False))
        variants = [(f"{how}, enable_gqa", call(1, True)), folded]
    for name in BACKENDS:
        forms.append(sdpa(name, variants, takes + (("seen",) if mixed else ()), device))
    return forms + packaged_decode(task, t)


def sdpa(name, variants, takes, device):
    form = Form(name, variants, takes, gives=("o",), context=lambda: sdpa_kernel(BACKENDS[name]))
    if device.type != "cuda" and name != "sdpa-flash":
        form.refused = "it runs on CUDA devices alone"
    return form


def spare(device):
    """Bytes that what a call holds for a while may take."""
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else 4 * 2**30


def has(module, device):
    return device.type == "cuda" and importlib.util.find_spec(module) is not None


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
    names = ("batch", "heads", "kv_heads", "head_dim", "page")
    batch, heads, kv_heads, head_dim, page = (task["dims"][name] for name in names)
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
