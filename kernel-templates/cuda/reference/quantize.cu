// f64 reference of codes with scales: what is rounded to a code, and scales. One block of 256 threads a row.
#include "reduce_f64.cuh"

#define RUN (CODES == 2 ? 128 : cols)

// A null weight stands for no norm.
extern "C" __global__ void quantize_reference(const elem *x, const elem *weight, double *y, double *y_scales, int cols, float eps) {
  const i64 row = (i64)blockIdx.x * cols;
  double scale = 1.0;
  if (weight) {
    double squares = 0.0;
    for (int c = threadIdx.x; c < cols; c += 256) squares += (double)to_f32(x[row + c]) * (double)to_f32(x[row + c]);
    scale = 1.0 / sqrt(block_sum_f64(squares) / cols + (double)eps);
  }
  const auto value = [&](int c) { return (double)to_f32(x[row + c]) * (weight ? scale * (double)to_f32(weight[c]) : 1.0); };
  const int groups = cdiv(cols, RUN);
#if CODES == 2
  for (int g = threadIdx.x; g < groups; g += 256) { // a thread has a group
    const int end = min(cols, g * 128 + 128);
    double top = 0.0;
    for (int c = g * 128; c < end; c++) top = fmax(top, fabs(value(c)));
    y_scales[(i64)blockIdx.x * groups + g] = top / 448.0;
    for (int c = g * 128; c < end; c++) y[row + c] = top > 0.0 ? value(c) / (top / 448.0) : 0.0;
  }
#else
  __shared__ double tops[256];
  double top = 0.0;
  for (int c = threadIdx.x; c < cols; c += 256) top = fmax(top, fabs(value(c)));
  tops[threadIdx.x] = top;
  __syncthreads();
  for (int i = 0; i < 256; i++) top = fmax(top, tops[i]);
  const double unit = top / (CODES == 0 ? 127.0 : 448.0);
  if (threadIdx.x == 0) y_scales[blockIdx.x] = unit;
  for (int c = threadIdx.x; c < cols; c += 256) y[row + c] = unit > 0.0 ? value(c) / unit : 0.0;
#endif
}
