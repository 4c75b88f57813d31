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

// ---- the order of tiles --------------------------------------------------------------------------------------------
// Cluster tiles are walked in groups of GROUP_M rows, the row fastest, so that the tiles in flight share rows of x and w
// in the L2 cache.
struct Tile { int row, col; };
struct Rank { int m, n, k; }; // of this block in its cluster
DEV Tile tile_at(int t, int tiles_m, Rank rank) {
  int group = t / (GROUP_M * TILES_N), r = t - group * (GROUP_M * TILES_N);
  int rows = min(GROUP_M, tiles_m - group * GROUP_M);
  int col = r / rows, row = group * GROUP_M + r - col * rows;
  return {(row * CLUSTER_M + rank.m) * TILE_M, (col * CLUSTER_N + rank.n) * TILE_N};
}

struct Ring {
  u32 stage = 0, phase = 0;
  DEV void next() {
    if (++stage == STAGES) {
      stage = 0;
      phase ^= 1;
    }
  }
  DEV void skip(int n) {
    u32 s = stage + n;
    phase ^= (s / STAGES) & 1;
    stage = s % STAGES;
  }
};

// ---- the two roles -------------------------------------------------------------------------------------------------
struct Bars {
  u32 full, empty, loaded;
};

DEV void produce(const CUtensorMap *x_map, const CUtensorMap *w_map, u32 ring_at, Bars bars, int m, Rank rank) {
  int tiles_m = cdiv(m, TILE_M * CLUSTER_M), tiles = tiles_m * TILES_N;
  // The blocks of this block's cluster row (they share x) and cluster column (they share w).
  int first_rank = rank.k * GROUP;
  u16 x_mask = 0, w_mask = (u16)(((1 << CLUSTER_M) - 1) << (first_rank + rank.n * CLUSTER_M));
#pragma unroll
  for (int j = 0; j < CLUSTER_N; j++) x_mask |= (u16)(1 << (first_rank + j * CLUSTER_M + rank.m));
  auto load_x = [&](u32 stage, int k, int row) {
    u32 dst = ring_at + stage * STAGE_BYTES + rank.n * X_SHARE * 128, bar = bars.full + stage * 8;
    if (CLUSTER_N > 1) tma_load_2d_multicast(dst, x_map, bar, k, row + rank.n * X_SHARE, x_mask, L2_EVICT_NORMAL);
    else tma_load_2d(dst, x_map, bar, k, row, L2_EVICT_NORMAL);
  };
  auto load_w = [&](u32 stage, int k, int col) {
    u32 dst = ring_at + stage * STAGE_BYTES + X_BYTES + rank.m * W_SHARE * 128, bar = bars.full + stage * 8;
    if (CLUSTER_M > 1) tma_load_2d_multicast(dst, w_map, bar, k, col + rank.m * W_SHARE, w_mask, L2_EVICT_NORMAL);
    else tma_load_2d(dst, w_map, bar, k, col, L2_EVICT_NORMAL);
  };

  int t = blockIdx.x / CLUSTER, k_first = rank.k * ITERS;
  // The first slices of w do not depend on the kernel before this one.
  constexpr int AHEAD = ITERS < STAGES ? ITERS : STAGES;
  if (t < tiles) {
    Tile tile = tile_at(t, tiles_m, rank);
    for (int i = 0; i < AHEAD; i++) {
      mbar_expect_tx(bars.full + i * 8, STAGE_BYTES);
      load_w(i, (k_first + i) * TILE_K, tile.col);
    }
  }
#if PDL
  pdl_wait();
#endif
  Ring ring;
  bool first = true;
  for (; t < tiles; t += gridDim.x / CLUSTER) {
    Tile tile = tile_at(t, tiles_m, rank);
    for (int i = 0; i < ITERS; i++) {
      if (!first || i >= AHEAD) {
        mbar_wait(bars.empty + ring.stage * 8, ring.phase ^ 1);
        mbar_expect_tx(bars.full + ring.stage * 8, STAGE_BYTES);
        load_w(ring.stage, (k_first + i) * TILE_K, tile.col);
      }
      load_x(ring.stage, (k_first + i) * TILE_K, tile.row);
      ring.next();
    }
    first = false;
  }
}

#if SPLIT_K > 1
DEV void st_cluster(u32 smem, float a, float b, float c, float d) {
  asm volatile("st.shared::cluster.v4.f32 [%0], {%1,%2,%3,%4};" ::"r"(smem), "f"(a), "f"(b), "f"(c), "f"(d) : "memory");
}

