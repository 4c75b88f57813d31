// Embedding lookup: copies row ids[t] of the table to row t. A thread takes ITEMS accesses of one row, spread over it.
#include "vector_io.cuh"

#define CHUNKS (HIDDEN / VEC)
#define ROW_THREADS ((CHUNKS + ITEMS - 1) / ITEMS)

static_assert(HIDDEN % VEC == 0, "a row is whole accesses");

extern "C" __global__ void __launch_bounds__(THREADS) embedding(const int *__restrict__ ids, const elem *__restrict__ table,
                                                                elem *__restrict__ y, int tokens) {
#if PDL
  pdl_launch();
  pdl_wait();
#endif
  const i64 i = (i64)blockIdx.x * THREADS + threadIdx.x, token = i / ROW_THREADS;
  const int first = (int)(i % ROW_THREADS);
  if (token >= tokens) return;
  const elem *from = table + (i64)ids[token] * HIDDEN;
  packed<VEC> v[ITEMS];
#pragma unroll
  for (int j = 0; j < ITEMS; j++)
    if (first + j * ROW_THREADS < CHUNKS) v[j] = load<VEC>(from + (first + j * ROW_THREADS) * VEC);
#pragma unroll
  for (int j = 0; j < ITEMS; j++)
    if (first + j * ROW_THREADS < CHUNKS) store(y + token * HIDDEN + (first + j * ROW_THREADS) * VEC, v[j]);
}
