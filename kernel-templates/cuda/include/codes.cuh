// Weights that are stored as codes of 4 or 8 bits, turned into pairs of 16-bit elements for the tensor cores.
//
// Rows are in the layout `quads`: in each 64 bytes of a row, the 16 bytes of lane t (of four) hold, for every chunk of 32 k
// in turn, the k from 8t to 8t + 7, so that a lane reads its weights as one vector and its tokens as vectors of eight. Within a word,
// codes are in the order in which `pairs` takes them out:
//
//   int4: bits 4i and 4i + 16 hold k = 2i and 2i + 1 (i = 0..3)
//   int8, e4m3: bytes i and i + 2 hold k = 2i and 2i + 1 (i = 0, 1)
//
// The conversions are exact: 16-bit elements hold every code.
#pragma once
#include "common.cuh"
#include "scale_elem.cuh"

#if DTYPE_W_INT4
#define CODE_BITS 4
#else
#define CODE_BITS 8
#endif
#define LANE_K (128 / CODE_BITS)   // codes of a 16-byte vector
#define QUAD_K (4 * LANE_K)        // of the vectors of four lanes, 64 bytes of a row
#define WORD_PAIRS (16 / CODE_BITS) // pairs of a word

// Sixteen bytes of x, which the L1 cache keeps.
DEV uint4 ld_tokens(const elem *p) {
  uint4 r;
  asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "l"(p) : "memory");
  return r;
}

// COUNT adjacent scales, zero points or minima as one access, zero where `inside` does not hold. As with weights, the load
// stays before a wait that stands behind it.
template <class T, int COUNT> struct alignas(sizeof(T) * COUNT) beside { T v[COUNT]; };
template <class T, int COUNT> DEV beside<T, COUNT> ld_beside_if(const T *p, bool inside) {
  beside<T, COUNT> r = {};
  if constexpr (sizeof(r) == 1) {
    u32 v;
    asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %2, 0;\nmov.u32 %0, 0;\n@p ld.global.u8 %0, [%1];\n}"
                 : "=&r"(v) : "l"(p), "r"((u32)inside) : "memory");
    *reinterpret_cast<u8 *>(&r) = (u8)v;
  } else if constexpr (sizeof(r) == 2) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %2, 0;\nmov.u16 %0, 0;\n@p ld.global.u16 %0, [%1];\n}"
                 : "=&h"(*reinterpret_cast<u16 *>(&r)) : "l"(p), "r"((u32)inside) : "memory");
  } else if constexpr (sizeof(r) == 4) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %2, 0;\nmov.u32 %0, 0;\n@p ld.global.u32 %0, [%1];\n}"
                 : "=&r"(*reinterpret_cast<u32 *>(&r)) : "l"(p), "r"((u32)inside) : "memory");
  } else {
    static_assert(sizeof(r) % 8 == 0, "of 1, 2, 4, 8 or 16 bytes");
    u32 *const v = reinterpret_cast<u32 *>(&r);
#pragma unroll
    for (int i = 0; i < (int)sizeof(r) / 8; i++)
      asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %3, 0;\nmov.u32 %0, 0;\nmov.u32 %1, 0;\n@p ld.global.v2.u32 {%0,%1}, [%2];\n}"
                   : "=&r"(v[2 * i]), "=&r"(v[2 * i + 1]) : "l"((const u8 *)p + 8 * i), "r"((u32)inside) : "memory");
  }
  return r;
}

#if DTYPE_BF16
#define DTYPE_BF16_OR_F16(a, b) (a)
#else
#define DTYPE_BF16_OR_F16(a, b) (b)
#endif

template <int LUT> DEV u32 lop3(u32 a, u32 b, u32 c) {
  u32 r;
  asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(r) : "r"(a), "r"(b), "r"(c), "n"(LUT));
  return r;
}
DEV u32 and_or(u32 a, u32 mask, u32 bits) { return lop3<0xea>(a, mask, bits); } // a & mask | bits

DEV u32 fma2(bf16_t, u32 a, u32 b, u32 c) {
  u32 r;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
}
DEV u32 fma2(f16_t, u32 a, u32 b, u32 c) {
  u32 r;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
}

// The codes of one word as pairs of elements. An int4 code c comes as CODE_BASE + c, which costs the least: what is too
// much is CODE_BASE times the sum of the tokens, for all codes of a group together. Others come as they are.
#if DTYPE_W_INT4 && DTYPE_BF16
#define CODE_BASE 128.0f
#elif DTYPE_W_INT4
#define CODE_BASE 1024.0f
#else
#define CODE_BASE 0.0f
#endif
#define ONES (DTYPE_BF16_OR_F16(0x3f803f80u, 0x3c003c00u))

// The pair of a word that is in its lowest bits: bits 0 and 16, or bytes 0 and 2, on.
DEV u32 one_pair(u32 v) {
#if DTYPE_W_INT4
  return and_or(v, 0x000f000fu, DTYPE_BF16_OR_F16(0x43004300u, 0x64006400u));
#elif DTYPE_W_INT8 && DTYPE_BF16
  // Of a mantissa of 7 bits the sign bit of a code is the next power of two, which is taken off.
  const u32 low = and_or(v, 0x007f007fu, 0x43004300u), high = and_or(v, 0x00800080u, 0x43004300u);
  return fma2(elem{}, high, 0xbf80bf80u, low);
#elif DTYPE_W_INT8
  return fma2(elem{}, and_or(v ^ 0x00800080u, 0x00ff00ffu, 0x64006400u), ONES, 0xe480e480u); // - 1152
#else
  // Sign, exponent and mantissa in the element's places; its exponent counts from elsewhere.
  return fma2(elem{}, and_or(v << 8, 0x80008000u, (v & 0x007f007fu) << DTYPE_BF16_OR_F16(4, 7)),
              DTYPE_BF16_OR_F16(0x7b807b80u, 0x5c005c00u), 0x80008000u); // times 2^120 or 2^8
#endif
}
DEV void pairs(u32 (&p)[WORD_PAIRS], u32 word) {
#pragma unroll
  for (int i = 0; i < WORD_PAIRS; i++) p[i] = one_pair(word >> (i * CODE_BITS));
}
