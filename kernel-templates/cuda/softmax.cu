// Softmax over rows of COLS elements by one block per row. With KEEP the row stays in registers between the maximum, the
// sum and the result, so it is read once; without, a first walk finds maximum and sum online and a second one reads the
// row again, which any length allows.
#include "vector_io.cuh"

#define ITEMS ((COLS + VEC * THREADS - 1) / (VEC * THREADS))
#define WARPS (THREADS / 32)

static_assert(COLS % VEC == 0 && THREADS % 32 == 0, "a row is whole accesses");

DEV float block_max(float v) {
  __shared__ float part[WARPS];
  v = warp_max(v);
  if (lane_id() == 0) part[warp_id()] = v;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < WARPS; i++) v = fmaxf(v, part[i]);
  return v;
}
DEV float block_sum(float v) {
  __shared__ float part[WARPS];
  v = warp_sum(v);
  if (lane_id() == 0) part[warp_id()] = v;
  __syncthreads();
  v = 0.0f;
#pragma unroll
  for (int i = 0; i < WARPS; i++) v += part[i];
  return v;
}
// exp2((x - top)·log2 e) from x and top·log2 e.
DEV float power(float x, float scaled_top) { return exp2_approx(fmaf(x, LOG2E, -scaled_top)); }

extern "C" __global__ void __launch_bounds__(THREADS) softmax(const elem *__restrict__ x, elem *__restrict__ y) {
#if PDL
  pdl_launch();
  pdl_wait();
#endif
  x += (i64)blockIdx.x * COLS;
  y += (i64)blockIdx.x * COLS;
  auto at = [](int i) { return (i * THREADS + (int)threadIdx.x) * VEC; };
  auto result = [&](const packed<VEC> &in, float scaled_top, float inv, int c) {
    float v[VEC];
    unpack(in, v);
#pragma unroll
    for (int j = 0; j < VEC; j++) v[j] = power(v[j], scaled_top) * inv;
    store(y + c, pack(v));
  };
#if KEEP
  packed<VEC> in[ITEMS];
#pragma unroll
  for (int i = 0; i < ITEMS; i++)
    if (at(i) < COLS) in[i] = load<VEC>(x + at(i));
  float top = NEG_INF, sum = 0.0f, v[VEC];
#pragma unroll
  for (int i = 0; i < ITEMS; i++)
    if (at(i) < COLS) {
      unpack(in[i], v);
#pragma unroll
      for (int j = 0; j < VEC; j++) top = fmaxf(top, v[j]);
    }
  top = block_max(top) * LOG2E;
#pragma unroll
  for (int i = 0; i < ITEMS; i++)
    if (at(i) < COLS) {
      unpack(in[i], v);
#pragma unroll
      for (int j = 0; j < VEC; j++) sum += power(v[j], top);
    }
  const float inv = 1.0f / block_sum(sum);
#pragma unroll
  for (int i = 0; i < ITEMS; i++)
    if (at(i) < COLS) result(in[i], top, inv, at(i));
#else
  float top = NEG_INF, sum = 0.0f;
#pragma unroll 4
  for (int i = 0; i < ITEMS; i++)
    if (at(i) < COLS) {
      float v[VEC], most = top;
      unpack(load<VEC>(x + at(i)), v);
#pragma unroll
      for (int j = 0; j < VEC; j++) most = fmaxf(most, v[j]);
      if (most > top) {
        sum *= power(top, most * LOG2E);
        top = most;
      }
#pragma unroll
      for (int j = 0; j < VEC; j++) sum += power(v[j], top * LOG2E);
    }
  const float all = block_max(top);
  const float inv = 1.0f / block_sum(top == NEG_INF ? 0.0f : sum * power(top, all * LOG2E));
#pragma unroll 4
  for (int i = 0; i < ITEMS; i++)
    if (at(i) < COLS) result(load<VEC>(x + at(i)), all * LOG2E, inv, at(i));
#endif
}
