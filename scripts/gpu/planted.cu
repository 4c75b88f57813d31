// Candidates for the fault checks, chosen by WHICH: 0 to 2 are right (0 does the work once, the others more often), 10
// never ends, 11 writes to an address that is not there, 12 is wrong, 13 traps, 14 writes one element outside, 15 races.
#include "common.cuh"

extern "C" __global__ void gelu(const elem *x, elem *y, i64 n) {
  i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
#if WHICH == 10
  while (((volatile const u16 *)x)[0] != 0x1234) {}
#elif WHICH == 11
  *(volatile int *)(8 + (u64)i) = 1;
#elif WHICH == 13
  asm volatile("trap;");
#elif WHICH == 14
  if (i == 0) y[n] = from_f32<elem>(1.0f);
#elif WHICH == 15
  __shared__ volatile int cell;
  cell = threadIdx.x;
  if (cell < 0) return;
#endif
  if (i >= n) return;
  float sum = 0;
#pragma unroll 1
  for (int r = 0; r < (WHICH < 10 ? 1 + 40 * WHICH : 1); r++) {
    float v = to_f32(x[i]) + 1e-30f * sum;
    sum = 0.5f * v * (1.0f + erff(v * 0.70710678f));
  }
  y[i] = from_f32<elem>(WHICH == 12 && i == n - 1 ? sum + 1.0f : sum);
}
