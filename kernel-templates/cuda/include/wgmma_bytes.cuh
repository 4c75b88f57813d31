// The warpgroup matrix instructions wgmma.m64nNk32 with operands of 8 bits, N = 16, 32, … 256: E4M3 with f32 accumulators, or signed
// integers with s32. A template names its width as WGMMA_N0 before it includes this file, which makes
//   WgmmaBytes<WIDTH>::ss(d, a, b, accumulate)       A and B are matrix descriptors of K-major operands (hopper.cuh)
// d[64 x WIDTH] = A[64 x 32] * B[32 x WIDTH] (+ d where accumulate is not 0), laid out as wgmma.cuh says. Sums of E4M3 are kept in
// fewer bits than f32 while they stay in the tensor cores (some 14 of mantissa), so long ones are to be promoted.
#pragma once
#include "hopper.cuh"

#include "wgmma_tables.cuh"

#if DTYPE_X_INT8
typedef int sum_t;
#define WB_TYPES "s32.s8.s8"
#define WB_SCALES ";\n}"
#define WB_REG(v) "+r"(v)
template <int COUNT> DEV void wgmma_pin(int (&d)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; i++) asm volatile("" : "+r"(d[i])::"memory");
}
#else
typedef float sum_t;
#define WB_TYPES "f32.e4m3.e4m3"
#define WB_SCALES ", 1, 1;\n}"
#define WB_REG(v) "+f"(v)
#endif

#define WB_8(i)                                                                                                        \
  WB_REG(d[i]), WB_REG(d[i + 1]), WB_REG(d[i + 2]), WB_REG(d[i + 3]), WB_REG(d[i + 4]), WB_REG(d[i + 5]),              \
      WB_REG(d[i + 6]), WB_REG(d[i + 7])
#define WB_D_16 WB_8(0)
#define WB_D_32 WB_D_16, WB_8(8)
#define WB_D_48 WB_D_32, WB_8(16)
#define WB_D_64 WB_D_48, WB_8(24)
#define WB_D_80 WB_D_64, WB_8(32)
#define WB_D_96 WB_D_80, WB_8(40)
#define WB_D_112 WB_D_96, WB_8(48)
#define WB_D_128 WB_D_112, WB_8(56)
#define WB_D_144 WB_D_128, WB_8(64)
#define WB_D_160 WB_D_144, WB_8(72)
#define WB_D_176 WB_D_160, WB_8(80)
#define WB_D_192 WB_D_176, WB_8(88)
#define WB_D_208 WB_D_192, WB_8(96)
#define WB_D_224 WB_D_208, WB_8(104)
#define WB_D_240 WB_D_224, WB_8(112)
#define WB_D_256 WB_D_240, WB_8(120)

#define WB_OP(i) "%" #i
#define WB_SS_(n, i0, i1, i2, ...)                                                                                     \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " WB_OP(i2) ", 0;\n"                                                  \
               "wgmma.mma_async.sync.aligned.m64n" #n "k32." WB_TYPES " {" WG_R_##n "}, "                               \
               WB_OP(i0) ", " WB_OP(i1) ", p" WB_SCALES                                                                \
               : WB_D_##n : "l"(a), "l"(b), "r"(accumulate))
#define WB_SS(n, ...) WB_SS_(n, __VA_ARGS__)
#define WB_DEFINE_(n)                                                                                                  \
  template <> struct WgmmaBytes<n> {                                                                                   \
    static DEV void ss(sum_t (&d)[n / 2], u64 a, u64 b, int accumulate) { WB_SS(n, WG_I_##n); }                        \
  };
#define WB_DEFINE(n) WB_DEFINE_(n)

template <int WIDTH> struct WgmmaBytes;
WB_DEFINE(WGMMA_N0)
