// `rope_kv` for every shape that it allows: all dimensions are arguments, accesses are one element each. One block of 128 threads a head
// of a row.
#include "e4m3.cuh"

#define THREADS 128

#if DTYPE_KV_E4M3
typedef u8 kv_elem;
DEV void put(u8 *p, float v, float per_code) { *p = (u8)e4m3_from_f32(v * per_code); }
#else
typedef elem kv_elem;
DEV void put(elem *p, float v, float) { *p = from_f32<elem>(v); }
#endif

DEV float block_sum(float v) {
  __shared__ float part[THREADS / 32];
  v = warp_sum(v);
  if (lane_id() == 0) part[warp_id()] = v;
  __syncthreads();
  v = part[0];
#pragma unroll
  for (int i = 1; i < THREADS / 32; i++) v += part[i];
  return v;
}

// Null pointers stand for tensors that the problem does not have.
extern "C" __global__ void __launch_bounds__(THREADS)
rope_kv_portable(const elem *x, const elem *q_norm, const elem *k_norm, const int *positions, const int *slots,
                 const float *cos_sin, const float *kv_scales, elem *y, kv_elem *k_cache, kv_elem *v_cache, int heads,
                 int kv_heads, int head_dim, int page, float eps) {
  pdl_launch();
  pdl_wait();
  const int all = heads + 2 * kv_heads, row = blockIdx.x / all, head = blockIdx.x % all;
  const bool is_q = head < heads, is_v = head >= heads + kv_heads;
  const int kv_head = head - heads - (is_v ? kv_heads : 0), slot = is_q ? 0 : slots[row];
  if (slot < 0) return;
  const elem *from = x + (i64)blockIdx.x * head_dim;
  elem *to = y + ((i64)row * heads + head) * head_dim;
  kv_elem *cache = (is_v ? v_cache : k_cache) + (((i64)(slot / page) * kv_heads + (is_q ? 0 : kv_head)) * page + slot % page) * head_dim;
  const float per_code = !is_q && kv_scales ? 1.0f / kv_scales[(is_v ? kv_heads : 0) + kv_head] : 1.0f;
  const elem *weight = is_v ? nullptr : is_q ? q_norm : k_norm;
  float scale = 1.0f;
  if (weight) {
    float sum = 0.0f;
    for (int d = threadIdx.x; d < head_dim; d += THREADS) sum = fmaf(to_f32(from[d]), to_f32(from[d]), sum);
    scale = rsqrtf(block_sum(sum) / head_dim + eps);
  }
  const float *angles = cos_sin + (i64)positions[row] * head_dim;
  for (int d = 2 * threadIdx.x; d < head_dim; d += 2 * THREADS) {
    float a = to_f32(from[d]), b = to_f32(from[d + 1]);
    if (weight) a *= scale * to_f32(weight[d]), b *= scale * to_f32(weight[d + 1]);
    if (!is_v) {
      const float cosine = angles[d], sine = angles[d + 1], rotated = a * cosine - b * sine;
      b = a * sine + b * cosine, a = rotated;
    }
    if (is_q) {
      to[d] = from_f32<elem>(a), to[d + 1] = from_f32<elem>(b);
    } else {
      put(cache + d, a, per_code), put(cache + d + 1, b, per_code);
    }
  }
}
