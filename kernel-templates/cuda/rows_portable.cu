// The ops over rows for every shape that they allow: all dimensions are arguments, accesses are one element each, and a
// row that a pass reads again comes from the caches. One block of 256 threads a row.
#include "common.cuh"

#define THREADS 256

template <bool MAX> DEV float block_reduce(float v) {
  __shared__ float part[THREADS / 32];
  v = MAX ? warp_max(v) : warp_sum(v);
  __syncthreads(); // an earlier call may still be reading
  if (lane_id() == 0) part[warp_id()] = v;
  __syncthreads();
  v = part[0];
#pragma unroll
  for (int i = 1; i < THREADS / 32; i++) v = MAX ? fmaxf(v, part[i]) : v + part[i];
  return v;
}

#if OP_RMSNORM || OP_LAYERNORM
// Null pointers stand for tensors that the problem does not have.
extern "C" __global__ void __launch_bounds__(THREADS)
norm_portable(const elem *x, const elem *residual, const elem *weight, const elem *bias, elem *y, elem *h, int cols, float eps) {
  pdl_launch();
  pdl_wait();
  const i64 row = (i64)blockIdx.x * cols;
  auto value = [&](int c) { return to_f32(x[row + c]) + (residual ? to_f32(residual[row + c]) : 0.0f); };
  float sum = 0.0f, squares = 0.0f, mean = 0.0f;
#if OP_LAYERNORM
  for (int c = threadIdx.x; c < cols; c += THREADS) sum += value(c);
  mean = block_reduce<false>(sum) / cols;
#endif
  for (int c = threadIdx.x; c < cols; c += THREADS) {
    const float v = value(c) - mean;
    squares = fmaf(v, v, squares);
  }
  const float scale = rsqrtf(block_reduce<false>(squares) / cols + eps);
  for (int c = threadIdx.x; c < cols; c += THREADS) {
    const float v = value(c);
    y[row + c] = from_f32<elem>((v - mean) * scale * to_f32(weight[c]) + (bias ? to_f32(bias[c]) : 0.0f));
    if (h) h[row + c] = from_f32<elem>(v);
  }
}
#endif

#if OP_SOFTMAX
extern "C" __global__ void __launch_bounds__(THREADS) softmax_portable(const elem *x, elem *y, int cols) {
  pdl_launch();
  pdl_wait();
  x += (i64)blockIdx.x * cols, y += (i64)blockIdx.x * cols;
  float top = NEG_INF, sum = 0.0f;
  for (int c = threadIdx.x; c < cols; c += THREADS) top = fmaxf(top, to_f32(x[c]));
  top = block_reduce<true>(top);
  for (int c = threadIdx.x; c < cols; c += THREADS) sum += exp2_approx((to_f32(x[c]) - top) * LOG2E);
  const float inv = 1.0f / block_reduce<false>(sum);
  for (int c = threadIdx.x; c < cols; c += THREADS) y[c] = from_f32<elem>(exp2_approx((to_f32(x[c]) - top) * LOG2E) * inv);
}
#endif

#if OP_ARGMAX
extern "C" __global__ void __launch_bounds__(THREADS) argmax_portable(const elem *x, int *y, int cols) {
  __shared__ int lowest;
  pdl_launch();
  pdl_wait();
  x += (i64)blockIdx.x * cols;
  if (threadIdx.x == 0) lowest = cols;
  float top = NEG_INF;
  for (int c = threadIdx.x; c < cols; c += THREADS) top = fmaxf(top, to_f32(x[c]));
  top = block_reduce<true>(top);
  for (int c = threadIdx.x; c < cols; c += THREADS)
    if (to_f32(x[c]) == top) {
      atomicMin(&lowest, c);
      break;
    }
  __syncthreads();
  if (threadIdx.x == 0) y[blockIdx.x] = lowest < cols ? lowest : 0;
}
#endif

#if OP_EMBEDDING
extern "C" __global__ void __launch_bounds__(THREADS) embedding_portable(const int *ids, const elem *table, elem *y, int hidden) {
  pdl_launch();
  pdl_wait();
  const elem *from = table + (i64)ids[blockIdx.x] * hidden;
  for (int c = threadIdx.x; c < hidden; c += THREADS) y[(i64)blockIdx.x * hidden + c] = from[c];
}
#endif

#if OP_ROPE
extern "C" __global__ void __launch_bounds__(THREADS)
rope_portable(const elem *x, const int *positions, const float *cos_sin, elem *y, int heads, int head_dim) {
  pdl_launch();
  pdl_wait();
  const int width = heads * head_dim;
  const float *cs = cos_sin + (i64)positions[blockIdx.x] * head_dim;
  x += (i64)blockIdx.x * width, y += (i64)blockIdx.x * width;
  for (int c = 2 * threadIdx.x; c < width; c += 2 * THREADS) {
    const float a = to_f32(x[c]), b = to_f32(x[c + 1]), cosine = cs[c % head_dim], sine = cs[c % head_dim + 1];
    y[c] = from_f32<elem>(a * cosine - b * sine), y[c + 1] = from_f32<elem>(a * sine + b * cosine);
  }
}
#endif

#if OP_SILU_MUL
extern "C" __global__ void __launch_bounds__(THREADS) silu_mul_portable(const elem *x, elem *y, int cols) {
  pdl_launch();
  pdl_wait();
  x += (i64)blockIdx.x * cols * 2, y += (i64)blockIdx.x * cols;
  for (int c = threadIdx.x; c < cols; c += THREADS) y[c] = from_f32<elem>(silu(to_f32(x[2 * (i64)c])) * to_f32(x[2 * (i64)c + 1]));
}
#endif

#if OP_GELU
extern "C" __global__ void __launch_bounds__(THREADS) gelu_portable(const elem *x, elem *y, int cols) {
  pdl_launch();
  pdl_wait();
  x += (i64)blockIdx.x * cols, y += (i64)blockIdx.x * cols;
  for (int c = threadIdx.x; c < cols; c += THREADS) {
    const float v = to_f32(x[c]);
    y[c] = from_f32<elem>(0.5f * v * erfcf(-v * 0.70710678f)); // erfc keeps the small results of negative v
  }
}
#endif
