// The products of scaled tokens by scaled weights for every shape and epilogue that their ops allow: cpu_matmul_portable_quant, whose
// tokens have scales too. Sums are f32, eight to a run of elements that share both scales.
#include "base.h"

#include "e4m3.h"

#if DTYPE_X_INT8
typedef int8_t x_elem;
INLINE float get_x(const x_elem *p) { return (float)*p; }
#elif DTYPE_X_E4M3
typedef uint8_t x_elem;
INLINE float get_x(const x_elem *p) { return e4m3_to_f32(*p); }
#else
#error "no DTYPE_X_ of codes is defined"
#endif

#include "code_weights.h"

#define COLS_EACH 64
#define SUMS 8

#include "portable_quant_run.h"

// The scales of a token, and how many of its elements share one.
INLINE const float *scales_of(const float *x_scales, long row, long k, long *run) {
#if X_SCALE_GROUP
  *run = X_GROUP;
  return x_scales + row * cdiv_l(k, X_GROUP);
#else
  *run = k;
#if X_SCALE_TENSOR
  row = 0;
#endif
  return x_scales + row;
#endif
}

// Runs of weights and of tokens divide one another.
static float dot(const x_elem *x, const float *x_scales, long x_run, const code_t *w, const scale_elem *scales,
                 const zero_elem *zeros, long row, long k) {
  long w_run = run_of(k), run = min_l(w_run, x_run), runs = cdiv_l(k, w_run);
  float total = 0;
  for (long at = 0; at < k; at += run) {
    worth_t v = worth_of(scales, zeros, row, at / w_run, runs);
    float sum_x, sum = dot_run(x + at, w, row * k + at, min_l(run, k - at), k, v.zero, &sum_x);
    total += (sum * v.scale + sum_x * v.min) * x_scales[at / x_run];
  }
  return total;
}

// Null pointers stand for tensors that the problem does not have.
void cpu_matmul_portable_scaled(const jt_arg *args, long task, long tasks) {
  const x_elem *x = args[0].p;
  const elem *bias = args[5].p, *residual = args[6].p;
  long swiglu = args[8].i, n = args[9].i, k = args[10].i, blocks = cdiv_l(n, COLS_EACH);
  long row = task / blocks, first = task % blocks * COLS_EACH, end = min_l(first + COLS_EACH, n);
  long run;
  const float *own = scales_of(args[1].p, row, k, &run);
  float gate = 0;
  (void)tasks;
  for (long c = first; c < end; c++) {
    float v = dot(x + row * k, own, run, args[2].p, args[3].p, args[4].p, c, k) + (bias ? get(bias + c) : 0.0f);
#if OP_QKV
    ((float *)args[7].p)[row * n + c] = v;
#else
    elem *y = args[7].p;
#include "portable_quant_end.h"
