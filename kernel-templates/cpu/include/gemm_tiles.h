// What blocked products of many tokens in tiles of AMX share: factors as sums of bf16, x packed into tiles, and the block of sums of
// four tiles. Such a template defines X_IS_A (whether tokens are the rows of sums, or their columns), XT (tiles of tokens of a block),
// WP (parts of w) and how the elements of a tile's row are ordered (ORDER); or X_CODES, and both factors are codes of 8 bits.
//
// A number of f32 is three of bf16, each 8 of its 24 bits; of f16 it is two. Their products are exact and their sums those of f32. What is
// below the last bit of a product of two such numbers is left out: the sum of the places of the parts tells.
#include "tiles.h"

#if X_CODES
#define UNIT 64 // elements of K of a tile
#define PRODUCT _tile_dpbssd
#else
#define UNIT 32
#define PRODUCT _tile_dpbf16ps
#endif
#define UNITS ((K + UNIT - 1) / UNIT)
#define BLOCK (KC / UNIT)          // units of a block of K
#define TILE 1024                  // its bytes
#define WT (4 / XT)                // tiles of rows of w of a block
#define PW (XT * 16)               // tokens of a block
#define NR (WT * 16)               // rows of w of a block
#if X_CODES
#define XP 1
#elif DTYPE_F32
#define XP 3
#elif DTYPE_F16
#define XP 2
#else
#define XP 1
#endif
#define MOST (XP > WP ? XP : WP)

// Where the tiles of unit `u` of 16 tokens are: [block of K][16 tokens][unit][part], so that what a task reads of a block lies together.
INLINE long x_at(long sixteen, long u, long sixteens) {
  long block = u / BLOCK * BLOCK, units = min_l(BLOCK, UNITS - block);
  return (block * sixteens + sixteen * units + u - block) * (XP * TILE);
}

#if !X_CODES
// Elements of a row of a tile, 32 of K: as they are; 0, 16, 1, 17, ..., which the halves of a tile's row make by themselves; or as 8
// codes of 4 bits come out of a word, 0, 4, 1, 5, ...
#define NATURAL 0
#define HALVES 1
#define WORDS 2
INLINE void order(uint16_t row[UNIT]) {
#if ORDER == HALVES
  static const uint16_t from[UNIT] = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
#elif ORDER == WORDS
  static const uint16_t from[UNIT] = {0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15, 16, 20, 17, 21, 18, 22, 19, 23, 24, 28, 25, 29, 26, 30, 27, 31};
#endif
#if ORDER != NATURAL
  _mm512_storeu_si512(row, _mm512_permutexvar_epi16(_mm512_loadu_si512(from), _mm512_loadu_si512(row)));
#else
  (void)row;
#endif
}

// The next 8 bits of `v`, which loses them: those of bf16, in the upper half of a lane.
INLINE vu take_part(vf *v) {
  vu bits = (vu)*v & 0xffff0000u;
  *v -= (vf)bits;
  return bits;
}

#if !X_IS_A
// to[pair][row] = from[row][pair], 16 pairs of 16 rows.
INLINE void transpose_pairs(uint8_t *to, const uint16_t from[16][UNIT]) {
  for (int i = 0; i < 16; i += TB)
    for (int j = 0; j < 16; j += TB) transpose_block((float *)to + j * 16 + i, 16, (const float *)from[i] + j, UNIT / 2);
}
#endif

// x of a token from `k` on, a vector that ends with the row.
INLINE vf x_vector(const elem *row, long k) {
  return k + VL <= K ? load(row + k) : k < K ? load_part(row + k, K - k) : (vf){0};
}

// Packs x of 16 tokens, of which `rows` are there.
INLINE void pack_tokens(uint8_t *packed, const elem *x, long rows, long sixteen, long sixteens) {
  for (long u = 0; u < UNITS; u++) {
    uint8_t *to = packed + x_at(sixteen, u, sixteens);
    uint16_t parts[XP][16][UNIT] __attribute__((aligned(64)));
    for (long r = 0; r < 16; r++)
      for (int half = 0; half < UNIT; half += VL) {
        vf v = r < rows ? x_vector(x + r * K, u * UNIT + half) : (vf){0};
        UNROLL for (int p = 0; p < XP; p++)
          *(vh_any *)(parts[p][r] + half) = __builtin_convertvector(take_part(&v) >> 16, vh);
      }
    for (int p = 0; p < XP; p++, to += TILE) {
      for (int r = 0; r < 16; r++) order(parts[p][r]);
#if X_IS_A
      memcpy(to, parts[p], TILE);
#else
      transpose_pairs(to, (const uint16_t(*)[UNIT])parts[p]);
#endif
    }
  }
}

#endif

#if X_IS_A
#define MULTIPLY(c, x, w) PRODUCT(c, x, w)
#else
#define MULTIPLY(c, x, w) PRODUCT(c, w, x)
#endif
#define WHOLE_TILE(tile, from) TILE_LOAD(tile, from, 16, 64, 64)

// Adds `units` of K to the four sums: tile i of tokens by tile j of rows is in i * WT + j. Tiles of tokens are X_APART bytes apart, those of
// rows of w W_APART.
INLINE void multiply(const uint8_t *x, const uint8_t *w, long units, long x_apart, long w_apart) {
  for (long u = 0; u < units; u++, x += XP * TILE, w += WP * TILE)
    UNROLL for (int q = 0; q < WP; q++) {
#if XT == 2
      WHOLE_TILE(6, w + q * TILE);
      WHOLE_TILE(7, w + q * TILE + w_apart);
      UNROLL for (int p = 0; p < XP && p + q < MOST; p++) {
        WHOLE_TILE(4, x + p * TILE);
        MULTIPLY(0, 4, 6);
        MULTIPLY(1, 4, 7);
        WHOLE_TILE(5, x + p * TILE + x_apart);
        MULTIPLY(2, 5, 6);
        MULTIPLY(3, 5, 7);
      }
#else
      UNROLL for (int p = 0; p < XP && p + q < MOST; p++) {
        WHOLE_TILE(4, x + p * TILE);
        WHOLE_TILE(5, w + q * TILE);
        MULTIPLY(0, 4, 5);
        WHOLE_TILE(6, w + q * TILE + w_apart);
        MULTIPLY(1, 4, 6);
        WHOLE_TILE(7, w + q * TILE + 2 * w_apart);
        MULTIPLY(2, 4, 7);
        WHOLE_TILE(5, w + q * TILE + 3 * w_apart);
        MULTIPLY(3, 4, 5);
      }
#endif
    }
  (void)x_apart;
}
