// f64 reference of RMSNorm, optionally after a residual add: one block of 256 threads per row. `h` is the unrounded sum.
#include "reduce_f64.cuh"

DEV void norm_row(const elem *x, const elem *residual, const elem *weight, double *y, double *h, int cols, float eps) {
  const i64 row = (i64)blockIdx.x * cols;
  auto value = [&](int c) { return (double)to_f32(x[row + c]) + (residual ? (double)to_f32(residual[row + c]) : 0.0); };
  double sum_sq = 0.0;
  for (int c = threadIdx.x; c < cols; c += 256) sum_sq += value(c) * value(c);
  const double scale = 1.0 / sqrt(block_sum_f64(sum_sq) / cols + (double)eps);
  for (int c = threadIdx.x; c < cols; c += 256) {
    y[row + c] = value(c) * scale * (double)to_f32(weight[c]);
    if (h) h[row + c] = value(c);
  }
}

extern "C" __global__ void rmsnorm_reference(const elem *x, const elem *weight, double *y, int cols, float eps) {
  norm_row(x, nullptr, weight, y, nullptr, cols, eps);
}
extern "C" __global__ void rmsnorm_residual_reference(const elem *x, const elem *residual, const elem *weight, double *y,
                                                   double *h, int cols, float eps) {
  norm_row(x, residual, weight, y, h, cols, eps);
}
