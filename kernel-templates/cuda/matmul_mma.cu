// Matrix product y = x·Wᵀ on the warp-level matrix instructions of sm_80 (mma.sync): the portable tier.
//
// A block computes TILE_M × TILE_N outputs; its WARPS_M × WARPS_N warps own equal rectangles of them. A stage in shared
// memory is ROW_BYTES of every row of the x tile and of the W tile. STAGES of them form a ring that asynchronous copies
// fill:
//
//   global --cp.async--> ring --ldmatrix--> fragments (two sets) --mma--> accumulators --shuffle--> epilogue
//
// The fragments of the next 32 bytes of k are loaded while those of the current ones are multiplied, across stages too.
// Both operands are k-major, so ldmatrix (8 rows × 16 bytes) gives the fragments of 16-bit elements and of TF32 alike:
// one step of k is 32 bytes whatever the type.
//
// Invariants:
// - One group of copies is committed per step of the ring, empty ones too, so that the number of groups that may still
//   be in flight is the same in every iteration.
// - Rows past m or N are copies of the last row and their results are never stored. Columns past K are zero in both
//   operands.
// - The 16-byte chunk c of row r is stored at chunk c ^ swizzle(r): any eight rows of one chunk lie in different banks.
//
// With SPLIT_K > 1 a block covers one part of k and stores f32 partial sums; matmul_mma_reduce adds them in a fixed
// order and applies the epilogue.
#include "epilogue.cuh"
#include "qk_norm.cuh"
#include "mma.cuh"

#include "mma_ring.cuh"
extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
matmul_mma(const elem *__restrict__ x, const elem *__restrict__ w, EPILOGUE_PARAMS, int m PARTIAL_PARAM) {
  extern __shared__ __align__(128) unsigned char shared[];
  pdl_wait();

#include "mma_tile.cuh"
#pragma unroll
  for (int t = 0; t < STAGES - 1; t++) fill(t);

#include "mma_rows.cuh"
}

#if SPLIT_K > 1
extern "C" __global__ void __launch_bounds__(256)
matmul_mma_reduce(const float *__restrict__ partial, EPILOGUE_PARAMS, int m) {
  pdl_wait();
  const epilogue_args e = EPILOGUE_PACK;
  epilogue_reduce<SPLIT_K>(e, partial, m);
}
#endif
