// y = epilogue(x . w^T) for many tokens and weights of codes and scales: `cpu_gemm`, whose copied group of rows of w is made
// of codes. They become f32, each rounded once, next to the L1, where every panel of the tile meets them; all else is that
// template's (gemm_block.h, gemm_end.h).
#include "scaled.h"
#include "shuffle.h"
#include "vmath.h"
#include "transpose.h"
#include "epilogue.h"
#include "qk_norm.h"
#include "codes.h"

#define COPY 1
#include "gemm_block.h"

#include "block_runs.h"
#include "code_rows.h"

// What VL codes from code `i` on are worth.
#if DTYPE_W_INT4 && AVX512
// The low four bits of a lane choose its value.
INLINE vf value_of(const uint8_t *from, long i, vf table) {
  const vu shifts = (vu)((vi)IOTA % 8 * 4);
  int32_t words[2];
  UNROLL for (int j = 0; j < 2; j++) memcpy(words + j, from + (i / WORD + j) * APART, 4);
  __m512i u = _mm512_mask_set1_epi32(_mm512_set1_epi32(words[0]), 0xff00, words[1]);
  return (vf)_mm512_permutexvar_ps(_mm512_srlv_epi32(u, (__m512i)shifts), (__m512)table);
}
#elif DTYPE_W_INT4
INLINE vf value_of(const uint8_t *from, long i, worth_t v) {
  uint32_t word = 0;
  memcpy(&word, from + i / WORD * APART + i % WORD / 2, VL / 2);
  vf code = __builtin_convertvector((vi)(((vu){0} + word) >> (vu)((vi)IOTA * 4) & 15), vf);
  return (code - v.zero) * v.scale + v.min;
}
#else
INLINE vf value_of(const uint8_t *from, long i, float scale) {
#if W_LAYOUT_LANES
  typedef uint32_t words_t __attribute__((vector_size(VL), may_alias));
  words_t words;
  UNROLL for (int j = 0; j < VL / WORD; j++) {
    uint32_t word;
    memcpy(&word, from + (i / WORD + j) * APART, 4);
    words[j] = word;
  }
  return floats_of((const uint8_t *)&words) * scale;
#else
  return floats_of(from + i) * scale;
#endif
}
#endif

// `n` codes of a row from column `k` on as f32; they share a scale.
INLINE void values(float *to, const weights_t *w, long row, long k, long n, worth_t v) {
  const uint8_t *from = codes_at(w, row, k);
#if DTYPE_W_INT4 && AVX512
  const vf how = ((vf)IOTA - v.zero) * v.scale + v.min;
#elif DTYPE_W_INT4
  const worth_t how = v;
#else
  const float how = v.scale * FLOAT_UNIT;
#endif
  long i = 0;
  for (; i + VL <= n; i += VL) store_f32(to + i, value_of(from, i, how));
  for (; i < n; i++) to[i] = (get_code((const code_t *)w->codes, row * K + k + i, K) - v.zero) * v.scale + v.min;
}

// `n` elements of a row from column `k0` on, which begins a block; the tail up to `padded` becomes zero.
INLINE void dequantise(float *to, const weights_t *w, long row, long k0, long n, long padded) {
  for (long k = 0; k < n; k += RUN) {
    worth_t v = worth_of(w->scales, w->zeros, row, (k0 + k) / GROUP, RUNS);
    if (k + RUN <= n) values(to + k, w, row, k0 + k, RUN, v);
    else values(to + k, w, row, k0 + k, n - k, v);
  }
  for (long k = n; k < padded; k++) to[k] = 0;
}

// Task: a tile; tiles of the same rows of w are neighbours, so that w is read from memory once.
void cpu_gemm_quant(const jt_arg *args, long task, long tasks) {
  const float *packed = args[0].p;
  const weights_t w = {args[1].p, args[2].p, args[3].p};
  long m = args[4].i, mpad = align_l(m, PW), tiles_m = cdiv_l(m, TILE_M);
  epilogue_t e = epilogue_args(args + 5);
  long m0 = task % tiles_m * TILE_M, n0 = task / tiles_m * TILE_N;
  long mt = min_l(TILE_M, m - m0), nt = min_l(TILE_N, N - n0), panels = cdiv_l(mt, PW);
  float sums[(TILE_N + TB) * LDS] __attribute__((aligned(64)));
  float group[MR * LDW] __attribute__((aligned(64)));
  (void)tasks;

  for (long k0 = 0; k0 < K; k0 += KC) {
    long kc = min_l(KC, KPAD - k0);
    const float *x = packed + k0 * mpad + m0 * kc;
    for (long n = 0; n < nt; n += MR) {
      for (long i = 0; i < MR; i++)
        dequantise(group + i * LDW, &w, n0 + n + i, k0, n + i < nt ? min_l(KC, K - k0) : 0, kc);
      // The group after this one is fetched while this one computes, a share of its lines with every panel.
      long row = n + MR < nt ? n0 + n + MR : n0, k = n + MR < nt ? k0 : k0 + KC;
      long lines = n + 2 * MR <= nt || (n + MR >= nt && k0 + 2 * KC <= K) ? MR * LINES : 0;
      for (long p = 0; p < panels; p++) {
        for (long l = lines * p / panels, end = lines * (p + 1) / panels; l < end; l++)
          __builtin_prefetch(line_at(&w, row + l / LINES, k, l % LINES), 0, 2);
        float *s = sums + n * LDS + p * PW;
        (mt - p * PW > VL ? block_full : block_one)(s, group, x + p * PW * kc, kc, k0 == 0);
      }
    }
  }

#include "gemm_end.h"
}
