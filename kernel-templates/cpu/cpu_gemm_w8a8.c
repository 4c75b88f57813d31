// y = epilogue(x . w^T) for tokens and weights that are both codes of 8 bits: sums of 32 bits, exact, and scales at their ends.
//
// A lane of a vector has a row of w, whose codes are put so, NV vectors and a block of K at a time, next to the L1; in
// `layout=lanes` they lie so already. There they meet every panel of MT tokens of the tile, of which a word at a time is broadcast.
// `cpu_gemm_w8a8_pack` turns x once into words, [block of K][panel][word][MT], and adds up the codes of each token and block.
//
// Words: with VNNI four codes, w unsigned by adding 128, which the sums of x take off where sums start; else two of 16 bits. No sum
// saturates, and sums of a run that shares a scale are below 2^31.
#include "base.h"
#include "code_weights.h"
#include "shuffle.h"
#include "vmath.h"
#include "transpose.h"
#include "epilogue.h"
#include "qk_norm.h"
#include "codes.h"
#include "code_rows.h"

#if defined(__AVX512VNNI__) && SIMD == 64
#define STEP 4     // codes of a word
#define OFFSET 128 // by how much codes of w are more
#else
#define STEP 2
#define OFFSET 0
#endif
#define KP ((K + 3) / 4 * 4)        // K as packed: whole words of codes
#define BLOCKS ((K + KC - 1) / KC)
#define GR (NV * VL)                // rows of a group
#define LDS (TILE_N + 16)           // row stride of the sums
_Static_assert(KC % 16 == 0 && TILE_M % MT == 0 && TILE_N % GR == 0 && GR % TB == 0, "tile shape");
#if W_SCALE_GROUP
_Static_assert(KC == W_GROUP, "a block is what shares a scale");
#define FLOAT_SUMS 1
typedef float sum_t;
#else
#define FLOAT_SUMS 0
typedef int32_t sum_t;
#endif

// Adds to each lane the products of the codes of a word.
INLINE vi dot(vi sum, vi w, int32_t x) {
#if STEP == 4
  return (vi)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, _mm512_set1_epi32(x));
#elif defined(__AVX512BW__) && SIMD == 64
  return sum + (vi)_mm512_madd_epi16((__m512i)w, _mm512_set1_epi32(x));
#elif defined(__AVX2__) && SIMD == 32
  return sum + (vi)_mm256_madd_epi16((__m256i)w, _mm256_set1_epi32(x));
#else
  return (w << 16 >> 16) * (x << 16 >> 16) + (w >> 16) * (x >> 16) + sum;
#endif
}

// Where the words of a block of K begin, of mpad tokens, and the sums of its tokens behind all words.
INLINE long words_of(long k0, long mpad) { return k0 / STEP * mpad; }
INLINE long sums_of(long k0, long mpad) { return KP / STEP * mpad + k0 / KC * mpad; }

// Task: a panel of MT tokens.
void cpu_gemm_w8a8_pack(const jt_arg *args, long task, long tasks) {
  const int8_t *x = args[0].p;
  int32_t *packed = args[1].p;
  long m = args[2].i, mpad = tasks * MT;
  for (long k0 = 0; k0 < K; k0 += KC) {
    long kc = min_l(KC, KP - k0), steps = kc / STEP, n = min_l(kc, K - k0);
    int32_t *to = packed + words_of(k0, mpad) + task * MT * steps, *sums = packed + sums_of(k0, mpad) + task * MT;
    for (long t = 0; t < MT; t++) {
      const int8_t *from = x + (task * MT + t) * (long)K + k0;
      long whole = task * MT + t < m ? n / STEP : 0, s = 0, rest = task * MT + t < m ? n % STEP : 0;
      int32_t sum = 0;
#if STEP == 4
      for (; s < whole; s++) memcpy(to + s * MT + t, from + s * 4, 4);
#else
      for (; s < whole; s++) to[s * MT + t] = (from[2 * s] & 0xffff) | (int32_t)((uint32_t)from[2 * s + 1] << 16);
#endif
      for (; s < steps; s++, rest = 0) {
        int32_t word = 0;
        for (long i = 0; i < rest; i++) word |= (int32_t)((uint32_t)(from[s * STEP + i] & (STEP == 4 ? 0xff : 0xffff)) << (32 / STEP * i));
        to[s * MT + t] = word;
      }
      if (task * MT + t < m)
        for (long i = 0; i < n; i++) sum += from[i];
      sums[t] = -OFFSET * sum;
    }
  }
}

