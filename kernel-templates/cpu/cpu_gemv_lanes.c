// y = epilogue(x . w^T) for a handful of tokens and weights of codes in `layout=lanes`: a stream over the codes.
//
// A lane of a vector has a row of w: a word of codes of each of 16 rows lies next to that of the others, and their scales do, so
// codes and scales of 16 rows are each one unbroken stream, x is broadcast, and sums are never added across lanes. A task owns ROWS
// rows; 16 of them at a time meet T tokens at a time. A first launch prepares x in the workspace.
//
// BYTES: x is a whole number of DIGITS bytes, times a factor of each UNIT elements, and codes meet it as unsigned bytes, four to a lane
// and instruction, in a sum for each digit that is exact. An element of x is off by at most 2^-23 of the largest of its unit. For results
// in 16 bits two bytes are more than enough. Without BYTES codes become floats, and x is as it was. With TILES products of bytes are
// those of tiles (lanes_tiles.h).
#include "scaled.h"
#include "shuffle.h"
#include "vmath.h"
#include "epilogue.h"
#include "qk_norm.h"
#include "codes.h"

#define V (LANES / VL) // vectors of 16 rows
#if W_SCALE_GROUP || W_SCALE_BLOCK
#define GROUP W_GROUP
#else
#define GROUP K
#endif
#define RUNS ((K + GROUP - 1) / GROUP) // scales of a row
#define UNIT (GROUP == 16 ? 16 : 32)   // elements of x that share a factor, and a scale
#define UNITS ((K + UNIT - 1) / UNIT)
#define UNIT_BYTES (LANES * CODE_BYTES(UNIT))
#if W_ZERO_ZERO || W_ZERO_MIN
#define ADDS 1 // a value is code * scale + add
#else
#define ADDS 0
#endif
#define TOKENS 8
_Static_assert(ROWS % LANES == 0 && N % LANES == 0 && K % WORD == 0, "whole rows of lanes");

#if BYTES
#if DTYPE_F32
#define DIGITS 3
#define LARGEST 4190000.0f // half of what these digits hold: sums of a unit of 4 bits stay below 2^31
#else
#define DIGITS 2
#define LARGEST 32600.0f
#endif
#endif

#if TILES
#elif BYTES
#if DTYPE_W_INT4
#define WHOLE DIGITS // digits whose sums are one of 32 bits
#else
#define WHOLE 2
#endif
#if !DTYPE_W_INT4
#define OFFSET 128 // by how much unsigned codes are more
#elif ADDS
#define OFFSET 0
#else
#define OFFSET 8
#endif
typedef struct {
  float factor, sum;        // sum: of the unit's x
  int32_t from[DIGITS]; // where sums start: less what codes are more than they are worth
  int8_t digits[DIGITS][UNIT];
} unit_t;
#define X_STRIDE (UNITS * (long)sizeof(unit_t) / 4)
#else
#define X_STRIDE (UNITS * (UNIT + 1)) // the sums of units stand behind a token's x
#endif

#if BYTES
_Static_assert(AVX512 && VL == LANES, "bytes of 16 rows are a vector");
// Four elements in the order in which codes come out of a word: of 4 bits the low halves of its bytes, then the high ones.
#if DTYPE_W_INT4
#define IN_ORDER(b) _mm_shuffle_epi8(b, _mm_set_epi8(15, 13, 11, 9, 14, 12, 10, 8, 7, 5, 3, 1, 6, 4, 2, 0))
#else
#define IN_ORDER(b) (b)
#endif
#endif

#if BYTES
// `n` elements of x from `first` on as a factor times whole numbers, whose digits go to `digits`, the highest first and `apart` bytes
// apart; `sums` of them go to `of_digit`, and that of all is returned.
INLINE float take_digits(int8_t *digits, long apart, int of_digit[DIGITS], float *factor_at, const x_elem *x, long first, const int n) {
  float v[n];
  if (first + n <= K) {
    UNROLL for (int i = 0; i < n; i++) v[i] = get_x(x + first + i);
  } else {
    for (long i = 0; i < n; i++) v[i] = first + i < K ? get_x(x + first + i) : 0;
  }
  vf most = {0}, nothing = {0};
  UNROLL for (int i = 0; i < n; i += VL) {
    vf e = load_f32(v + i);
    most = vmax((vf)((vi)e & 0x7fffffff), most);
    nothing = e * 0.0f + nothing;
  }
  // Where x is not finite the factor is not, and makes sums so; where it is next to nothing it is nothing.
  float largest = _mm512_reduce_max_ps((__m512)most) + _mm512_reduce_add_ps((__m512)nothing);
  float factor = largest < 1e-30f ? 0 : largest / LARGEST, over = factor > 0 && factor < 1e38f ? 1 / factor : 0;
  vi sums[DIGITS] = {{0}};
  UNROLL for (int i = 0; i < n; i += VL) {
    // Added to this, a number below 2^22 has its nearest whole number in its low bits.
    const vf round = splat(12582912.0f);
    vi rest = (vi)(load_f32(v + i) * over + round) - (vi)round;
    UNROLL for (int d = DIGITS - 1; d >= 0; d--) {
      vi digit = rest << 24 >> 24;
      sums[d] += digit;
      _mm_storeu_si128((__m128i *)(digits + d * apart + i), IN_ORDER(_mm512_cvtepi32_epi8((__m512i)digit)));
      rest = (rest - digit) >> 8;
    }
  }
  int sum = 0;
  UNROLL for (int d = 0; d < DIGITS; d++) {
    of_digit[d] = _mm512_reduce_add_epi32((__m512i)sums[d]);
    sum = 256 * sum + of_digit[d];
  }
  *factor_at = factor;
  return (float)sum * factor;
}
#endif

