// y[j] = silu(x[2j]) * x[2j + 1] over all pairs as one array; a task takes CHUNK of them.
#include "base.h"
#include "shuffle.h"
#include "vmath.h"

void cpu_silu_mul(const jt_arg *args, long task, long tasks) {
  const elem *x = args[0].p;
  elem *y = args[1].p;
  long i = task * CHUNK, end = min_l(i + CHUNK, args[2].i);
  (void)tasks;
  for (; i + VL <= end; i += VL) {
    vf a = load(x + 2 * i), b = load(x + 2 * i + VL);
    store(y + i, vsilu(EVENS(a, b)) * ODDS(a, b));
  }
  if (i < end) {
    float g[VL] = {0}, u[VL] = {0};
    for (long j = i; j < end; j++) g[j - i] = get(x + 2 * j), u[j - i] = get(x + 2 * j + 1);
    store_part(y + i, vsilu(load_f32(g)) * load_f32(u), end - i);
  }
}