// ---- a group of rows -----------------------------------------------------------------------------------------------
// Words of four codes of VL rows to those that are multiplied.
INLINE void put_words(vi *to, vu words) {
#if STEP == 4
  *to = (vi)(words ^ 0x80808080u);
#else
  vi w = (vi)words;
  to[0] = ((w << 24 >> 24) & 0xffff) | (w << 16 >> 24 << 16);
  to[NV] = ((w << 8 >> 24) & 0xffff) | (w >> 24 << 16);
#endif
}

// The words of codes k0.. of rows `row`.., of which there are `rows`; those of others are of no code.
static void take_group(vi *to, const weights_t *w, long row, long rows, long k0, long kc) {
#if W_LAYOUT_LANES
  for (long k = 0; k < kc; k += 4)
    UNROLL for (int v = 0; v < NV; v++) {
      vu words = {0};
      if (v * VL < rows) words = (vu)*(const vu_any *)codes_at(w, row + v * VL, k0 + k);
      put_words(to + (k / STEP) * NV + v, words);
    }
#else
  uint32_t some[TB][GR] __attribute__((aligned(64)));
  for (long k = 0; k < kc; k += 4 * TB) {
    if (rows == GR && k0 + k + 4 * TB <= K && K % 4 == 0) {
      for (long r = 0; r < GR; r += TB)
        transpose_block((float *)some[0] + r, GR, (const float *)(w->codes + (row + r) * (long)K + k0 + k), K / 4);
    } else {
      memset(some, 0, sizeof some);
      for (long r = 0; r < rows; r++)
        for (long i = 0; i < min_l(4 * TB, K - k0 - k); i += 4)
          memcpy(some[i / 4] + r, w->codes + (row + r) * (long)K + k0 + k + i, min_l(4, K - k0 - k - i));
    }
    for (long i = 0; i < min_l(TB, (kc - k) / 4); i++)
      UNROLL for (int v = 0; v < NV; v++) put_words(to + ((k + 4 * i) / STEP) * NV + v, (vu)*(const vu_any *)(some[i] + v * VL));
  }
#endif
}

// The scales of VL rows for the block of K at k0, as far as there are such rows.
INLINE vf scales_of(const weights_t *w, long row, long rows, long k0) {
#if W_SCALE_TENSOR
  (void)row, (void)rows, (void)k0;
  return splat(get_scale(w->scales));
#else
  const long runs = (K + W_GROUP - 1) / W_GROUP, run = k0 / W_GROUP;
#if W_LAYOUT_LANES
  if (rows >= VL) return load_scales(w->scales + row / LANES * LANES * runs + run * LANES + row % LANES);
#endif
  float s[VL] = {0};
  for (long i = 0; i < min_l(VL, rows); i++) s[i] = worth_of(w->scales, w->zeros, row + i, run, runs).scale;
  return load_f32(s);
#endif
}