#if !TILES
// Task: one token.
void cpu_gemv_lanes_x(const jt_arg *args, long task, long tasks) {
  const x_elem *x = (const x_elem *)args[0].p + task * (long)K;
  float *to = (float *)args[1].p + task * (long)X_STRIDE;
  (void)tasks;
#if BYTES
  unit_t *unit = (unit_t *)to;
  for (long first = 0; first < UNITS * UNIT; first += UNIT, unit++) {
    int of_digit[DIGITS];
    unit->sum = take_digits(unit->digits[0], UNIT, of_digit, &unit->factor, x, first, UNIT);
    UNROLL for (int d = 0; d < DIGITS; d++) unit->from[d] = -OFFSET * of_digit[d];
  }
#else
  float *sums = to + UNITS * UNIT;
  for (long u = 0; u < UNITS; u++) {
    sums[u] = 0;
    for (long i = u * UNIT; i < (u + 1) * UNIT; i++) {
      to[i] = i < K ? get_x(x + i) : 0;
      sums[u] += to[i];
    }
  }
#endif
}
#endif

#include "lane_scales.h"

#if TILES
#include "lanes_tiles.h"
#elif BYTES
#define STEPS (UNIT / 4) // vectors of bytes

// Adds to each lane four products of a code and a digit.
INLINE vi dot4(vi sum, vu codes, const int8_t *digits) {
  int32_t four;
  memcpy(&four, digits, 4);
#if defined(__AVX512VNNI__) && SIMD == 64
  return (vi)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)codes, _mm512_set1_epi32(four));
#else
  UNROLL for (int b = 0; b < 4; b++) sum += (vi)(codes >> 8 * b & 255) * (int8_t)(four >> 8 * b);
  return sum;
#endif
}

INLINE void add_unit(vf acc[T][V], const uint8_t *codes, const unit_t *x, const vf *s, const vf *a, const int tokens) {
  vu bytes[STEPS];
#if DTYPE_W_INT4
  UNROLL for (int i = 0; i < STEPS; i += 2) {
    vu words = *(const vu_any *)(codes + i / 2 * SIMD);
    bytes[i] = words & 0x0f0f0f0fu;
    bytes[i + 1] = words >> 4 & 0x0f0f0f0fu;
  }
#else
  UNROLL for (int i = 0; i < STEPS; i++) bytes[i] = *(const vu_any *)(codes + i * SIMD) ^ 0x80808080u;
#endif
  // A sum for each digit: one for all would wait for itself.
  vi part[T][DIGITS];
  UNROLL for (int t = 0; t < tokens; t++) UNROLL for (int d = 0; d < DIGITS; d++)
    part[t][d] = (vi){0} + x[t * (long)UNITS].from[d];
  UNROLL for (int i = 0; i < STEPS; i++) UNROLL for (int t = 0; t < tokens; t++) UNROLL for (int d = 0; d < DIGITS; d++)
    part[t][d] = dot4(part[t][d], bytes[i], x[t * (long)UNITS].digits[d] + 4 * i);
  UNROLL for (int t = 0; t < tokens; t++) {
    // Of 4 bits, and of two digits, all are one whole number of 32 bits.
    UNROLL for (int d = 1; d < WHOLE; d++) part[t][d] += part[t][d - 1] << 8;
    vf sum = __builtin_convertvector(part[t][WHOLE - 1], vf);
    UNROLL for (int d = WHOLE; d < DIGITS; d++) sum = sum * 256.0f + __builtin_convertvector(part[t][d], vf);
    acc[t][0] = sum * (*s * x[t * (long)UNITS].factor) + acc[t][0];
#if ADDS
    acc[t][0] = *a * x[t * (long)UNITS].sum + acc[t][0];
#endif
  }
  (void)a;
}
#else
// Code `j` of each word.
INLINE vf code_of(vu words, int j) {
#if DTYPE_W_INT4
  vi code = (vi)(words >> 4 * j & 15);
  return __builtin_convertvector(ADDS ? code : code - 8, vf);
#elif DTYPE_W_E4M3
  // A number below 2^-6 is first made one of 2^-6 and more, which is taken off; an f32 of its bits would be subnormal, and slow.
  vi bits = (vi)(words >> 8 * j & 0x7f) << 20, small = bits < 1 << 23;
  bits += (120 << 23) + (small & 1 << 23);
  vf value = (vf)bits - (vf)(small & 121 << 23);
  return (vf)((vi)value | (vi)(words << (24 - 8 * j) & 0x80000000u));
#else
  return __builtin_convertvector((vi)(words << (24 - 8 * j)) >> 24, vf);
#endif
}

