// y = x·Wᵀ for up to 64 tokens on the tensor cores of sm_90a: a stream of the weights through shared memory, each byte
// read once. The operands are swapped: 64 rows of W are the M side of wgmma and the tokens its N side, in steps of 8.
//
// A row group is BLOCK_ROWS adjacent rows of W (columns of y). One block computes it, or a cluster of CLUSTER_K blocks,
// each with a part of k. In a block
//  - the last warp is the producer: one thread fills a ring of STAGES buffers by bulk tensor copies (128-byte swizzle).
//    A stage is BLOCKS_K slices of 64 k, of the row group's rows of W and of all tokens of x;
//  - CONSUMERS warpgroups multiply straight out of the ring; each has BLOCK_ROWS / CONSUMERS of the rows.
// Barriers: full[s] completes when all bytes of stage s are in, empty[s] when all consumer warps have used them.
//
//   weights, x ──bulk copies──▶ ring[STAGES] ──wgmma──▶ acc ──pairs──▶ (inbox[CLUSTER_K] ──▶) epilogue
//
// An epilogue works on adjacent columns of y, which are adjacent rows of the accumulator and belong to lanes that differ
// in bit 2: these exchange one value of two, and each then has the pairs of one token. With CLUSTER_K > 1 every block
// finishes 1 / CLUSTER_K of the row group: the blocks write their sums to each other's inbox.
//
// Under programmatic dependent launch the weights of the whole ring are requested before the wait for the kernel that
// produces x, and the dependent kernel may start at once: its own ring then fills under this kernel's tail.
#include "epilogue.cuh"
#include "qk_norm.cuh"
#define WGMMA_N0 TILE_M
#include "wgmma.cuh"

#define ROW_BLOCKS (BLOCK_ROWS / CONSUMERS / 64) // of 64 rows, of a warpgroup
#define THREADS (CONSUMERS * 128 + 32)
#define SLICES ((K + 63) / 64)                                // of 64 k
#define STEPS ((SLICES + CLUSTER_K * BLOCKS_K - 1) / (CLUSTER_K * BLOCKS_K)) // stages for one row group
#define GROUPS ((N + BLOCK_ROWS - 1) / BLOCK_ROWS)
#define PERSISTENT (BLOCKS_SM > 0) // a block takes every gridDim.x-th row group, instead of just one

#define W_SLICE (BLOCK_ROWS * 128) // bytes of one slice of 64 k
#define X_SLICE (TILE_M * 128)
#define STAGE_BYTES (BLOCKS_K * (W_SLICE + X_SLICE))
#define RING_BYTES (STAGES * STAGE_BYTES)
#define PAIRS (BLOCK_ROWS / 2)
#define SHARE (PAIRS / CLUSTER_K) // column pairs that one block of the cluster finishes

static_assert(ELEM_BYTES == 2 && K % 8 == 0, "bulk tensor copies of rows of 16-bit elements");
static_assert(TILE_M % 8 == 0 && TILE_M <= 64, "tokens are the N side of the instruction");
static_assert(BLOCK_ROWS % (CONSUMERS * 64) == 0 && BLOCK_ROWS <= 256, "warpgroups of whole 64-row blocks; a box has at most 256 rows");
static_assert(CLUSTER_K == 1 || (SLICES % (CLUSTER_K * BLOCKS_K) == 0 && !PERSISTENT), "the parts of k do not overlap");
static_assert(PAIRS % CLUSTER_K == 0, "the blocks of a cluster finish equal shares of the row group");

