// x . w of n codes from element `at` of rows of k on, all less `zero`; and the sum of x.
static float dot_run(const x_elem *x, const code_t *w, long at, long n, long k, float zero, float *sum_x) {
  float sum[SUMS] = {0}, xs[SUMS] = {0};
  for (long i = 0; i < n; i += SUMS)
    for (long l = 0; l < SUMS && i + l < n; l++) {
      float v = get_x(x + i + l);
      sum[l] += v * (get_code(w, at + i + l, k) - zero), xs[l] += v;
    }
  for (int l = 1; l < SUMS; l++) sum[0] += sum[l], xs[0] += xs[l];
  *sum_x = xs[0];
  return sum[0];
}