// ---- products ------------------------------------------------------------------------------------------------------
// sums[MT][NV vectors] (+)= x[MT][steps] . w[steps][NV vectors], times a scale for each lane where sums are floats.
// Inlined, its sums are spilled in the loop.
static __attribute__((noinline)) void block(sum_t *sums, const vi *w, const int32_t *x, const int32_t *from, const vf *scales, long steps, int first) {
  vi acc[MT][NV];
  UNROLL for (int t = 0; t < MT; t++) UNROLL for (int v = 0; v < NV; v++) acc[t][v] = (vi){0} + from[t];
  for (long s = 0; s < steps; s++) {
    vi b[NV];
    UNROLL for (int v = 0; v < NV; v++) b[v] = w[v];
    UNROLL for (int t = 0; t < MT; t++) UNROLL for (int v = 0; v < NV; v++) acc[t][v] = dot(acc[t][v], b[v], x[t]);
    w += NV;
    x += MT;
  }
  UNROLL for (int t = 0; t < MT; t++) UNROLL for (int v = 0; v < NV; v++) {
    sum_t *s = sums + t * LDS + v * VL;
#if FLOAT_SUMS
    vf sum = __builtin_convertvector(acc[t][v], vf) * scales[v];
    store_f32(s, first ? sum : sum + load_f32(s));
#else
    store_f32((float *)s, (vf)(first ? acc[t][v] : acc[t][v] + (vi)load_f32((const float *)s)));
#endif
  }
  (void)scales;
}

// Task: a tile; tiles of the same rows of w are neighbours, so that w is read from memory once.
void cpu_gemm_w8a8(const jt_arg *args, long task, long tasks) {
  const int32_t *packed = args[0].p;
  const float *x_scales = args[1].p;
  const weights_t w = {args[2].p, args[3].p, 0};
  long m = args[4].i, mpad = align_l(m, MT), tiles_m = cdiv_l(m, TILE_M);
  epilogue_t e = epilogue_args(args + 5);
  long m0 = task % tiles_m * TILE_M, n0 = task / tiles_m * TILE_N;
  long mt = min_l(TILE_M, m - m0), nt = min_l(TILE_N, N - n0), panels = cdiv_l(mt, MT);
  sum_t sums[TILE_M * LDS] __attribute__((aligned(64)));
  vi group[KC / STEP * NV];
  vf scales[TILE_N / VL];
  (void)tasks;

  for (long k0 = 0; k0 < K; k0 += KC) {
    long kc = min_l(KC, KP - k0);
    const int32_t *x = packed + words_of(k0, mpad) + m0 * (kc / STEP), *from = packed + sums_of(k0, mpad) + m0;
    for (long n = 0; n < nt; n += GR) {
      long rows = min_l(GR, nt - n);
      take_group(group, &w, n0 + n, rows, k0, kc);
      if (FLOAT_SUMS || k0 == 0)
        UNROLL for (int v = 0; v < NV; v++) scales[n / VL + v] = scales_of(&w, n0 + n + v * VL, rows - v * VL, k0);
      // The group after this one is fetched while this one computes, a share of its lines with every panel.
      long row = n + GR < nt ? n0 + n + GR : n0, k = n + GR < nt ? k0 : k0 + KC;
      long lines = n + 2 * GR <= nt || (n + GR >= nt && k0 + 2 * KC <= K) ? GR * LINES : 0;
      for (long p = 0; p < panels; p++) {
        for (long l = lines * p / panels, end = lines * (p + 1) / panels; l < end; l++)
          __builtin_prefetch(line_at(&w, row + l / LINES, k, l % LINES), 0, 2);
        block(sums + p * MT * LDS + n, group, x + p * MT * (kc / STEP), from + p * MT, scales + n / VL, kc / STEP, k0 == 0);
      }
    }
  }

  float out[TILE_N + VL] __attribute__((aligned(64)));
  for (long i = 0; i < mt; i++) {
    for (long n = 0; n < nt; n += VL) {
      const sum_t *s = sums + i * LDS + n;
#if FLOAT_SUMS
      store_f32(out + n, load_f32(s) * x_scales[m0 + i]);
#else
      vi sum = (vi)load_f32((const float *)s);
      store_f32(out + n, __builtin_convertvector(sum, vf) * (scales[n / VL] * x_scales[m0 + i]));
#endif
    }
    finish_row(&e, m0 + i, n0, n0 + nt, out);
  }
}
