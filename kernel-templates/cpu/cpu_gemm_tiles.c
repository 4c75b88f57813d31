// y = epilogue(x . w^T) for a handful to thousands of tokens, in tiles of AMX, which multiply bf16 (gemm_tiles.h).
//
// `cpu_gemm_tiles_pack` turns x once into tiles of 16 tokens and 32 elements, which are the columns of a product. A task owns TILE_M tokens
// x TILE_N rows of w and walks K in blocks of KC: NR rows of w are taken apart next to the L1 and meet every block of PW tokens there.
// The sums wait in `sums` [row of w][token] between blocks of K, and go through the epilogue as those of `cpu_gemm` do.
#include "base.h"
#include "shuffle.h"
#include "vmath.h"
#include "transpose.h"
#include "epilogue.h"
#include "qk_norm.h"

#define X_IS_A 0
#if DTYPE_F32
#define WP 3
#define ORDER HALVES
#elif DTYPE_F16
#define WP 2
#define ORDER HALVES
#else
#define WP 1
#define ORDER NATURAL
#endif
#include "gemm_tiles.h"

#define LDS (TILE_M + 16)
_Static_assert(KC % UNIT == 0 && TILE_M % PW == 0 && TILE_N % NR == 0, "tile shape");

// Task: 16 tokens.
void cpu_gemm_tiles_pack(const jt_arg *args, long task, long tasks) {
  const elem *x = (const elem *)args[0].p + task * 16 * K;
  pack_tokens(args[1].p, x, min_l(16, args[2].i - task * 16), task, tasks);
}

// Takes `rows` rows of w from column `k` on apart into [tile of 16 rows][unit][part]; what is beyond them or K is zero.
INLINE void take(uint8_t *to, const elem *w, long rows, long k, long units) {
  for (long r = 0; r < NR; r++) {
    uint8_t *row = to + r / 16 * (KC / UNIT * WP * TILE) + r % 16 * 64;
    const elem *from = w + r * K + k;
    for (long u = 0; u < units; u++, row += WP * TILE, from += UNIT) {
      long there = r < rows ? min_l(UNIT, K - k - u * UNIT) : 0;
#if DTYPE_BF16
      if (there == UNIT) memcpy(row, from, 64);
      else memset(row, 0, 64), memcpy(row, from, max_l(there, 0) * 2);
#else
      vf low = there >= VL ? load(from) : load_part(from, max_l(there, 0));
      vf high = there == UNIT ? load(from + VL) : load_part(from + VL, max_l(there - VL, 0));
      UNROLL for (int p = 0; p < WP; p++) *(vu *)(row + p * TILE) = take_part(&low) >> 16 | take_part(&high);
#endif
    }
  }
}

// Task: a tile; tiles of the same rows of w are neighbours, so that w is read from memory once.
void cpu_gemm_tiles(const jt_arg *args, long task, long tasks) {
  const uint8_t *packed = args[0].p;
  const elem *w = args[1].p;
  long m = args[2].i, mpad = align_l(m, PW), tiles_m = cdiv_l(m, TILE_M);
  epilogue_t e = epilogue_args(args + 3);
  long m0 = task % tiles_m * TILE_M, n0 = task / tiles_m * TILE_N;
  long mt = min_l(TILE_M, m - m0), nt = min_l(TILE_N, N - n0), panels = cdiv_l(mt, PW);
  float sums[(TILE_N + TB) * LDS] __attribute__((aligned(64)));
  uint8_t group[WT][KC / UNIT * WP * TILE] __attribute__((aligned(64)));
  tiles_t tiles = whole_tiles();
  (void)tasks;
  _tile_loadconfig(&tiles);

  for (long k0 = 0; k0 < K; k0 += KC) {
    long units = cdiv_l(min_l(KC, K - k0), UNIT);
    for (long n = 0; n < nt; n += NR) {
      const elem *rows = w + (n0 + n) * K;
      take(group[0], rows, min_l(NR, nt - n), k0, units);
      // The group after this one is fetched while this one computes, a share of its lines with every block.
      const long per = KC * ELEM_BYTES / 64;
      const elem *next = n + NR < nt ? rows + NR * K + k0 : w + n0 * K + k0 + KC;
      long lines = n + 2 * NR <= nt || (n + NR >= nt && k0 + 2 * KC <= K) ? NR * per : 0;
      for (long p = 0; p < panels; p++) {
        for (long l = lines * p / panels, end = lines * (p + 1) / panels; l < end; l++)
          __builtin_prefetch((const char *)(next + l / per * K) + l % per * 64, 0, 2);
        float *s = sums + n * LDS + p * PW;
        const uint8_t *x = packed + x_at((m0 + p * PW) / 16, k0 / UNIT, mpad / 16);
#define SUMS(how, c) how(c, s + c % WT * 16 * LDS + c / WT * 16, 16, 64, LDS * 4)
        if (k0 == 0) {
          ZERO_TILES;
        } else {
          SUMS(TILE_LOAD, 0);
          SUMS(TILE_LOAD, 1);
          SUMS(TILE_LOAD, 2);
          SUMS(TILE_LOAD, 3);
        }
        multiply(x, group[0], units, units * XP * TILE, sizeof group[0]);
        SUMS(TILE_STORE, 0);
        SUMS(TILE_STORE, 1);
        SUMS(TILE_STORE, 2);
        SUMS(TILE_STORE, 3);
      }
    }
  }
  _tile_release();

#include "gemm_end.h"
}
