// y = (h - mean) / sqrt(var + eps) * weight + bias, with h = x + residual where there is a residual. The variance is
// taken around the mean in a pass of its own: the row is in the L1 by then, and nothing cancels.
#include "base.h"
#define NORM_BIAS 1
#include "norm.h"

void cpu_layernorm(const jt_arg *args, long task, long tasks) {
  const norm_t a = norm_args(args, 1);
  (void)tasks;
  for (long r = task * ROWS_EACH, end = min_l(r + ROWS_EACH, a.rows); r < end; r++) {
    float mean = row_moment(&a, r, 0, 0) / COLS;
    float squares = row_moment(&a, r, mean, 1);
    row_write(&a, r, mean, 1.0f / __builtin_sqrtf(squares / COLS + a.eps));
  }
}
