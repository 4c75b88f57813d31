// The norm of few rows by each block that multiplies them: into shared memory, rounded to the element as a norm of its own
// would leave them. A warp has rows for itself, or TOKEN_WARPS warps share one. Rows of x that are short enough stay in registers
// between the sum of their squares and the norm, and otherwise come from the caches again.
#pragma once
#include "vector_io.cuh"

#define TOKEN_WARPS (WARPS > TOKENS ? WARPS / TOKENS : 1)
#define TOKEN_STRIDE (TOKENS > 1 ? K + 32 : K) // rows start 64 bytes apart in the banks, so that a warp's 16-byte loads meet no other's

static_assert(TOKENS <= 8 && 8 % TOKENS == 0 && WARPS % TOKEN_WARPS == 0 && TOKENS % (WARPS / TOKEN_WARPS) == 0, "warps have equal shares");

constexpr int NORM_VECTORS = K / 8, NORM_ITEMS = (NORM_VECTORS + TOKEN_WARPS * 32 - 1) / (TOKEN_WARPS * 32); // of 16 bytes; those of a lane
constexpr bool NORM_KEPT = NORM_ITEMS <= 2;

// The norm's weights are constants, so they may be on their way to the L2 before the wait for x. Registers are for the codes.
DEV void prefetch_norm(const elem *norm) {
  constexpr int LINES = (K + 63) / 64;
#pragma unroll
  for (int i = 0; i < LINES; i += WARPS * 32)
    if (i + (int)threadIdx.x < LINES) asm volatile("prefetch.global.L2 [%0];" ::"l"(norm + (i + threadIdx.x) * 64));
}

// normed: TOKENS rows of TOKEN_STRIDE, of which the first m are filled. Ends with a barrier.
DEV void norm_tokens(elem *normed, const elem *x, const elem *norm, int m, float eps) {
  __shared__ float squares[TOKENS][TOKEN_WARPS];
  const int part = warp_id() % TOKEN_WARPS, first = part * 32 + lane_id();
  for (int t = warp_id() / TOKEN_WARPS; t < TOKENS; t += WARPS / TOKEN_WARPS) {
    const bool there = t < m;
    const elem *const row = x + (i64)t * K;
    packed<8> kept[NORM_KEPT ? NORM_ITEMS : 1], weights[NORM_KEPT ? NORM_ITEMS : 1];
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < NORM_ITEMS; i++) {
      const int c = first + i * TOKEN_WARPS * 32;
      packed<8> u = {};
      if (there && c < NORM_VECTORS) u = load<8>(row + c * 8);
      if constexpr (NORM_KEPT) {
        kept[i] = u;
        if (there && c < NORM_VECTORS) weights[i] = load_constant<8>(norm + c * 8);
      }
      float v[8];
      unpack(u, v);
#pragma unroll
      for (int j = 0; j < 8; j++) sum = fmaf(v[j], v[j], sum);
    }
    sum = warp_sum(sum);
    if constexpr (TOKEN_WARPS > 1) { // each warp has one row then, so all meet here
      if (lane_id() == 0) squares[t][part] = sum;
      __syncthreads();
      sum = 0.0f;
#pragma unroll
      for (int i = 0; i < TOKEN_WARPS; i++) sum += squares[t][i];
    }
    const float scale = rsqrtf(sum * (1.0f / K) + eps);
#pragma unroll
    for (int i = 0; i < NORM_ITEMS; i++) {
      const int c = first + i * TOKEN_WARPS * 32;
      if (!there || c >= NORM_VECTORS) continue;
      float v[8], w[8];
      unpack(NORM_KEPT ? kept[NORM_KEPT ? i : 0] : load<8>(row + c * 8), v);
      unpack(NORM_KEPT ? weights[NORM_KEPT ? i : 0] : load_constant<8>(norm + c * 8), w);
#pragma unroll
      for (int j = 0; j < 8; j++) v[j] = v[j] * scale * w[j];
      store(normed + t * TOKEN_STRIDE + c * 8, pack(v));
    }
  }
  __syncthreads();
}

// Sixteen bytes of them.
DEV uint4 ld_normed(const elem *p) { return *reinterpret_cast<const uint4 *>(p); }
