// f64 reference of GELU, erf form.
#include "common.cuh"

extern "C" __global__ void gelu_reference(const elem *x, double *y, int rows, int cols) {
  const i64 n = (i64)rows * cols;
  for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (i64)gridDim.x * blockDim.x) {
    double v = to_f32(x[i]);
    y[i] = 0.5 * v * (1.0 + erf(v * 0.70710678118654752440));
  }
}
