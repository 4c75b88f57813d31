// `rope_kv` for every shape that it allows: all dimensions are arguments, a task takes a head of a row, pair by pair.
#include "base.h"
#include "cache.h"

enum { X, Q_NORM, K_NORM, POSITIONS, SLOTS, COS_SIN, SCALES, Y, K_CACHE, V_CACHE, HEADS_, KV_HEADS_, DIM, PAGE_, EPS };

void cpu_rope_kv_portable(const jt_arg *args, long task, long tasks) {
  long heads = args[HEADS_].i, kv_heads = args[KV_HEADS_].i, dim = args[DIM].i, page = args[PAGE_].i;
  long row = task / (heads + 2 * kv_heads), head = task % (heads + 2 * kv_heads);
  long slot = ((const int32_t *)args[SLOTS].p)[row];
  int is_q = head < heads, is_v = head >= heads + kv_heads;
  const elem *from = (const elem *)args[X].p + task * dim, *weight = is_v ? 0 : args[is_q ? Q_NORM : K_NORM].p;
  const float *cs = (const float *)args[COS_SIN].p + (long)((const int32_t *)args[POSITIONS].p)[row] * dim;
  const float *scales = args[SCALES].p;
  elem *y = (elem *)args[Y].p + (row * heads + head) * dim;
  kv_elem *cache = 0;
  float scale = 1, per_code = 1;
  (void)tasks;
  if (!is_q) {
    long h = head - heads - (is_v ? kv_heads : 0);
    if (slot < 0) return;
    cache = (kv_elem *)args[is_v ? V_CACHE : K_CACHE].p + ((slot / page * kv_heads + h) * page + slot % page) * dim;
    if (scales) per_code = 1.0f / scales[is_v ? kv_heads + h : h];
  }
  if (weight) {
    float squares = 0;
    for (long c = 0; c < dim; c++) squares += get(from + c) * get(from + c);
    scale = 1.0f / __builtin_sqrtf(squares / dim + (float)args[EPS].f);
  }
  for (long c = 0; c < dim; c += 2) {
    float a = get(from + c), b = get(from + c + 1);
    if (weight) a *= scale * get(weight + c), b *= scale * get(weight + c + 1);
    if (!is_v) {
      float turned = a * cs[c] - b * cs[c + 1];
      b = a * cs[c + 1] + b * cs[c];
      a = turned;
    }
    if (is_q) {
      put(y + c, a);
      put(y + c + 1, b);
    } else {
      put_kv(cache + c, a * per_code);
      put_kv(cache + c + 1, b * per_code);
    }
  }
}
