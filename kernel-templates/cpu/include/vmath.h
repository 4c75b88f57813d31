// exp, silu and erf on vectors, to about one unit in the last place of f32 (silu and erf: a few).
// exp(x) = 2^n * e^r with n = round(x / ln 2) and |r| <= ln 2 / 2; ln 2 is taken off in two parts so that r is exact.
// Arguments under -87 give 0, so -inf is fine.
INLINE vf vexp(vf x) {
  const float shift = 12582912.0f; // 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits
  vf c = vmin(vmax(x, splat(-87.0f)), splat(88.7f));
  vf t = c * 1.44269504f + shift;
  vf n = t - shift;
  vf r = n * -0.693145752f + c;
  r = n * -1.42860677e-6f + r;
  vf p = r * splat(1.9875691500e-4f) + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + (r + 1.0f);
  // 2^n as 2^(n/2 rounded down) * 2^(the rest): n = 128 has no single f32.
  vi e = (vi)t - (vi)splat(shift);
  vi half = e >> 1;
  vf s = (vf)((half + 127) << 23) * p * (vf)((e - half + 127) << 23);
  return pick(x < -87.0f, splat(0), s);
}
INLINE vf vsilu(vf x) { return x / (1.0f + vexp(-x)); }
// x * Phi(x) with Phi from Abramowitz and Stegun 7.1.26: for negative x the small tail is computed as it is, not as a
// difference from one.
INLINE vf vgelu(vf x) {
  vf a = vmax(x, -x) * 0.70710678f, t = 1.0f / (a * 0.3275911f + 1.0f);
  vf p = t * 1.061405429f - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  vf tail = 0.5f * p * t * vexp(-a * a);
  return x * pick(x < 0.0f, tail, 1.0f - tail);
}
