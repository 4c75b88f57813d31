// What a step is told, copied from the host's memory to where its kernels read it, and the tokens of the step before copied to the
// host's. An id below 0 stands for the token of row -1 - id of the step before. Every size is an argument.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256)
advance(const int *told, const int *last, int *y, int *said, int words, int ids, int rows) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i < words) {
    const int v = told[i];
    y[i] = i < ids && v < 0 ? last[min(-1 - v, rows - 1)] : v;
  } else if (i < words + rows) {
    said[i - words] = last[i - words];
  }
}
