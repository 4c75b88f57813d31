// What stands behind the product of Q, K and V: RMS norm of every Q and K head over its own columns, RoPE of both, and the cache write of
// K and V, as values or as codes. A task takes a row.
#include "base.h"
#include "shuffle.h"
#include "cache.h"

enum { X, Q_NORM, K_NORM, POSITIONS, SLOTS, COS_SIN, SCALES, Y, K_CACHE, V_CACHE, EPS };

// What a head is multiplied by that is normed; 1 without.
INLINE float norm_of(const elem *from, float eps) {
#if QK_NORM
  vf sums = {0};
  float squares = 0;
  long c = 0;
  for (; c + VL <= HEAD_DIM; c += VL) sums = load(from + c) * load(from + c) + sums;
  for (; c < HEAD_DIM; c++) squares += get(from + c) * get(from + c);
  return 1.0f / __builtin_sqrtf((squares + sum_lanes(sums)) / HEAD_DIM + eps);
#else
  return 1.0f;
#endif
}
INLINE vf rotated(const elem *from, const elem *weight, const float *cs, float scale, long c) {
  vf v = load(from + c) * scale;
  return rotate(weight ? v * load(weight + c) : v, load_f32(cs + c));
}
// The pair at c, where less than a vector is left.
INLINE void rotate_pair(float *to, const elem *from, const elem *weight, const float *cs, float scale, long c) {
  float a = get(from + c) * scale, b = get(from + c + 1) * scale;
  if (weight) a *= get(weight + c), b *= get(weight + c + 1);
  to[0] = a * cs[c] - b * cs[c + 1];
  to[1] = a * cs[c + 1] + b * cs[c];
}

void cpu_rope_kv(const jt_arg *args, long task, long tasks) {
  const elem *from = (const elem *)args[X].p + task * N, *q_norm = args[Q_NORM].p, *k_norm = args[K_NORM].p;
  const float *cs = (const float *)args[COS_SIN].p + (long)((const int32_t *)args[POSITIONS].p)[task] * HEAD_DIM;
  const float *scales = args[SCALES].p;
  elem *y = (elem *)args[Y].p + task * HEADS * HEAD_DIM;
  kv_elem *k_cache = args[K_CACHE].p, *v_cache = args[V_CACHE].p;
  long slot = ((const int32_t *)args[SLOTS].p)[task], c;
  float eps = (float)args[EPS].f, pair[2];
  (void)tasks;
  for (long h = 0; h < HEADS; h++, from += HEAD_DIM, y += HEAD_DIM) {
    float scale = norm_of(from, eps);
    for (c = 0; c + VL <= HEAD_DIM; c += VL) store(y + c, rotated(from, q_norm, cs, scale, c));
    for (; c < HEAD_DIM; c += 2) {
      rotate_pair(pair, from, q_norm, cs, scale, c);
      put(y + c, pair[0]);
      put(y + c + 1, pair[1]);
    }
  }
  if (slot < 0) return;
  for (long h = 0; h < KV_HEADS; h++, from += HEAD_DIM) {
    const elem *values = from + KV_HEADS * HEAD_DIM;
    long at = ((slot / PAGE * KV_HEADS + h) * PAGE + slot % PAGE) * HEAD_DIM;
    kv_elem *k = k_cache + at, *v = v_cache + at;
    float scale = norm_of(from, eps), per_k = scales ? 1.0f / scales[h] : 1.0f, per_v = scales ? 1.0f / scales[KV_HEADS + h] : 1.0f;
    for (c = 0; c + VL <= HEAD_DIM; c += VL) {
      store_kv(k + c, rotated(from, k_norm, cs, scale, c) * per_k);
      store_kv(v + c, load(values + c) * per_v);
    }
    for (; c < HEAD_DIM; c += 2) {
      rotate_pair(pair, from, k_norm, cs, scale, c);
      for (long i = 0; i < 2; i++) {
        put_kv(k + c + i, pair[i] * per_k);
        put_kv(v + c + i, get(values + c + i) * per_v);
      }
    }
  }
}
