// Reductions of the f64 references: over a block of 256 threads, the result in every thread.
#pragma once
#include "common.cuh"

DEV double block_reduce_f64(double v, bool take_max) {
  __shared__ double part[8];
  for (int o = 16; o > 0; o >>= 1) {
    double w = __shfl_xor_sync(0xffffffffu, v, o);
    v = take_max ? fmax(v, w) : v + w;
  }
  __syncthreads(); // an earlier call may still be reading
  if (lane_id() == 0) part[warp_id()] = v;
  __syncthreads();
  v = part[0];
  for (int i = 1; i < 8; i++) v = take_max ? fmax(v, part[i]) : v + part[i];
  return v;
}
DEV double block_sum_f64(double v) { return block_reduce_f64(v, false); }
DEV double block_max_f64(double v) { return block_reduce_f64(v, true); }
