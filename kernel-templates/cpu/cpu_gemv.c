// y = epilogue(x . w^T) for a handful of tokens: a stream over w.
//
// A task owns ROWS rows of w, in R equal parts that lie one after another. A row of each part at a time meets T tokens at
// a time as R x T dot products over the whole of K; the lanes of a sum are added only at the end. Each part is thus one
// unbroken stream: fetching ahead in hardware starts anew wherever a stream ends. The first group of tokens brings its
// rows from memory, the others find them in the L1 or L2, so w is read from memory once. The order of a dot product's terms does not matter, so 16-bit
// elements are widened two to a register in place (even ones by a shift, odd ones by a mask) with no lane movement.
#include "base.h"
#include "shuffle.h"
#include "vmath.h"
#include "epilogue.h"
#include "qk_norm.h"

#if DTYPE_BF16
#define PIECES 2 // vectors of one load
INLINE void load_pieces(vf *to, const elem *p) {
  typedef uint32_t vu_any __attribute__((vector_size(SIMD), aligned(2), may_alias));
  vu u = *(const vu_any *)p;
  to[0] = (vf)(u << 16);
  to[1] = (vf)(u & 0xffff0000u);
}
#else
#define PIECES 1
INLINE void load_pieces(vf *to, const elem *p) { to[0] = load(p); }
#endif
#define STEP (PIECES * VL)                      // elements of one load
#define LINE (64 / ELEM_BYTES)                  // elements of a cache line
#define PER (LINE / STEP > 1 ? LINE / STEP : 1) // loads of a step: a line of each row
#define WHOLE (K / (PER * STEP) * (PER * STEP))
#define BANKS (R * T * 2 <= 8 && PER > 1 ? 2 : 1) // sums a product: one alone would wait on latency
#define TOKENS 16                               // tokens that wait for the epilogue at once
_Static_assert(ROWS % R == 0 && ROWS % 2 == 0, "whole groups of rows");

// out[t * ROWS + r * part] = w[r * part] . x[t]
INLINE void dots(float *out, const elem *w, const elem *x, long part, const int rows, const int tokens) {
  vf acc[BANKS][R][T];
  UNROLL for (int b = 0; b < BANKS; b++) UNROLL for (int r = 0; r < rows; r++) UNROLL for (int t = 0; t < tokens; t++)
    acc[b][r][t] = (vf){0};
  for (long k = 0; k < WHOLE; k += PER * STEP) {
#if PREFETCH
    UNROLL for (int r = 0; r < rows; r++) __builtin_prefetch((const char *)(w + r * part * K + k) + PREFETCH, 0, 3);
#endif
    UNROLL for (int u = 0; u < PER; u++) {
      vf b[T][PIECES], a[PIECES];
      UNROLL for (int t = 0; t < tokens; t++) load_pieces(b[t], x + t * (long)K + k + u * STEP);
      UNROLL for (int r = 0; r < rows; r++) {
        load_pieces(a, w + r * part * K + k + u * STEP);
        UNROLL for (int t = 0; t < tokens; t++) UNROLL for (int p = 0; p < PIECES; p++)
          acc[u % BANKS][r][t] = a[p] * b[t][p] + acc[u % BANKS][r][t];
      }
    }
  }
  for (long k = WHOLE; k < K; k += VL) {
    long n = min_l(VL, K - k);
    UNROLL for (int t = 0; t < tokens; t++) {
      vf b = load_part(x + t * (long)K + k, n);
      UNROLL for (int r = 0; r < rows; r++) acc[0][r][t] = load_part(w + r * part * K + k, n) * b + acc[0][r][t];
    }
  }
  UNROLL for (int r = 0; r < rows; r++) UNROLL for (int t = 0; t < tokens; t++) {
    if (BANKS == 2) acc[0][r][t] += acc[BANKS - 1][r][t];
    out[t * ROWS + r * part] = sum_lanes(acc[0][r][t]);
  }
}

void cpu_gemv(const jt_arg *args, long task, long tasks) {
  const elem *x = args[0].p, *w = args[1].p;
  long m = args[2].i, n0 = task * ROWS, nt = min_l(ROWS, N - n0);
  epilogue_t e = epilogue_args(args + 3);
  float out[TOKENS * ROWS] __attribute__((aligned(64)));
  (void)tasks;
  for (long m0 = 0; m0 < m; m0 += TOKENS) {
    long mt = min_l(TOKENS, m - m0);
    long part = nt / R, n = 0, t;
#if R > 1
    for (; n < part; n++) {
      for (t = 0; t + T <= mt; t += T) dots(out + t * ROWS + n, w + (n0 + n) * K, x + (m0 + t) * K, part, R, T);
#if T > 1
      for (; t < mt; t++) dots(out + t * ROWS + n, w + (n0 + n) * K, x + (m0 + t) * K, part, R, 1);
#endif
    }
#endif
#if N % R || R == 1
    // One by one: the rows that are left over, or all.
    for (n *= R; n < nt; n++) {
      for (t = 0; t + T <= mt; t += T) dots(out + t * ROWS + n, w + (n0 + n) * K, x + (m0 + t) * K, 0, 1, T);
#if T > 1
      for (; t < mt; t++) dots(out + t * ROWS + n, w + (n0 + n) * K, x + (m0 + t) * K, 0, 1, 1);
#endif
    }
#endif
    for (long i = 0; i < mt; i++) finish_row(&e, m0 + i, n0, n0 + nt, out + i * ROWS);
  }
}