struct ring_position {
  int slot = 0;
  u32 phase = 0;
  DEV void advance() {
    if (++slot == STAGES) slot = 0, phase ^= 1;
  }
};

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
matmul_skinny_hopper(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap w_map, EPILOGUE_PARAMS,
                     int m) {
  extern __shared__ u8 smem[];
  const u32 ring = (smem_u32(smem) + 1023) & ~1023u; // the swizzle pattern repeats every 1024 bytes
  const u32 full = ring + RING_BYTES, empty = full + STAGES * 8;
  [[maybe_unused]] float2 *const inbox = // [CLUSTER_K][TILE_M][SHARE]
      reinterpret_cast<float2 *>(smem + (ring - smem_u32(smem)) + RING_BYTES + STAGES * 16);
  const epilogue_args e = EPILOGUE_PACK;
#if CLUSTER_K > 1
  const int rank = cluster_rank();
#else
  const int rank = 0;
#endif
  const int first_group = blockIdx.x / CLUSTER_K, stride = gridDim.x / CLUSTER_K;
  const int warp = warp_uniform(warp_id()), lane = lane_id();

  pdl_launch();
  if (threadIdx.x == 0) {
    tma_prefetch_map(&w_map);
    tma_prefetch_map(&x_map);
    for (int i = 0; i < STAGES; i++) {
      mbar_init(full + i * 8, 1);
      mbar_init(empty + i * 8, CONSUMERS * 4);
    }
    fence_mbar_init();
  }
  __syncthreads();
#if CLUSTER_K > 1
  cluster_arrive(); // matched before the first write to another block, which must have started by then
#endif

  if (warp == CONSUMERS * 4) {
    if (lane == 0) {
      const auto load_w = [&](int slot, int group, int step) {
#pragma unroll
        for (int i = 0; i < BLOCKS_K; i++)
          tma_load_2d(ring + slot * STAGE_BYTES + i * W_SLICE, &w_map, full + slot * 8,
                      ((rank * STEPS + step) * BLOCKS_K + i) * 64, group * BLOCK_ROWS);
      };
      const auto load_x = [&](int slot, int step) {
#pragma unroll
        for (int i = 0; i < BLOCKS_K; i++)
          tma_load_2d(ring + slot * STAGE_BYTES + BLOCKS_K * W_SLICE + i * X_SLICE, &x_map, full + slot * 8,
                      ((rank * STEPS + step) * BLOCKS_K + i) * 64, 0);
      };
      const int groups = PERSISTENT ? (GROUPS - first_group + stride - 1) / stride : 1, steps = groups * STEPS;
      const int early = min(STAGES, steps);
      for (int i = 0; i < early; i++) {
        mbar_expect_tx(full + i * 8, STAGE_BYTES);
        load_w(i, first_group + i / STEPS * stride, i % STEPS);
      }
      pdl_wait();
      for (int i = 0; i < early; i++) load_x(i, i % STEPS);
      ring_position at;
      int group = first_group + early / STEPS * stride, step = early % STEPS;
      for (int i = early; i < steps; i++) { // early == STAGES here, so slot 0 is the first to be filled again
        mbar_wait(empty + at.slot * 8, at.phase);
        mbar_expect_tx(full + at.slot * 8, STAGE_BYTES);
        load_w(at.slot, group, step);
        load_x(at.slot, step);
        at.advance();
        if (++step == STEPS) step = 0, group += stride;
      }
    }
#if CLUSTER_K > 1
    __syncwarp();
    cluster_wait();
    cluster_sync();
#endif
    return;
  }

  pdl_wait();
  const int row_first = warp / 4 * (ROW_BLOCKS * 64) + warp % 4 * 16; // of this warp in a row group
  ring_position at;
  int group = first_group;
  do {
    float acc[ROW_BLOCKS][TILE_M / 2];
    for (int step = 0; step < STEPS; step++) {
      mbar_wait(full + at.slot * 8, at.phase);
      const u32 w_stage = ring + at.slot * STAGE_BYTES + warp / 4 * (ROW_BLOCKS * 64 * 128);
      const u32 x_stage = ring + at.slot * STAGE_BYTES + BLOCKS_K * W_SLICE;
#pragma unroll
      for (int r = 0; r < ROW_BLOCKS; r++) wgmma_pin(acc[r]);
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < BLOCKS_K; i++)
#pragma unroll
        for (int k = 0; k < 4; k++)
#pragma unroll
          for (int r = 0; r < ROW_BLOCKS; r++)
            Wgmma<TILE_M>::ss(acc[r], desc_advance(desc_k_major<128>(w_stage + i * W_SLICE + r * (64 * 128)), k * 32),
                              desc_advance(desc_k_major<128>(x_stage + i * X_SLICE), k * 32), step + i + k > 0);
      wgmma_commit();
      wgmma_wait<0>();
#pragma unroll
      for (int r = 0; r < ROW_BLOCKS; r++) wgmma_pin(acc[r]);
      if (lane == 0) mbar_arrive(empty + at.slot * 8);
      at.advance();
    }
#include "skinny_hopper_end.cuh" // the sums of a row group to the epilogue, or to the block of the cluster that finishes them
