// Rows of a normalisation: its arguments, the sums over a row and the row's result. RESIDUAL says whether h = x +
// residual is normed and written too; NORM_BIAS whether a bias is added at the end.
typedef struct {
  const elem *x, *residual, *weight, *bias;
  elem *y, *h;
  long rows;
  float eps;
} norm_t;

INLINE norm_t norm_args(const jt_arg *a, int bias) {
  norm_t n = {0};
  n.x = (a++)->p;
  if (RESIDUAL) n.residual = (a++)->p;
  n.weight = (a++)->p;
  if (bias) n.bias = (a++)->p;
  n.y = (a++)->p;
  if (RESIDUAL) n.h = (a++)->p;
  n.rows = (a++)->i;
  n.eps = (float)a->f;
  return n;
}
INLINE vf row_load(const norm_t *a, long i) {
  vf v = load(a->x + i);
  if (RESIDUAL) v += load(a->residual + i);
  return v;
}
INLINE float row_get(const norm_t *a, long i) { return get(a->x + i) + (RESIDUAL ? get(a->residual + i) : 0.0f); }

// Sum of h - shift over a row, or of its square.
INLINE float row_moment(const norm_t *a, long row, float shift, const int square) {
  vf sum[4] = {{0}, {0}, {0}, {0}};
  long at = row * COLS, i = 0;
  for (; i + 4 * VL <= COLS; i += 4 * VL) UNROLL for (int u = 0; u < 4; u++) {
    vf v = row_load(a, at + i + u * VL) - shift;
    sum[u] = square ? v * v + sum[u] : v + sum[u];
  }
  float total = sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3]));
  for (; i < COLS; i++) {
    float v = row_get(a, at + i) - shift;
    total += square ? v * v : v;
  }
  return total;
}
INLINE void row_write(const norm_t *a, long row, float shift, float scale) {
  long at = row * COLS, i = 0;
  for (; i + VL <= COLS; i += VL) {
    vf h = row_load(a, at + i), y = (h - shift) * scale * load(a->weight + i);
#ifdef NORM_BIAS
    y += load(a->bias + i);
#endif
    if (RESIDUAL) store(a->h + at + i, h);
    store(a->y + at + i, y);
  }
  for (; i < COLS; i++) {
    float h = row_get(a, at + i), y = (h - shift) * scale * get(a->weight + i);
#ifdef NORM_BIAS
    y += get(a->bias + i);
#endif
    if (RESIDUAL) put(a->h + at + i, h);
    put(a->y + at + i, y);
  }
}
