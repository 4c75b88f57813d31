// For templates whose x is of codes and scales: x_elem is what a code is stored as, and x_value what one is worth.
#pragma once
#include "common.cuh"

#if DTYPE_X_INT8
typedef signed char x_elem;
DEV float x_code(x_elem code) { return (float)code; }
#elif DTYPE_X_E4M3
typedef e4m3_t x_elem;
DEV float x_code(x_elem code) { return to_f32(code); }
#else
#error "no DTYPE_X_ of codes is defined"
#endif

// The element (row, col) of x[m, k] in arithmetic of T, float or double.
template <class T> DEV T x_value(const x_elem *x, const float *scales, int row, int col, int k) {
#if X_SCALE_TENSOR
  const i64 at = 0;
#elif X_SCALE_ROW
  const i64 at = row;
#elif X_SCALE_GROUP
  const i64 at = (i64)row * cdiv(k, X_GROUP) + col / X_GROUP;
#else
#error "no X_SCALE_ of scaled tokens is defined"
#endif
  return (T)x_code(x[(i64)row * k + col]) * (T)scales[at];
}
