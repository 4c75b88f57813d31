// RMSNorm over rows, optionally after a residual add whose sum is written as well. See norm.cuh.
#include "norm.cuh"

extern "C" __global__ void __launch_bounds__(THREADS) rmsnorm(const elem *__restrict__ x,
#if RESIDUAL
                                                              const elem *__restrict__ residual,
#endif
                                                              const elem *__restrict__ weight, elem *__restrict__ y,
#if RESIDUAL
                                                              elem *__restrict__ h,
#endif
                                                              int rows, float eps) {
#if RESIDUAL
  norm<false>(x, residual, weight, nullptr, y, h, rows, eps);
#else
  norm<false>(x, nullptr, weight, nullptr, y, nullptr, rows, eps);
#endif
}
