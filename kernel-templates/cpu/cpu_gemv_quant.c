// y = epilogue(x . w^T) for a handful of tokens and weights of codes and scales: a stream over the codes.
//
// A first launch puts x into the workspace in f32, in the order in which codes come out of registers. A task owns ROWS rows of
// w, in R equal parts that lie one after another, so that each is one unbroken stream. A row of each part at a time meets T
// tokens at a time; codes become floats in registers, and nothing of w is read from memory twice. A chunk is 8 vectors
// of codes: of 4 bits, vector j holds code 8l + j of the chunk in lane l, so a lane's eight codes are one word that is shifted and
// share a scale; of 8 bits, vectors are consecutive codes. The sum of the codes that share a scale is multiplied by it once.
//
// BYTES: x is a whole number of three bytes, times a factor of each chunk, and codes meet it as bytes, four to a lane and instruction,
// in sums that are exact. That takes about half the instructions of a conversion, and an element of x is off by at most 2^-24 of the
// largest of its chunk, which is no more than sums in f32 are. For results in 16 bits two bytes are more than enough.
#include "scaled.h"
#include "shuffle.h"
#include "vmath.h"
#include "epilogue.h"
#include "qk_norm.h"
#include "codes.h"

#define CHUNK (8 * VL)
#define CHUNKS ((K + CHUNK - 1) / CHUNK)
#define KP (CHUNKS * CHUNK)
#if W_SCALE_GROUP || W_SCALE_BLOCK
#define GROUP W_GROUP
#else
#define GROUP KP // a row, and what is behind it
#endif
#define RUNS ((K + GROUP - 1) / GROUP)     // scales of a row
#define RUNS_PAD (RUNS + 2 * VL)           // vectors of them may be read beyond the last
#if W_ZERO_ZERO || W_ZERO_MIN
#define ADDS 1 // a value is code * scale + add
#else
#define ADDS 0
#endif
#define TOKENS 8
#if BYTES
// Codes that are summed up together; they are in a lane for one scale.
#if DTYPE_W_INT8 && GROUP < CHUNK
#define UNIT (CHUNK / 2)
#else
#define UNIT CHUNK
#endif
#if DTYPE_F32
#define DIGITS 3
#define LARGEST 8350000.0f // a little less than these digits hold
#else
#define DIGITS 2
#define LARGEST 32600.0f
#endif
typedef struct {
  // Of base 256, the highest first; in the order of the bytes of codes, of 4 bits first all low halves.
  int8_t digits[DIGITS][UNIT];
  float sums[VL];    // of a lane's x
  float factors[VL]; // of each digit
} unit_t;
#define X_STRIDE (KP / UNIT * (long)sizeof(unit_t) / 4)
#elif DTYPE_W_INT4
#define X_STRIDE (KP + KP / 8) // the sums of each lane's eight elements stand behind a token's x
#else
#define X_STRIDE KP
#endif
#define CHUNK_BYTES CODE_BYTES(CHUNK)
_Static_assert(ROWS % R == 0 && ROWS % 2 == 0, "whole groups of rows");

// Task: one token.
void cpu_gemv_quant_x(const jt_arg *args, long task, long tasks) {
  const x_elem *x = (const x_elem *)args[0].p + task * (long)K;
  float *to = (float *)args[1].p + task * (long)X_STRIDE;
  (void)tasks;
#if BYTES
  unit_t *unit = (unit_t *)to;
  for (long from = 0; from < KP; from += UNIT, unit++) {
    float v[UNIT], most = 0;
    for (long i = 0; i < UNIT; i++) {
      v[i] = from + i < K ? get_x(x + from + i) : 0;
      // NaN stays.
      if (!(__builtin_fabsf(v[i]) <= most) && most == most) most = __builtin_fabsf(v[i]);
    }
    // Where x is not finite the factor is not, and makes sums so; where it is next to nothing it is nothing.
    float factor = most < 1e-30f ? 0 : most / LARGEST, over = factor > 0 && factor < 1e38f ? 1 / factor : 0;
    memset(unit->sums, 0, sizeof unit->sums), memset(unit->factors, 0, sizeof unit->factors);
    for (int d = 0; d < DIGITS; d++) unit->factors[d] = factor * (float)(1 << 8 * (DIGITS - 1 - d));
    for (long i = 0; i < UNIT; i++) {
#if DTYPE_W_INT4
      long at = i % 2 * (UNIT / 2) + i / 2, lane = i / 8;
#else
      long at = i, lane = i / 4 % VL;
#endif
      int whole = over > 0 ? (int)__builtin_rintf(v[i] * over) : 0, rest = whole;
      for (int d = DIGITS - 1; d >= 0; d--) {
        int8_t digit = (int8_t)rest;
        unit->digits[d][at] = digit;
        rest = (rest - digit) / 256;
      }
      unit->sums[lane] += (float)whole * factor;
    }
  }
#elif DTYPE_W_INT4
  float *sums = to + KP;
  for (long c = 0; c < CHUNKS; c++)
    for (long l = 0; l < VL; l++) {
      float sum = 0;
      for (long j = 0; j < 8; j++) {
        long k = c * CHUNK + 8 * l + j;
        float v = k < K ? get_x(x + k) : 0;
        to[c * CHUNK + j * VL + l] = v;
        sum += v;
      }
      sums[c * VL + l] = sum;
    }
#else
  for (long k = 0; k < KP; k++) to[k] = k < K ? get_x(x + k) : 0;
#endif
}

