// y = x * Phi(x), the erf form of GELU, over all elements as one array; a task takes CHUNK of them.
#include "base.h"
#include "vmath.h"

void cpu_gelu(const jt_arg *args, long task, long tasks) {
  const elem *x = args[0].p;
  elem *y = args[1].p;
  long i = task * CHUNK, end = min_l(i + CHUNK, args[2].i);
  (void)tasks;
  for (; i + VL <= end; i += VL) store(y + i, vgelu(load(x + i)));
  if (i < end) store_part(y + i, vgelu(load_part(x + i, end - i)), end - i);
}
