// y = epilogue(x . w^T) for a handful to thousands of tokens and weights of codes in `layout=lanes`, in tiles of AMX, which multiply bf16
// (gemm_tiles.h): a code is one number of it, and its words of 16 rows lie as a tile has them.
//
// `cpu_gemm_quant_tiles_pack` turns x once into tiles of 16 tokens and 32 elements, which are the rows of a product; codes become bf16 next
// to the L1. Sums of what shares a scale are exact products added in f32 (gemm_lanes_tiles.h).
#include "scaled.h"
#include "shuffle.h"
#include "vmath.h"
#include "transpose.h"
#include "epilogue.h"
#include "qk_norm.h"
#include "codes.h"

#define X_IS_A 1
#define WP 1
#if DTYPE_W_INT4
#define ORDER WORDS
#else
#define ORDER NATURAL
#endif
#include "gemm_lanes_tiles.h"

// Task: 16 tokens. Behind all tiles is the sum of each unit of x: [unit][token].
void cpu_gemm_quant_tiles_pack(const jt_arg *args, long task, long tasks) {
  const x_elem *x = (const x_elem *)args[0].p + task * 16 * K;
  uint8_t *to = args[1].p;
  long rows = min_l(16, args[2].i - task * 16);
  pack_tokens(to, x, rows, task, tasks);
#if ADDS
  float *sums = (float *)(to + X_BYTES(tasks * 16)) + task * 16;
  for (long u = 0; u < UNITS; u++, sums += tasks * 16)
    for (long r = 0; r < 16; r++) {
      vf sum = {0};
      if (r < rows) UNROLL for (int half = 0; half < UNIT; half += VL) sum += x_vector(x + r * K, u * UNIT + half);
      sums[r] = sum_lanes(sum);
    }
#endif
}

// A unit of codes of 16 rows as a tile.
INLINE void tile_of(uint8_t *to, const uint8_t *codes) {
#if DTYPE_W_INT4
  // The low four bits of half a lane choose its value; what is above them is of no account.
#if ADDS
  static const uint16_t values[16] = {0, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,
                                      0x4100, 0x4110, 0x4120, 0x4130, 0x4140, 0x4150, 0x4160, 0x4170};
#else
  static const uint16_t values[16] = {0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
                                      0, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0};
#endif
  const __m512i table = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)values));
  UNROLL for (int i = 0; i < UNIT / WORD; i++) {
    vu words = *(const vu_any *)(codes + i * SIMD);
    UNROLL for (int j = 0; j < 4; j++)
      _mm512_store_si512(to + (4 * i + j) * SIMD, _mm512_permutexvar_epi16((__m512i)(words >> 4 * j), table));
  }
#else
  UNROLL for (int i = 0; i < UNIT / WORD; i++) {
    vu words = *(const vu_any *)(codes + i * SIMD);
    UNROLL for (int j = 0; j < 2; j++) {
      vf even = __builtin_convertvector((vi)(words << (24 - 16 * j)) >> 24, vf);
      vf odd = __builtin_convertvector((vi)(words << (16 - 16 * j)) >> 24, vf);
      *(vu *)(to + (2 * i + j) * SIMD) = (vu)even >> 16 | ((vu)odd & 0xffff0000u);
    }
  }
#endif
}

INLINE group_t take(uint8_t *to, const uint8_t *w, long row, long rows, long k, long units) {
  for (long r = 0; r < rows; r += LANES) {
    const uint8_t *codes = w + CODE_BYTES((row + r) * K) + k / UNIT * CODES;
    uint8_t *tile = to + r / LANES * (BLOCK * TILE);
    for (long u = 0; u < units; u++, codes += CODES, tile += TILE) {
#if K % UNIT
      if (k + (u + 1) * UNIT > K) {
        // What lies behind the rows is not read; x is 0 there.
        uint8_t end[CODES] __attribute__((aligned(64))) = {0};
        memcpy(end, codes, LANES * CODE_BYTES(K % UNIT));
        tile_of(tile, end);
        continue;
      }
#endif
      tile_of(tile, codes);
    }
  }
  return (group_t){to, BLOCK * TILE};
}

// Task: a tile; tiles of the same rows of w are neighbours, so that w is read from memory once.
void cpu_gemm_quant_tiles(const jt_arg *args, long task, long tasks) {
  const uint8_t *packed = args[0].p;
  long m = args[4].i, mpad = align_l(m, PW), tiles_m = cdiv_l(m, TILE_M);
  epilogue_t e = epilogue_args(args + 5);
  long m0 = task % tiles_m * TILE_M, n0 = task / tiles_m * TILE_N;
  product_t p = {packed, args[1].p, args[2].p, args[3].p, (const float *)(packed + X_BYTES(mpad)),
                 m0, min_l(TILE_M, m - m0), n0, min_l(TILE_N, N - n0), mpad};
  float sums[TILE_M * LDN] __attribute__((aligned(64)));
  (void)tasks;
  tile_product(sums, &p);
  for (long i = 0; i < p.mt; i++) finish_row(&e, m0 + i, n0, n0 + p.nt, sums + i * LDN);
}
