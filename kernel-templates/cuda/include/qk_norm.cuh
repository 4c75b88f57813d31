// The second launch of a `qkv` product whose heads are normed: RMS norm of every Q and K head over its own columns, RoPE of
// both, and the cache write of K and V. One warp a (row, head); a head is read once, into registers or, where it is long,
// again from the L1.
//
// The first launch left x·Wᵀ, with the bias, as rows of the element type in the workspace.
#pragma once
#include "common.cuh"
#if QK_NORM

constexpr int QKN_WIDEST = 16 / ELEM_BYTES;
constexpr int QKN_VEC = HEAD_DIM % QKN_WIDEST == 0 ? QKN_WIDEST : HEAD_DIM % 4 == 0 ? 4 : 2; // elements of one access
constexpr int QKN_CHUNKS = HEAD_DIM / QKN_VEC;
constexpr int QKN_HEADS = HEADS + 2 * KV_HEADS;
static_assert(HEAD_DIM % 2 == 0, "RoPE rotates adjacent pairs");

DEV void qkn_load(float (&v)[QKN_VEC], const elem *p) {
  const vec<QKN_VEC> t = *reinterpret_cast<const vec<QKN_VEC> *>(p);
#pragma unroll
  for (int i = 0; i < QKN_VEC; i++) v[i] = to_f32(t.v[i]);
}

extern "C" __global__ void __launch_bounds__(256)
qk_norm_rope(const elem *product, const elem *__restrict__ q_norm, const elem *__restrict__ k_norm, const int *positions,
             const int *slots, const float *__restrict__ cos_sin, elem *y, elem *k_cache, elem *v_cache, int m, float eps) {
  pdl_launch();
  pdl_wait();
  const i64 id = (i64)blockIdx.x * 8 + warp_id();
  if (id >= (i64)m * QKN_HEADS) return;
  const int row = (int)(id / QKN_HEADS), head = (int)(id % QKN_HEADS), lane = lane_id();
  const bool is_q = head < HEADS, is_v = head >= HEADS + KV_HEADS;
  elem *to = y + ((i64)row * HEADS + head) * HEAD_DIM;
  if (!is_q) {
    const int slot = slots[row], kv_head = head - HEADS - (is_v ? KV_HEADS : 0);
    if (slot < 0) return;
    to = (is_v ? v_cache : k_cache) + (((i64)(slot / PAGE) * KV_HEADS + kv_head) * PAGE + slot % PAGE) * HEAD_DIM;
  }
  const elem *from = product + ((i64)row * QKN_HEADS + head) * HEAD_DIM;
  const elem *const weight = is_q ? q_norm : k_norm;
  const float *const angles = cos_sin + (i64)positions[row] * HEAD_DIM;

  float sum = 0.0f;
  if (!is_v)
    for (int c = lane; c < QKN_CHUNKS; c += 32) {
      float v[QKN_VEC];
      qkn_load(v, from + c * QKN_VEC);
#pragma unroll
      for (int i = 0; i < QKN_VEC; i++) sum = fmaf(v[i], v[i], sum);
    }
  const float scale = rsqrtf(warp_sum(sum) * (1.0f / HEAD_DIM) + eps);
  for (int c = lane; c < QKN_CHUNKS; c += 32) {
    float v[QKN_VEC];
    qkn_load(v, from + c * QKN_VEC);
    if (!is_v) {
      float w[QKN_VEC];
      qkn_load(w, weight + c * QKN_VEC);
#pragma unroll
      for (int i = 0; i < QKN_VEC; i += 2) {
        const float2 cs = *reinterpret_cast<const float2 *>(angles + c * QKN_VEC + i);
        const float a = v[i] * scale * w[i], b = v[i + 1] * scale * w[i + 1];
        v[i] = a * cs.x - b * cs.y;
        v[i + 1] = a * cs.y + b * cs.x;
      }
    }
    vec<QKN_VEC> t;
#pragma unroll
    for (int i = 0; i < QKN_VEC; i++) t.v[i] = from_f32<elem>(v[i]);
    *reinterpret_cast<vec<QKN_VEC> *>(to + c * QKN_VEC) = t;
  }
}
#endif
