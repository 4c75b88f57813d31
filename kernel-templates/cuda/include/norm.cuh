// RMSNorm and LayerNorm of rows of COLS elements, with an optional residual add before.
//
// ROW_THREADS threads hold a row in registers from the load to the store, so every tensor is moved once; a block takes
// BLOCK_ROWS rows. The weights are constants and may therefore be fetched before the grid dependency resolves
// (WEIGHT_EARLY); otherwise they are fetched when they are needed, which takes fewer registers.
#pragma once
#include "vector_io.cuh"

#define THREADS (ROW_THREADS * BLOCK_ROWS)
#define ITEMS ((COLS + VEC * ROW_THREADS - 1) / (VEC * ROW_THREADS)) // accesses of one thread per row
#define ROW_WARPS (ROW_THREADS / 32)

static_assert(COLS % VEC == 0, "a row is whole accesses");
static_assert(THREADS % 32 == 0 && THREADS <= 1024, "block");

// The sum over the threads of a row, in all of them. Calls with different slots need no barrier between them.
DEV float row_sum(float v, int slot) {
  v = warp_sum<ROW_THREADS < 32 ? ROW_THREADS : 32>(v);
#if ROW_THREADS > 32
  __shared__ float part[2][BLOCK_ROWS][ROW_WARPS];
  const int row = threadIdx.x / ROW_THREADS, warp = threadIdx.x % ROW_THREADS / 32;
  if (lane_id() == 0) part[slot][row][warp] = v;
  __syncthreads();
  v = 0.0f;
#pragma unroll
  for (int i = 0; i < ROW_WARPS; i++) v += part[slot][row][i];
#endif
  return v;
}

template <bool LAYER_NORM> DEV void norm(const elem *x, const elem *residual, const elem *weight, const elem *bias, elem *y,
                                         elem *h, int rows, float eps) {
  const int in_row = threadIdx.x % ROW_THREADS;
  packed<VEC> w[ITEMS], b[ITEMS];
  auto load_weights = [&](int i) {
    const int c = (i * ROW_THREADS + in_row) * VEC;
    if (c < COLS) {
      w[i] = load_constant<VEC>(weight + c);
      if (LAYER_NORM) b[i] = load_constant<VEC>(bias + c);
    }
  };
#if WEIGHT_EARLY
#pragma unroll
  for (int i = 0; i < ITEMS; i++) load_weights(i);
#endif
#if PDL
  pdl_launch();
  pdl_wait();
#endif
  const i64 row = (i64)blockIdx.x * BLOCK_ROWS + threadIdx.x / ROW_THREADS, at = row * COLS + in_row * VEC;
  const bool row_in = BLOCK_ROWS == 1 || row < rows;
  auto in = [&](int i) { return row_in && (COLS % (VEC * ROW_THREADS) == 0 || (i * ROW_THREADS + in_row) * VEC < COLS); };
  packed<VEC> xs[ITEMS] = {};
#if RESIDUAL
  packed<VEC> rs[ITEMS] = {};
#endif
#pragma unroll
  for (int i = 0; i < ITEMS; i++)
    if (in(i)) {
      xs[i] = load<VEC>(x + at + i * ROW_THREADS * VEC);
#if RESIDUAL
      rs[i] = load<VEC>(residual + at + i * ROW_THREADS * VEC);
#endif
    }
  float v[ITEMS][VEC], sum = 0.0f, sum_sq = 0.0f, mean = 0.0f;
#pragma unroll
  for (int i = 0; i < ITEMS; i++) {
    unpack(xs[i], v[i]);
#if RESIDUAL
    float r[VEC];
    unpack(rs[i], r);
#pragma unroll
    for (int j = 0; j < VEC; j++) v[i][j] += r[j];
    if (in(i)) store<STREAM>(h + at + i * ROW_THREADS * VEC, pack(v[i]));
#endif
  }
  if (LAYER_NORM) {
#pragma unroll
    for (int i = 0; i < ITEMS; i++)
#pragma unroll
      for (int j = 0; j < VEC; j++) sum += v[i][j];
    mean = row_sum(sum, 0) * (1.0f / COLS);
  }
#pragma unroll
  for (int i = 0; i < ITEMS; i++)
#pragma unroll
    for (int j = 0; j < VEC; j++) {
      v[i][j] -= mean;
      if (!LAYER_NORM || in(i)) sum_sq = fmaf(v[i][j], v[i][j], sum_sq); // past the end v is -mean, not 0
    }
  const float scale = rsqrtf(row_sum(sum_sq, 1) * (1.0f / COLS) + eps);
#pragma unroll
  for (int i = 0; i < ITEMS; i++)
    if (in(i)) {
#if !WEIGHT_EARLY
      load_weights(i);
#endif
      float wf[VEC], bf[VEC];
      unpack(w[i], wf);
      if (LAYER_NORM) unpack(b[i], bf);
#pragma unroll
      for (int j = 0; j < VEC; j++) wf[j] = v[i][j] * scale * wf[j] + (LAYER_NORM ? bf[j] : 0.0f);
      store<STREAM>(y + at + i * ROW_THREADS * VEC, pack(wf));
    }
}
