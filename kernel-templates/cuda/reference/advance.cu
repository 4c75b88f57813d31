// f64 reference of what a step is told: a thread a word.
#include "common.cuh"

extern "C" __global__ void advance_reference(const int *told, const int *last, double *y, double *said, int words, int ids, int rows) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i <= rows) said[i] = i < rows ? last[i] : told[words - 1];
  if (i >= words) return;
  int v = told[i];
  if (i < ids && v < 0) {
    const int row = -1 - v;
    v = last[row < rows ? row : rows - 1];
  }
  y[i] = v;
}