// ---- scales --------------------------------------------------------------------------------------------------------
// What a row's scales are in f32, times what the conversion of its codes leaves out, and what its values have added.
INLINE void row_scales(float *s, float *a, const scale_elem *scales, const zero_elem *zeros, long row) {
#if W_SCALE_TENSOR
  long at = 0 * row;
#elif W_SCALE_BLOCK
  long at = row / W_GROUP * RUNS;
#else
  long at = row * RUNS;
#endif
#if DTYPE_W_E4M3
  const float unit = FLOAT_UNIT;
#else
  const float unit = 1;
#endif
  long i = 0;
  for (; i + VL <= RUNS; i += VL) store_f32(s + i, load_scales(scales + at + i) * unit);
  for (; i < RUNS; i++) s[i] = get_scale(scales + at + i) * unit;
#if W_ZERO_ZERO
  for (i = 0; i < RUNS; i++) a[i] = -(float)zeros[at + i] * s[i];
#elif W_ZERO_MIN
  for (i = 0; i < RUNS; i++) a[i] = get_scale(zeros + at + i);
#endif
  (void)a, (void)zeros;
}

#if DTYPE_W_INT4 || BYTES
#if !BYTES
#define UNIT CHUNK
#endif
// The factors of the lanes of unit `c`.
INLINE vf lanes_of(const float *s, long c) {
#if GROUP >= UNIT
  return splat(s[c * UNIT / GROUP]);
#elif VL == 8
  vf v = load_f32(s + c * 2);
  return __builtin_shufflevector(v, v, 0, 0, 0, 0, 1, 1, 1, 1);
#elif UNIT == 4 * GROUP
  vf v = load_f32(s + c * 4);
  return __builtin_shufflevector(v, v, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
#else
  vf v = load_f32(s + c * 2);
  return __builtin_shufflevector(v, v, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
#endif
}
#endif

// ---- codes ---------------------------------------------------------------------------------------------------------
// A row's last chunk, whole: what lies behind the row is not read, nor used.
INLINE const uint8_t *last_chunk(uint8_t *buffer, const uint8_t *codes) {
  memset(buffer, 0, CHUNK_BYTES);
  memcpy(buffer, codes, CODE_BYTES(K - (CHUNKS - 1) * CHUNK));
  return buffer;
}

#if BYTES
#define PARTS (UNIT / (4 * VL)) // vectors of bytes
typedef int8_t bytes_t __attribute__((vector_size(SIMD), aligned(1), may_alias));

// Adds to each lane four products of a code and a digit.
INLINE vi dot4(vi sum, vu codes, const int8_t *digits) {
#if defined(__AVX512VNNI__) && SIMD == 64
  return (vi)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)codes, _mm512_loadu_si512(digits));
#else
  for (int l = 0; l < VL; l++)
    for (int b = 0; b < 4; b++) sum[l] += (int)(codes[l] >> 8 * b & 255) * digits[4 * l + b];
  return sum;
#endif
}

// Vector `part` of the codes of a unit as unsigned bytes, which are OFFSET more than the codes are worth without zero points.
#if DTYPE_W_INT4
#define OFFSET (ADDS ? 0.0f : 8.0f)
INLINE vu bytes_of(const uint8_t *codes, int part) { return (*(const vu_any *)codes >> 4 * part) & 0x0f0f0f0fu; }
#else
#define OFFSET 128.0f
INLINE vu bytes_of(const uint8_t *codes, int part) { return *(const vu_any *)(codes + part * SIMD) ^ 0x80808080u; }
#endif

