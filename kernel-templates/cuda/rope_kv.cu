// What stands behind the product of Q, K and V: RMS norm of every Q and K head over its own columns, RoPE of both, and the cache write of
// K and V, as elements or as codes. A team of TEAM lanes takes a head of a row, which stays in registers; each access of a lane is as wide
// as heads allow.
#include "e4m3.cuh"

constexpr int WIDEST = 16 / ELEM_BYTES;
constexpr int VEC = HEAD_DIM % WIDEST == 0 ? WIDEST : HEAD_DIM % 4 == 0 ? 4 : 2; // elements of one access
constexpr int CHUNKS = HEAD_DIM / VEC, EACH = (CHUNKS + TEAM - 1) / TEAM;
constexpr int ALL_HEADS = HEADS + 2 * KV_HEADS;
static_assert(HEAD_DIM % 2 == 0, "RoPE rotates adjacent pairs");
static_assert((TEAM & (TEAM - 1)) == 0 && TEAM <= 32, "a team is a part of a warp");

#if DTYPE_KV_E4M3
typedef u8 kv_elem;
#define SCALES const float *__restrict__ kv_scales,
#else
typedef elem kv_elem;
#define SCALES
#endif
#if QK_NORM
#define NORMS const elem *__restrict__ q_norm, const elem *__restrict__ k_norm,
#else
#define NORMS
#endif

DEV void load(float (&v)[VEC], const elem *p) {
  const vec<VEC> t = *reinterpret_cast<const vec<VEC> *>(p);
#pragma unroll
  for (int i = 0; i < VEC; i++) v[i] = to_f32(t.v[i]);
}
DEV void store(elem *p, const float (&v)[VEC]) {
  vec<VEC> t;
#pragma unroll
  for (int i = 0; i < VEC; i++) t.v[i] = from_f32<elem>(v[i]);
  *reinterpret_cast<vec<VEC> *>(p) = t;
}
DEV void store(u8 *p, const float (&v)[VEC]) {
  struct alignas(VEC) { u16 pairs[VEC / 2]; } t;
#pragma unroll
  for (int i = 0; i < VEC / 2; i++) t.pairs[i] = (u16)e4m3_pair(v[2 * i], v[2 * i + 1]);
  *reinterpret_cast<decltype(t) *>(p) = t;
}

extern "C" __global__ void __launch_bounds__(THREADS)
rope_kv(const elem *x, NORMS const int *positions, const int *slots, const float *__restrict__ cos_sin, SCALES elem *y,
        kv_elem *k_cache, kv_elem *v_cache, int m, float eps) {
#if PDL
  pdl_launch();
  pdl_wait();
#endif
  const i64 id = ((i64)blockIdx.x * THREADS + threadIdx.x) / TEAM;
  const bool mine = id < (i64)m * ALL_HEADS; // the others only take part in sums
  const int row = mine ? (int)(id / ALL_HEADS) : 0, head = mine ? (int)(id % ALL_HEADS) : 0, lane = threadIdx.x % TEAM;
  const bool is_q = head < HEADS, is_v = head >= HEADS + KV_HEADS;
  const elem *from = x + ((i64)row * ALL_HEADS + head) * HEAD_DIM;
  float v[EACH][VEC];
#pragma unroll
  for (int e = 0; e < EACH; e++)
    if (lane + e * TEAM < CHUNKS) load(v[e], from + (lane + e * TEAM) * VEC);

#if QK_NORM
  float sum = 0.0f;
#pragma unroll
  for (int e = 0; e < EACH; e++)
    if (lane + e * TEAM < CHUNKS)
#pragma unroll
      for (int i = 0; i < VEC; i++) sum = fmaf(v[e][i], v[e][i], sum);
  const float scale = rsqrtf(warp_sum<TEAM>(sum) * (1.0f / HEAD_DIM) + eps);
  const elem *const weight = is_q ? q_norm : k_norm;
#endif
  if (!mine) return;

  kv_elem *cache = nullptr;
  float per_code = 1.0f;
  if (!is_q) {
    const int slot = slots[row], kv_head = head - HEADS - (is_v ? KV_HEADS : 0);
    if (slot < 0) return;
    cache = (is_v ? v_cache : k_cache) + (((i64)(slot / PAGE) * KV_HEADS + kv_head) * PAGE + slot % PAGE) * HEAD_DIM;
#if DTYPE_KV_E4M3
    per_code = 1.0f / kv_scales[(is_v ? KV_HEADS : 0) + kv_head];
#endif
  }
  const float *const angles = cos_sin + (i64)positions[row] * HEAD_DIM;
#pragma unroll
  for (int e = 0; e < EACH; e++) {
    const int first = (lane + e * TEAM) * VEC;
    if (first >= HEAD_DIM) break;
    if (!is_v) {
#if QK_NORM
      float w[VEC];
      load(w, weight + first);
#pragma unroll
      for (int i = 0; i < VEC; i++) v[e][i] *= scale * w[i];
#endif
#pragma unroll
      for (int i = 0; i < VEC; i += 2) {
        const float2 cs = *reinterpret_cast<const float2 *>(angles + first + i);
        const float a = v[e][i], b = v[e][i + 1];
        v[e][i] = a * cs.x - b * cs.y;
        v[e][i + 1] = a * cs.y + b * cs.x;
      }
    }
    if (is_q) {
      store(y + ((i64)row * HEADS + head) * HEAD_DIM + first, v[e]);
    } else {
#pragma unroll
      for (int i = 0; i < VEC; i++) v[e][i] *= per_code;
      store(cache + first, v[e]);
    }
  }
}
