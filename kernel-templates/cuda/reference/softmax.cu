// f64 reference of softmax over the last dimension: one block of 256 threads per row, three passes.
#include "reduce_f64.cuh"

extern "C" __global__ void softmax_reference(const elem *x, double *y, int cols) {
  const i64 row = (i64)blockIdx.x * cols;
  double top = __longlong_as_double(0xfff0000000000000ll), sum = 0.0;
  for (int c = threadIdx.x; c < cols; c += 256) top = fmax(top, (double)to_f32(x[row + c]));
  top = block_max_f64(top);
  for (int c = threadIdx.x; c < cols; c += 256) sum += exp((double)to_f32(x[row + c]) - top);
  sum = block_sum_f64(sum);
  for (int c = threadIdx.x; c < cols; c += 256) y[row + c] = exp((double)to_f32(x[row + c]) - top) / sum;
}
