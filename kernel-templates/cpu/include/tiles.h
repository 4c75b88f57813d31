// Tiles of AMX: eight registers of up to 16 rows of up to 64 bytes. A product adds to c[i][j] what row i of a and column j of b give;
// of 16-bit elements row r of b has elements 2r and 2r + 1 of each column side by side, of 8-bit ones 4r to 4r + 3. It takes as
// many cycles as a or b has rows, whichever has more.
#include <immintrin.h>

typedef struct {
  uint8_t palette, start, reserved[14];
  uint16_t bytes[16]; // of a row of each tile
  uint8_t rows[16];
} __attribute__((aligned(64))) tiles_t;

// With what is read and written as operands, so that it is in memory when it is read, and read again when it is written; the compiler's
// own intrinsics say nothing of it. ROWS rows of BYTES bytes lie APART bytes apart.
#define EXTENT(rows, bytes, apart) (((rows) - 1) * (apart) + (bytes))
#define TILE_LOAD(tile, from, rows, bytes, apart)                                                          \
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(from), "r"((long)(apart)),                      \
                   "m"(*(const char(*)[EXTENT(rows, bytes, apart)])(const void *)(from)))
#define TILE_STORE(tile, to, rows, bytes, apart)                                                           \
  __asm__ volatile("tilestored %%tmm" #tile ", (%1,%2,1)" : "=m"(*(char(*)[EXTENT(rows, bytes, apart)])(void *)(to)) \
                   : "r"(to), "r"((long)(apart)))

// The first four.
#define ZERO_TILES \
  _tile_zero(0);   \
  _tile_zero(1);   \
  _tile_zero(2);   \
  _tile_zero(3)

INLINE tiles_t whole_tiles(void) {
  tiles_t t = {.palette = 1};
  for (int i = 0; i < 8; i++) t.rows[i] = 16, t.bytes[i] = 64;
  return t;
}
