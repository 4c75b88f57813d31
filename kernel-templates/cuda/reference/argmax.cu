// Reference of argmax, the lowest index among equals, as f64: one block of 256 threads per row.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256) argmax_reference(const elem *x, double *y, int cols) {
  __shared__ float best_value[256];
  __shared__ int best_index[256];
  const elem *row = x + (i64)blockIdx.x * cols;
  float best = NEG_INF;
  int at = 0x7fffffff;
  for (int c = threadIdx.x; c < cols; c += 256) {
    float v = to_f32(row[c]);
    if (v > best || at == 0x7fffffff) best = v, at = c;
  }
  best_value[threadIdx.x] = best, best_index[threadIdx.x] = at;
  for (int half = 128; half > 0; half >>= 1) {
    __syncthreads();
    if (threadIdx.x < half) {
      float v = best_value[threadIdx.x + half];
      int i = best_index[threadIdx.x + half];
      if (v > best || (v == best && i < at)) {
        best_value[threadIdx.x] = best = v;
        best_index[threadIdx.x] = at = i;
      }
    }
  }
  if (threadIdx.x == 0) y[blockIdx.x] = at;
}
