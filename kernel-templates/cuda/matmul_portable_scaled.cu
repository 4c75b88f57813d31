// The products of scaled tokens by scaled weights for every shape and epilogue that their ops allow: matmul_portable_quant, whose
// elements of x are made of codes and scales too.
#include "scaled_x.cuh"

#include "scale_elem.cuh"

#include "code_weights.cuh"

#define TILE 64
#define STEP 16

// Null pointers stand for tensors that the problem does not have.
extern "C" __global__ void __launch_bounds__(256)
matmul_portable_scaled(const x_elem *__restrict__ x, const float *__restrict__ x_scales, const code_t *__restrict__ codes,
                       const scale_elem *__restrict__ scales, const zero_elem *__restrict__ zeros, const elem *__restrict__ bias,
#if OP_QKV
                       float *__restrict__ product,
#else
                       const elem *__restrict__ residual, elem *__restrict__ y, int swiglu,
#endif
                       int m, int n, int k) {
  __shared__ float xs[STEP][TILE + 1], ws[STEP][TILE + 1];
  const weights w = {codes, scales, zeros};
  pdl_launch();
  pdl_wait();
  const int tiles_n = cdiv(n, TILE);
  const int row0 = (int)(blockIdx.x / tiles_n) * TILE, col0 = (int)(blockIdx.x % tiles_n) * TILE;
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  float acc[4][4] = {};
  for (int k0 = 0; k0 < k; k0 += STEP) {
#pragma unroll
    for (int i = threadIdx.x; i < TILE * STEP; i += 256) {
      const int r = i / STEP, c = i % STEP;
      const bool in = k0 + c < k;
      xs[c][r] = in && row0 + r < m ? x_value<float>(x, x_scales, row0 + r, k0 + c, k) : 0.0f;
      ws[c][r] = in && col0 + r < n ? weight<float>(w, col0 + r, k0 + c, k) : 0.0f;
    }
#include "portable_quant_end.cuh"
