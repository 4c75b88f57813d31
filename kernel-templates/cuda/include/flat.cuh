// The walk of the elementwise templates over a dense array of `count` results: a thread takes ITEMS groups of VEC
// results, all loaded before the first is computed; what does not fill a group goes one by one.
#pragma once
#include "vector_io.cuh"

// INPUTS elements of x make one result, at the same place. `f(in, out)` maps VEC·INPUTS floats to VEC floats, or, in
// the tail, INPUTS to one.
template <int INPUTS, class F> DEV void map_flat(const elem *x, elem *y, i64 count, F f) {
  constexpr int PART = VEC * INPUTS * ELEM_BYTES > 16 ? 16 / ELEM_BYTES : VEC * INPUTS, PARTS = VEC * INPUTS / PART;
  const i64 first = (i64)blockIdx.x * THREADS * ITEMS + threadIdx.x, groups = count / VEC;
  packed<PART> in[ITEMS][PARTS] = {};
#pragma unroll
  for (int i = 0; i < ITEMS; i++) {
    const i64 group = first + i * THREADS;
    if (group < groups)
#pragma unroll
      for (int j = 0; j < PARTS; j++) in[i][j] = load<PART>(x + group * VEC * INPUTS + j * PART);
  }
#pragma unroll
  for (int i = 0; i < ITEMS; i++) {
    const i64 group = first + i * THREADS;
    if (group < groups) {
      float a[PARTS][PART], b[VEC];
#pragma unroll
      for (int j = 0; j < PARTS; j++) unpack(in[i][j], a[j]);
#pragma unroll
      for (int j = 0; j < VEC; j++) b[j] = f(&a[0][0] + j * INPUTS);
      store(y + group * VEC, pack(b));
    }
  }
  const i64 tail = groups * VEC + threadIdx.x;
  if (blockIdx.x == gridDim.x - 1 && tail < count) {
    float a[INPUTS];
#pragma unroll
    for (int j = 0; j < INPUTS; j++) a[j] = to_f32(x[tail * INPUTS + j]);
    y[tail] = from_f32<elem>(f(a));
  }
}
