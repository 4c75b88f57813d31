// Codes of W as wgmma's A fragments, a batch of BATCH_K (64 or 32, which the template defines) at a time, two batches a unit.
// Where a group has a scale, a fragment is, by EXACT,
//   0  (code - zero) times the scale, rounded once. Where scales are stored as the elements are, the multiplication is one of 16
//      bits; others, and minima, take the way through f32.
//   1  (code - zero) times the power of two in the scale, which 16 bits hold. What is left of the scale, its mantissa, is the unit
//      of the sums, so these are multiplied by the ratio of two mantissas from one group to the next. A weight with a minimum is
//      two fragments instead: rounded, and what it lacks then.
#pragma once
#include "codes.cuh"

#define UNIT_K (2 * BATCH_K)
#if W_SCALE_GROUP || W_SCALE_BLOCK || W_ZERO_MIN
#define GROUPED 1
#else
#define GROUPED 0
#endif
#define GROUP_K (W_GROUP < UNIT_K ? W_GROUP : UNIT_K) // k of a unit that one scale belongs to
#define UNIT_GROUPS (GROUPED ? UNIT_K / GROUP_K : 1)
#define SCALES_K ((K + W_GROUP - 1) / W_GROUP) // groups of a row
#if GROUPED && (W_ZERO_MIN || !((SCALE_BF16 && DTYPE_BF16) || (SCALE_F16 && DTYPE_F16)))
#define SCALE_IN_F32 1
#else
#define SCALE_IN_F32 0
#endif
#if EXACT && GROUPED && !W_ZERO_MIN
#define RESCALED 1
#else
#define RESCALED 0
#endif
#if EXACT && W_ZERO_MIN
#define PARTS 2 // fragments that add up to a weight
#else
#define PARTS 1
#endif
#if W_ZERO_NONE
#define ZEROS ((const u8 *)nullptr)
#else
#define ZEROS zeros
#endif

// What belongs to the codes of one row in one unit.
struct row_factors {
#if GROUPED
  beside<scale_elem, UNIT_GROUPS> scales;
#endif
#if W_ZERO_ZERO
  beside<u8, UNIT_GROUPS> zeros;
#elif W_ZERO_MIN
  beside<scale_elem, UNIT_GROUPS> zeros;
#endif
};
template <class ZERO> DEV row_factors row_factors_at(const scale_elem *scales, const ZERO *zeros, int row, int k, bool inside) {
  row_factors f;
#if W_SCALE_BLOCK
  const i64 at = (i64)(row / 128) * SCALES_K + k / W_GROUP;
#elif W_SCALE_ROW
  const i64 at = row;
#else
  const i64 at = (i64)row * SCALES_K + k / W_GROUP;
#endif
#if GROUPED
  f.scales = ld_beside_if<scale_elem, UNIT_GROUPS>(scales + at, inside);
#endif
#if !W_ZERO_NONE
  f.zeros = ld_beside_if<ZERO, UNIT_GROUPS>(zeros + at, inside);
#endif
  return f;
}

