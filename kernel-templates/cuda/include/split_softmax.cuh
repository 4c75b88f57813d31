// Partial results of attention split over the keys, and how they merge.
//
// In the workspace: a counter per group of blocks that share heads, then per (sequence, query head, part) the maximum
// (base 2, scaled) and the sum, then HEAD_DIM unnormalised outputs, all f32. The merge leaves the workspace zero as it
// was found. Uses HEADS, HEAD_DIM, PART_TOKENS (the tokens behind one partial)
// and THREADS of the including kernel.
#pragma once
#include "common.cuh"

// Ahead of the wait: a value that an earlier kernel may still be writing, read past the L1 so that no old line stays
// there, and `bytes` (a multiple of 16) for the L2 to fetch, where every later write is seen.
DEV int ld_early(const int *p) {
  int v;
  asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
DEV void prefetch_l2(const void *p, u32 bytes) {
#if ARCH >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p), "r"(bytes) : "memory");
#endif
}

// exp2(x - top) where both may be -inf, which stands for "no token yet".
DEV float exp2_below(float x, float top) { return x == NEG_INF ? 0.0f : exp2_approx(x - top); }

DEV void store_pair(elem *to, float a, float b) {
#if ELEM_BYTES == 4
  *(float2 *)to = make_float2(a, b);
#else
  *(u32 *)to = pack2(elem{}, a, b);
#endif
}

struct partials {
  u32 *arrived;
  float2 *max_sum;
  float *out;
  int parts; // most partials of a head, the stride
  DEV partials(void *workspace, int counters, int batch, int max_parts) {
    arrived = (u32 *)workspace;
    max_sum = (float2 *)((char *)workspace + ((u64)counters * 4 + 255) / 256 * 256);
    out = (float *)((char *)max_sum + ((u64)batch * HEADS * max_parts * 8 + 255) / 256 * 256);
    parts = max_parts;
  }
};
DEV int part_count(int len) { return len > PART_TOKENS ? (len + PART_TOKENS - 1) / PART_TOKENS : 1; }

// Four dimensions of a head with their running maximum and sum.
struct quad_state {
  float top, sum;
  float4 acc;
  DEV quad_state() : top(NEG_INF), sum(0.0f), acc(make_float4(0.0f, 0.0f, 0.0f, 0.0f)) {}
  DEV void merge(float2 ms, float4 v) {
    const float new_top = fmaxf(top, ms.x), shrink = exp2_below(top, new_top), grow = exp2_below(ms.x, new_top);
    top = new_top, sum = sum * shrink + ms.y * grow;
    acc.x = acc.x * shrink + v.x * grow, acc.y = acc.y * shrink + v.y * grow;
    acc.z = acc.z * shrink + v.z * grow, acc.w = acc.w * shrink + v.w * grow;
  }
  DEV void write(elem *to) const {
    const float inv = sum > 0.0f ? 1.0f / sum : 0.0f;
    store_pair(to, acc.x * inv, acc.y * inv);
    store_pair(to + 2, acc.z * inv, acc.w * inv);
  }
};

// Merges the n partials of `heads` (at most COUNT) consecutive heads and writes their output. A thread takes four
// dimensions of a head; spare threads take other parts of the same dimensions. Called by the whole block.
template <int COUNT> DEV void combine(const partials &p, elem *o, i64 head0, int heads, int n) {
  constexpr int HEAD_QUADS = HEAD_DIM / 4, TASKS = COUNT * HEAD_QUADS, PARTS = THREADS / TASKS > 0 ? THREADS / TASKS : 1;
  __shared__ float4 part_out[PARTS > 1 ? THREADS : 1];
  __shared__ float2 part_ms[PARTS > 1 ? THREADS : 1];
  for (int task = threadIdx.x % TASKS; task < TASKS; task += THREADS) {
    const int part = threadIdx.x / TASKS, head = task / HEAD_QUADS, quad = task % HEAD_QUADS;
    const i64 first = (head0 + head) * p.parts;
    quad_state s;
    if (part < PARTS && head < heads) {
#pragma unroll 4
      for (int i = part; i < n; i += PARTS)
        s.merge(__ldcg(p.max_sum + first + i), __ldcg((const float4 *)(p.out + (first + i) * HEAD_DIM) + quad));
    }
    if (PARTS > 1) { // then this loop has one step, taken by every thread
      part_out[threadIdx.x] = s.acc, part_ms[threadIdx.x] = make_float2(s.top, s.sum);
      __syncthreads();
      if (part == 0)
#pragma unroll
        for (int i = 1; i < PARTS; i++) s.merge(part_ms[threadIdx.x + i * TASKS], part_out[threadIdx.x + i * TASKS]);
    }
    if (part == 0 && head < heads) s.write(o + (head0 + head) * HEAD_DIM + quad * 4);
  }
  __syncthreads();
  const float4 zero = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  for (int head = 0; head < heads; head++) {
    const i64 first = (head0 + head) * p.parts;
    for (int i = threadIdx.x; i < n * HEAD_QUADS; i += THREADS) ((float4 *)(p.out + first * HEAD_DIM))[i] = zero;
    for (int i = threadIdx.x; i < n; i += THREADS) p.max_sum[first + i] = make_float2(0.0f, 0.0f);
  }
}

// Counts this block in after it has written its partial; true in every thread of the last of n to arrive, which also
// resets the counter. Called by the whole block. Thread 0's release covers what the barrier before it ordered.
DEV bool last_to_arrive(u32 *counter, int n) {
  __shared__ bool last;
  __syncthreads();
  if (threadIdx.x == 0) {
    u32 before;
    asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
    last = before == n - 1;
    if (last) *counter = 0;
  }
  __syncthreads();
  return last;
}
