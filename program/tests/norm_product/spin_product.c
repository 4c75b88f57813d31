// A product in plain loops, after turns of nothing, for tests of what steps choose.
#include "base.h"
#include "shuffle.h"
#include "vmath.h"
#include "epilogue.h"

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
