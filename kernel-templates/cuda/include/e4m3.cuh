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

// The two pairs of codes of a word as two pairs of f16, each its code's value over E4M3_HALF_UNIT, exactly. Which codes make a pair is as it
// costs least: neighbours where an instruction takes them (a code that is NaN stays NaN), else those of bytes 0 and 2, and of 1 and 3.
#if ARCH >= 890
#define E4M3_HALF_UNIT 1.0f
#define E4M3_NEIGHBOURS 1
DEV u32 first_halves(u32 v) {
  u32 r;
  asm("{\n.reg .b16 lo, hi;\nmov.b32 {lo, hi}, %1;\ncvt.rn.f16x2.e4m3x2 %0, lo;\n}" : "=r"(r) : "r"(v));
  return r;
}
DEV u32 last_halves(u32 v) {
  u32 r;
  asm("{\n.reg .b16 lo, hi;\nmov.b32 {lo, hi}, %1;\ncvt.rn.f16x2.e4m3x2 %0, hi;\n}" : "=r"(r) : "r"(v));
  return r;
}
#else
#define E4M3_HALF_UNIT 0x1p8f
#define E4M3_NEIGHBOURS 0
DEV u32 first_halves(u32 v) { return (v << 8 & 0x80008000u) | (v << 7 & 0x3f803f80u); }
DEV u32 last_halves(u32 v) { return (v & 0x80008000u) | (v >> 1 & 0x3f803f80u); }
#endif

#if ELEM_BYTES == 2
// The codes of bytes 1 and 3 as what they are worth, exactly, by their bits: sign, exponent and mantissa go to their places in a pair of
// elements, whose exponents count from elsewhere, and a product mends that. A code that is NaN is ±480.
DEV u32 odd_codes(u32 v) {
  u32 r;
#if DTYPE_BF16
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"((v & 0x80008000u) | (v >> 4 & 0x07f007f0u)), "r"(0x7b807b80u), "r"(0x80008000u));
#else
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"((v & 0x80008000u) | (v >> 1 & 0x3f803f80u)), "r"(0x5c005c00u), "r"(0x80008000u));
#endif
  return r;
}
#endif