DEV u32 mul2(bf16_t, u32 a, u32 b) {
  u32 r;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
DEV u32 mul2(f16_t, u32 a, u32 b) {
  u32 r;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}

// A scale is ± a power of two times a mantissa in [1, 2). Zero is 0 times 1. Of f16, which has few exponents, powers stay within 2^-14
// and 2^5, where it holds all codes times them, and the mantissa takes what is left.
DEV u32 power_bits(u32 scale) {
  const u32 exponent = scale >> 23 & 255;
  return DTYPE_BF16_OR_F16(exponent, exponent == 0 ? 0 : min(max(exponent, 113u), 132u)) << 23;
}
DEV u32 power_of(scale_elem scale) { // in both halves of a pair
  const u32 bits = __float_as_uint(to_f32(scale));
  const float power = __uint_as_float((bits & 0x80000000u) | power_bits(bits));
  return pack2(elem{}, power, power);
}
DEV float mantissa_of(scale_elem scale) {
  const u32 bits = __float_as_uint(to_f32(scale));
  return __uint_as_float((bits & 0x7fffffffu) - power_bits(bits) + 0x3f800000u);
}

static_assert(QUAD_K % BATCH_K == 0 && (BATCH_K == 64 || BATCH_K == 32 && CODE_BITS == 8), "a batch is a part of a quad");

// What a lane reads of a vector for a batch: a word for each 32 k, of which it takes a pair of each eight; of 8 bits that one
// of two words which has its pair.
struct batch_words { u32 w[BATCH_K / 32]; };
DEV batch_words batch_words_at(const u8 *vector, int batch, int lane) {
  batch_words b;
#if DTYPE_W_INT4
  const uint2 v = *reinterpret_cast<const uint2 *>(vector + batch * 8);
  b.w[0] = v.x, b.w[1] = v.y;
#else
#pragma unroll
  for (int i = 0; i < BATCH_K / 32; i++)
    b.w[i] = *reinterpret_cast<const u32 *>(vector + (BATCH_K == 32 ? batch * 8 : i * 8) + (lane & 2) * 2);
#endif
  return b;
}

// Pair t % 4 of a word, which one_pair (codes.cuh) would take from its lowest bits.
DEV u32 pair_of(u32 word, int lane) {
#if DTYPE_W_INT4
  return one_pair(word >> (lane % 4 * 4));
#elif DTYPE_W_INT8
  return one_pair(word >> (lane % 2 * 8));
#else
  // As one_pair does it, but from the high bytes of the halves, where signs are in place.
  const u32 v = word << (8 - lane % 2 * 8);
  return fma2(elem{}, and_or(v, 0x80008000u, DTYPE_BF16_OR_F16(v >> 4 & 0x07f007f0u, v >> 1 & 0x3f803f80u)),
              DTYPE_BF16_OR_F16(0x7b807b80u, 0x5c005c00u), 0x80008000u);
#endif
}

// words: of rows r and r + 8 of the fragment, of each of the four vectors. Lane t takes pair t % 4 of each eight k.
DEV void code_fragments(u32 (&a)[PARTS][BATCH_K / 16][4], const batch_words (&words)[2][4], const row_factors (&rows)[2], int batch, int lane) {
#pragma unroll
  for (int j = 0; j < 2; j++)
#pragma unroll
    for (int i = 0; i < BATCH_K / 16; i++) {
      [[maybe_unused]] const int g = (batch * BATCH_K + i * 16) / GROUP_K;
#if W_ZERO_ZERO
      const float base = -CODE_BASE - rows[j].zeros.v[GROUPED ? g : 0];
#elif DTYPE_W_INT4 && !W_ZERO_MIN
      const float base = -CODE_BASE - 8.0f;
#else
      const float base = -CODE_BASE;
#endif
      [[maybe_unused]] const u32 base2 = pack2(elem{}, base, base);
#if RESCALED
      const u32 scale = power_of(rows[j].scales.v[g]);
#elif SCALE_IN_F32
      const float scale = to_f32(rows[j].scales.v[g]);
#if W_ZERO_MIN
      const float add = fmaf(base, scale, to_f32(rows[j].zeros.v[g]));
#else
      const float add = base * scale;
#endif
#elif GROUPED
      const u32 scale = rows[j].scales.v[g].bits * 0x10001u;
#endif
#pragma unroll
      for (int v = i % 2 * 2; v < i % 2 * 2 + 2; v++) {
        const int at = v % 2 * 2 + j;
        u32 pair = pair_of(words[j][v].w[i / 2], lane);
#if RESCALED && DTYPE_W_INT4 && DTYPE_BF16
        a[0][i][at] = fma2(elem{}, pair, scale, mul2(elem{}, base2, scale));
#elif SCALE_IN_F32 && !RESCALED
        float lo, hi;
        unpack2(elem{}, pair, lo, hi);
        lo = CODE_BITS == 4 ? fmaf(lo, scale, add) : lo * scale, hi = CODE_BITS == 4 ? fmaf(hi, scale, add) : hi * scale;
        a[0][i][at] = pair = pack2(elem{}, lo, hi);
        if constexpr (PARTS == 2) {
          float rounded_lo, rounded_hi;
          unpack2(elem{}, pair, rounded_lo, rounded_hi);
          a[PARTS - 1][i][at] = pack2(elem{}, lo - rounded_lo, hi - rounded_hi);
        }
#else
        if (CODE_BITS == 4) pair = fma2(elem{}, pair, ONES, base2);
#if GROUPED
        pair = mul2(elem{}, pair, scale);
#endif
        a[0][i][at] = pair;
#endif
      }
    }
}

// Keeps fragments in their registers up to this point, where a wait has shown that no instruction reads them any more.
DEV void pin_fragments(u32 (&a)[PARTS][BATCH_K / 16][4]) {
#pragma unroll
  for (int p = 0; p < PARTS; p++)
#pragma unroll
    for (int i = 0; i < BATCH_K / 16; i++)
#pragma unroll
      for (int j = 0; j < 4; j++) asm volatile("" : "+r"(a[p][i][j])::"memory");
}
