// The products of scaled weights for every shape and epilogue that their ops allow, all of it decided at run time. A task has one
// row and 64 columns, an even number, so that no pair of SwiGLU is split; sums are f32, eight to a run of elements that share a
// scale.
//
// `qkv` takes two launches: the product, with its bias, goes to the workspace in f32; cpu_qkv_portable, a task a row, norms
// and rotates what is to be and writes y and the caches.
#include "scaled.h"

#define COLS_EACH 64
#define SUMS 8

#include "portable_quant_run.h"

static float dot(const x_elem *x, const code_t *w, const scale_elem *scales, const zero_elem *zeros, long row, long k) {
  long run = run_of(k), runs = cdiv_l(k, run);
  float total = 0;
  for (long r = 0; r < runs; r++) {
    worth_t v = worth_of(scales, zeros, row, r, runs);
    float sum_x, sum = dot_run(x + r * run, w, row * k + r * run, min_l(run, k - r * run), k, v.zero, &sum_x);
    total += sum * v.scale + sum_x * v.min;
  }
  return total;
}

// Null pointers stand for tensors that the problem does not have.
void cpu_matmul_portable_quant(const jt_arg *args, long task, long tasks) {
  const x_elem *x = args[0].p;
  const elem *bias = args[4].p, *residual = args[5].p;
  long swiglu = args[7].i, n = args[8].i, k = args[9].i, blocks = cdiv_l(n, COLS_EACH);
  long row = task / blocks, first = task % blocks * COLS_EACH, end = min_l(first + COLS_EACH, n);
  float gate = 0;
  (void)tasks;
  for (long c = first; c < end; c++) {
    float v = dot(x + row * k, args[1].p, args[2].p, args[3].p, c, k) + (bias ? get(bias + c) : 0.0f);
#if OP_QKV
    ((float *)args[6].p)[row * n + c] = v;
#else
    elem *y = args[6].p;
#include "portable_quant_end.h"
