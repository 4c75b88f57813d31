// y = silu(gate)·up with gate at even and up at odd columns of x, so that the pair of a result is adjacent.
#include "flat.cuh"

extern "C" __global__ void __launch_bounds__(THREADS) silu_mul(const elem *__restrict__ x, elem *__restrict__ y, i64 count) {
#if PDL
  pdl_launch();
  pdl_wait();
#endif
  map_flat<2>(x, y, count, [](const float *v) { return silu(v[0]) * v[1]; });
}
