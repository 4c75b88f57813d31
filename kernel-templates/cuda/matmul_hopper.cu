// y[m,n] = x[m,k] * w[n,k]^T for 16-bit elements on sm_90a, accumulated in f32, with the epilogue in registers.
//
// A cluster of CLUSTER_M x CLUSTER_N blocks computes as many output tiles of TILE_M x TILE_N, then goes on to the next
// group of tiles (persistent grid). In a block
//  - warpgroup 0 is the producer: one thread fills a ring of STAGES buffers with 64-wide slices of K of x and w, by bulk
//    tensor copies with 128-byte swizzle. A block loads its share of the tiles that its cluster row and column share and
//    multicasts it;
//  - warpgroups 1 .. CONSUMERS multiply straight out of the ring with wgmma. They split the rows of each tile, or with
//    PINGPONG take whole tiles in turn, so that the epilogue of one runs beside the main loop of the other.
//
// With SPLIT_K > 1 a cluster holds SPLIT_K such groups of blocks, each with a part of K and the same tiles; it does one
// group of tiles only. In the end every block collects the other parts' sums of its share of the tile's columns, through
// distributed shared memory (the idle ring), and writes that share.
//
// Ring protocol: full[s] completes when all bytes of stage s are in; empty[s] counts the consumer warps of every block that
// receives what this block sends, so that a refill never overtakes a reader in another block.
//
// Epilogue: each warp owns 16 rows of every 64, and EPI_BUFS buffers of 16 x CHUNK outputs. It rounds a chunk into a buffer
// (stmatrix) and a bulk tensor store writes it out asynchronously; the same buffers receive the residual beforehand.
// Rows and columns beyond the matrices are read as zeros and not written.
constexpr int COLS = N, DEPTH = K; // the headers have template parameters of such names
#undef N
#undef K
#define WGMMA_N0 TILE_N
#include "wgmma.cuh"
#include "wgmma_epilogue.cuh"
#include "qk_norm.cuh"

constexpr int TILE_K = 64;
constexpr int ITERS = (DEPTH + TILE_K - 1) / TILE_K / SPLIT_K; // of this block
constexpr int GROUP = CLUSTER_M * CLUSTER_N;                   // blocks of a cluster with the same part of K
constexpr int CLUSTER = GROUP * SPLIT_K;
constexpr int TILES_N = (COLS + TILE_N * CLUSTER_N - 1) / (TILE_N * CLUSTER_N); // in clusters

constexpr int WG_ROWS = PINGPONG ? TILE_M : TILE_M / CONSUMERS; // of a tile, per consumer warpgroup
constexpr int BLOCKS_M = WG_ROWS / 64;

constexpr int X_BYTES = TILE_M * TILE_K * 2;
constexpr int W_BYTES = TILE_N * TILE_K * 2;
constexpr int STAGE_BYTES = X_BYTES + W_BYTES;
constexpr int X_SHARE = TILE_M / CLUSTER_N; // rows that this block loads for its cluster row
constexpr int W_SHARE = TILE_N / CLUSTER_M;

// Shared memory: the ring, the epilogue buffers, two bias slices per consumer, the barriers.
constexpr int BUFS_AT = STAGES * STAGE_BYTES;
constexpr int BIAS_AT = BUFS_AT + CONSUMERS * 4 * EPI_BUFS * BUF_BYTES;
constexpr int BARS_AT = BIAS_AT + (BIAS ? CONSUMERS * 2 * TILE_N * 2 : 0);

constexpr int BIAS_BARRIER = 1, TURN_BARRIER = 4; // the first of one named barrier for each consumer

static_assert(ELEM_BYTES == 2, "16-bit elements");
static_assert(DEPTH % 8 == 0 && COLS % (SWIGLU ? 16 : 8) == 0, "rows of 16-byte units");
static_assert(WG_ROWS % 64 == 0 && BLOCKS_M >= 1 && TILE_N % 16 == 0 && TILE_N <= 256, "wgmma shapes");
static_assert(BLOCKS_M * TILE_N / 2 <= 192, "accumulator registers");
static_assert(TILE_M % (8 * CLUSTER_N) == 0 && TILE_N % (8 * CLUSTER_M) == 0, "shares are whole swizzle atoms");
static_assert((DEPTH + TILE_K - 1) / TILE_K % SPLIT_K == 0, "equal parts of K");
static_assert((SPLIT_K - 1) * TILE_M * (TILE_N / SPLIT_K) * 4 <= STAGES * STAGE_BYTES, "the ring holds the partial sums");
static_assert(BLOCKS_M * CHUNKS % EPI_BUFS == 0, "buffers are used in turn across tiles");
static_assert(!PINGPONG || CONSUMERS == 2, "two warpgroups take turns");

#include "hopper_ring.cuh"
DEV void consume(u32 ring_at, Bars bars, Epilogue &e, const elem *bias, int consumer, Rank rank) {
#include "hopper_tile_begin.cuh"
    float acc[BLOCKS_M][TILE_N / 2];
    u32 last = 0;
    for (int i = 0; i < ITERS; i++) {
      mbar_wait(bars.full + ring.stage * 8, ring.phase);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < TILE_K / 16; k++) {
#pragma unroll
        for (int b = 0; b < BLOCKS_M; b++)
          Wgmma<TILE_N>::ss(acc[b], desc_advance(x_desc, ring.stage * STAGE_BYTES + b * 8192 + k * 32),
                            desc_advance(w_desc, ring.stage * STAGE_BYTES + k * 32), k || i);
      }
      wgmma_commit();
      // The batch before this one is done, so its stage is free; this one keeps the tensor cores busy meanwhile.
      wgmma_wait<1>();
      if (i) release(last);
      last = ring.stage;
      ring.next();
    }
#if PINGPONG
    if (t + stride / 2 < tiles) named_barrier_arrive(TURN_BARRIER + (consumer ^ 1), 256);
#endif
#pragma unroll
    for (int b = 0; b < BLOCKS_M; b++) wgmma_pin(acc[b]);
    wgmma_wait<0>();
#pragma unroll
    for (int b = 0; b < BLOCKS_M; b++) wgmma_pin(acc[b]);
    release(last);
    if (PINGPONG) ring.skip(ITERS);
#if BIAS
    cp_async_wait<0>();
    named_barrier_sync(BIAS_BARRIER + consumer, 128);
#endif
#include "hopper_tile_end.cuh"
extern "C" __global__ void __launch_bounds__(128 * (CONSUMERS + 1), 1)
    matmul_hopper(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap w_map,
#if QK_NORM
                  elem *product,
#else
                  const __grid_constant__ CUtensorMap y_map,
#endif
#if RESIDUAL
                  const __grid_constant__ CUtensorMap residual_map,
#endif
#if BIAS
                  const elem *bias,
#endif
#if ROPE
                  const int *positions, const int *slots, const float2 *cos_sin, elem *k_cache, elem *v_cache,
#endif
                  int m) {
#include "hopper_roles.cuh"
    consume(base, bars, e, bias_row, consumer, rank);
    if (CLUSTER > 1) cluster_sync_relaxed();
  }
}