// Adds up the parts of K. Each thread sends its sums of another block's columns to its own counterpart there, so the
// layout in shared memory is merely one 16-byte slot per thread and step. On return share rank.k of the accumulators
// is complete.
DEV void reduce_parts(float (&acc)[BLOCKS_M][TILE_N / 2], u32 ring_at, Rank rank) {
  constexpr int SHARE = TILE_N / 2 / SPLIT_K, STEPS = BLOCKS_M * SHARE / 4, THREADS = 128 * CONSUMERS;
  u32 at = ring_at + (threadIdx.x - 128) * 16;
  __syncwarp();
  cluster_sync_relaxed(); // the rings are idle
#pragma unroll
  for (int to = 0; to < SPLIT_K; to++) {
    if (to == rank.k) continue;
    u32 part = rank.k - (rank.k > to);
    u32 dst = cluster_map(at + part * STEPS * THREADS * 16, to * GROUP + rank.n * CLUSTER_M + rank.m);
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
      const float *v = acc[i * 4 / SHARE] + to * SHARE + i * 4 % SHARE;
      st_cluster(dst + i * THREADS * 16, v[0], v[1], v[2], v[3]);
    }
  }
  cluster_sync();
#pragma unroll
  for (int mine = 0; mine < SPLIT_K; mine++) {
    if (mine != rank.k) continue;
#pragma unroll
    for (int i = 0; i < STEPS * (SPLIT_K - 1); i++) {
      float *v = acc[i % STEPS * 4 / SHARE] + mine * SHARE + i % STEPS * 4 % SHARE;
      uint4 u = ld_shared(at + i * THREADS * 16);
      v[0] += __uint_as_float(u.x), v[1] += __uint_as_float(u.y);
      v[2] += __uint_as_float(u.z), v[3] += __uint_as_float(u.w);
    }
  }
}
#endif

DEV void consume(u32 ring_at, Bars bars, Epilogue &e, const elem *bias, int consumer, Rank rank) {
  int tiles_m = cdiv(e.m, TILE_M * CLUSTER_M), tiles = tiles_m * TILES_N;
  int lane = e.lane, warp = warp_uniform(warp_id() & 3);
  int wg_row = PINGPONG ? 0 : consumer * WG_ROWS;
  // A free stage is reported to the blocks of this block's cluster row and column, one lane each.
  int other = lane - CLUSTER_M;
  u32 peer = rank.k * GROUP + (lane < CLUSTER_M ? rank.n * CLUSTER_M + lane
                                                : (other + (other >= rank.n)) * CLUSTER_M + rank.m);
  auto release = [&](u32 stage) {
    if (GROUP == 1) {
      if (lane == 0) mbar_arrive(bars.empty + stage * 8);
    } else if (lane < CLUSTER_M + CLUSTER_N - 1) {
      mbar_arrive_cluster(bars.empty + stage * 8, peer);
    }
  };
  u64 x_desc = desc_k_major<128>(ring_at + wg_row * 128), w_desc = desc_k_major<128>(ring_at + X_BYTES);

  Ring ring;
  int stride = gridDim.x / CLUSTER, t = blockIdx.x / CLUSTER;
  if (PINGPONG) {
    if (consumer == 1) ring.skip(ITERS), t += stride;
    stride *= 2;
  }
#if BIAS
  u32 bias_bufs = e.bias;
#endif
  int turn = 0;
  for (; t < tiles; t += stride, turn ^= 1) {
    Tile tile = tile_at(t, tiles_m, rank);
    int row = tile.row + wg_row + warp * 16, col = (SWIGLU ? tile.col / 2 : tile.col) + rank.k * CHUNKS * CHUNK;
#if BIAS
    e.bias = bias_bufs + turn * TILE_N * 2;
    int i = (threadIdx.x & 127) * 8;
    if (i < TILE_N) cp_async16(e.bias + i * 2, bias + min(tile.col + i, COLS - 8), tile.col + i < COLS ? 16 : 0);
    cp_async_commit();
#endif
#if RESIDUAL
    if (lane == 0) {
      tma_store_wait_read<0>();
      for (int i = 0; i < EPI_BUFS; i++) load_residual(e, i, row, col);
    }
#endif
#if ROPE
    int position[BLOCKS_M][2];
#pragma unroll
    for (int b = 0; b < BLOCKS_M; b++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        int r = row + b * 64 + lane / 4 + h * 8;
        position[b][h] = r < e.m ? e.positions[r] : 0;
      }
#endif
#if PINGPONG
    // A wait tells phases apart by parity only, so a consumer may look at the ring no earlier than one round ahead: it
    // starts when the other one has seen all of the tile before.
    if (t != (int)blockIdx.x / CLUSTER) named_barrier_sync(TURN_BARRIER + consumer, 256);
#endif
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
#if SPLIT_K > 1
    reduce_parts(acc, ring_at, rank);
#endif
    Rotation rotation;
#pragma unroll
    for (int i = 0; i < BLOCKS_M * CHUNKS; i++) {
#if ROPE
      int at = col + i % CHUNKS * CHUNK;
      // Where a chunk is a head, all chunks of a row rotate alike.
      if ((HEAD_DIM != CHUNK || i % CHUNKS == 0) && at < ROTATED_COLS)
        load_rotation(rotation, e, position[i / CHUNKS], at);
#endif
      constexpr int PER_CHUNK = (SWIGLU ? 2 : 1) * CHUNK / 2; // accumulators of a thread
#pragma unroll
      for (int share = 0; share < SPLIT_K; share++)
        if (share == rank.k)
          write_chunk(e, i, acc[i / CHUNKS] + (share * CHUNKS + i % CHUNKS) * PER_CHUNK, row + i / CHUNKS * 64,
                      col + i % CHUNKS * CHUNK, rotation);
#if RESIDUAL
      constexpr int LAG = EPI_BUFS > 1; // stores whose buffer need not be free yet
      if (i >= LAG && i + EPI_BUFS - LAG < BLOCKS_M * CHUNKS && lane == 0) {
        tma_store_wait_read<LAG>();
        load_residual(e, i + EPI_BUFS - LAG, row, col);
      }
#endif
    }
  }
  if (lane == 0) tma_store_wait<0>();
  __syncwarp();
}

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
  extern __shared__ __align__(1024) u8 shared[];
  u32 base = smem_u32(shared);
  constexpr int WARPS = 4 * (PINGPONG ? 1 : CONSUMERS); // that read a stage, in each block
  Bars bars = {base + BARS_AT, base + BARS_AT + STAGES * 8, base + BARS_AT + STAGES * 16};
  if (threadIdx.x == 0) {
    tma_prefetch_map(&x_map);
    tma_prefetch_map(&w_map);
#if !QK_NORM
    tma_prefetch_map(&y_map);
#endif
    for (int i = 0; i < STAGES; i++) {
      mbar_init(bars.full + i * 8, 1);
      mbar_init(bars.empty + i * 8, WARPS * (CLUSTER_M + CLUSTER_N - 1));
    }
#if RESIDUAL
    tma_prefetch_map(&residual_map);
    for (int i = 0; i < CONSUMERS * 4 * EPI_BUFS; i++) mbar_init(bars.loaded + i * 8, 1);
#endif
    fence_mbar_init();
  }
  __syncwarp();
  if (CLUSTER > 1) cluster_sync_relaxed();
  else __syncthreads();
