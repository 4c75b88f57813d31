// Rows as codes with scales, normed before or not, for every width: a task has a row. `codes` says which: 0 int8 by rows, 1 E4M3 by
// rows, 2 E4M3 by groups of 128.
#include "base.h"
#include "e4m3_vectors.h"

enum { X, WEIGHT, Y, SCALES, COLS_, CODES_, EPS };

// The values of columns c to c + count - 1, at most VL of them, with zeros behind.
INLINE vf values(const elem *x, const elem *weight, float scale, long c, long count) {
  float v[VL] = {0};
  for (long i = 0; i < count; i++) v[i] = get(x + c + i) * (weight ? scale * get(weight + c + i) : 1.0f);
  return load_f32(v);
}

// A null weight stands for no norm.
void cpu_quantize(const jt_arg *args, long task, long tasks) {
  const long cols = args[COLS_].i, codes = args[CODES_].i, run = codes == 2 ? 128 : cols, groups = (cols + run - 1) / run;
  const elem *x = (const elem *)args[X].p + task * cols, *weight = args[WEIGHT].p;
  uint8_t *y = (uint8_t *)args[Y].p + task * cols;
  float *scales = (float *)args[SCALES].p + task * groups, scale = 1;
  const float largest = codes == 0 ? 127 : 448;
  (void)tasks;
  if (weight) {
    double squares = 0;
    for (long c = 0; c < cols; c++) squares += get(x + c) * get(x + c);
    scale = (float)(1.0 / __builtin_sqrt(squares / cols + args[EPS].f));
  }
  for (long g = 0; g < groups; g++) {
    const long first = g * run, end = min_l(cols, first + run);
    vf tops = splat(0);
    for (long c = first; c < end; c += VL) {
      const vf v = values(x, weight, scale, c, min_l(VL, end - c));
      tops = vmax(tops, (vf)((vi)v & 0x7fffffff));
    }
    float top = 0;
    for (int i = 0; i < VL; i++) top = tops[i] > top ? tops[i] : top;
    const float per = top > 0 ? largest / top : 0;
    scales[g] = top / largest;
    for (long c = first; c < end; c += VL) {
      const long count = min_l(VL, end - c);
      const vf v = values(x, weight, scale, c, count) * per;
      vb code;
      if (codes == 0) // 1.5 · 2^23, beside which a float holds whole numbers, rounded to the nearest.
        code = __builtin_convertvector((vu)(vmin(vmax(v, splat(-127.0f)), splat(127.0f)) + 12582912.0f) & 0xff, vb);
      else code = codes_of(v);
      if (count == VL) *(vb_any *)(y + c) = code;
      else
        for (long i = 0; i < count; i++) y[c + i] = code[i];
    }
  }
}
