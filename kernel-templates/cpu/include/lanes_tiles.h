// Products of bytes in tiles, for `cpu_gemv_lanes`: digits of x are the rows of a, codes of 16 rows of w the columns of b, as they lie
// where they have 8 bits. Sums of a SPAN of K are exact, and meet its scale and the factor of x as vectors of 16 rows.
//
// What goes from vectors to tiles and back goes through memory and takes long. So K goes by in steps, and while one is multiplied the
// codes of the next are unpacked and the sums of the one before are scaled.
#include "tiles.h"

#define STEP 128 // codes of a row
#define STEPS ((K + STEP - 1) / STEP)
#if (W_SCALE_GROUP || W_SCALE_BLOCK) && GROUP < STEP
#define SPAN GROUP // elements that share a factor of x, and a scale
#else
#define SPAN STEP
#endif
#define SPANS (STEP / SPAN) // of a step
#define PIECE (SPAN < 64 ? SPAN : 64) // codes of a row that meet at once
#define A_TILES ((T * DIGITS + 15) / 16)
#define A_ROWS (T * DIGITS / A_TILES)
#define OF_A (T / A_TILES) // tokens of a tile
#define X_BYTES ((long)STEPS * STEP * DIGITS) // of a token
_Static_assert(STEP % SPAN == 0 && (GROUP % SPAN == 0 || GROUP == K), "a span has one scale");
_Static_assert(A_ROWS <= 16 && T % A_TILES == 0 && A_TILES <= 2, "tiles of x");

// 0 to 3: sums; 4 and 5: x; 6 and 7: w.
INLINE tiles_t tiles_of_lanes(void) {
  tiles_t t = {.palette = 1};
  for (int i = 0; i < 4; i++) t.rows[i] = A_ROWS, t.bytes[i] = 64;
  for (int i = 4; i < 6; i++) t.rows[i] = A_ROWS, t.bytes[i] = PIECE;
  for (int i = 6; i < 8; i++) t.rows[i] = PIECE / 4, t.bytes[i] = 64;
  return t;
}

// Task: one token. Layout of the result: [piece of K][token][digit][PIECE], and behind them factors and sums, [span][token].
void cpu_gemv_lanes_x(const jt_arg *args, long task, long tasks) {
  const x_elem *x = (const x_elem *)args[0].p + task * (long)K;
  long mpad = align_l(tasks, T);
  int8_t *to = args[1].p;
  float *worths = (float *)(to + X_BYTES * mpad) + 2 * task;
  for (long k = 0; k < STEPS * STEP; k += SPAN, worths += 2 * mpad) {
    int8_t digits[DIGITS][SPAN];
    int of_digit[DIGITS];
    worths[1] = take_digits(digits[0], SPAN, of_digit, worths, x, k, SPAN);
#if DTYPE_W_INT4
    worths[0] *= 1.0f / 16; // codes are in the high halves of their bytes
#endif
    UNROLL for (int p = 0; p < SPAN; p += PIECE) UNROLL for (int d = 0; d < DIGITS; d++)
      memcpy(to + ((k + p) * mpad + task * PIECE) * DIGITS + d * PIECE, digits[d] + p, PIECE);
  }
}

// The codes of a step as bytes, of 4 bits 16 times what they are worth, in the order in which digits are; or where they are.
INLINE const uint8_t *bytes_of(uint8_t *to, const uint8_t *codes, long step) {
  codes += step * LANES * CODE_BYTES(STEP);
#if K % STEP
  uint8_t end[LANES * CODE_BYTES(STEP)] __attribute__((aligned(64)));
  if (step == STEPS - 1) {
    // What lies behind the rows is not read; x is 0 there.
    memset(end, 0, sizeof end);
    memcpy(end, codes, LANES * CODE_BYTES(K % STEP));
#if DTYPE_W_INT4
    codes = end;
#else
    return memcpy(to, end, sizeof end);
#endif
  }
#endif
#if DTYPE_W_INT4
  UNROLL for (int i = 0; i < STEP / 8; i++) {
    vu words = *(const vu_any *)(codes + i * SIMD);
    vu low = words << 4 & 0xf0f0f0f0u, high = words & 0xf0f0f0f0u;
#if !ADDS
    low ^= 0x80808080u, high ^= 0x80808080u;
#endif
    *(vu *)(to + 2 * i * SIMD) = low;
    *(vu *)(to + (2 * i + 1) * SIMD) = high;
  }
  return to;
#else
  (void)to;
  return codes;
#endif
}

// Sums of a step, [span][row of a].
typedef vi sums_t[SPANS][A_TILES * A_ROWS];

