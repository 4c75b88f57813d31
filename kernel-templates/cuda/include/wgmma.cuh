// The warpgroup matrix instructions wgmma.m64nNk16 with 16-bit elements and f32 accumulators, N = 8, 16, … 256.
//
// A template names the widths it uses before it includes this file, as literal numbers: WGMMA_N0, and if needed WGMMA_N1
// and WGMMA_N2. Only those are instantiated, as
//   Wgmma<WIDTH>::ss<TRANS_B>(d, a, b, accumulate)   A and B are matrix descriptors (hopper.cuh)
//   Wgmma<WIDTH>::rs<TRANS_B>(d, a, b, accumulate)   A is four registers: the mma.m16n8k16 fragment of the warp's 16 rows
// d[64 x WIDTH] = A[64 x 16] * B[16 x WIDTH] (+ d where accumulate is not 0). Warp w of the warpgroup holds rows 16w to 16w + 15:
// d[4j + 0..3] of lane t are (row, col), (row, col + 1), (row + 8, col), (row + 8, col + 1) with row = 16w + t / 4 and
// col = 8j + 2(t % 4). B is K-major, or MN-major with TRANS_B = 1.
//
// The tables are cumulative: WG_R_n lists the accumulators' operand numbers for width n, WG_D_n their C operands, and
// WG_I_n the numbers of the operands behind them.
#pragma once
#include "hopper.cuh"

#include "wgmma_tables.cuh"
#if DTYPE_F16
#define WG_TYPES "f32.f16.f16"
#else
#define WG_TYPES "f32.bf16.bf16"
#endif
#define WG_OP(i) "%" #i
#define WG_SS_(n, i0, i1, i2, i3, ...)                                                                                 \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " WG_OP(i2) ", 0;\n"                                                  \
               "wgmma.mma_async.sync.aligned.m64n" #n "k16." WG_TYPES " {" WG_R_##n "}, "                               \
               WG_OP(i0) ", " WG_OP(i1) ", p, 1, 1, 0, " WG_OP(i3) ";\n}"                                               \
               : WG_D_##n : "l"(a), "l"(b), "r"(accumulate), "n"(TRANS_B))
#define WG_RS_(n, i0, i1, i2, i3, i4, i5, i6)                                                                           \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " WG_OP(i5) ", 0;\n"                                                  \
               "wgmma.mma_async.sync.aligned.m64n" #n "k16." WG_TYPES " {" WG_R_##n "}, {" WG_OP(i0) "," WG_OP(i1) ","  \
               WG_OP(i2) "," WG_OP(i3) "}, " WG_OP(i4) ", p, 1, 1, " WG_OP(i6) ";\n}"                                   \
               : WG_D_##n : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(TRANS_B))
#define WG_SS(n, ...) WG_SS_(n, __VA_ARGS__)
#define WG_RS(n, ...) WG_RS_(n, __VA_ARGS__)
#define WG_DEFINE_(n)                                                                                                  \
  template <> struct Wgmma<n> {                                                                                        \
    template <int TRANS_B = 0> static DEV void ss(float (&d)[n / 2], u64 a, u64 b, int accumulate) {                   \
      WG_SS(n, WG_I_##n);                                                                                              \
    }                                                                                                                  \
    template <int TRANS_B = 0> static DEV void rs(float (&d)[n / 2], const u32 (&a)[4], u64 b, int accumulate) {       \
      WG_RS(n, WG_I_##n);                                                                                              \
    }                                                                                                                  \
  };
#define WG_DEFINE(n) WG_DEFINE_(n)

template <int WIDTH> struct Wgmma;
WG_DEFINE(WGMMA_N0)
#if defined(WGMMA_N1) && WGMMA_N1 != WGMMA_N0
WG_DEFINE(WGMMA_N1)
#endif
#if defined(WGMMA_N2) && WGMMA_N2 != WGMMA_N0 && WGMMA_N2 != WGMMA_N1
WG_DEFINE(WGMMA_N2)
#endif
