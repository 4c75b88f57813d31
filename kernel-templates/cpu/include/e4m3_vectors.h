// Vectors of codes of E4M3 from and to f32. Behind base.h.
typedef uint8_t vb __attribute__((vector_size(VL)));
typedef uint8_t vb_any __attribute__((vector_size(VL), aligned(1), may_alias));

#if defined(__AVX512F__) && SIMD == 64
#include <immintrin.h>
INLINE vu load_bytes(const uint8_t *p) { return (vu)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)); }
#elif defined(__AVX2__) && SIMD == 32
#include <immintrin.h>
INLINE vu load_bytes(const uint8_t *p) { return (vu)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)); }
#else
// By way of 16 bits: in one step a compiler goes element by element.
INLINE vu load_bytes(const uint8_t *p) {
  return __builtin_convertvector(__builtin_convertvector(*(const vb_any *)p, vh), vu);
}
#endif

// A code that is NaN is ±480.
INLINE vf load_codes(const uint8_t *p) {
  vu u = load_bytes(p), magnitude = u & 0x7f;
  vf even = __builtin_convertvector((vi)magnitude, vf) * (1.0f / 512.0f); // below 2^-6, where codes are evenly spaced
  vf v = pick((vi)(magnitude < 8), even, (vf)((magnitude << 20) + (120u << 23)));
  return (vf)((vu)v | (u & 0x80) << 24);
}
// The nearest codes, ties to even; what is beyond the largest becomes the largest, NaN stays NaN.
INLINE vb codes_of(vf v) {
  vu bits = (vu)v, sign = bits >> 24 & 0x80;
  vf a = vmin((vf)(bits & 0x7fffffff), splat(448.0f));
  vu normal = (((vu)a + 0x7ffff + ((vu)a >> 20 & 1)) >> 20) - (120 << 3);
  vu even = (vu)(a * 512.0f + 12582912.0f) & 0xff; // 1.5 · 2^23, beside which a float holds whole numbers
  vu code = (vu)pick((vi)(a < 1.0f / 64.0f), (vf)even, (vf)normal);
  code = (vu)pick((vi)(v != v), (vf)((vu){0} + 0x7f), (vf)code);
  return __builtin_convertvector(__builtin_convertvector(code | sign, vh), vb);
}
INLINE void store_codes(uint8_t *p, vf v) { *(vb_any *)p = codes_of(v); }
INLINE void put_code(uint8_t *p, float v) { *p = codes_of(splat(v))[0]; }
