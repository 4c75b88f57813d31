// What a step is told, copied from the host's memory to where its kernels read it, and the tokens of the step before copied to the
// host's. An id below 0 stands for the token of row -1 - id of the step before. Every size is an argument.
//
// The last block to arrive copies the tokens, and then says the last word of what was told: when the host sees it, each block has read
// what it was told, and the tokens are there.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256)
advance(const int *told, const int *last, int *y, int *said, u32 *arrived, int words, int ids, int rows) {
  __shared__ bool is_last;
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i < words) {
    const int v = told[i];
    y[i] = i < ids && v < 0 ? last[min(-1 - v, rows - 1)] : v;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    is_last = atomicAdd(arrived, 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (!is_last) return;
  for (int r = threadIdx.x; r < rows; r += 256) said[r] = last[r];
  __threadfence_system();
  __syncthreads();
  if (threadIdx.x == 0) {
    *arrived = 0;
    *(volatile int *)(said + rows) = told[words - 1];
  }
}
