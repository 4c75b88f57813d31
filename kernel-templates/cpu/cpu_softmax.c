// Softmax over the last dimension. A task takes ROWS_EACH rows. With f32 the exponentials wait in y for their sum;
// 16-bit outputs would lose them to rounding, so they are computed again.
#include "base.h"
#include "vmath.h"

void cpu_softmax(const jt_arg *args, long task, long tasks) {
  const elem *x0 = args[0].p;
  elem *y0 = args[1].p;
  const float low = -__builtin_inff();
  (void)tasks;
  for (long r = task * ROWS_EACH, last = min_l(r + ROWS_EACH, args[2].i); r < last; r++) {
    const elem *x = x0 + r * COLS;
    elem *y = y0 + r * COLS;
    vf m4[4] = {splat(low), splat(low), splat(low), splat(low)}, sums[2] = {{0}, {0}};
    float m = low, tail[VL];
    long whole = COLS / VL * VL, i = 0;
    for (; i + 4 * VL <= COLS; i += 4 * VL)
      UNROLL for (int u = 0; u < 4; u++) m4[u] = vmax(m4[u], load(x + i + u * VL));
    for (; i < whole; i += VL) m4[0] = vmax(m4[0], load(x + i));
    m = max_lanes(vmax(vmax(m4[0], m4[1]), vmax(m4[2], m4[3])));
    for (; i < COLS; i++) m = get(x + i) > m ? get(x + i) : m;

    for (i = 0; i < whole; i += VL) {
      vf e = vexp(load(x + i) - m);
      sums[i / VL % 2] += e;
#if DTYPE_F32
      store(y + i, e);
#endif
    }
    if (whole < COLS) {
      for (i = 0; i < VL; i++) tail[i] = whole + i < COLS ? get(x + whole + i) : low;
      vf e = vexp(load_f32(tail) - m);
      sums[0] += e;
      store_f32(tail, e);
    }
    float inv = 1.0f / sum_lanes(sums[0] + sums[1]);
    for (i = 0; i < whole; i += VL)
#if DTYPE_F32
      store(y + i, load(y + i) * inv);
#else
      store(y + i, vexp(load(x + i) - m) * inv);
#endif
    if (whole < COLS) store_part(y + whole, load_f32(tail) * inv, COLS - whole);
  }
}
