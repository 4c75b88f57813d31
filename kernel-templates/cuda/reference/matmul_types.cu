// f64 reference of the products whose x, w and y are each stored in a type of their own. A block computes 16 × 16 outputs, a
// thread each; all dimensions are arguments and may be ragged. Null pointers stand for tensors that the problem lacks.
#include "types.cuh"

#define TILE 16

extern "C" __global__ void __launch_bounds__(256)
matmul_types_reference(const x_elem *x, const w_elem *w, const elem *bias, const elem *residual, double *y, int swiglu,
                       int m, int n, int k) {
  // Of SwiGLU a thread has both columns of a pair.
  __shared__ double xs[TILE][TILE + 1], ws[2][TILE][TILE + 1];
  const int cols = swiglu ? n / 2 : n, each = swiglu ? 2 : 1;
  const int r = threadIdx.x / TILE, c = threadIdx.x % TILE;
  const int row0 = blockIdx.y * TILE, col0 = blockIdx.x * TILE;
  double acc[2] = {};
  for (int k0 = 0; k0 < k; k0 += TILE) {
    xs[r][c] = row0 + r < m && k0 + c < k ? (double)to_f32(x[(i64)(row0 + r) * k + k0 + c]) : 0.0;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const bool in = i < each && col0 + r < cols && k0 + c < k;
      ws[i][r][c] = in ? (double)to_f32(w[((i64)(col0 + r) * each + i) * k + k0 + c]) : 0.0;
    }
    __syncthreads();
#pragma unroll 4
    for (int s = 0; s < TILE; s++)
#pragma unroll
      for (int i = 0; i < 2; i++) acc[i] = fma(xs[r][s], ws[i][c][s], acc[i]);
    __syncthreads();
  }
  const int row = row0 + r, col = col0 + c;
  if (row >= m || col >= cols) return;
  if (bias) {
    acc[0] += to_f32(bias[(i64)col * each]);
    if (swiglu) acc[1] += to_f32(bias[2 * (i64)col + 1]);
  }
  const i64 at = (i64)row * cols + col;
  if (swiglu) y[at] = acc[0] / (1.0 + exp(-acc[0])) * acc[1];
  else y[at] = acc[0] + (residual ? (double)to_f32(residual[at]) : 0.0);
}
