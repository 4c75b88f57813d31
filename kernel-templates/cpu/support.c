// The ceilings of a processor: what its multiply-add units, its tiles and its memory do at best. One task a thread.
// A register of floats as wide as the compiler's target has them.
#if defined(__AVX512F__)
#define SIMD 64
#elif defined(__AVX__)
#define SIMD 32
#else
#define SIMD 16
#endif
#include "base.h"

typedef float peak_t __attribute__((vector_size(SIMD)));
typedef unsigned read_t __attribute__((vector_size(SIMD)));

// args: rounds, sink (floats). A round is 12 independent chains of 16 multiply-adds each, enough to fill two units with
// a latency of four or five cycles.
void peak_fma(const jt_arg *args, long task, long tasks) {
  (void)tasks;
  peak_t acc[12], x, y;
  for (int l = 0; l < SIMD / 4; l++) x[l] = 0.999f + 1e-6f * (float)task, y[l] = 1e-3f;
  for (int i = 0; i < 12; i++) acc[i] = x * (float)i;
  for (long long r = 0; r < args[0].i; r++) {
#pragma GCC unroll 16
    for (int j = 0; j < 16; j++) {
#pragma GCC unroll 12
      for (int i = 0; i < 12; i++) acc[i] = acc[i] * x + y;
    }
  }
  float sum = 0;
  for (int i = 0; i < 12; i++)
    for (int l = 0; l < SIMD / 4; l++) sum += acc[i][l];
  ((float *)args[1].p)[task * 16] = sum;
}

#if defined(__AMX_BF16__) && defined(__AMX_INT8__)
#include "tiles.h"

// args: rounds, sink. A round is four products of tiles that do not wait for each other.
void peak_tiles(const jt_arg *args, long task, long tasks) {
  (void)tasks;
  float zeros[16] __attribute__((aligned(64))) = {0};
  tiles_t tiles = whole_tiles();
  _tile_loadconfig(&tiles);
  ZERO_TILES;
  TILE_LOAD(4, zeros, 16, 64, 0);
  TILE_LOAD(5, zeros, 16, 64, 0);
  TILE_LOAD(6, zeros, 16, 64, 0);
  TILE_LOAD(7, zeros, 16, 64, 0);
  for (long long r = 0; r < args[0].i; r++) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  float sums[256] __attribute__((aligned(64)));
  TILE_STORE(0, sums, 16, 64, 64);
  _tile_release();
  ((float *)args[1].p)[task * 16] = sums[0];
}
#endif

// args: memory, bytes, sink. Each task reads its own part, eight vectors at a time.
void read_sum(const jt_arg *args, long task, long tasks) {
  long long blocks = args[1].i / (8 * SIMD);
  const read_t *p = (const read_t *)args[0].p + blocks * task / tasks * 8;
  const read_t *end = (const read_t *)args[0].p + blocks * (task + 1) / tasks * 8;
  read_t s[8] = {0};
  for (; p < end; p += 8)
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) s[i] += p[i];
  unsigned sum = 0;
  for (int i = 0; i < 8; i++)
    for (int l = 0; l < SIMD / 4; l++) sum += s[i][l];
  ((unsigned *)args[2].p)[task * 16] = sum;
}

// args: from, to, bytes.
void copy(const jt_arg *args, long task, long tasks) {
  long long blocks = args[2].i / SIMD;
  const read_t *p = (const read_t *)args[0].p;
  read_t *q = (read_t *)args[1].p;
  for (long long i = blocks * task / tasks; i < blocks * (task + 1) / tasks; i++) q[i] = p[i];
}
