// f64 reference of LayerNorm, optionally after a residual add: one block of 256 threads per row. `h` is the unrounded sum.
#include "reduce_f64.cuh"

DEV void norm_row(const elem *x, const elem *residual, const elem *weight, const elem *bias, double *y, double *h, int cols, float eps) {
  const i64 row = (i64)blockIdx.x * cols;
  auto value = [&](int c) { return (double)to_f32(x[row + c]) + (residual ? (double)to_f32(residual[row + c]) : 0.0); };
  double sum = 0.0, sum_sq = 0.0;
  for (int c = threadIdx.x; c < cols; c += 256) sum += value(c);
  const double mean = block_sum_f64(sum) / cols;
  for (int c = threadIdx.x; c < cols; c += 256) sum_sq += (value(c) - mean) * (value(c) - mean);
  const double scale = 1.0 / sqrt(block_sum_f64(sum_sq) / cols + (double)eps);
  for (int c = threadIdx.x; c < cols; c += 256) {
    y[row + c] = (value(c) - mean) * scale * (double)to_f32(weight[c]) + (double)to_f32(bias[c]);
    if (h) h[row + c] = value(c);
  }
}

extern "C" __global__ void layernorm_reference(const elem *x, const elem *weight, const elem *bias, double *y, int cols, float eps) {
  norm_row(x, nullptr, weight, bias, y, nullptr, cols, eps);
}
extern "C" __global__ void layernorm_residual_reference(const elem *x, const elem *residual, const elem *weight, const elem *bias, double *y,
                                                   double *h, int cols, float eps) {
  norm_row(x, residual, weight, bias, y, h, cols, eps);
}
