// y = epilogue(x . w^T) for tens to thousands of tokens.
//
// Both operands are K-contiguous, and only one of them has to change its layout: `cpu_gemm_pack` turns x once into
// f32 panels of PW tokens, k-major, so that a vector holds neighbouring tokens; w is the operand that is broadcast,
// one element for a row at a time, and stays as it is. A task owns TILE_M tokens x TILE_N rows of w and walks K in
// blocks of KC: a group of MR rows of w is copied (widened to f32, never transposed) next to the L1, and meets every
// panel of the tile there. The sums wait in `sums` [row of w][token] between blocks of K; at the end they are
// transposed 8x8 into token rows and go through the epilogue.
//
// Registers: MR x NV sums, NV token vectors, one broadcast. x and w beyond the edges are zeros, their sums never
// stored.
#include "base.h"
#include "shuffle.h"
#include "vmath.h"
#include "transpose.h"
#include "epilogue.h"
#include "qk_norm.h"

#include "gemm_block.h"

// Task: a tile; tiles of the same rows of w are neighbours, so that w is read from memory once.
void cpu_gemm(const jt_arg *args, long task, long tasks) {
  const float *packed = args[0].p;
  const elem *w = args[1].p;
  long m = args[2].i, mpad = align_l(m, PW), tiles_m = cdiv_l(m, TILE_M);
  epilogue_t e = epilogue_args(args + 3);
  long m0 = task % tiles_m * TILE_M, n0 = task / tiles_m * TILE_N;
  long mt = min_l(TILE_M, m - m0), nt = min_l(TILE_N, N - n0), panels = cdiv_l(mt, PW);
  float sums[(TILE_N + TB) * LDS] __attribute__((aligned(64)));
#if COPY
  float group[MR * LDW] __attribute__((aligned(64)));
#endif
  (void)tasks;

  for (long k0 = 0; k0 < K; k0 += KC) {
    long kc = min_l(KC, KPAD - k0);
    const float *x = packed + k0 * mpad + m0 * kc;
    for (long n = 0; n < nt; n += MR) {
      const elem *rows = w + (n0 + n) * K + k0;
#if COPY
      const float *a = group;
      for (long i = 0; i < MR; i++) widen(group + i * LDW, rows + i * K, n + i < nt ? min_l(KC, K - k0) : 0, kc);
#else
      const float *a = (const float *)(rows - max_l(n + MR - nt, 0) * K); // a ragged last group starts earlier
#endif
#if COPY
      // The group after this one is fetched while this one computes, a share of its lines with every panel.
      const long per = KC * ELEM_BYTES / 64;
      const elem *next = n + MR < nt ? rows + MR * K : w + n0 * K + k0 + KC;
      long lines = n + 2 * MR <= nt || (n + MR >= nt && k0 + 2 * KC <= K) ? MR * per : 0;
#endif
      for (long p = 0; p < panels; p++) {
#if COPY
        for (long l = lines * p / panels, end = lines * (p + 1) / panels; l < end; l++)
          __builtin_prefetch((const char *)(next + l / per * K) + l % per * 64, 0, 2);
#endif
        float *s = sums + n * LDS + p * PW;
        (mt - p * PW > VL ? block_full : block_one)(s, a, x + p * PW * kc, kc, k0 == 0);
      }
    }
  }

#if !COPY
  if (nt % MR) {
    float *last = sums + nt / MR * MR * LDS;
    memmove(last, last + (MR - nt % MR) * LDS, nt % MR * LDS * 4);
  }
#endif
#include "gemm_end.h"
}
