// Rows of a table whose elements are codes of a scaled format, as values. A task has a row.
#include "scaled.h"

void cpu_embedding_quant(const jt_arg *args, long task, long tasks) {
  const int32_t *ids = args[0].p;
  const code_t *codes = args[1].p;
  const scale_elem *scales = args[2].p;
  const zero_elem *zeros = args[3].p;
  long hidden = args[5].i, row = ids[task], run = run_of(hidden), runs = cdiv_l(hidden, run);
  elem *y = (elem *)args[4].p + task * hidden;
  (void)tasks;
  for (long r = 0; r < runs; r++) {
    worth_t v = worth_of(scales, zeros, row, r, runs);
    for (long c = r * run; c < min_l((r + 1) * run, hidden); c++)
      put(y + c, (get_code(codes, row * hidden + c, hidden) - v.zero) * v.scale + v.min);
  }
}