INLINE void add_chunk(vf acc[R][T], const uint8_t *const codes[R], const float *x, const float *s, const float *a, long c,
                      const int rows, const int tokens) {
  UNROLL for (int u = 0; u < CHUNK / UNIT; u++) {
    const long at = c * (CHUNK / UNIT) + u;
    const unit_t *unit = (const unit_t *)x + at;
    UNROLL for (int r = 0; r < rows; r++) {
      vi sums[DIGITS];
      UNROLL for (int d = 0; d < DIGITS; d++) sums[d] = (vi){0};
      UNROLL for (int p = 0; p < PARTS; p++) {
        vu bytes = bytes_of(codes[r] + u * CODE_BYTES(UNIT), p);
        UNROLL for (int d = 0; d < DIGITS; d++) sums[d] = dot4(sums[d], bytes, unit->digits[d] + p * SIMD);
      }
      vf sum = load_f32(unit->sums) * -OFFSET;
      UNROLL for (int d = DIGITS - 1; d >= 0; d--) sum = __builtin_convertvector(sums[d], vf) * unit->factors[d] + sum;
      acc[r][0] = sum * lanes_of(s + r * RUNS_PAD, at) + acc[r][0];
#if ADDS
      acc[r][0] = load_f32(unit->sums) * lanes_of(a + r * RUNS_PAD, at) + acc[r][0];
#endif
    }
  }
  (void)a, (void)tokens;
}
#elif DTYPE_W_INT4
#if AVX512
// The low four bits of a lane choose its float.
#if ADDS
#define CODE_0 0.0f
#else
#define CODE_0 -8.0f
#endif
INLINE vf floats_of(vu codes, int j) {
  const vf table = (vf){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + CODE_0;
  return (vf)_mm512_permutexvar_ps((__m512i)(codes >> 4 * j), (__m512)table);
}
#else
INLINE vf floats_of(vu codes, int j) { return __builtin_convertvector((vi)((codes >> 4 * j) & 15), vf); }
#endif
// Whether zero points of 8 are left to the sums of x.
#define LESS_8 (!ADDS && !AVX512)

INLINE void add_chunk(vf acc[R][T], const uint8_t *const codes[R], const float *x, const float *s, const float *a, long c,
                      const int rows, const int tokens) {
  vf sum[R][T];
  vu words[R];
  UNROLL for (int r = 0; r < rows; r++) words[r] = *(const vu_any *)codes[r];
  UNROLL for (int j = 0; j < 8; j++) {
    vf f[R];
    UNROLL for (int r = 0; r < rows; r++) f[r] = floats_of(words[r], j);
    UNROLL for (int t = 0; t < tokens; t++) {
      vf b = load_f32(x + t * (long)X_STRIDE + c * CHUNK + j * VL);
      UNROLL for (int r = 0; r < rows; r++) sum[r][t] = j ? f[r] * b + sum[r][t] : f[r] * b;
    }
  }
  UNROLL for (int r = 0; r < rows; r++) {
    vf scale = lanes_of(s + r * RUNS_PAD, c);
#if ADDS
    vf add = lanes_of(a + r * RUNS_PAD, c);
#endif
    UNROLL for (int t = 0; t < tokens; t++) {
#if ADDS || LESS_8
      vf all = load_f32(x + t * (long)X_STRIDE + KP + c * VL);
#endif
#if LESS_8
      sum[r][t] = all * -8.0f + sum[r][t];
#endif
      acc[r][t] = sum[r][t] * scale + acc[r][t];
#if ADDS
      acc[r][t] = all * add + acc[r][t];
#endif
    }
  }
  (void)a;
}
#else
#if GROUP >= CHUNK
#define TOGETHER 8 // vectors that share a scale
#else
#define TOGETHER (GROUP / VL)
#endif

INLINE void add_chunk(vf acc[R][T], const uint8_t *const codes[R], const float *x, const float *s, const float *a, long c,
                      const int rows, const int tokens) {
  UNROLL for (int from = 0; from < 8; from += TOGETHER) {
    vf sum[R][T];
    UNROLL for (int j = from; j < from + TOGETHER; j++) {
      vf f[R];
      UNROLL for (int r = 0; r < rows; r++) f[r] = floats_of(codes[r] + j * VL);
      UNROLL for (int t = 0; t < tokens; t++) {
        vf b = load_f32(x + t * (long)X_STRIDE + c * CHUNK + j * VL);
        UNROLL for (int r = 0; r < rows; r++) sum[r][t] = j > from ? f[r] * b + sum[r][t] : f[r] * b;
      }
    }
    UNROLL for (int r = 0; r < rows; r++) {
      vf scale = splat(s[r * RUNS_PAD + (c * CHUNK + from * VL) / GROUP]);
      UNROLL for (int t = 0; t < tokens; t++) acc[r][t] = sum[r][t] * scale + acc[r][t];
    }
  }
  (void)a;
}
#endif

// out[t * ROWS + r * part] = w[r * part] . x[t].
INLINE void dots(float *out, const uint8_t *w, const float *x, const float *s, const float *a, long part,
                 const int rows, const int tokens) {
  vf acc[R][T];
  const uint8_t *codes[R];
  uint8_t ends[R][CHUNK_BYTES] __attribute__((aligned(64)));
  UNROLL for (int r = 0; r < rows; r++) UNROLL for (int t = 0; t < tokens; t++) acc[r][t] = (vf){0};
  for (long c = 0; c < CHUNKS - 1; c++) {
    UNROLL for (int r = 0; r < rows; r++) codes[r] = w + r * part * CODE_BYTES((long)K) + c * CHUNK_BYTES;
#if PREFETCH
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int b = 0; b < CHUNK_BYTES; b += 64)
      __builtin_prefetch(codes[r] + b + PREFETCH, 0, 3);
#endif
    add_chunk(acc, codes, x, s, a, c, rows, tokens);
  }
  UNROLL for (int r = 0; r < rows; r++) {
    codes[r] = w + r * part * CODE_BYTES((long)K) + (CHUNKS - 1) * CHUNK_BYTES;
    if (K % CHUNK) codes[r] = last_chunk(ends[r], codes[r]);
  }
  add_chunk(acc, codes, x, s, a, CHUNKS - 1, rows, tokens);
  UNROLL for (int r = 0; r < rows; r++) UNROLL for (int t = 0; t < tokens; t++)
    out[t * ROWS + r * part] = sum_lanes(acc[r][t]);
}

