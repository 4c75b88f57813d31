"""Times the low-bit products of others on a GPU, as docs/performance/low-precision.md has them: codes_peers.py [FILE].

Humming (`pip install humming-kernels`) and PyTorch's `_weight_int4pack_mm` with weights of 4 bits in groups of 128, and `_scaled_mm` of e4m3
by e4m3 with one scale each. Medians of seven graphs over copies of the weights that lie beyond the L2; microseconds a product, as a JSON line a
shape, to FILE or standard output. What is not installed is said and left out. Ours: `jitune tune --plan scripts/gpu/codes.plan`.
"""

import json
import sys

import torch

SHAPES = [(8192, 8192), (28672, 4096), (16384, 2048), (2048, 8192)]
TOKENS = [1, 8, 16, 32, 64]
GROUP = 128
BEYOND_L2 = 200_000_000  # bytes of all copies together
LAUNCHES = 24


def timed(products):
    """Microseconds a product of a graph of them."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for product in products:
            product()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for product in products:
                product()
        times = []
        for _ in range(7):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) * 1e3 / len(products))
    return sorted(times)[len(times) // 2]


def in_turn(copies, product):
    count = max(LAUNCHES, len(copies))
    return timed([lambda copy=copies[i % len(copies)]: product(copy) for i in range(count)])


def humming(n, k, copies):
    from humming.layer import HummingLayer

    weights = torch.randn(n, k, device="cuda", dtype=torch.bfloat16) * 0.02
    layers = []
    for _ in range(copies):
        layer = HummingLayer(n, k, {"dtype": "uint4", "group_size": GROUP}, torch_dtype=torch.bfloat16).cuda()
        layer.load_from_unquantized(weights)
        layer.transform()
        layers.append(layer)
    outputs = {m: torch.empty(m, n, device="cuda", dtype=torch.bfloat16) for m in TOKENS}
    return lambda x: in_turn(layers, lambda layer: layer(x, outputs=outputs[len(x)]))


def torch_int4(n, k, copies):
    def packed():
        codes = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, device="cuda")
        scales = torch.randn(k // GROUP, n, 2, device="cuda", dtype=torch.bfloat16)
        return torch.ops.aten._convert_weight_to_int4pack(codes, 8), scales

    weights = [packed() for _ in range(copies)]
    return lambda x: in_turn(weights, lambda w: torch.ops.aten._weight_int4pack_mm(x, w[0], GROUP, w[1]))


def fp8_tensor(n, k, copies):
    weights = [torch.randn(n, k, device="cuda").to(torch.float8_e4m3fn) for _ in range(max(2, copies // 2))]
    one = torch.ones((), device="cuda")

    def of(x):
        # Rows of tokens are padded to what the product takes.
        tokens = torch.randn(max(16, len(x)), k, device="cuda").to(torch.float8_e4m3fn)
        return in_turn(weights, lambda w: torch._scaled_mm(tokens, w.t(), one, one, out_dtype=torch.bfloat16))

    return of


def main():
    out = open(sys.argv[1], "w") if len(sys.argv) > 1 else sys.stdout
    for n, k in SHAPES:
        copies = max(2, -(-BEYOND_L2 // (n * k // 2)))
        rows = {m: {"n": n, "k": k, "m": m} for m in TOKENS}
        for peer in (humming, torch_int4, fp8_tensor):
            try:
                product = peer(n, k, copies)
                for m, row in rows.items():
                    row[peer.__name__] = product(torch.randn(m, k, device="cuda", dtype=torch.bfloat16))
            except (ImportError, RuntimeError, OSError) as error:
                print(f"{peer.__name__}: {error}", file=sys.stderr)
            product = None
            torch.cuda.empty_cache()
        for row in rows.values():
            print(json.dumps(row), file=out, flush=True)


if __name__ == "__main__":
    main()
