// RoPE over adjacent pairs. A thread takes VEC consecutive dimensions of ITEMS heads of one token, so that it looks the
// position up and loads the cosines and sines once.
#include "vector_io.cuh"

#define CHUNKS (HEAD_DIM / VEC)
#define HEAD_GROUPS ((HEADS + ITEMS - 1) / ITEMS)

static_assert(VEC % 2 == 0 && HEAD_DIM % VEC == 0, "a thread takes whole pairs");

extern "C" __global__ void __launch_bounds__(THREADS) rope(const elem *__restrict__ x, const int *__restrict__ positions,
                                                           const float *__restrict__ cos_sin, elem *__restrict__ y, int tokens) {
#if PDL
  pdl_launch();
  pdl_wait();
#endif
  const i64 i = (i64)blockIdx.x * THREADS + threadIdx.x, token = i / (HEAD_GROUPS * CHUNKS);
  const int chunk = (int)(i % CHUNKS), group = (int)(i / CHUNKS % HEAD_GROUPS);
  if (token >= tokens) return;
  packed<VEC> v[ITEMS];
#pragma unroll
  for (int j = 0; j < ITEMS; j++) {
    const int head = group + j * HEAD_GROUPS;
    if (head < HEADS) v[j] = load<VEC>(x + (token * HEADS + head) * HEAD_DIM + chunk * VEC);
  }
  const float2 *cs = (const float2 *)(cos_sin + ((i64)positions[token] * HEAD_DIM + chunk * VEC));
  float2 r[VEC / 2];
#pragma unroll
  for (int p = 0; p < VEC / 2; p++) r[p] = cs[p];
#pragma unroll
  for (int j = 0; j < ITEMS; j++) {
    const int head = group + j * HEAD_GROUPS;
    if (head >= HEADS) break;
    float a[VEC], b[VEC];
    unpack(v[j], a);
#pragma unroll
    for (int p = 0; p < VEC / 2; p++) {
      b[2 * p] = a[2 * p] * r[p].x - a[2 * p + 1] * r[p].y;
      b[2 * p + 1] = a[2 * p] * r[p].y + a[2 * p + 1] * r[p].x;
    }
    store(y + (token * HEADS + head) * HEAD_DIM + chunk * VEC, pack(b));
  }
}
