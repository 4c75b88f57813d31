// Codes of scaled weights to floats, a vector at a time, where they lie as `layout=rows` says.
#if defined(__AVX512F__) && SIMD == 64
#define AVX512 1
#include <immintrin.h>
#elif defined(__F16C__) && SIMD == 32
#include <immintrin.h>
#endif

typedef uint32_t vu_any __attribute__((vector_size(SIMD), aligned(1), may_alias));
typedef int8_t vb_any __attribute__((vector_size(VL), aligned(1), may_alias));

// VL scales.
INLINE vf load_scales(const scale_elem *p) {
#if SCALE_F32
  return load_f32(p);
#elif SCALE_BF16
  return (vf)(__builtin_convertvector(*(const vh_any *)p, vu) << 16);
#elif AVX512
  return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif defined(__F16C__) && SIMD == 32
  return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#else
  vf v;
  UNROLL for (int i = 0; i < VL; i++) v[i] = get_scale(p + i);
  return v;
#endif
}

#if DTYPE_W_INT4
#define CODE_BYTES(k) ((k) / 2)
#else
#define CODE_BYTES(k) (k)
#endif

#if !DTYPE_W_INT4
#if DTYPE_W_E4M3
#define FLOAT_UNIT 256.0f // of 2^-8, which an e4m3 is short of as an f16 of the same bits
#else
#define FLOAT_UNIT 1.0f
#endif

// VL codes of 8 bits, in units of FLOAT_UNIT.
INLINE vf floats_of(const uint8_t *codes) {
#if DTYPE_W_INT8
#if AVX512
  return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)codes)));
#elif defined(__AVX2__) && SIMD == 32
  return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)codes)));
#else
  return __builtin_convertvector(*(const vb_any *)codes, vf);
#endif
#else
  // As an f16 of the same bits, which counts exponents from 8 less.
#if AVX512
  __m256i u = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)codes));
  u = _mm256_or_si256(_mm256_slli_epi16(_mm256_and_si256(u, _mm256_set1_epi16(0x80)), 8),
                      _mm256_slli_epi16(_mm256_and_si256(u, _mm256_set1_epi16(0x7f)), 7));
  return (vf)_mm512_cvtph_ps(u);
#elif defined(__F16C__) && SIMD == 32
  __m128i u = _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i *)codes));
  u = _mm_or_si128(_mm_slli_epi16(_mm_and_si128(u, _mm_set1_epi16(0x80)), 8),
                   _mm_slli_epi16(_mm_and_si128(u, _mm_set1_epi16(0x7f)), 7));
  return (vf)_mm256_cvtph_ps(u);
#else
  vf v;
  UNROLL for (int i = 0; i < VL; i++) v[i] = e4m3_to_f32(codes[i]) * (1.0f / 256.0f);
  return v;
#endif
#endif
}
#endif
