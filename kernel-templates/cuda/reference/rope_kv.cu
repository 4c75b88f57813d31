// f64 reference of what stands behind the product of Q, K and V. One block of 32 threads a head of a row. What is written as codes is left
// unrounded, in units of their scale.
#include "common.cuh"

// Null pointers stand for tensors that the problem does not have.
extern "C" __global__ void __launch_bounds__(32)
rope_kv_reference(const elem *x, const elem *q_norm, const elem *k_norm, const int *positions, const int *slots,
                  const float *cos_sin, const float *kv_scales, double *y, double *k_cache, double *v_cache, int heads,
                  int kv_heads, int head_dim, int page, float eps) {
  const int all = heads + 2 * kv_heads, row = blockIdx.x / all, head = blockIdx.x % all;
  const elem *from = x + (i64)blockIdx.x * head_dim;
  double *to = y + ((i64)row * heads + head) * head_dim, worth = 1.0;
  if (head >= heads) {
    if (slots[row] < 0) return;
    const bool is_v = head >= heads + kv_heads;
    const int kv_head = head - heads - (is_v ? kv_heads : 0), slot = slots[row];
    to = (is_v ? v_cache : k_cache) + (((i64)(slot / page) * kv_heads + kv_head) * page + slot % page) * head_dim;
    if (kv_scales) worth = kv_scales[(is_v ? kv_heads : 0) + kv_head];
  }
  const bool rotated = head < heads + kv_heads;
  const elem *weight = !rotated ? nullptr : head < heads ? q_norm : k_norm;
  double squares = 0.0;
  for (int d = lane_id(); d < head_dim; d += 32) squares += (double)to_f32(from[d]) * (double)to_f32(from[d]);
  for (int b = 16; b > 0; b >>= 1) squares += __shfl_xor_sync(0xffffffffu, squares, b);
  const double scale = weight ? 1.0 / sqrt(squares / head_dim + (double)eps) : 1.0;
  const float *cs = cos_sin + (i64)positions[row] * head_dim;
  for (int d = 2 * lane_id(); d < head_dim; d += 64) {
    double a = (double)to_f32(from[d]) * scale, b = (double)to_f32(from[d + 1]) * scale;
    if (weight) a *= (double)to_f32(weight[d]), b *= (double)to_f32(weight[d + 1]);
    const double c = rotated ? cs[d] : 1.0, s = rotated ? cs[d + 1] : 0.0;
    to[d] = (a * c - b * s) / worth;
    to[d + 1] = (a * s + b * c) / worth;
  }
}
