#define PART 64 // elements whose codes are floats at a time

// The codes of n elements, PART at most, from element `at` of rows of k on. Runs begin with a byte, and with a word where words of rows stand
// in turn.
static void codes_of(float *to, const code_t *w, long at, long n, long k) {
#if W_LAYOUT_QUADS
  for (long i = 0; i < n; i++) to[i] = get_code(w, at + i, k);
#elif W_LAYOUT_LANES
  const code_t *from = w + code_place(at, k) * 4 / WORD;
  for (long i = 0; i < n; i += WORD, from += 4 * LANES)
    for (long j = 0; j < WORD && i + j < n; j++)
#if DTYPE_W_INT4
      to[i + j] = (float)(from[j / 2] >> j % 2 * 4 & 15);
#else
      to[i + j] = code_value(from[j]);
#endif
  (void)k;
#elif DTYPE_W_INT4
  const code_t *from = w + at / 2;
  for (long i = 0; i + 1 < n; i += 2) {
    int code = from[i / 2];
    to[i] = (float)(code & 15), to[i + 1] = (float)(code >> 4);
  }
  if (n % 2) to[n - 1] = (float)(from[n / 2] & 15);
  (void)k;
#else
  for (long i = 0; i < n; i++) to[i] = code_value(w[at + i]);
  (void)k;
#endif
}

// x . w of n codes from element `at` of rows of k on, all less `zero`; and the sum of x.
static float dot_run(const x_elem *x, const code_t *w, long at, long n, long k, float zero, float *sum_x) {
  float sum[SUMS] = {0}, xs[SUMS] = {0}, codes[PART];
  for (long first = 0; first < n; first += PART) {
    long count = min_l(PART, n - first), i = 0;
    codes_of(codes, w, at + first, count, k);
    x += first ? PART : 0;
    for (; i + SUMS <= count; i += SUMS)
      for (long l = 0; l < SUMS; l++) {
        float v = get_x(x + i + l);
        sum[l] += v * (codes[i + l] - zero), xs[l] += v;
      }
    for (long l = 0; i + l < count; l++) {
      float v = get_x(x + i + l);
      sum[l] += v * (codes[i + l] - zero), xs[l] += v;
    }
  }
  for (int l = 1; l < SUMS; l++) sum[0] += sum[l], xs[0] += xs[l];
  *sum_x = xs[0];
  return sum[0];
}
