// Rotates the adjacent pairs of every head by the angle of the token's position. A task takes TOKENS_EACH tokens.
#include "base.h"
#include "shuffle.h"

void cpu_rope(const jt_arg *args, long task, long tasks) {
  const elem *x = args[0].p;
  const int32_t *positions = args[1].p;
  const float *cos_sin = args[2].p;
  elem *y = args[3].p;
  long t = task * TOKENS_EACH, end = min_l(t + TOKENS_EACH, args[4].i);
  (void)tasks;
  for (; t < end; t++) {
    const float *cs = cos_sin + (long)positions[t] * HEAD_DIM;
    for (long h = 0; h < HEADS; h++) {
      const elem *from = x + (t * HEADS + h) * HEAD_DIM;
      elem *to = y + (t * HEADS + h) * HEAD_DIM;
      long d = 0;
      for (; d + VL <= HEAD_DIM; d += VL) store(to + d, rotate(load(from + d), load_f32(cs + d)));
      for (; d + 1 < HEAD_DIM; d += 2) {
        float a = get(from + d), b = get(from + d + 1);
        put(to + d, a * cs[d] - b * cs[d + 1]);
        put(to + d + 1, a * cs[d + 1] + b * cs[d]);
      }
    }
  }
}
