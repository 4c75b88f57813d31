// y[m,n] = x[m,k] * w[n,k]^T for f32 elements on the tensor cores of sm_90a, which multiply TF32: 10 bits of mantissa. The order of
// tiles, the ring and its producer are those of matmul_hopper; a stage holds 32 of K, so that its rows are 128 bytes too.
//
//   dtype tf32   the copies round to TF32 on the way, one product
//   dtype f32    a = hi + lo, hi = the bits of a that TF32 has, lo = the other 13, of which TF32 has 11. x·w = xl·wh + xh·wl + xh·wh
//                up to 2^-21 of itself: three products, which three warps of the producer's warpgroup prepare (w's lo, into a tile
//                of its own beside the stage) and the consumers (x, from the stage into registers). The tensor cores pass over
//                what an f32 has beyond TF32, so the stage itself is w's hi.
//
// The tensor cores cut off what a sum cannot hold, which adds up over a long K. In f32 the sums of a stage, small products first,
// are therefore added in f32 from outside: twice the accumulators, beside the matrix instructions of the other warpgroup.
#include "epilogue.cuh"
#include "qk_norm.cuh"
#define WGMMA_N0 TILE_N
#include "wgmma_tf32.cuh"

#if DTYPE_F32
#define EXACT 1
#else
#define EXACT 0
#endif

constexpr int TILE_K = 32;
constexpr int ITERS = (K + TILE_K - 1) / TILE_K / SPLIT_K; // of this block
constexpr int GROUP = CLUSTER_M * CLUSTER_N;               // blocks of a cluster with the same part of K
constexpr int CLUSTER = GROUP * SPLIT_K;
constexpr int TILES_N = (N + TILE_N * CLUSTER_N - 1) / (TILE_N * CLUSTER_N); // in clusters
constexpr int CONSUMERS = TILE_M / 64, BLOCKS_M = 1;

constexpr int X_BYTES = TILE_M * 128;
constexpr int W_BYTES = TILE_N * 128;
constexpr int STAGE_BYTES = X_BYTES + W_BYTES;
constexpr int X_SHARE = TILE_M / CLUSTER_N; // rows that this block loads for its cluster row
constexpr int W_SHARE = TILE_N / CLUSTER_M;
constexpr int LOWS_AT = STAGES * STAGE_BYTES; // w's lo of each stage
constexpr int BARS_AT = LOWS_AT + (EXACT ? STAGES * W_BYTES : 0);

static_assert(ELEM_BYTES == 4 && K % 4 == 0, "f32 in rows of 16-byte units");
static_assert(TILE_M % 64 == 0 && TILE_N % 8 == 0 && TILE_N <= 256, "wgmma shapes");
static_assert((EXACT ? 2 : 1) * TILE_N / 2 <= 160, "accumulator registers");
static_assert(TILE_M % (8 * CLUSTER_N) == 0 && TILE_N % (8 * CLUSTER_M) == 0, "shares are whole swizzle atoms");
static_assert((K + TILE_K - 1) / TILE_K % SPLIT_K == 0 && TILE_N % (8 * SPLIT_K) == 0, "equal parts of K, equal shares of the sums");
static_assert((SPLIT_K - 1) * TILE_M * (TILE_N / SPLIT_K) * 4 <= STAGES * STAGE_BYTES, "the ring holds the partial sums");

