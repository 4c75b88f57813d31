// f64 reference of the products of scaled weights with every epilogue, as matmul.cu has it for plain ones: an element of w is
// made of its code and scale in f64. Where a norm stands before, its rows go to the workspace first, rounded to the element.
#if OP_NORM_QKV
#define OP_QKV 1
#endif
#include "scaled.cuh"

#define TILE 64
#define STEP 16

#define ROPE (OP_QKV && !QK_NORM)

extern "C" __global__ void __launch_bounds__(256) matmul_quant_reference(
    const x_elem *x, const code_t *codes, const scale_elem *scales, const zero_elem *zeros,
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
  const weights w = {codes, scales, zeros};
  const int tiles_n = cdiv(n, TILE);
  const int row0 = (int)(blockIdx.x / tiles_n) * TILE, col0 = (int)(blockIdx.x % tiles_n) * TILE;
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  double acc[4][4] = {};

  for (int k0 = 0; k0 < k; k0 += STEP) {
#pragma unroll 1
    for (int i = threadIdx.x; i < TILE * STEP; i += 256) {
      int r = i / STEP, c = i % STEP;
      bool in = k0 + c < k;
      xs[c][r] = in && row0 + r < m ? (double)to_f32(x[(i64)(row0 + r) * k + k0 + c]) : 0.0;
      ws[c][r] = in && col0 + r < n ? weight<double>(w, col0 + r, k0 + c, k) : 0.0;
    }
#include "quant_reference_end.cuh"

#if OP_NORM_MATMUL || OP_NORM_QKV
#include "norm_rows_reference.cuh"
#endif
