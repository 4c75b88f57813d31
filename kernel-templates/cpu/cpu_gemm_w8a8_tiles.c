// y = epilogue(x . w^T) for tokens and weights that are both codes of 8 bits, w in `layout=lanes`, in tiles of AMX: sums of what shares a
// scale are exact, in 32 bits (gemm_lanes_tiles.h). Rows of x and words of 16 rows of w are tiles as they lie; the first are packed once, so
// that they lie together, and the ends of K and of N are copied, with zeros behind them.
#include "base.h"
#include "code_weights.h"
#include "shuffle.h"
#include "vmath.h"
#include "epilogue.h"
#include "qk_norm.h"
#include "codes.h"

#define X_CODES 1
#define X_IS_A 1
#define WP 1
#include "gemm_lanes_tiles.h"

// Task: 16 tokens.
void cpu_gemm_w8a8_tiles_pack(const jt_arg *args, long task, long tasks) {
  const uint8_t *x = (const uint8_t *)args[0].p + task * 16 * K;
  uint8_t *packed = args[1].p;
  long rows = min_l(16, args[2].i - task * 16);
  for (long u = 0; u < UNITS; u++) {
    uint8_t *to = packed + x_at(task, u, tasks);
    long there = min_l(UNIT, K - u * UNIT);
    if (rows < 16 || there < UNIT) memset(to, 0, TILE);
    for (long r = 0; r < rows; r++) {
      if (there == UNIT) memcpy(to + r * UNIT, x + r * K + u * UNIT, UNIT);
      else memcpy(to + r * UNIT, x + r * K + u * UNIT, there);
    }
  }
}

INLINE group_t take(uint8_t *to, const uint8_t *w, long row, long rows, long k, long units) {
  const uint8_t *codes = w + row * K + k * LANES;
  if (rows == NR && k + units * UNIT <= K) return (group_t){codes, LANES * K};
  for (long r = 0; r < rows; r += LANES, to += BLOCK * TILE, codes += LANES * K) {
    memset(to + (units - 1) * TILE, 0, TILE);
    memcpy(to, codes, LANES * min_l(units * UNIT, K - k));
  }
  return (group_t){to - cdiv_l(rows, LANES) * (BLOCK * TILE), BLOCK * TILE};
}

// Task: a tile; tiles of the same rows of w are neighbours, so that w is read from memory once.
void cpu_gemm_w8a8_tiles(const jt_arg *args, long task, long tasks) {
  const float *x_scales = args[1].p;
  long m = args[4].i, mpad = align_l(m, PW), tiles_m = cdiv_l(m, TILE_M);
  epilogue_t e = epilogue_args(args + 5);
  long m0 = task % tiles_m * TILE_M, n0 = task / tiles_m * TILE_N;
  product_t p = {args[0].p, args[2].p, args[3].p, 0, 0, m0, min_l(TILE_M, m - m0), n0, min_l(TILE_N, N - n0), mpad};
  float sums[TILE_M * LDN] __attribute__((aligned(64)));
  (void)tasks;
  tile_product(sums, &p);
  for (long i = 0; i < p.mt; i++) {
    float *row = sums + i * LDN;
    for (long n = 0; n < p.nt; n += VL) store_f32(row + n, load_f32(row + n) * x_scales[m0 + i]);
    finish_row(&e, m0 + i, n0, n0 + p.nt, row);
  }
}
