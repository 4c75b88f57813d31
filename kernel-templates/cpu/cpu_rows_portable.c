// The ops over rows for every shape that they allow: all dimensions are arguments. A task has one row.
#include "base.h"

#if OP_RMSNORM || OP_LAYERNORM
// Null pointers stand for tensors that the problem does not have.
void cpu_norm_portable(const jt_arg *args, long task, long tasks) {
  const elem *x = args[0].p, *residual = args[1].p, *weight = args[2].p, *bias = args[3].p;
  elem *y = args[4].p, *h = args[5].p;
  long cols = args[6].i, row = task * cols;
  double mean = 0, squares = 0;
#define VALUE(c) (get(x + row + (c)) + (residual ? get(residual + row + (c)) : 0.0f))
  (void)tasks;
#if OP_LAYERNORM
  for (long c = 0; c < cols; c++) mean += VALUE(c);
  mean /= cols;
#endif
  for (long c = 0; c < cols; c++) squares += (VALUE(c) - mean) * (VALUE(c) - mean);
  float scale = (float)(1.0 / __builtin_sqrt(squares / cols + args[7].f));
  for (long c = 0; c < cols; c++) {
    float v = VALUE(c);
    put(y + row + c, (v - (float)mean) * scale * get(weight + c) + (bias ? get(bias + c) : 0.0f));
    if (h) put(h + row + c, v);
  }
}
#endif

#if OP_SOFTMAX
void cpu_softmax_portable(const jt_arg *args, long task, long tasks) {
  long cols = args[2].i;
  const elem *x = (const elem *)args[0].p + task * cols;
  elem *y = (elem *)args[1].p + task * cols;
  float top = get(x);
  double sum = 0;
  (void)tasks;
  for (long c = 1; c < cols; c++) top = get(x + c) > top ? get(x + c) : top;
  for (long c = 0; c < cols; c++) sum += __builtin_expf(get(x + c) - top);
  for (long c = 0; c < cols; c++) put(y + c, __builtin_expf(get(x + c) - top) / (float)sum);
}
#endif

#if OP_ARGMAX
void cpu_argmax_portable(const jt_arg *args, long task, long tasks) {
  long cols = args[2].i, best = 0;
  const elem *x = (const elem *)args[0].p + task * cols;
  (void)tasks;
  for (long c = 1; c < cols; c++) best = get(x + c) > get(x + best) ? c : best;
  ((int32_t *)args[1].p)[task] = (int32_t)best;
}
#endif

#if OP_EMBEDDING
void cpu_embedding_portable(const jt_arg *args, long task, long tasks) {
  long hidden = args[3].i;
  const int32_t *ids = args[0].p;
  (void)tasks;
  memcpy((elem *)args[2].p + task * hidden, (const elem *)args[1].p + ids[task] * hidden, hidden * sizeof(elem));
}
#endif

#if OP_ROPE
void cpu_rope_portable(const jt_arg *args, long task, long tasks) {
  long heads = args[4].i, head_dim = args[5].i, width = heads * head_dim;
  const int32_t *positions = args[1].p;
  const float *cs = (const float *)args[2].p + positions[task] * head_dim;
  const elem *x = (const elem *)args[0].p + task * width;
  elem *y = (elem *)args[3].p + task * width;
  (void)tasks;
  for (long c = 0; c < width; c += 2) {
    float a = get(x + c), b = get(x + c + 1), cosine = cs[c % head_dim], sine = cs[c % head_dim + 1];
    put(y + c, a * cosine - b * sine);
    put(y + c + 1, a * sine + b * cosine);
  }
}
#endif

#if OP_SILU_MUL
void cpu_silu_mul_portable(const jt_arg *args, long task, long tasks) {
  long cols = args[2].i;
  const elem *x = (const elem *)args[0].p + task * cols * 2;
  elem *y = (elem *)args[1].p + task * cols;
  (void)tasks;
  for (long c = 0; c < cols; c++) {
    float gate = get(x + 2 * c);
    put(y + c, gate / (1.0f + __builtin_expf(-gate)) * get(x + 2 * c + 1));
  }
}
#endif

#if OP_GELU
void cpu_gelu_portable(const jt_arg *args, long task, long tasks) {
  long cols = args[2].i;
  const elem *x = (const elem *)args[0].p + task * cols;
  elem *y = (elem *)args[1].p + task * cols;
  (void)tasks;
  // erfc keeps the small results of negative x.
  for (long c = 0; c < cols; c++) put(y + c, 0.5f * get(x + c) * __builtin_erfcf(get(x + c) * -0.70710678f));
}
#endif
