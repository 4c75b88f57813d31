// x . w of n codes from element `at` on, all less `zero`; and the sum of x.
static float dot_run(const x_elem *x, const code_t *w, long at, long n, float zero, float *sum_x) {
  float sum[LANES] = {0}, xs[LANES] = {0};
  for (long i = 0; i < n; i += LANES)
    for (long l = 0; l < LANES && i + l < n; l++) {
      float v = get_x(x + i + l);
      sum[l] += v * (get_code(w, at + i + l) - zero), xs[l] += v;
    }
  for (int l = 1; l < LANES; l++) sum[0] += sum[l], xs[0] += xs[l];
  *sum_x = xs[0];
  return sum[0];
}
