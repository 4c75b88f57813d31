// The lowest index of a row's maximum. A row is cut into PARTS tasks that leave (value, index) in the workspace, and
// `cpu_argmax_combine` takes the best of each row. A lane keeps its first maximum (a later one must be larger), so the
// lowest index wins among lanes and parts by comparing indices only where values are equal.
#include "base.h"
#include "shuffle.h"

#define PART ((COLS + PARTS - 1) / PARTS)
typedef struct {
  float value;
  int32_t index;
} best_t;

INLINE best_t better(best_t a, best_t b) {
  return b.value > a.value || (b.value == a.value && b.index < a.index) ? b : a;
}

void cpu_argmax(const jt_arg *args, long task, long tasks) {
  long row = task / PARTS, first = task % PARTS * PART, end = min_l(first + PART, COLS);
  const elem *x = (const elem *)args[0].p + row * COLS;
  best_t *found = args[1].p;
  best_t best = {-__builtin_inff(), (int32_t)min_l(first, COLS - 1)};
  const int banks = 4;
  (void)tasks;
  long i = first;
  if (end - first >= banks * VL) {
    vf value[4];
    vi index[4], now[4];
    UNROLL for (int u = 0; u < banks; u++) {
      now[u] = (vi)IOTA + (int32_t)(first + u * VL);
      value[u] = load(x + i + u * VL);
      index[u] = now[u];
    }
    for (i += banks * VL; i + banks * VL <= end; i += banks * VL) UNROLL for (int u = 0; u < banks; u++) {
      vf v = load(x + i + u * VL);
      now[u] += banks * VL;
      vi more = v > value[u];
      value[u] = pick(more, v, value[u]);
      index[u] = (index[u] & ~more) | (now[u] & more);
    }
    for (int u = 0; u < banks; u++)
      for (int l = 0; l < VL; l++) best = better(best, (best_t){value[u][l], index[u][l]});
  }
  for (; i < end; i++) best = better(best, (best_t){get(x + i), (int32_t)i});
  found[task] = best;
}

// Task: 64 rows.
void cpu_argmax_combine(const jt_arg *args, long task, long tasks) {
  const best_t *found = args[0].p;
  int32_t *y = args[1].p;
  (void)tasks;
  for (long r = task * 64, last = min_l(r + 64, args[2].i); r < last; r++) {
    best_t best = found[r * PARTS];
    for (long p = 1; p < PARTS; p++) best = better(best, found[r * PARTS + p]);
    y[r] = best.index;
  }
}
