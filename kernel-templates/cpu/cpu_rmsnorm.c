// y = h / rms(h) * weight, with h = x + residual where there is a residual. A task takes ROWS_EACH rows; a row is
// read twice, the second time from the L1.
#include "base.h"
#include "norm.h"

void cpu_rmsnorm(const jt_arg *args, long task, long tasks) {
  const norm_t a = norm_args(args, 0);
  (void)tasks;
  for (long r = task * ROWS_EACH, end = min_l(r + ROWS_EACH, a.rows); r < end; r++) {
    float squares = row_moment(&a, r, 0, 1);
    row_write(&a, r, 0, 1.0f / __builtin_sqrtf(squares / COLS + a.eps));
  }
}