INLINE void add_unit(vf acc[T][V], const uint8_t *codes, const float *x, long u, const vf s[V], const vf a[V], const int tokens) {
  UNROLL for (int v = 0; v < V; v++) {
    vf sum[T];
    UNROLL for (int t = 0; t < tokens; t++) sum[t] = (vf){0};
    for (int i = 0; i < UNIT / WORD; i++) {
      vu words = *(const vu_any *)(codes + (i * V + v) * SIMD);
      UNROLL for (int j = 0; j < WORD; j++) {
        vf code = code_of(words, j);
        UNROLL for (int t = 0; t < tokens; t++) sum[t] = code * x[t * (long)X_STRIDE + u * UNIT + i * WORD + j] + sum[t];
      }
    }
    UNROLL for (int t = 0; t < tokens; t++) {
      acc[t][v] = sum[t] * s[v] + acc[t][v];
#if ADDS
      acc[t][v] = a[v] * x[t * (long)X_STRIDE + UNITS * UNIT + u] + acc[t][v];
#endif
    }
  }
  (void)a;
}
#endif

#if !TILES
// out[t * ROWS + lane] = 16 rows of w . x[t].
INLINE void dots(float *out, const uint8_t *codes, const float *x, scales_t w, const int tokens) {
  vf acc[T][V], s[V], a[V];
  UNROLL for (int t = 0; t < tokens; t++) UNROLL for (int v = 0; v < V; v++) acc[t][v] = (vf){0};
  UNROLL for (int v = 0; v < V; v++) a[v] = (vf){0};
  for (long u = 0; u < UNITS; u++) {
    const uint8_t *at = codes + u * UNIT_BYTES;
#if PREFETCH
    // From memory into the L2, and from there into the L1.
    UNROLL for (int b = 0; b < UNIT_BYTES; b += 64) {
      __builtin_prefetch(at + b + PREFETCH, 0, 2);
      __builtin_prefetch(at + b + PREFETCH / 8, 0, 3);
    }
#endif
    if (u * UNIT % GROUP == 0) run_scales(s, a, w, u * UNIT / GROUP);
#if K % UNIT
    uint8_t end[UNIT_BYTES] __attribute__((aligned(64)));
    if (u == UNITS - 1) {
      // What lies behind the rows is not read; x is 0 there.
      memset(end, 0, sizeof end);
      memcpy(end, at, LANES * CODE_BYTES(K % UNIT));
      at = end;
    }
#endif
#if BYTES
    add_unit(acc, at, (const unit_t *)x + u, s, a, tokens);
#else
    add_unit(acc, at, x, u, s, a, tokens);
#endif
  }
  UNROLL for (int t = 0; t < tokens; t++) UNROLL for (int v = 0; v < V; v++) store_f32(out + t * ROWS + v * VL, acc[t][v]);
}
#endif

void cpu_gemv_lanes(const jt_arg *args, long task, long tasks) {
  const uint8_t *w = args[1].p;
  long m = args[4].i, n0 = task * ROWS, nt = min_l(ROWS, N - n0);
  epilogue_t e = epilogue_args(args + 5);
  float out[TOKENS * ROWS] __attribute__((aligned(64)));
  (void)tasks;
#if TILES
  long mpad = align_l(m, T);
  const int8_t *x = args[0].p;
  const float *worths = (const float *)(x + X_BYTES * mpad);
  tiles_t tiles = tiles_of_lanes();
  _tile_loadconfig(&tiles);
#else
  const float *x = args[0].p;
#endif
  for (long n = 0; n < nt; n += LANES) {
    const uint8_t *codes = w + CODE_BYTES((n0 + n) * K);
    scales_t scales = scales_of(args[2].p, args[3].p, n0 + n);
#if TILES
    for (long t = 0; t < m; t += T) dots(out + t * ROWS + n, codes, x + t * DIGITS * PIECE, worths + 2 * t, mpad, scales);
#else
    long t = 0;
    for (; t + T <= m; t += T) dots(out + t * ROWS + n, codes, x + t * X_STRIDE, scales, T);
#if T > 2
    for (; t + 2 <= m; t += 2) dots(out + t * ROWS + n, codes, x + t * X_STRIDE, scales, 2);
#endif
#if T > 1
    for (; t < m; t++) dots(out + t * ROWS + n, codes, x + t * X_STRIDE, scales, 1);
#endif
#endif
  }
#if TILES
  _tile_release();
#endif
  for (long i = 0; i < m; i++) finish_row(&e, i, n0, n0 + nt, out + i * ROWS);
}
