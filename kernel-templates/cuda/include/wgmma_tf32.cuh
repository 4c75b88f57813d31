// The warpgroup matrix instructions wgmma.m64nNk8 with TF32 operands and f32 accumulators, N = 8, 16, … 256. A template names its
// width as WGMMA_N0 before it includes this file, which makes
//   WgmmaTf32<WIDTH>::ss(d, a, b, accumulate)        A and B are matrix descriptors of K-major operands (hopper.cuh)
//   WgmmaTf32<WIDTH>::rs(d, a, b, accumulate)        A is four registers: the mma.m16n8k8 fragment of the warp's 16 rows,
//                                                    (t / 4, t % 4), (t / 4 + 8, t % 4), (t / 4, t % 4 + 4), (t / 4 + 8, t % 4 + 4)
// d[64 x WIDTH] = A[64 x 8] * B[8 x WIDTH] (+ d where accumulate is not 0), laid out as wgmma.cuh says. Of the f32 in shared memory or
// registers the last 13 bits are passed over.
#pragma once
#include "hopper.cuh"

#include "wgmma_tables.cuh"

#define WT_OP(i) "%" #i
#define WT_SS_(n, i0, i1, i2, ...)                                                                                     \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " WT_OP(i2) ", 0;\n"                                                  \
               "wgmma.mma_async.sync.aligned.m64n" #n "k8.f32.tf32.tf32 {" WG_R_##n "}, "                               \
               WT_OP(i0) ", " WT_OP(i1) ", p, 1, 1;\n}"                                                                \
               : WG_D_##n : "l"(a), "l"(b), "r"(accumulate))
#define WT_RS_(n, i0, i1, i2, i3, i4, i5, ...)                                                                         \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " WT_OP(i5) ", 0;\n"                                                  \
               "wgmma.mma_async.sync.aligned.m64n" #n "k8.f32.tf32.tf32 {" WG_R_##n "}, {" WT_OP(i0) "," WT_OP(i1) "," \
               WT_OP(i2) "," WT_OP(i3) "}, " WT_OP(i4) ", p, 1, 1;\n}"                                                 \
               : WG_D_##n : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate))
#define WT_SS(n, ...) WT_SS_(n, __VA_ARGS__)
#define WT_RS(n, ...) WT_RS_(n, __VA_ARGS__)
#define WT_DEFINE_(n)                                                                                                  \
  template <> struct WgmmaTf32<n> {                                                                                    \
    static DEV void ss(float (&d)[n / 2], u64 a, u64 b, int accumulate) { WT_SS(n, WG_I_##n); }                        \
    static DEV void rs(float (&d)[n / 2], const u32 (&a)[4], u64 b, int accumulate) { WT_RS(n, WG_I_##n); }            \
  };
#define WT_DEFINE(n) WT_DEFINE_(n)

template <int WIDTH> struct WgmmaTf32;
WT_DEFINE(WGMMA_N0)