#if PDL
  pdl_launch();
#endif
  int r = CLUSTER > 1 ? (int)cluster_rank() : 0;
  Rank rank = {r % CLUSTER_M, r / CLUSTER_M % CLUSTER_N, SPLIT_K > 1 ? r / GROUP : 0};

  int warpgroup = warp_uniform(threadIdx.x / 128);
  if (warpgroup == 0) {
    if (CONSUMERS == 2) setmaxnreg_dec<40>();
    if (CONSUMERS == 3) setmaxnreg_dec<32>();
    if (warp_uniform(warp_id()) == 0 && elect_one()) produce(&x_map, &w_map, base, bars, m, rank);
    __syncwarp();
    if (SPLIT_K > 1) { // the barriers of reduce_parts
      cluster_sync_relaxed();
      cluster_sync();
    }
    if (CLUSTER > 1) cluster_sync_relaxed(); // no block leaves while another may still write to it or arrive at its barriers
  } else {
    if (CONSUMERS == 2) setmaxnreg_inc<232>();
    if (CONSUMERS == 3) setmaxnreg_inc<160>();
    int consumer = warpgroup - 1, warp = warp_uniform(warp_id() - 4);
    Epilogue e;
#if QK_NORM
    e.product = product;
#else
    e.y = &y_map;
#endif
    e.m = m;
    e.lane = lane_id();
    e.bufs = base + BUFS_AT + warp * EPI_BUFS * BUF_BYTES;
    const elem *bias_row = nullptr;
#if BIAS
    e.bias = base + BIAS_AT + consumer * 2 * TILE_N * 2;
    bias_row = bias;
#endif
#if RESIDUAL
    e.residual = &residual_map;
    e.loaded = bars.loaded + warp * EPI_BUFS * 8;
    e.parity = 0;
#endif
#if ROPE
    e.positions = positions, e.slots = slots, e.cos_sin = cos_sin, e.k_cache = k_cache, e.v_cache = v_cache;
#endif
#if PDL
    pdl_wait();
#endif
    consume(base, bars, e, bias_row, consumer, rank);
    if (CLUSTER > 1) cluster_sync_relaxed();
  }
}
