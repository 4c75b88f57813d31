// The product of matmul_mma.cu for whole steps. Between launches of itself, where winners are timed, a block of the next launch waits
// beside the last ones of this, and what it has to do before is no time. In a step another kernel is before it, behind whose results its
// weights need not wait: the first stages of W are on their way when that ends. Where k is split, the second launch lets the kernel behind
// it begin at once, which has weights of its own to ask for.
//
// One group of copies has all that was asked for before the wait and the first stage of x; every other stage is one of its own, as there.
#include "epilogue.cuh"
#include "qk_norm.cuh"
#include "mma.cuh"
#include "mma_ring.cuh"
extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
matmul_mma_early(const elem *__restrict__ x, const elem *__restrict__ w, EPILOGUE_PARAMS, int m PARTIAL_PARAM) {
  extern __shared__ __align__(128) unsigned char shared[];

#include "mma_tile.cuh"
#pragma unroll
  for (int t = 0; t < STAGES - 1; t++)
    if (t < k_tiles) copy_w.issue(ring + t * STAGE_BYTES + TILE_M * ROW_BYTES, (k_begin + t) * TILE_K);
  pdl_wait();
#pragma unroll
  for (int t = 0; t < STAGES - 1; t++) {
    if (t < k_tiles) copy_x.issue(fill_stage, (k_begin + t) * TILE_K);
    cp_async_commit();
    fill_stage = next(fill_stage);
  }

#include "mma_rows.cuh"
}

#if SPLIT_K > 1
extern "C" __global__ void __launch_bounds__(256)
matmul_mma_early_reduce(const float *__restrict__ partial, EPILOGUE_PARAMS, int m) {
  pdl_launch();
  pdl_wait();
  const epilogue_args e = EPILOGUE_PACK;
  epilogue_reduce<SPLIT_K>(e, partial, m);
}
#endif
