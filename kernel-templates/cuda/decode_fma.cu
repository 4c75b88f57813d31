// Attention of one query token over a paged KV cache in f32, split over the sequence.
//
// As decode_split, but for 4-byte elements and on the FMA units: eight lanes share a token, each holding every eighth
// group of four dimensions, so that a warp scores four tokens at a time and a score costs three shuffles. The four
// lane groups of a warp each run their own online softmax; they, the warps and at last the splits are merged.
#include "common.cuh"
#define GROUP (HEADS / KV_HEADS)
#define HEAD_BLOCKS ((GROUP + HEADS_BLOCK - 1) / HEADS_BLOCK) // blocks that share a KV head
#define HEADS_USED (GROUP < HEADS_BLOCK ? GROUP : HEADS_BLOCK)
#define THREADS (WARPS * 32)
#define QUADS (HEAD_DIM / 4)
#define ITEMS ((QUADS + 7) / 8) // groups of four dimensions of one lane
#define STEP (4 * UNROLL)       // tokens of a warp's step
#define PART_TOKENS SPLIT
#include "split_softmax.cuh"

static_assert(HEAD_DIM % 4 == 0 && HEAD_DIM <= 256, "head_dim");
static_assert(ELEM_BYTES == 4, "dtype");

DEV float4 load4(const elem *p) {
  float4 r;
  asm volatile("ld.global.L1::no_allocate.v4.f32 {%0,%1,%2,%3}, [%4];"
               : "=f"(r.x), "=f"(r.y), "=f"(r.z), "=f"(r.w) : "l"(p));
  return r;
}

extern "C" __global__ void __launch_bounds__(THREADS) decode_fma(
    const elem *__restrict__ q, const elem *__restrict__ k_cache, const elem *__restrict__ v_cache,
    const int *block_table, const int *lens, elem *__restrict__ o, void *workspace, int batch,
    int max_pages, int max_splits) {
  const int kv_head = blockIdx.x / HEAD_BLOCKS, head_block = blockIdx.x % HEAD_BLOCKS, seq = blockIdx.z;
  const int split = blockIdx.y, lane = lane_id(), warp = warp_id(), group = lane / 8, part = lane % 8;
  const i64 head0 = (i64)seq * HEADS + kv_head * GROUP + head_block * HEADS_BLOCK;
  const int heads = min(HEADS_BLOCK, GROUP - head_block * HEADS_BLOCK);
#if PDL
  pdl_launch();
  pdl_wait();
#endif
  const int len = lens[seq], begin = split * SPLIT, end = min(len, begin + SPLIT);
  if (begin >= len && split > 0) return;
  auto dim = [&](int i) { return (i * 8 + part) * 4; };
  const float4 zero = make_float4(0.0f, 0.0f, 0.0f, 0.0f);

  float4 qs[HEADS_USED][ITEMS], acc[HEADS_USED][ITEMS];
  float top[HEADS_USED], sum[HEADS_USED];
#pragma unroll
  for (int h = 0; h < HEADS_USED; h++) {
    top[h] = NEG_INF, sum[h] = 0.0f;
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
      qs[h][i] = h < heads && dim(i) < HEAD_DIM ? load4(q + (head0 + h) * HEAD_DIM + dim(i)) : zero;
      acc[h][i] = zero;
    }
  }

  const int *table = block_table + (i64)seq * max_pages;
  for (int t0 = begin + warp * STEP; t0 < end; t0 += WARPS * STEP) {
    // Tokens beyond the end are read as the last one and masked.
    float4 k[UNROLL][ITEMS], v[UNROLL][ITEMS];
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      const int token = min(t0 + u * 4 + group, end - 1);
      const i64 row = (((i64)table[token / PAGE] * KV_HEADS + kv_head) * PAGE + token % PAGE) * HEAD_DIM;
#pragma unroll
      for (int i = 0; i < ITEMS; i++) {
        k[u][i] = dim(i) < HEAD_DIM ? load4(k_cache + row + dim(i)) : zero;
        v[u][i] = dim(i) < HEAD_DIM ? load4(v_cache + row + dim(i)) : zero;
      }
    }
#pragma unroll
    for (int h = 0; h < HEADS_USED; h++) {
      float s[UNROLL], most = top[h];
#pragma unroll
      for (int u = 0; u < UNROLL; u++) {
        s[u] = 0.0f;
#pragma unroll
        for (int i = 0; i < ITEMS; i++)
          s[u] += qs[h][i].x * k[u][i].x + qs[h][i].y * k[u][i].y + qs[h][i].z * k[u][i].z + qs[h][i].w * k[u][i].w;
        s[u] = warp_sum<8>(s[u]) * (SCALE * LOG2E);
        if (t0 + u * 4 + group >= end) s[u] = NEG_INF;
        most = fmaxf(most, s[u]);
      }
      const float shrink = exp2_below(top[h], most);
      top[h] = most, sum[h] *= shrink;
#pragma unroll
      for (int i = 0; i < ITEMS; i++)
        acc[h][i].x *= shrink, acc[h][i].y *= shrink, acc[h][i].z *= shrink, acc[h][i].w *= shrink;
#pragma unroll
      for (int u = 0; u < UNROLL; u++) {
        const float p = exp2_below(s[u], most);
        sum[h] += p;
#pragma unroll
        for (int i = 0; i < ITEMS; i++) {
          acc[h][i].x += p * v[u][i].x, acc[h][i].y += p * v[u][i].y;
          acc[h][i].z += p * v[u][i].z, acc[h][i].w += p * v[u][i].w;
        }
      }
    }
  }

  // Merge the lane groups of the warp, then the warps.
  __shared__ float4 warp_out[WARPS][HEADS_USED][QUADS];
  __shared__ float2 warp_ms[WARPS][HEADS_USED];
#pragma unroll
  for (int h = 0; h < HEADS_USED; h++) {
    float m = top[h];
    m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 8));
    m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 16));
    const float shrink = exp2_below(top[h], m);
    auto add = [&](float x) {
      x *= shrink;
      x += __shfl_xor_sync(0xffffffffu, x, 8);
      return x + __shfl_xor_sync(0xffffffffu, x, 16);
    };
    const float all = add(sum[h]);
    if (lane == 0) warp_ms[warp][h] = make_float2(m, all);
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
      const float4 r = make_float4(add(acc[h][i].x), add(acc[h][i].y), add(acc[h][i].z), add(acc[h][i].w));
      if (group == 0 && dim(i) < HEAD_DIM) warp_out[warp][h][i * 8 + part] = r;
    }
  }
  __syncthreads();

  const int n = part_count(len);
  partials p(workspace, batch * KV_HEADS * HEAD_BLOCKS, batch, max_splits);
  if (warp == 0)
    for (int task = lane; task < heads * QUADS; task += 32) {
      const int h = task / QUADS, quad = task % QUADS;
      quad_state s;
#pragma unroll
      for (int w = 0; w < WARPS; w++) s.merge(warp_ms[w][h], warp_out[w][h][quad]);
      if (n == 1) {
        s.write(o + (head0 + h) * HEAD_DIM + quad * 4);
      } else {
        const i64 at = (head0 + h) * max_splits + split;
        *((float4 *)(p.out + at * HEAD_DIM) + quad) = s.acc;
        if (quad == 0) p.max_sum[at] = make_float2(s.top, s.sum);
      }
    }
  if (n == 1) return;
  if (last_to_arrive(p.arrived + seq * KV_HEADS * HEAD_BLOCKS + blockIdx.x, n)) combine<HEADS_USED>(p, o, head0, heads, n);
}
