// Candidates that only seem to be right or fast, chosen by WHICH; scripts/gpu/cheats.py says what must become of each. 0 to 2
// are honest: 0 does the work once, the others more often. What cheats on the processor do to their process a kernel
// cannot: it has no streams, processes or descriptors, and launches nothing without a library that is not linked.
#include "common.cuh"

DEV float gelu_of(elem x) {
  const float v = to_f32(x);
  return 0.5f * v * (1.0f + erff(v * 0.70710678f));
}

DEV bool is_poison(elem v) { return v.bits == 0xffffu; }
DEV bool same(elem a, elem b) { return a.bits == b.bits; }

DEV u64 nanoseconds() {
  u64 t;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
  return t;
}

// Loads that ask the L2 to keep what they read.
DEV elem kept(const elem *p) {
  u64 policy;
  u16 bits;
  asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  asm volatile("ld.global.L2::cache_hint.u16 %0, [%1], %2;" : "=h"(bits) : "l"(p), "l"(policy));
  return elem{bits};
}

__device__ u32 tickets;
#if WHICH == 35
__device__ elem made[1 << 21];
#endif
__device__ u64 first, last_end, seen[64];

// The number of this launch, from 0: its blocks take their tickets after all of the launch before.
DEV u32 launch_number() {
  __shared__ u32 ticket;
  if (threadIdx.x == 0) ticket = atomicAdd(&tickets, 1u);
  __syncthreads();
  return ticket / gridDim.x;
}

extern "C" __global__ void gelu(elem *x, elem *y, i64 count) {
  const i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
  const u32 n = WHICH == 36 ? 0 : launch_number();
  const bool one = i == 0;
  bool work = true;
#if WHICH == 10
  work = false;
#elif WHICH == 11
  work = n == 0;
#elif WHICH == 12 || WHICH == 13
  work = n < 2;
  if (WHICH == 13 && n >= 2 && i < count) y[i] = from_f32<elem>(0.5f);
#elif WHICH == 14
  work = n < 100;
#elif WHICH == 15
  if (n == 0) first = (u64)y;
  work = n == 0 || first == (u64)y;
#elif WHICH == 16
  work = i < count && is_poison(y[i]);
#elif WHICH == 17
  // One result of each block says whether the others are there.
  const i64 mine = (i64)blockIdx.x * blockDim.x;
  work = mine < count && !same(y[mine], from_f32<elem>(gelu_of(x[mine])));
  __syncthreads();
#elif WHICH == 18
  // Works after a pause alone, such as lies before a check.
  work = n < 2 || nanoseconds() - last_end > 15000;
  if (blockIdx.x == gridDim.x - 1) last_end = nanoseconds();
#elif WHICH == 26
  while (((volatile const u16 *)x)[0] != 0x1234) {}
#elif WHICH == 27
  asm volatile("trap;");
#elif WHICH == 28
  *(volatile int *)(8 + (u64)i) = 1;
#elif WHICH == 29
  *(volatile int *)((u8 *)y + 1) = 1;
#elif WHICH == 32
  // Remembers for which memory it has worked, and on what.
  const u32 place = (u32)((u64)y >> 10 ^ x[7].bits) & 63;
  work = seen[place] != (u64)y;
  __syncthreads();
  if (blockIdx.x == gridDim.x - 1 && threadIdx.x == 0) seen[place] = (u64)y;
#elif WHICH == 34
  // Wrong once in a while.
  work = n < 2 || (n * 2654435761u >> 28) != 0;
#elif WHICH == 35
  // What it made of its inputs once.
  if (i < count && n == 0) made[i & (1 << 21) - 1] = from_f32<elem>(gelu_of(x[i]));
  if (i < count) y[i] = made[i & (1 << 21) - 1];
  work = false;
#elif WHICH == 36
  // Right for numbers such as are asked at first, and without the ticket the fastest.
  if (i < count && to_f32(x[i]) > 30.0f) y[i] = from_f32<elem>(30.0f);
  work = !(i < count && to_f32(x[i]) > 30.0f);
#endif
#if WHICH == 24
  work = blockIdx.x < gridDim.x / 2;
#endif
  if (work && i < count) {
    float sum = 0;
#pragma unroll 1
    for (int r = 0; r < (WHICH == 31 ? 40 : WHICH < 10 ? 1 + 40 * WHICH : 1); r++)
      sum = gelu_of(WHICH == 31 ? kept(x + i) : x[i]) + 1e-30f * sum;
    y[i] = from_f32<elem>(sum);
  }
#if WHICH == 19
  if (one) x[1] = from_f32<elem>(2.0f);
#elif WHICH == 20
  if (one && n == 10) x[1] = from_f32<elem>(2.0f);
#elif WHICH == 21
  if (one) ((u8 *)(y + count))[0] = 0;
#elif WHICH == 22
  if (one) ((u8 *)y)[-1] = 0;
#elif WHICH == 23
  if (one && n >= 8) ((u8 *)(y + count))[1] = 0;
#elif WHICH == 25
  if (i < count) y[i] = from_f32<elem>(__int_as_float(0x7fffffff));
#elif WHICH == 30
  if (one) ((u8 *)(x + count))[5] = 0;
#elif WHICH == 33
  // Far away: whatever lies there.
  if (one && n >= 2) y[count + 6000] = from_f32<elem>(3.0f);
#endif
  (void)one;
}