void cpu_gemv_quant(const jt_arg *args, long task, long tasks) {
  const float *x = args[0].p;
  const uint8_t *w = args[1].p;
  const scale_elem *scales = args[2].p;
  const zero_elem *zeros = args[3].p;
  long m = args[4].i, n0 = task * ROWS, nt = min_l(ROWS, N - n0), part = nt / R, n = 0, t;
  epilogue_t e = epilogue_args(args + 5);
  float out[TOKENS * ROWS] __attribute__((aligned(64)));
  float s[R * RUNS_PAD], a[ADDS ? R * RUNS_PAD : 1];
  (void)tasks;
  memset(s, 0, sizeof s), memset(a, 0, sizeof a);
#if R > 1
  for (; n < part; n++) {
    const uint8_t *row = w + (n0 + n) * CODE_BYTES((long)K);
    for (int r = 0; r < R; r++)
      row_scales(s + r * RUNS_PAD, a + (ADDS ? r * RUNS_PAD : 0), scales, zeros, n0 + n + r * part);
    for (t = 0; t + T <= m; t += T) dots(out + t * ROWS + n, row, x + t * (long)X_STRIDE, s, a, part, R, T);
#if T > 1
    for (; t < m; t++) dots(out + t * ROWS + n, row, x + t * (long)X_STRIDE, s, a, part, R, 1);
#endif
  }
#endif
#if N % R || R == 1
  // One by one: the rows that are left over, or all.
  for (n *= R; n < nt; n++) {
    const uint8_t *row = w + (n0 + n) * CODE_BYTES((long)K);
    row_scales(s, a, scales, zeros, n0 + n);
    for (t = 0; t + T <= m; t += T) dots(out + t * ROWS + n, row, x + t * (long)X_STRIDE, s, a, 0, 1, T);
#if T > 1
    for (; t < m; t++) dots(out + t * ROWS + n, row, x + t * (long)X_STRIDE, s, a, 0, 1, 1);
#endif
  }
#endif
  for (long i = 0; i < m; i++) finish_row(&e, i, n0, n0 + nt, out + i * ROWS);
}
