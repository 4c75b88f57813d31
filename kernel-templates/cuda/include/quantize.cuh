// What tokens become as codes: 0 int8 by rows, 1 E4M3 by rows, 2 E4M3 by groups of 128.
#pragma once
#include "e4m3.cuh"

DEV float largest_code(int codes) { return codes == 0 ? 127.0f : 448.0f; }
// What values are multiplied by for their codes, of the largest magnitude among them. Where all are zeros, so are the codes.
DEV float per_code(int codes, float top) { return top > 0.0f ? largest_code(codes) / top : 0.0f; }
DEV u8 code_of(int codes, float v) {
  if (codes == 0) return (u8)max(-127, min(127, __float2int_rn(v)));
  return (u8)e4m3_pair(v, 0.0f);
}
