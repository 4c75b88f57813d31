// The products of scaled weights for every shape and epilogue that their ops allow: matmul_portable, whose elements of w are
// made of codes and scales as they are loaded. One artifact for its types and format serves any problem. A block of 256 threads
// computes 64 × 64 outputs, each thread 4 × 4 in f32, over k in steps of 16 through shared memory.
#include "scaled.cuh"

#define TILE 64
#define STEP 16

// Null pointers stand for tensors that the problem does not have.
extern "C" __global__ void __launch_bounds__(256)
matmul_portable_quant(const x_elem *__restrict__ x, const code_t *__restrict__ codes, const scale_elem *__restrict__ scales,
                      const zero_elem *__restrict__ zeros, const elem *__restrict__ bias,
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
      xs[c][r] = in && row0 + r < m ? to_f32(x[(i64)(row0 + r) * k + k0 + c]) : 0.0f;
      ws[c][r] = in && col0 + r < n ? weight<float>(w, col0 + r, k0 + c, k) : 0.0f;
    }
#include "portable_quant_end.cuh"
