// Blocked products in tiles of weights of codes in `layout=lanes`: a task owns TILE_M tokens x TILE_N rows of w and walks K in blocks of
// KC. NR rows of w as tiles meet every block of PW tokens; sums of what shares a scale then meet it and are added to `sums` [token][row of
// w]. Such a template says where those tiles are: `take`.
#include "gemm_tiles.h"

#include "block_runs.h"
#if W_ZERO_ZERO || W_ZERO_MIN
#define ADDS 1 // a value is code * scale + add
#else
#define ADDS 0
#endif
#define V (LANES / VL)
#include "lane_scales.h"

#define LDN (TILE_N + 16)
#define CODES (LANES * CODE_BYTES(UNIT)) // bytes of a unit of 16 rows
#define OF_RUN (RUN / UNIT)              // units
#define X_BYTES(tokens) ((tokens) / 16 * (UNITS * XP * (long)TILE))
_Static_assert(VL == LANES && KC % RUN == 0 && RUN % UNIT == 0 && TILE_M % PW == 0 && TILE_N % NR == 0, "tile shape");

typedef struct {
  const uint8_t *x, *w;
  const scale_elem *scales;
  const zero_elem *zeros;
  const float *x_sums; // of each unit, [unit][token]
  long m0, mt, n0, nt, mpad;
} product_t;

typedef struct {
  const uint8_t *at;
  long apart; // bytes from one tile of 16 rows to the next
} group_t;

// Tiles of `rows` rows from `row` on and of `units` units from column `k` on, made in `to` where they are none as they lie.
INLINE group_t take(uint8_t *to, const uint8_t *w, long row, long rows, long k, long units);

// Adds products of the run that begins at unit `u` times their scales to `sums`.
INLINE void add_scaled(float *sums, vf products[4][16], const product_t *p, long row, long rows, long token, long u) {
  for (long j = 0; j < WT && j * LANES < rows; j++) {
    vf s[V], a[V] = {{0}};
    run_scales(s, a, scales_of(p->scales, p->zeros, row + j * LANES), u * UNIT / GROUP);
    for (long i = 0; i < XT; i++)
      UNROLL for (int t = 0; t < 16; t++) {
        vf *sum = (vf *)(sums + (i * 16 + t) * LDN + j * LANES), before = u == 0 ? (vf){0} : *sum;
#if ADDS
        float x_sum = 0;
        for (long v = 0; v < min_l(OF_RUN, UNITS - u); v++) x_sum += p->x_sums[(u + v) * p->mpad + token + i * 16 + t];
        before += a[0] * x_sum;
#endif
#if X_CODES
        *sum = __builtin_convertvector((vi)products[i * WT + j][t], vf) * s[0] + before;
#else
        *sum = products[i * WT + j][t] * s[0] + before;
#endif
      }
  }
  (void)token;
}

INLINE void tile_product(float *sums, const product_t *p) {
  uint8_t group[WT * BLOCK * TILE] __attribute__((aligned(64)));
  vf products[2][4][16];
  long panels = cdiv_l(p->mt, PW);
  tiles_t tiles = whole_tiles();
  _tile_loadconfig(&tiles);
  for (long k0 = 0; k0 < K; k0 += KC) {
    long units = cdiv_l(min_l(KC, K - k0), UNIT);
    for (long n = 0; n < p->nt; n += NR) {
      long row = p->n0 + n, rows = min_l(NR, p->nt - n);
      group_t w = take(group, p->w, row, rows, k0, units);
      // The group after this one is fetched while this one computes, a share of its lines with every block.
      const uint8_t *next = n + NR < p->nt ? p->w + CODE_BYTES((row + NR) * K) + k0 / UNIT * CODES
                                           : p->w + CODE_BYTES(p->n0 * K) + (k0 + KC) / UNIT * CODES;
      const long per = BLOCK * CODES / 64;
      long lines = n + 2 * NR <= p->nt || (n + NR >= p->nt && k0 + 2 * KC <= K) ? WT * per : 0;
      for (long b = 0; b < panels; b++) {
        for (long l = lines * b / panels, end = lines * (b + 1) / panels; l < end; l++)
          __builtin_prefetch(next + l / per * CODE_BYTES(LANES * K) + l % per * 64, 0, 2);
        long token = p->m0 + b * PW;
        const uint8_t *x = p->x + x_at(token / 16, k0 / UNIT, p->mpad / 16);
        // Sums of one run meet their scales while the next is multiplied.
        for (long u = 0; u < units + OF_RUN; u += OF_RUN) {
          if (u < units) {
            vf(*to)[16] = products[u / OF_RUN % 2];
            ZERO_TILES;
            multiply(x + u * XP * TILE, w.at + u * TILE, min_l(OF_RUN, units - u), units * XP * TILE, w.apart);
            TILE_STORE(0, to[0], 16, 64, 64);
            TILE_STORE(1, to[1], 16, 64, 64);
            TILE_STORE(2, to[2], 16, 64, 64);
            TILE_STORE(3, to[3], 16, 64, 64);
          }
          if (u) {
            long done = u - OF_RUN;
            add_scaled(sums + b * PW * LDN + n, products[done / OF_RUN % 2], p, row, rows, token, k0 / UNIT + done);
          }
        }
      }
    }
  }
  _tile_release();
}
