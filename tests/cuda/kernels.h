// The kernels that the driver without a GPU runs: the support code for f32 as support.cu and watch.cu have it, GELU's
// reference, and candidates that compute GELU honestly, or not.
#include <math.h>

static uint64_t mixed(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}
static uint64_t number(uint64_t seed, uint64_t i) { return mixed(seed + (i + 1) * 0x9E3779B97F4A7C15ull); }
static uint32_t bits_of(float v) { uint32_t b; memcpy(&b, &v, 4); return b; }
static float float_of(uint64_t bits) { uint32_t b = (uint32_t)bits; float v; memcpy(&v, &b, 4); return v; }
static double gelu(double v) { return 0.5 * v * (1.0 + erf(v * 0.70710678118654752440)); }

struct check_stats { double sum_sq_error; uint64_t worst, not_finite, touched, mismatches, first_mismatch; };

static void compare_f32(const float *out, const double *ref, uint64_t n, const double *stats, struct check_stats *s) {
  double rms = stats[1] > 0 ? sqrt(stats[0] / stats[1]) : 0.0;
  for (uint64_t i = 0; i < n; i++) {
    if (ref[i] != ref[i]) { s->touched += bits_of(out[i]) != 0xffffffffu; continue; }
    if (!(fabs(out[i]) < INFINITY)) { s->not_finite++; continue; }
    double e = fabs(out[i] - ref[i]);
    s->sum_sq_error += e * e;
    uint64_t key = (uint64_t)bits_of((float)(e / (rms + fabs(ref[i]) + 1e-38))) << 32 | i;
    if (key > s->worst) s->worst = key;
  }
}

static void sum_ranges(const uint64_t *table, uint64_t count, uint64_t *sums) {
  for (uint64_t r = 0; r < count; r++)
    for (uint64_t i = 0; i < table[2 * r + 1]; i++) sums[r] += mixed(i << 8 | ((const uint8_t *)table[2 * r])[i]);
}

// Launch number `n` of a candidate, from 0.
static void candidate(const char *name, int n, float *x, float *y, uint64_t count) {
  static float *first;
  uint64_t from = 0, to = count;
  if (!strcmp(name, "twice") && n >= 2) return;
  if (!strcmp(name, "hundred") && n >= 100) return;
  if (!strcmp(name, "half")) to = count / 2;
  if (!strcmp(name, "first")) {
    if (n == 0) first = y;
    if (y != first) return;
  }
  if (!strcmp(name, "sample") && bits_of(y[count / 2]) == bits_of((float)gelu(x[count / 2]))) return;
  for (uint64_t i = from; i < to; i++) {
    if (!strcmp(name, "poison") && bits_of(y[i]) != 0xffffffffu) continue;
    y[i] = (float)gelu(x[i]);
  }
  if (!strcmp(name, "wrong") && n >= 2) y[7] += 1.0f;
  if (!strcmp(name, "input") || (!strcmp(name, "input_late") && n >= 12) || (!strcmp(name, "input_once") && n == 200))
    x[3] += 1.0f;
  if (!strcmp(name, "after") || (!strcmp(name, "after_late") && n >= 12)) ((uint8_t *)(y + count))[0] = 0;
  if (!strcmp(name, "before")) ((uint8_t *)y)[-1] = 0;
  if (!strcmp(name, "guard")) ((uint8_t *)(x + count))[5] = 0;
  if (!strcmp(name, "far") && n >= 2) y[count + 2000] = 3.0f;
}

static void run_kernel(const char *name, int n, const uint64_t *v) {
  if (!strcmp(name, "fill_uniform_f32")) {
    for (uint64_t i = 0; i < v[1]; i++)
      ((float *)v[0])[i] = ((float)(uint32_t)(number(v[2], i) >> 40) * 0x1p-23f - 1.0f) * float_of(v[3]);
  } else if (!strcmp(name, "sum_squares")) {
    for (uint64_t i = 0; i < v[1]; i++) {
      double r = ((const double *)v[0])[i];
      if (r == r) ((double *)v[2])[0] += r * r, ((double *)v[2])[1] += 1;
    }
  } else if (!strcmp(name, "compare_f32")) {
    compare_f32((const float *)v[0], (const double *)v[1], v[2], (const double *)v[3], (struct check_stats *)v[4]);
  } else if (!strcmp(name, "check_bytes")) {
    for (uint64_t i = 0; i < v[1]; i++) *(uint32_t *)v[2] += ((const uint8_t *)v[0])[i] != 0xff;
  } else if (!strcmp(name, "sum_ranges")) {
    sum_ranges((const uint64_t *)v[0], v[1], (uint64_t *)v[2]);
  } else if (!strcmp(name, "spoil4")) {
    for (uint64_t i = 0; i < v[2]; i++) {
      uint64_t h = number(v[3], i);
      if ((h & 15) == 0 || i == v[3] % v[2]) ((uint32_t *)v[0])[i] = 0x40000000u | ((uint32_t)(h >> 32) & 0xffffffu);
    }
  } else if (!strcmp(name, "gelu_reference")) {
    uint64_t count = (uint64_t)(uint32_t)v[2] * (uint32_t)v[3];
    for (uint64_t i = 0; i < count; i++) ((double *)v[1])[i] = gelu(((const float *)v[0])[i]);
  } else if (!strncmp(name, "gelu_", 5)) {
    candidate(name + 5, n, (float *)v[0], (float *)v[1], v[2]);
  }
}
