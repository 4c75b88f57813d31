// Caches that are codes of E4M3: from f32 to a code, and from codes to pairs of 16-bit elements.
#pragma once
#include "common.cuh"

// The nearest code, ties to even; what is beyond the largest becomes the largest, NaN stays NaN.
DEV u32 e4m3_from_f32(float v) {
  const u32 sign = __float_as_uint(v) >> 24 & 0x80;
  if (v != v) return sign | 0x7f;
  const float a = fminf(fabsf(v), 448.0f);
  if (a < 1.0f / 64.0f) return sign | (u32)__float2int_rn(a * 512.0f); // evenly spaced
  const u32 bits = __float_as_uint(a);
  return sign | (((bits + 0x7ffff + (bits >> 20 & 1)) >> 20) - (120 << 3));
}
// The codes of two values, the first in the low byte.
DEV u32 e4m3_pair(float lo, float hi) {
#if ARCH >= 890
  u16 r;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(r) : "f"(hi), "f"(lo));
  return r;
#else
  return e4m3_from_f32(lo) | e4m3_from_f32(hi) << 8;
#endif
}

// What a code is worth. A code that is NaN is ±480.
DEV float e4m3_to_f32(u32 code) {
  return __uint_as_float((code & 0x80) << 24 | (code & 0x7f) << 20) * 0x1p120f; // subnormal where the code is
}

#if ELEM_BYTES == 2
// The sign, the exponent and the mantissa of two codes in the places of a pair of elements, whose exponents count from elsewhere: an element
// is its code's value divided by E4M3_UNIT, exactly, as a subnormal number too. A code that is NaN is ±480.
#if DTYPE_BF16
#define E4M3_UNIT 0x1p120f
DEV u32 even_codes(u32 v) { return (v << 8 & 0x80008000u) | (v << 4 & 0x07f007f0u); } // bytes 0 and 2
DEV u32 odd_codes(u32 v) { return (v & 0x80008000u) | (v >> 4 & 0x07f007f0u); }       // bytes 1 and 3
#else
#define E4M3_UNIT 0x1p8f
DEV u32 even_codes(u32 v) { return (v << 8 & 0x80008000u) | (v << 7 & 0x3f803f80u); }
DEV u32 odd_codes(u32 v) { return (v & 0x80008000u) | (v >> 1 & 0x3f803f80u); }
#endif

// A pair of such elements as what the codes are worth.
DEV u32 in_units(u32 pair) {
  u32 r;
#if DTYPE_BF16
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(pair), "r"(0x7b807b80u), "r"(0x80008000u));
#else
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(pair), "r"(0x5c005c00u), "r"(0x80008000u));
#endif
  return r;
}
#endif