#if ADDS && DTYPE_W_INT4
#define MULTIPLY _tile_dpbsud
#else
#define MULTIPLY _tile_dpbssd
#endif
// Adds to sums `c` what piece `p` in `b` and a tile of x, which is read to `a`, give.
#define ADD_PIECE(c, a, b, of_a, p)                                                                \
  TILE_LOAD(b, bytes + (p) * LANES, PIECE / 4, 64, 64);                                            \
  TILE_LOAD(a, x + (p) * mpad * DIGITS + (of_a) * A_ROWS * PIECE, A_ROWS, PIECE, PIECE);           \
  MULTIPLY(c, a, b);
#define SUM(c, a, b, of_a, s)                                                                      \
  _tile_zero(c);                                                                                   \
  for (int p = 0; p < SPAN; p += PIECE) { ADD_PIECE(c, a, b, of_a, (s) * SPAN + p) }               \
  TILE_STORE(c, (*sums)[s] + (of_a) * A_ROWS, A_ROWS, 64, 64);

INLINE void multiply(sums_t *sums, const uint8_t *bytes, const int8_t *x, long mpad) {
#if A_TILES == 1
#define SPANS_FROM(s) SUM(0, 4, 6, 0, s) SUM(1, 5, 7, 0, s + 1) SUM(2, 4, 6, 0, s + 2) SUM(3, 5, 7, 0, s + 3)
#if SPANS == 1
  SUM(0, 4, 6, 0, 0)
#elif SPANS == 2
  SUM(0, 4, 6, 0, 0) SUM(1, 5, 7, 0, 1)
#else
  SPANS_FROM(0)
#endif
#if SPANS > 4
  SPANS_FROM(4)
#endif
#else
#define SPANS_FROM(s) SUM(0, 4, 6, 0, s) SUM(1, 5, 7, 1, s)
  SPANS_FROM(0)
#if SPANS > 1
  SPANS_FROM(1)
#endif
#if SPANS > 2
  SPANS_FROM(2) SPANS_FROM(3)
#endif
#if SPANS > 4
  SPANS_FROM(4) SPANS_FROM(5) SPANS_FROM(6) SPANS_FROM(7)
#endif
#endif
}

INLINE void scale(vf acc[T], const uint8_t *codes, const sums_t *sums, scales_t w, const float *worths, long mpad, long step, vf s[V], vf a[V]) {
  UNROLL for (int span = 0; span < SPANS; span++) {
#if PREFETCH
    const uint8_t *at = codes + ((step + 1) * STEP + span * SPAN) * (LANES * CODE_BYTES(STEP) / STEP);
    UNROLL for (int b = 0; b < LANES * CODE_BYTES(SPAN); b += 64) {
      __builtin_prefetch(at + b + PREFETCH, 0, 2);
      __builtin_prefetch(at + b + PREFETCH / 8, 0, 3);
    }
#endif
    long k = step * STEP + span * SPAN;
    if (k % GROUP == 0 && (K % STEP == 0 || k < K)) run_scales(s, a, w, k / GROUP);
    UNROLL for (int t = 0; t < T; t++) {
      const vi *of = (*sums)[span] + t / OF_A * A_ROWS + t % OF_A * DIGITS;
      const float *worth = worths + (step * SPANS + span) * 2 * mpad + 2 * t;
      vf sum = __builtin_convertvector((of[0] << 8) + of[1], vf);
#if DIGITS == 3
      sum = sum * 256.0f + __builtin_convertvector(of[2], vf);
#endif
      acc[t] = sum * (*s * worth[0]) + acc[t];
#if ADDS
      acc[t] = *a * worth[1] + acc[t];
#endif
    }
  }
}

// out[t * ROWS + lane] = 16 rows of w . x[t], of T tokens.
INLINE void dots(float *out, const uint8_t *codes, const int8_t *x, const float *worths, long mpad, scales_t w) {
  vf acc[T], s[V], a[V] = {{0}};
  sums_t sums[2] __attribute__((aligned(64)));
  uint8_t bytes[2][LANES * STEP] __attribute__((aligned(64)));
  UNROLL for (int t = 0; t < T; t++) acc[t] = (vf){0};
  const uint8_t *now = bytes_of(bytes[0], codes, 0);
  for (long step = 0; step < STEPS; step++) {
    const uint8_t *next = step + 1 < STEPS ? bytes_of(bytes[(step + 1) % 2], codes, step + 1) : 0;
    multiply(sums + step % 2, now, x + step * STEP * mpad * DIGITS, mpad);
    if (step) scale(acc, codes, sums + (step + 1) % 2, w, worths, mpad, step - 1, s, a);
    now = next;
  }
  scale(acc, codes, sums + (STEPS + 1) % 2, w, worths, mpad, STEPS - 1, s, a);
  UNROLL for (int t = 0; t < T; t++) store_f32(out + t * ROWS, acc[t]);
}