DEV uint4 ld_shared(u32 smem) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(smem) : "memory");
  return v;
}
DEV u32 ld_shared_u32(u32 smem) {
  u32 v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(smem) : "memory");
  return v;
}
DEV void st_shared(u32 smem, uint4 v) {
  asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(smem), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

#include "hopper_ring.cuh"

DEV u32 hi_of(u32 v) { return v & 0xffffe000u; }
DEV u32 lo_of(u32 v) { return __float_as_uint(__uint_as_float(v) - __uint_as_float(hi_of(v))); }

#if EXACT
// Makes w's lo of each stage that comes in; `thread` of 96.
DEV void split(u32 ring_at, Bars bars, u32 ready, int m, int thread) {
  const int tiles = cdiv(m, TILE_M * CLUSTER_M) * TILES_N;
  Ring ring;
  for (int t = blockIdx.x / CLUSTER; t < tiles; t += gridDim.x / CLUSTER) {
    for (int i = 0; i < ITERS; i++) {
      mbar_wait(bars.full + ring.stage * 8, ring.phase);
      const u32 from = ring_at + ring.stage * STAGE_BYTES + X_BYTES, to = ring_at + LOWS_AT + ring.stage * W_BYTES;
#pragma unroll 4
      for (int at = thread * 16; at < W_BYTES; at += 96 * 16) {
        const uint4 v = ld_shared(from + at);
        st_shared(to + at, make_uint4(lo_of(v.x), lo_of(v.y), lo_of(v.z), lo_of(v.w)));
      }
      fence_proxy_async();
      __syncwarp();
      if (thread % 32 == 0) mbar_arrive(ready + ring.stage * 8);
      ring.next();
    }
  }
}
#endif

DEV void consume(u32 ring_at, Bars bars, u32 ready, const epilogue_args &e, int m, int consumer, Rank rank) {
  const int tiles_m = cdiv(m, TILE_M * CLUSTER_M), tiles = tiles_m * TILES_N;
  const int lane = lane_id(), warp = warp_uniform(warp_id() & 3);
  // A free stage is reported to the blocks of this block's cluster row and column, one lane each.
  const int other = lane - CLUSTER_M;
  const u32 peer = rank.k * GROUP + (lane < CLUSTER_M ? rank.n * CLUSTER_M + lane
                                                      : (other + (other >= rank.n)) * CLUSTER_M + rank.m);
  const auto release = [&](u32 stage) {
    if (GROUP == 1) {
      if (lane == 0) mbar_arrive(bars.empty + stage * 8);
    } else if (lane < CLUSTER_M + CLUSTER_N - 1) {
      mbar_arrive_cluster(bars.empty + stage * 8, peer);
    }
  };
  const u64 w_desc = desc_k_major<128>(ring_at + X_BYTES);
  Ring ring;
  for (int t = blockIdx.x / CLUSTER; t < tiles; t += gridDim.x / CLUSTER) {
    const Tile tile = tile_at(t, tiles_m, rank);
#if EXACT
    const u64 low_desc = desc_k_major<128>(ring_at + LOWS_AT);
    const u32 x_at = ring_at + (consumer * 64 + warp * 16 + lane / 4) * 128 + lane % 4 * 4;
    float acc[1][TILE_N / 2] = {}, part[TILE_N / 2];
#pragma unroll 1
    for (int i = 0; i < ITERS; i++) {
      const u32 x = x_at + ring.stage * STAGE_BYTES;
      u32 hi[4][4], lo[4][4];
      mbar_wait(bars.full + ring.stage * 8, ring.phase);
#pragma unroll
      for (int k = 0; k < 4; k++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const u32 v = ld_shared_u32(x + j % 2 * 1024 + (((2 * k + j / 2) ^ lane / 4) * 16)); // swizzled<128>
          hi[k][j] = hi_of(v), lo[k][j] = lo_of(v);
        }
      mbar_wait(ready + ring.stage * 8, ring.phase);
      const u64 w = desc_advance(w_desc, ring.stage * STAGE_BYTES), low = desc_advance(low_desc, ring.stage * W_BYTES);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < 4; k++) {
        WgmmaTf32<TILE_N>::rs(part, lo[k], desc_advance(w, k * 32), k);
        WgmmaTf32<TILE_N>::rs(part, hi[k], desc_advance(low, k * 32), 1);
      }
#pragma unroll
      for (int k = 0; k < 4; k++) WgmmaTf32<TILE_N>::rs(part, hi[k], desc_advance(w, k * 32), 1);
      wgmma_commit();
      wgmma_wait<0>();
      wgmma_pin(part);
#pragma unroll
      for (int k = 0; k < 4; k++)
#pragma unroll
        for (int j = 0; j < 4; j++) asm volatile("" : "+r"(hi[k][j]), "+r"(lo[k][j])); // are read until here
      release(ring.stage);
#pragma unroll
      for (int j = 0; j < TILE_N / 2; j++) acc[0][j] += part[j];
      ring.next();
    }
#else
    const u64 x_desc = desc_k_major<128>(ring_at + consumer * 64 * 128);
    float acc[1][TILE_N / 2];
    u32 last = 0;
    for (int i = 0; i < ITERS; i++) {
      mbar_wait(bars.full + ring.stage * 8, ring.phase);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < 4; k++)
        WgmmaTf32<TILE_N>::ss(acc[0], desc_advance(x_desc, ring.stage * STAGE_BYTES + k * 32),
                              desc_advance(w_desc, ring.stage * STAGE_BYTES + k * 32), k || i);
      wgmma_commit();
      // The batch before this one is done, so its stage is free; this one keeps the tensor cores busy meanwhile.
      wgmma_wait<1>();
      if (i) release(last);
      last = ring.stage;
      ring.next();
    }
    wgmma_pin(acc[0]);
    wgmma_wait<0>();
    wgmma_pin(acc[0]);
    release(last);
#endif
#if SPLIT_K > 1
    reduce_parts(acc, ring_at, rank);
#endif
    constexpr int STEPS = TILE_N / 8 / SPLIT_K; // of eight columns, of this block
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int row = tile.row + consumer * 64 + warp * 16 + lane / 4 + h * 8;
      if (row >= m) continue;
      const epilogue_row r = epilogue_row_of(e, row);
#pragma unroll
      for (int share = 0; share < SPLIT_K; share++) {
        if (share != rank.k) continue;
#pragma unroll
        for (int j = share * STEPS; j < (share + 1) * STEPS; j++) {
          const int col = tile.col + j * 8 + lane % 4 * 2;
          if (col < N) epilogue_pair(e, r, col, acc[0][4 * j + 2 * h], acc[0][4 * j + 2 * h + 1]);
        }
      }
    }
  }
}

