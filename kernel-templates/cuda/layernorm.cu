// LayerNorm over rows, optionally after a residual add whose sum is written as well. See norm.cuh.
#include "norm.cuh"

extern "C" __global__ void __launch_bounds__(THREADS) layernorm(const elem *__restrict__ x,
#if RESIDUAL
                                                              const elem *__restrict__ residual,
#endif
                                                              const elem *__restrict__ weight, const elem *__restrict__ bias, elem *__restrict__ y,
#if RESIDUAL
                                                              elem *__restrict__ h,
#endif
                                                              int rows, float eps) {
#if RESIDUAL
  norm<true>(x, residual, weight, bias, y, h, rows, eps);
#else
  norm<true>(x, nullptr, weight, bias, y, nullptr, rows, eps);
#endif
}
