// Index of the largest element of each row, the lowest among equals. SPLITS blocks share a row; each reduces its part to
// one key that orders by value and then by lower index, and the last to arrive writes the result and leaves the
// workspace (a key and a counter per row) zero again.
#include "vector_io.cuh"

#define CHUNKS (COLS / VEC)
#define SHARE ((CHUNKS + SPLITS - 1) / SPLITS) // accesses of one block
#define ITEMS ((SHARE + THREADS - 1) / THREADS)

static_assert(COLS % VEC == 0 && THREADS % 32 == 0, "a row is whole accesses");

// Larger keys win; no element has key zero.
DEV u64 key_of(float v, int index) {
  const u32 bits = __float_as_uint(v + 0.0f); // -0 equals 0
  return (u64)(bits & 0x80000000u ? ~bits : bits | 0x80000000u) << 32 | (u32)~index;
}
DEV u64 max_key(u64 a, u64 b) { return a > b ? a : b; }

extern "C" __global__ void __launch_bounds__(THREADS) argmax(const elem *__restrict__ x, int *__restrict__ y, u64 *workspace) {
  __shared__ u64 part[THREADS / 32];
#if PDL
  pdl_launch();
  pdl_wait();
#endif
  const int row = blockIdx.x / SPLITS, from = blockIdx.x % SPLITS * SHARE, to = min(from + SHARE, CHUNKS);
  x += (i64)row * COLS;
  // Within a thread indices only grow, so a strict comparison of the values keeps the lowest.
  float best = NEG_INF;
  int index = 0x7fffffff;
#pragma unroll 4
  for (int i = 0; i < ITEMS; i++) {
    const int chunk = from + i * THREADS + threadIdx.x;
    if (chunk < to) {
      float v[VEC];
      unpack(load<VEC>(x + (i64)chunk * VEC), v);
#pragma unroll
      for (int j = 0; j < VEC; j++)
        if (v[j] > best || index == 0x7fffffff) best = v[j], index = chunk * VEC + j;
    }
  }
  u64 key = index == 0x7fffffff ? 0 : key_of(best, index);
#pragma unroll
  for (int o = 16; o > 0; o /= 2) key = max_key(key, __shfl_xor_sync(0xffffffffu, key, o));
  if (lane_id() == 0) part[warp_id()] = key;
  __syncthreads();
  if (threadIdx.x > 0) return;
#pragma unroll
  for (int i = 1; i < THREADS / 32; i++) key = max_key(key, part[i]);
#if SPLITS > 1
  u64 *best_key = workspace + 2 * (i64)row, *arrived = best_key + 1;
  u64 before;
  atomicMax(best_key, key);
  asm volatile("atom.add.acq_rel.gpu.global.u64 %0, [%1], 1;" : "=l"(before) : "l"(arrived) : "memory");
  if (before != SPLITS - 1) return;
  key = atomicExch(best_key, 0ull);
  *arrived = 0;
#endif
  y[row] = (int)~(u32)key;
}
