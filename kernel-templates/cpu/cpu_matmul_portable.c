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

#include "qkv_portable.h"
