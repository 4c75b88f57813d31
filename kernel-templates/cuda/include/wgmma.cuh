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

#define WG_R_8 "%0,%1,%2,%3"
#define WG_D_8 "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
#define WG_I_8 4, 5, 6, 7, 8, 9, 10
#define WG_R_16 WG_R_8 ",%4,%5,%6,%7"
#define WG_D_16 WG_D_8, "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
#define WG_I_16 8, 9, 10, 11, 12, 13, 14
#define WG_R_24 WG_R_16 ",%8,%9,%10,%11"
#define WG_D_24 WG_D_16, "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11])
#define WG_I_24 12, 13, 14, 15, 16, 17, 18
#define WG_R_32 WG_R_24 ",%12,%13,%14,%15"
#define WG_D_32 WG_D_24, "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
#define WG_I_32 16, 17, 18, 19, 20, 21, 22
#define WG_R_40 WG_R_32 ",%16,%17,%18,%19"
#define WG_D_40 WG_D_32, "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19])
#define WG_I_40 20, 21, 22, 23, 24, 25, 26
#define WG_R_48 WG_R_40 ",%20,%21,%22,%23"
#define WG_D_48 WG_D_40, "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23])
#define WG_I_48 24, 25, 26, 27, 28, 29, 30
#define WG_R_56 WG_R_48 ",%24,%25,%26,%27"
#define WG_D_56 WG_D_48, "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27])
#define WG_I_56 28, 29, 30, 31, 32, 33, 34
#define WG_R_64 WG_R_56 ",%28,%29,%30,%31"
#define WG_D_64 WG_D_56, "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define WG_I_64 32, 33, 34, 35, 36, 37, 38
#define WG_R_72 WG_R_64 ",%32,%33,%34,%35"
#define WG_D_72 WG_D_64, "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35])
#define WG_I_72 36, 37, 38, 39, 40, 41, 42
#define WG_R_80 WG_R_72 ",%36,%37,%38,%39"
#define WG_D_80 WG_D_72, "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39])
#define WG_I_80 40, 41, 42, 43, 44, 45, 46
#define WG_R_88 WG_R_80 ",%40,%41,%42,%43"
#define WG_D_88 WG_D_80, "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43])
#define WG_I_88 44, 45, 46, 47, 48, 49, 50
#define WG_R_96 WG_R_88 ",%44,%45,%46,%47"
#define WG_D_96 WG_D_88, "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47])
#define WG_I_96 48, 49, 50, 51, 52, 53, 54
#define WG_R_104 WG_R_96 ",%48,%49,%50,%51"
#define WG_D_104 WG_D_96, "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51])
#define WG_I_104 52, 53, 54, 55, 56, 57, 58
#define WG_R_112 WG_R_104 ",%52,%53,%54,%55"
#define WG_D_112 WG_D_104, "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55])
#define WG_I_112 56, 57, 58, 59, 60, 61, 62
#define WG_R_120 WG_R_112 ",%56,%57,%58,%59"
#define WG_D_120 WG_D_112, "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59])
#define WG_I_120 60, 61, 62, 63, 64, 65, 66
#define WG_R_128 WG_R_120 ",%60,%61,%62,%63"
#define WG_D_128 WG_D_120, "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
#define WG_I_128 64, 65, 66, 67, 68, 69, 70
#define WG_R_136 WG_R_128 ",%64,%65,%66,%67"
#define WG_D_136 WG_D_128, "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67])
#define WG_I_136 68, 69, 70, 71, 72, 73, 74
#define WG_R_144 WG_R_136 ",%68,%69,%70,%71"
#define WG_D_144 WG_D_136, "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71])
#define WG_I_144 72, 73, 74, 75, 76, 77, 78
#define WG_R_152 WG_R_144 ",%72,%73,%74,%75"
#define WG_D_152 WG_D_144, "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75])
#define WG_I_152 76, 77, 78, 79, 80, 81, 82
#define WG_R_160 WG_R_152 ",%76,%77,%78,%79"
#define WG_D_160 WG_D_152, "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79])
#define WG_I_160 80, 81, 82, 83, 84, 85, 86
#define WG_R_168 WG_R_160 ",%80,%81,%82,%83"
#define WG_D_168 WG_D_160, "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83])
#define WG_I_168 84, 85, 86, 87, 88, 89, 90
#define WG_R_176 WG_R_168 ",%84,%85,%86,%87"
#define WG_D_176 WG_D_168, "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87])
#define WG_I_176 88, 89, 90, 91, 92, 93, 94
#define WG_R_184 WG_R_176 ",%88,%89,%90,%91"
#define WG_D_184 WG_D_176, "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91])
#define WG_I_184 92, 93, 94, 95, 96, 97, 98
#define WG_R_192 WG_R_184 ",%92,%93,%94,%95"
#define WG_D_192 WG_D_184, "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95])
#define WG_I_192 96, 97, 98, 99, 100, 101, 102
#define WG_R_200 WG_R_192 ",%96,%97,%98,%99"
#define WG_D_200 WG_D_192, "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99])
#define WG_I_200 100, 101, 102, 103, 104, 105, 106
#define WG_R_208 WG_R_200 ",%100,%101,%102,%103"
#define WG_D_208 WG_D_200, "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103])
#define WG_I_208 104, 105, 106, 107, 108, 109, 110
#define WG_R_216 WG_R_208 ",%104,%105,%106,%107"
#define WG_D_216 WG_D_208, "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107])
#define WG_I_216 108, 109, 110, 111, 112, 113, 114
#define WG_R_224 WG_R_216 ",%108,%109,%110,%111"
#define WG_D_224 WG_D_216, "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111])
#define WG_I_224 112, 113, 114, 115, 116, 117, 118
#define WG_R_232 WG_R_224 ",%112,%113,%114,%115"
#define WG_D_232 WG_D_224, "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115])
#define WG_I_232 116, 117, 118, 119, 120, 121, 122
#define WG_R_240 WG_R_232 ",%116,%117,%118,%119"
#define WG_D_240 WG_D_232, "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119])
#define WG_I_240 120, 121, 122, 123, 124, 125, 126
#define WG_R_248 WG_R_240 ",%120,%121,%122,%123"
#define WG_D_248 WG_D_240, "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123])
#define WG_I_248 124, 125, 126, 127, 128, 129, 130
#define WG_R_256 WG_R_248 ",%124,%125,%126,%127"
#define WG_D_256 WG_D_248, "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])
#define WG_I_256 128, 129, 130, 131, 132, 133, 134

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
