// Rows as codes with scales for every width and format: a block of 256 threads a row, element by element, which a pass reads again from the caches.
#include "quantize.cuh"

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

// A null weight stands for no norm.
extern "C" __global__ void __launch_bounds__(THREADS)
quantize_portable(const elem *x, const elem *weight, u8 *y, float *y_scales, int cols, int codes, float eps) {
  pdl_launch();
  pdl_wait();
  const i64 row = (i64)blockIdx.x * cols;
  float scale = 1.0f;
  if (weight) {
    float squares = 0.0f;
    for (int c = threadIdx.x; c < cols; c += THREADS) squares = fmaf(to_f32(x[row + c]), to_f32(x[row + c]), squares);
    scale = rsqrtf(block_reduce<false>(squares) / cols + eps);
  }
  const auto value = [&](int c) { return weight ? to_f32(x[row + c]) * scale * to_f32(weight[c]) : to_f32(x[row + c]); };
  if (codes == 2) { // a warp has a group
    const int groups = cdiv(cols, 128), lane = lane_id();
    for (int g = warp_id(); g < groups; g += THREADS / 32) {
      const int end = min(cols, g * 128 + 128);
      float top = 0.0f;
      for (int c = g * 128 + lane; c < end; c += 32) top = fmaxf(top, fabsf(value(c)));
      top = warp_max(top);
      if (lane == 0) y_scales[(i64)blockIdx.x * groups + g] = top / largest_code(codes);
      for (int c = g * 128 + lane; c < end; c += 32) y[row + c] = code_of(codes, value(c) * per_code(codes, top));
    }
    return;
  }
  float top = 0.0f;
  for (int c = threadIdx.x; c < cols; c += THREADS) top = fmaxf(top, fabsf(value(c)));
  top = block_reduce<true>(top);
  if (threadIdx.x == 0) y_scales[blockIdx.x] = top / largest_code(codes);
  for (int c = threadIdx.x; c < cols; c += THREADS) y[row + c] = code_of(codes, value(c) * per_code(codes, top));
}
