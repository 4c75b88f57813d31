// The partial results of paged attention whose keys are split into parts, and the launch that merges them. Uses HEADS,
// HEAD_DIM and what paged_tiles.cuh uses.
#pragma once
#include "paged_tiles.cuh"

// In the workspace behind the first 256 bytes: for each (query, head, part) the maximum (base 2, scaled) and the sum,
// then HEAD_DIM unnormalised outputs, all f32.
struct Partials {
  float2 *max_sum;
  float *out;
  int parts; // of a row, the stride
  DEV Partials(void *workspace, int tokens, int max_parts) : parts(max_parts) {
    max_sum = (float2 *)((char *)workspace + 256);
    out = (float *)((char *)max_sum + ((u64)tokens * HEADS * max_parts * 8 + 255) / 256 * 256);
  }
  DEV i64 at(int token, int head, int part) const { return ((i64)token * HEADS + head) * parts + part; }
};

// exp2(x - top) where both may be -inf, which stands for "no key yet".
DEV float exp2_below(float x, float top) { return x == NEG_INF ? 0.0f : exp2_approx(x - top); }

constexpr int COMBINE_THREADS = 128;
constexpr int COMBINE_QUADS = HEAD_DIM / 4;                           // threads of a head, four dimensions each
constexpr int COMBINE_HEADS = COMBINE_THREADS / COMBINE_QUADS;        // heads of a block
constexpr int COMBINE_BLOCKS = (HEADS + COMBINE_HEADS - 1) / COMBINE_HEADS; // blocks of a query

// Merges the parts of every query that has several and leaves their memory zero, as it was found.
extern "C" __global__ void __launch_bounds__(COMBINE_THREADS) paged_combine(const int *q_starts, const int *kv_lens, elem *o,
                                                                            void *workspace, int tokens, int batch,
                                                                            int max_parts) {
  pdl_launch();
  pdl_wait();
  const int token = blockIdx.x / COMBINE_BLOCKS;
  const int head = blockIdx.x % COMBINE_BLOCKS * COMBINE_HEADS + threadIdx.x / COMBINE_QUADS;
  const int quad = threadIdx.x % COMBINE_QUADS;
  if (token >= q_starts[batch]) return;
  const int seq = find_sequence<1>(q_starts, batch, token), start = q_starts[seq], q = q_starts[seq + 1] - start;
  const int first = (token - start) / TILE_POSITIONS * TILE_POSITIONS;
  const int n = Part(kv_lens[seq] - q + first + min(TILE_POSITIONS, q - first), 0, max_parts).parts;
  if (n <= 1) return;
  const Partials partials(workspace, tokens, max_parts);
  const bool mine = threadIdx.x / COMBINE_QUADS < COMBINE_HEADS && head < HEADS;
  float2 *max_sum = partials.max_sum + partials.at(token, mine ? head : 0, 0);
  float4 *out = (float4 *)(partials.out + partials.at(token, mine ? head : 0, 0) * HEAD_DIM) + quad;
  if (mine) {
    float top = NEG_INF, sum = 0.0f;
    float4 acc = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 8
    for (int i = 0; i < n; i++) {
      const float2 ms = __ldcg(max_sum + i);
      const float4 v = __ldcg(out + i * COMBINE_QUADS);
      const float new_top = fmaxf(top, ms.x), shrink = exp2_below(top, new_top), grow = exp2_below(ms.x, new_top);
      top = new_top, sum = sum * shrink + ms.y * grow;
      acc.x = acc.x * shrink + v.x * grow, acc.y = acc.y * shrink + v.y * grow;
      acc.z = acc.z * shrink + v.z * grow, acc.w = acc.w * shrink + v.w * grow;
    }
    const float inv = sum > 0.0f ? 1.0f / sum : 0.0f;
    vec<4> r;
    r.v[0] = from_f32<elem>(acc.x * inv), r.v[1] = from_f32<elem>(acc.y * inv);
    r.v[2] = from_f32<elem>(acc.z * inv), r.v[3] = from_f32<elem>(acc.w * inv);
    *(vec<4> *)(o + ((i64)token * HEADS + head) * HEAD_DIM + quad * 4) = r;
    for (int i = 0; i < n; i++) out[i * COMBINE_QUADS] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  }
  __syncthreads(); // every thread of a head has read its maxima and sums
  if (mine && quad == 0)
    for (int i = 0; i < n; i++) max_sum[i] = make_float2(0.0f, 0.0f);
}
