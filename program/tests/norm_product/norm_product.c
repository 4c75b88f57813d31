// A norm and the product behind it in one launch after the other, for tests of what an engine makes of them: plain loops.
#if OP_NORM_QKV
#define OP_QKV 1
#endif
#include "base.h"
#include "shuffle.h"
#include "vmath.h"
#include "epilogue.h"
#include "qk_norm.h"

// Task: one row, to the workspace.
void norm_rows(const jt_arg *args, long task, long tasks) {
  const elem *x = (const elem *)args[0].p + task * K, *norm = args[1].p;
  elem *to = (elem *)args[2].p + task * K;
  float squares = 0;
  (void)tasks;
  for (long i = 0; i < K; i++) squares += get(x + i) * get(x + i);
  float scale = 1.0f / __builtin_sqrtf(squares / K + (float)args[3].f);
  for (long i = 0; i < K; i++) put(to + i, get(x + i) * scale * get(norm + i));
}

// Task: one row.
void product(const jt_arg *args, long task, long tasks) {
  const elem *x = (const elem *)args[0].p + task * K, *w = args[1].p;
  epilogue_t e = epilogue_args(args + 2);
  float out[N];
  (void)tasks;
  for (volatile long i = 0; i < SPIN; i++) {}
  for (long n = 0; n < N; n++) {
    out[n] = 0;
    for (long i = 0; i < K; i++) out[n] += get(x + i) * get(w + n * K + i);
  }
  finish_row(&e, task, 0, N, out);
}
