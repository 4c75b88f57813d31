// What every CPU template shares: the argument slot, vectors of SIMD bytes, the element type of the problem and its
// conversions to and from f32. Vectors are the compiler's own (GCC and clang), so the same source serves AVX2, AVX-512,
// NEON and plain SSE. Storage is `elem`; arithmetic is always f32.
#include <stdint.h>
#include <string.h>

typedef union {
  void *p;
  long long i;
  double f;
} jt_arg;

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 64")
#endif

// Keeps a loaded vector in a register: the compiler would fold the load into every use of it, and loads are what the
// matrix kernels have least of.
#if defined(__AVX512F__)
#define KEEP(v) __asm__("" : "+v"(v))
#elif (defined(__AVX__) && SIMD <= 32) || (defined(__SSE2__) && SIMD <= 16)
#define KEEP(v) __asm__("" : "+x"(v))
#else
#define KEEP(v) (void)0
#endif

// ---- vectors -------------------------------------------------------------------------------------------------------
#define VL (SIMD / 4)
typedef float vf __attribute__((vector_size(SIMD)));
typedef int32_t vi __attribute__((vector_size(SIMD)));
typedef uint32_t vu __attribute__((vector_size(SIMD)));
typedef uint16_t vh __attribute__((vector_size(SIMD / 2)));
typedef float vf_any __attribute__((vector_size(SIMD), aligned(4), may_alias));
typedef uint16_t vh_any __attribute__((vector_size(SIMD / 2), aligned(2), may_alias));

INLINE vf splat(float x) { return x - (vf){0}; }
INLINE vf load_f32(const float *p) { return *(const vf_any *)p; }
INLINE void store_f32(float *p, vf v) { *(vf_any *)p = v; }
INLINE vf pick(vi mask, vf a, vf b) { return (vf)(((vi)a & mask) | ((vi)b & ~mask)); }
INLINE vf vmax(vf a, vf b) { return pick(a > b, a, b); }
INLINE vf vmin(vf a, vf b) { return pick(a < b, a, b); }
INLINE float sum_lanes(vf v) {
  float s[VL];
  store_f32(s, v);
  UNROLL for (int o = VL / 2; o > 0; o >>= 1) UNROLL for (int i = 0; i < o; i++) s[i] += s[i + o];
  return s[0];
}
INLINE float max_lanes(vf v) {
  float m = v[0];
  UNROLL for (int i = 1; i < VL; i++) m = v[i] > m ? v[i] : m;
  return m;
}
INLINE long min_l(long a, long b) { return a < b ? a : b; }
INLINE long max_l(long a, long b) { return a > b ? a : b; }
INLINE long cdiv_l(long a, long b) { return (a + b - 1) / b; }
INLINE long align_l(long a, long to) { return cdiv_l(a, to) * to; }

// ---- elements ------------------------------------------------------------------------------------------------------
INLINE float bf16_to_f32(uint16_t bits) {
  uint32_t u = (uint32_t)bits << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}
// Round to nearest, ties to even; a NaN stays a NaN.
INLINE uint16_t f32_to_bf16(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  return f != f ? 0x7fc0 : (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

INLINE vf load_bf16(const uint16_t *p) { return (vf)(__builtin_convertvector(*(const vh_any *)p, vu) << 16); }
INLINE void store_bf16(uint16_t *p, vf v) {
  vu u = (vu)v;
  u = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  u = (u & ~(vu)(v != v)) | (0x7fc0 & (vu)(v != v));
  *(vh_any *)p = __builtin_convertvector(u, vh);
}
#if DTYPE_F16 || DTYPE_KV_F16
#if defined(__F16C__) && SIMD == 32
#include <immintrin.h>
INLINE vf load_f16(const _Float16 *p) { return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
INLINE void store_f16(_Float16 *p, vf v) { _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph((__m256)v, 0)); }
#elif defined(__AVX512F__) && SIMD == 64
#include <immintrin.h>
INLINE vf load_f16(const _Float16 *p) { return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
INLINE void store_f16(_Float16 *p, vf v) { _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph((__m512)v, 0)); }
#else
INLINE vf load_f16(const _Float16 *p) {
  vf v;
  UNROLL for (int i = 0; i < VL; i++) v[i] = (float)p[i];
  return v;
}
INLINE void store_f16(_Float16 *p, vf v) {
  UNROLL for (int i = 0; i < VL; i++) p[i] = (_Float16)v[i];
}
#endif
#endif

#if DTYPE_BF16
typedef uint16_t elem;
#define ELEM_BYTES 2
INLINE float get(const elem *p) { return bf16_to_f32(*p); }
INLINE void put(elem *p, float v) { *p = f32_to_bf16(v); }
INLINE vf load(const elem *p) { return load_bf16(p); }
INLINE void store(elem *p, vf v) { store_bf16(p, v); }
#elif DTYPE_F16
typedef _Float16 elem;
#define ELEM_BYTES 2
INLINE float get(const elem *p) { return (float)*p; }
INLINE void put(elem *p, float v) { *p = (_Float16)v; }
INLINE vf load(const elem *p) { return load_f16(p); }
INLINE void store(elem *p, vf v) { store_f16(p, v); }
#elif DTYPE_F32 || DTYPE_TF32
typedef float elem;
#define ELEM_BYTES 4
INLINE float get(const elem *p) { return *p; }
INLINE void put(elem *p, float v) { *p = v; }
INLINE vf load(const elem *p) { return load_f32(p); }
INLINE void store(elem *p, vf v) { store_f32(p, v); }
#else
#error "no DTYPE_ of a known element type is defined"
#endif

// The first `n` < VL elements, zeros after them; and the store that writes only those.
INLINE vf load_part(const elem *p, long n) {
  float t[VL] = {0};
  for (long i = 0; i < n; i++) t[i] = get(p + i);
  return load_f32(t);
}
INLINE void store_part(elem *p, vf v, long n) {
  float t[VL];
  store_f32(t, v);
  for (long i = 0; i < n; i++) put(p + i, t[i]);
}
// `n` elements to f32; the tail up to `padded` becomes zero.
INLINE void widen(float *to, const elem *from, long n, long padded) {
  long i = 0;
  for (; i + VL <= n; i += VL) store_f32(to + i, load(from + i));
  for (; i < n; i++) to[i] = get(from + i);
  for (; i < padded; i++) to[i] = 0;
}
