// f64 reference of silu(gate)·up: gate at even, up at odd columns of x.
#include "common.cuh"

extern "C" __global__ void silu_mul_reference(const elem *x, double *y, int rows, int cols) {
  const i64 n = (i64)rows * cols;
  for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (i64)gridDim.x * blockDim.x) {
    double gate = to_f32(x[2 * i]), up = to_f32(x[2 * i + 1]);
    y[i] = gate / (1.0 + exp(-gate)) * up;
  }
}
