// The products for every shape and epilogue that their ops allow, all of it decided at run time. A task has one row and 64
// columns, an even number, so that no pair of SwiGLU is split; sums are f32, in order.
//
// `qkv` takes two launches: the product, with its bias, goes to the workspace in f32; cpu_qkv_portable, a task a row, norms
// and rotates what is to be and writes y and the caches.
#include "types.h"

#define COLS_EACH 64

static float dot(const x_elem *a, const w_elem *b, long n) {
  vf sum = {0};
  float total = 0;
  long i = 0;
#if X_IS_ELEM && W_IS_ELEM
  for (; i + VL <= n; i += VL) sum = load(a + i) * load(b + i) + sum;
#endif
  for (; i < n; i++) total += get_x(a + i) * get_w(b + i);
  return total + sum_lanes(sum);
}

// Null pointers stand for tensors that the problem does not have.
void cpu_matmul_portable(const jt_arg *args, long task, long tasks) {
  const x_elem *x = args[0].p;
  const w_elem *w = args[1].p;
  const elem *bias = args[2].p, *residual = args[3].p;
  long swiglu = args[5].i, n = args[6].i, k = args[7].i, blocks = cdiv_l(n, COLS_EACH);
  long row = task / blocks, first = task % blocks * COLS_EACH, end = min_l(first + COLS_EACH, n);
  float gate = 0;
  (void)tasks;
  for (long c = first; c < end; c++) {
    float v = dot(x + row * k, w + c * k, k) + (bias ? get(bias + c) : 0.0f);
#if OP_QKV
    ((float *)args[4].p)[row * n + c] = v;
#else
    elem *y = args[4].p;
    if (residual) v += get(residual + row * n + c);
    if (!swiglu) put(y + row * n + c, v);
    else if (c % 2 == 0) gate = v;
    else put(y + row * (n / 2) + c / 2, gate / (1.0f + __builtin_expf(-gate)) * v);
#endif
  }
  (void)residual, (void)swiglu, (void)gate;
}

#if OP_QKV
void cpu_qkv_portable(const jt_arg *args, long task, long tasks) {
  const float *from = args[0].p;
  const elem *norms[2] = {args[1].p, args[2].p};
  const int32_t *positions = args[3].p, *slots = args[4].p;
  elem *y = args[6].p, *caches[2] = {args[7].p, args[8].p};
  long heads = args[9].i, kv_heads = args[10].i, head_dim = args[11].i, page = args[12].i, slot = slots[task];
  float eps = (float)args[13].f;
  const float *cs = (const float *)args[5].p + positions[task] * head_dim;
  (void)tasks;
  from += task * (heads + 2 * kv_heads) * head_dim;
  for (long head = 0; head < heads + 2 * kv_heads; head++, from += head_dim) {
    long is_kv = head >= heads, is_v = head >= heads + kv_heads, kv_head = head - heads - (is_v ? kv_heads : 0);
    if (is_kv && slot < 0) return;
    elem *to = is_kv ? caches[is_v] + ((slot / page * kv_heads + kv_head) * page + slot % page) * head_dim
                     : y + (task * heads + head) * head_dim;
    const elem *weight = is_v ? 0 : norms[is_kv];
    float squares = 0, scale = 1;
    if (weight) {
      for (long c = 0; c < head_dim; c++) squares += from[c] * from[c];
      scale = 1.0f / __builtin_sqrtf(squares / head_dim + eps);
    }
    for (long c = 0; c < head_dim; c += 2) {
      float a = from[c], b = from[c + 1];
      if (weight) a *= scale * get(weight + c), b *= scale * get(weight + c + 1);
      put(to + c, is_v ? a : a * cs[c] - b * cs[c + 1]);
      put(to + c + 1, is_v ? b : a * cs[c + 1] + b * cs[c]);
    }
  }
}
#endif
