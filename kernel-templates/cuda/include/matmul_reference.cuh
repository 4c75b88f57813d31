#include "common.cuh"

#define TILE 64
#define STEP 16

#define ROPE (OP_QKV && !QK_NORM)

extern "C" __global__ void __launch_bounds__(256) matmul_reference(
    const operand *x, const operand *w,
#if BIAS
    const elem *bias,
#endif
#if RESIDUAL
    const elem *residual,
#endif
#if ROPE
    const int *positions, const int *slots, const float *cos_sin,
#endif
    double *y,
#if ROPE
    double *k_cache, double *v_cache, int heads, int kv_heads, int head_dim, int page,
#endif
    int m, int n, int k) {
  __shared__ double xs[STEP][TILE + 1], ws[STEP][TILE + 1];
  const int tiles_n = cdiv(n, TILE);
  const int row0 = (int)(blockIdx.x / tiles_n) * TILE, col0 = (int)(blockIdx.x % tiles_n) * TILE;
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  double acc[4][4] = {};

  for (int k0 = 0; k0 < k; k0 += STEP) {
    for (int i = threadIdx.x; i < TILE * STEP; i += 256) {
      int r = i / STEP, c = i % STEP;
      bool in = k0 + c < k;
      xs[c][r] = in && row0 + r < m ? (double)to_f32(x[(i64)(row0 + r) * k + k0 + c]) : 0.0;
      ws[c][r] = in && col0 + r < n ? (double)to_f32(w[(i64)(col0 + r) * k + k0 + c]) : 0.0;
    }
    __syncthreads();
#pragma unroll
    for (int c = 0; c < STEP; c++) {
      double a[4], b[4];
#pragma unroll
      for (int i = 0; i < 4; i++) a[i] = xs[c][ty * 4 + i], b[i] = ws[c][tx * 4 + i];
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) acc[i][j] = fma(a[i], b[j], acc[i][j]);
    }
    __syncthreads();
  }

#include "matmul_reference_end.cuh"
