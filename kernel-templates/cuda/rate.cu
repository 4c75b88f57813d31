// The rate of matrix products. Compiled behind support.cu, and apart from it since nothing here says how far a result is
// from the reference: no key depends on it.
#include "mma.cuh"
#if ARCH == 900
#define WGMMA_N0 256
#include "wgmma.cuh"
#endif

// The ceiling of matrix products of 16-bit elements: what the tensor cores reach on numbers like those of inputs, which
// lower the clock under load as those do. Blocks of 256 threads, one for each multiprocessor. `done` counts the operations.
#if DTYPE_F16
typedef f16_t factor;
#else
typedef bf16_t factor;
#endif
DEV u32 factor_pair(u64 i) {
  return (u32)from_f32<factor>(uniform(1, 2 * i)).bits | (u32)from_f32<factor>(uniform(1, 2 * i + 1)).bits << 16;
}

#if ARCH == 900
// Two warpgroups, each with 64 rows of its own, by 256 columns of both; a step is 64 deep.
#define X_BYTES (64 * 64 * 2)
extern "C" __global__ void __launch_bounds__(256, 1) matrix_rate(int steps, u64 *done, u32 *sink) {
  __shared__ __align__(1024) u32 tile[(2 * X_BYTES + 256 * 64 * 2) / 4];
  for (u32 i = threadIdx.x; i < sizeof(tile) / 4; i += blockDim.x) tile[i] = factor_pair(i);
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  u32 at = smem_u32(tile);
  u64 x = desc_k_major<128>(at + threadIdx.x / 128 * X_BYTES), w = desc_k_major<128>(at + 2 * X_BYTES);
  float d[128];
#pragma unroll
  for (int i = 0; i < 128; i++) d[i] = 0;
  for (int s = 0; s < steps; s++) {
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; k++) Wgmma<256>::ss(d, desc_advance(x, k * 32), desc_advance(w, k * 32), 1);
    wgmma_commit();
    wgmma_wait<1>();
  }
  wgmma_wait<0>();
  const u64 operations = 2ull * 128 * 256 * 64 * steps;
#else
// Eight warps, each with eight tiles of 16 x 8 and operands in registers; a step is 16 deep.
extern "C" __global__ void __launch_bounds__(256, 1) matrix_rate(int steps, u64 *done, u32 *sink) {
  float tiles[8][4] = {};
  u32 x[4], w[8][2];
#pragma unroll
  for (int i = 0; i < 4; i++) x[i] = factor_pair(threadIdx.x + i * 256);
#pragma unroll
  for (int i = 0; i < 16; i++) w[i / 2][i % 2] = factor_pair(threadIdx.x + (4 + i) * 256);
  for (int s = 0; s < steps; s++) {
#pragma unroll
    for (int t = 0; t < 8; t++) mma_16816(factor(), tiles[t], x, w[t]);
  }
  const float *d = &tiles[0][0];
  const u64 operations = 2ull * 8 * 8 * 16 * 8 * 16 * steps;
#endif
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 32; i++) sum += d[i];
  if (__float_as_uint(sum) == 0x9e3779b9u) *sink = 1;
  if (threadIdx.x == 0) atomicAdd(done, operations);
}