extern "C" __global__ void __launch_bounds__(128 * (CONSUMERS + 1), RESIDENT)
matmul_hopper_single(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap w_map, EPILOGUE_PARAMS, int m) {
  extern __shared__ __align__(1024) u8 shared[];
  const u32 base = smem_u32(shared);
  const Bars bars = {base + BARS_AT, base + BARS_AT + STAGES * 8, 0};
  const u32 ready = bars.empty + STAGES * 8;
  if (threadIdx.x == 0) {
    tma_prefetch_map(&x_map);
    tma_prefetch_map(&w_map);
    for (int i = 0; i < STAGES; i++) {
      mbar_init(bars.full + i * 8, 1);
      mbar_init(bars.empty + i * 8, 4 * CONSUMERS * (CLUSTER_M + CLUSTER_N - 1));
      if (EXACT) mbar_init(ready + i * 8, 3);
    }
    fence_mbar_init();
  }
  __syncwarp();
  if (CLUSTER > 1) cluster_sync_relaxed();
  else __syncthreads();
  pdl_launch();
  const int of_cluster = CLUSTER > 1 ? (int)cluster_rank() : 0;
  const Rank rank = {of_cluster % CLUSTER_M, of_cluster / CLUSTER_M % CLUSTER_N, SPLIT_K > 1 ? of_cluster / GROUP : 0};
  // Registers of a thread once they are dealt out.
  constexpr int CONSUMER_REGS = CONSUMERS == 3 ? 160 : CONSUMERS == 2 ? 232 : 208, PRODUCER_REGS = CONSUMERS == 3 ? 32 : 40;

  const int warpgroup = warp_uniform(threadIdx.x / 128);
  if (warpgroup == 0) {
    if (CONSUMERS > 1 || RESIDENT > 1) setmaxnreg_dec<PRODUCER_REGS>();
    const int warp = warp_uniform(warp_id());
    if (warp == 0 && elect_one()) produce(&x_map, &w_map, base, bars, m, rank);
#if EXACT
    if (warp > 0) split(base, bars, ready, m, threadIdx.x - 32);
#endif
    __syncwarp();
    if (SPLIT_K > 1) { // the barriers of reduce_parts
      cluster_sync_relaxed();
      cluster_sync();
    }
  } else {
    if (CONSUMERS > 1 || RESIDENT > 1) setmaxnreg_inc<CONSUMER_REGS>();
    pdl_wait();
    const epilogue_args e = EPILOGUE_PACK;
    consume(base, bars, ready, e, m, warpgroup - 1, rank);
    __syncwarp();
  }
  if (CLUSTER > 1) cluster_sync_relaxed(); // no block leaves while another may still write to it or arrive at its barriers
}
