// What the scales of weights are stored as, and their minima.
#pragma once
#include "common.cuh"

#if SCALE_F32
typedef float scale_elem;
#elif SCALE_F16
typedef f16_t scale_elem;
#elif SCALE_BF16
typedef bf16_t scale_elem;
#else
#error "no SCALE_ of a known type is defined"
#endif
