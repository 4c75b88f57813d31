// For templates whose x and w are each stored in a type of their own: x_elem and w_elem. `elem` is what results, and what is
// added to them, are stored in.
#pragma once
#include "common.cuh"

#include "x_elem.cuh"

#if DTYPE_W_BF16
typedef bf16_t w_elem;
#elif DTYPE_W_F16
typedef f16_t w_elem;
#elif DTYPE_W_F32
typedef float w_elem;
#elif DTYPE_W_E4M3
typedef e4m3_t w_elem;
#else
#error "no DTYPE_W_ of a known type is defined"
#endif
