// f64 reference of RoPE over adjacent pairs.
#include "common.cuh"

extern "C" __global__ void rope_reference(const elem *x, const int *positions, const float *cos_sin, double *y, int tokens,
                                          int heads, int head_dim) {
  const int half = head_dim / 2;
  const i64 n = (i64)tokens * heads * half;
  for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (i64)gridDim.x * blockDim.x) {
    const i64 token = i / ((i64)heads * half);
    const float *cs = cos_sin + ((i64)positions[token] * half + i % half) * 2;
    double a = to_f32(x[2 * i]), b = to_f32(x[2 * i + 1]), c = cs[0], s = cs[1];
    y[2 * i] = a * c - b * s;
    y[2 * i + 1] = a * s + b * c;
  }
}
