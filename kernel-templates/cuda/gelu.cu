// y = x·Φ(x), the erf form of GELU. Φ comes from the rational approximation 7.1.26 of Abramowitz and Stegun (absolute
// error below 1.5e-7) of the tail beyond |x|, which keeps small results relative to themselves: a tenth of erff's work.
#include "flat.cuh"

DEV float gelu_of(float x) {
  const float z = fabsf(x) * 0.70710678f, t = rcp_approx(fmaf(0.3275911f, z, 1.0f));
  float p = fmaf(1.061405429f, t, -1.453152027f);
  p = fmaf(p, t, 1.421413741f);
  p = fmaf(p, t, -0.284496736f);
  p = fmaf(p, t, 0.254829592f);
  const float tail = 0.5f * p * t * exp2_approx(-z * z * LOG2E);
  return x * (x < 0.0f ? tail : 1.0f - tail);
}

extern "C" __global__ void __launch_bounds__(THREADS) gelu(const elem *__restrict__ x, elem *__restrict__ y, i64 count) {
#if PDL
  pdl_launch();
  pdl_wait();
#endif
  map_flat<1>(x, y, count, [](const float *v) { return gelu_of(v[0]); });
}
