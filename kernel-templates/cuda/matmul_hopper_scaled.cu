// y[m,n] = x[m,k] * w[n,k]^T of codes of 8 bits with scales on sm_90a: matmul_hopper with operands of a byte, whose order of tiles,
// ring, roles and ends it shares. A stage holds 128 codes of K, so that its rows are 128 bytes too.
//
// Integers are summed exactly, in s32, and scaled once. Sums of E4M3 keep some 14 bits while they stay in the tensor cores. With
// PROMOTE those of one stage at a time go to registers of their own and are added up in f32 from there: beside the matrix
// instructions of the other warpgroup (1), or of the same one too, which has two sets of them in turn (2). Where x has scales for
// groups of 128 and w for blocks, the sums of a stage are multiplied by both on the way.
//
// Scales of tokens and rows are applied when all of K is in: f32 of the thread's rows from memory, of the tile's columns from a slice in
// shared memory.
constexpr int COLS = N, DEPTH = K; // the headers have template parameters of such names
#undef N
#undef K
#define WGMMA_N0 TILE_N
#include "wgmma_bytes.cuh"
#include "wgmma_epilogue.cuh"
#include "qk_norm.cuh"

constexpr int TILE_K = 128;
constexpr int SLICES = (DEPTH + TILE_K - 1) / TILE_K;
constexpr int ITERS = SLICES / SPLIT_K;       // of this block
constexpr int GROUP = CLUSTER_M * CLUSTER_N;  // blocks of a cluster with the same part of K
constexpr int CLUSTER = GROUP * SPLIT_K;
constexpr int TILES_N = (COLS + TILE_N * CLUSTER_N - 1) / (TILE_N * CLUSTER_N); // in clusters

constexpr int WG_ROWS = PINGPONG ? TILE_M : TILE_M / CONSUMERS; // of a tile, per consumer warpgroup
constexpr int BLOCKS_M = WG_ROWS / 64;

constexpr int X_BYTES = TILE_M * TILE_K;
constexpr int W_BYTES = TILE_N * TILE_K;
constexpr int STAGE_BYTES = X_BYTES + W_BYTES;
constexpr int X_SHARE = TILE_M / CLUSTER_N; // rows that this block loads for its cluster row
constexpr int W_SHARE = TILE_N / CLUSTER_M;

// Shared memory: the ring, the epilogue buffers, two slices of the bias and of the scales of columns per consumer, the barriers.
constexpr int BUFS_AT = STAGES * STAGE_BYTES;
constexpr int BIAS_AT = BUFS_AT + CONSUMERS * 4 * EPI_BUFS * BUF_BYTES;
constexpr int SCALES_AT = BIAS_AT + (BIAS ? CONSUMERS * 2 * TILE_N * 2 : 0);
#if W_SCALE_ROW
constexpr int BARS_AT = SCALES_AT + CONSUMERS * 2 * TILE_N * 4;
#else
constexpr int BARS_AT = SCALES_AT;
#endif

constexpr int BIAS_BARRIER = 1, TURN_BARRIER = 4; // the first of one named barrier for each consumer

static_assert(ELEM_BYTES == 2, "16-bit results");
static_assert(DEPTH % 16 == 0 && COLS % (SWIGLU ? 16 : 8) == 0, "rows of 16-byte units");
static_assert(WG_ROWS % 64 == 0 && BLOCKS_M >= 1 && BLOCKS_M <= 2 && TILE_N % 16 == 0 && TILE_N <= 256, "wgmma shapes");
static_assert((BLOCKS_M + PROMOTE) * TILE_N / 2 <= 208, "accumulator registers");
static_assert(TILE_M % (8 * CLUSTER_N) == 0 && TILE_N % (8 * CLUSTER_M) == 0, "shares are whole swizzle atoms");
static_assert(SLICES % SPLIT_K == 0, "equal parts of K");
static_assert((SPLIT_K - 1) * TILE_M * (TILE_N / SPLIT_K) * 4 <= STAGES * STAGE_BYTES, "the ring holds the partial sums");
static_assert(BLOCKS_M * CHUNKS % EPI_BUFS == 0, "buffers are used in turn across tiles");
static_assert(!PINGPONG || CONSUMERS == 2, "two warpgroups take turns");

#include "hopper_ring.cuh"

struct Scales {
  const float *x, *w;
  u32 slice; // of this consumer, in shared memory
};

#if X_SCALE_GROUP
static_assert(PROMOTE && X_GROUP == TILE_K && W_GROUP == TILE_K && W_SCALE_BLOCK, "a stage has one scale");
// Blocks of w that a tile's columns lie in: one, or two, the second from column `edge` of the tile on.
constexpr int W_BLOCKS = 128 % TILE_N ? 2 : 1;
static_assert(TILE_N <= 128 + (TILE_N & -TILE_N), "a tile's columns lie in two blocks at most");
struct Factors {
  float x[BLOCKS_M][2], w[W_BLOCKS];
};
// Those of slice `i` of K. x: the first row of this thread; w: the first block of the tile.
DEV Factors factors_at(const float *x, const float *w, int i, int rows_left, int cols_left) {
  Factors f;
#pragma unroll
  for (int b = 0; b < BLOCKS_M; b++)
#pragma unroll
    for (int h = 0; h < 2; h++) f.x[b][h] = b * 64 + h * 8 < rows_left ? __ldg(x + (b * 64 + h * 8) * SLICES + i) : 0.0f;
#pragma unroll
  for (int j = 0; j < W_BLOCKS; j++) f.w[j] = j == 0 || cols_left > 0 ? __ldg(w + j * SLICES + i) : 0.0f;
  return f;
}
#endif

#if PROMOTE
DEV void clear(float (&d)[TILE_N / 2]) {
#pragma unroll
  for (int i = 0; i < TILE_N / 2; i++) d[i] = 0.0f;
}
#if X_SCALE_GROUP
DEV void promote(float (&acc)[TILE_N / 2], const float (&part)[TILE_N / 2], const Factors &f, int b, int edge) {
  float s[W_BLOCKS][2];
#pragma unroll
  for (int j = 0; j < W_BLOCKS; j++) s[j][0] = f.x[b][0] * f.w[j], s[j][1] = f.x[b][1] * f.w[j];
#pragma unroll
  for (int j = 0; j < TILE_N / 8; j++) {
    const bool second = W_BLOCKS == 2 && j * 8 >= edge;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const float scale = second ? s[W_BLOCKS - 1][h] : s[0][h];
      acc[4 * j + 2 * h] = fmaf(part[4 * j + 2 * h], scale, acc[4 * j + 2 * h]);
      acc[4 * j + 2 * h + 1] = fmaf(part[4 * j + 2 * h + 1], scale, acc[4 * j + 2 * h + 1]);
    }
  }
}
#else
DEV void promote(float (&acc)[TILE_N / 2], const float (&part)[TILE_N / 2]) {
#pragma unroll
  for (int i = 0; i < TILE_N / 2; i++) acc[i] += part[i];
}
#endif
#endif

DEV void consume(u32 ring_at, Bars bars, Epilogue &e, const elem *bias, const Scales &scales, int consumer, Rank rank) {
#include "hopper_tile_begin.cuh"
    const int own_row = row + lane / 4; // of this thread
#if X_SCALE_GROUP
    const int first_block = tile.col / 128, edge = 128 - tile.col % 128;
    const int rows_left = e.m - own_row, cols_left = COLS - (first_block + 1) * 128;
    const float *own_x = scales.x + (i64)own_row * SLICES + rank.k * ITERS;
    const float *own_w = scales.w + min(first_block, (COLS - 1) / 128) * SLICES + rank.k * ITERS;
    Factors next = factors_at(own_x, own_w, 0, rows_left, cols_left), now = next, before;
#else
    float x_scale[BLOCKS_M][2];
#pragma unroll
    for (int b = 0; b < BLOCKS_M; b++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
#if X_SCALE_ROW
        const int r = own_row + b * 64 + h * 8;
        x_scale[b][h] = r < e.m ? __ldg(scales.x + r) : 0.0f;
#else
        x_scale[b][h] = __ldg(scales.x);
#endif
      }
#endif
#if W_SCALE_ROW
    const u32 slice = scales.slice + turn * TILE_N * 4;
    const int at = (threadIdx.x & 127) * 4;
    if (at < TILE_N) cp_async16(slice + at * 4, scales.w + min(tile.col + at, COLS - 4), tile.col + at < COLS ? 16 : 0);
    cp_async_commit();
#endif

    // The sums of this warpgroup's rows from block b of 64 on over the stage that is in.
    auto multiply = [&](sum_t (&d)[TILE_N / 2], int b, int k, bool add) {
      WgmmaBytes<TILE_N>::ss(d, desc_advance(x_desc, ring.stage * STAGE_BYTES + b * 8192 + k * 32),
                             desc_advance(w_desc, ring.stage * STAGE_BYTES + k * 32), add);
    };
    u32 last = 0;
#if PROMOTE
    float acc[BLOCKS_M][TILE_N / 2], part[PROMOTE][TILE_N / 2];
#pragma unroll
    for (int b = 0; b < BLOCKS_M; b++) clear(acc[b]);
    auto start = [&](float (&into)[TILE_N / 2], int b) {
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < 4; k++) multiply(into, b, k, k);
      wgmma_commit();
    };
    auto finish = [&](float (&done)[TILE_N / 2], int b, bool of_before) {
#if X_SCALE_GROUP
      promote(acc[b], done, of_before ? before : now, b, edge);
#else
      promote(acc[b], done);
#endif
    };
    auto enter = [&](int i) {
#if X_SCALE_GROUP
      before = now, now = next;
      if (i + 1 < ITERS) next = factors_at(own_x, own_w, i + 1, rows_left, cols_left);
#endif
      mbar_wait(bars.full + ring.stage * 8, ring.phase);
    };
#if PROMOTE == 1
#pragma unroll 1
    for (int i = 0; i < ITERS; i++) {
      enter(i);
#pragma unroll
      for (int b = 0; b < BLOCKS_M; b++) {
        start(part[0], b);
        wgmma_wait<0>();
        wgmma_pin(part[0]);
        if (b == BLOCKS_M - 1) release(ring.stage);
        finish(part[0], b, false);
      }
      ring.next();
    }
#if PINGPONG
    if (t + stride / 2 < tiles) named_barrier_arrive(TURN_BARRIER + (consumer ^ 1), 256);
#endif
#else
    // One set is multiplied into while the one before it is added up; at first that is nothing, of finite factors.
    clear(part[1]);
    auto step = [&](float (&into)[TILE_N / 2], float (&done)[TILE_N / 2], int i) { // of the only block of 64 rows
      enter(i);
      start(into, 0);
      wgmma_wait<1>();
      wgmma_pin(done);
      if (i) release(last);
      finish(done, 0, true);
      last = ring.stage;
      ring.next();
    };
    if constexpr (BLOCKS_M == 1) {
#pragma unroll 1
      for (int i = 0; i + 1 < ITERS; i += 2) {
        step(part[0], part[1], i);
        step(part[1], part[0], i + 1);
      }
      if (ITERS % 2) step(part[0], part[1], ITERS - 1);
    } else {
#pragma unroll 1
      for (int i = 0; i < ITERS; i++) {
        enter(i);
        start(part[0], 0);
        wgmma_wait<1>();
        wgmma_pin(part[1]);
        if (i) release(last);
        finish(part[1], BLOCKS_M - 1, true);
        start(part[1], BLOCKS_M - 1);
        wgmma_wait<1>();
        wgmma_pin(part[0]);
        finish(part[0], 0, false);
        last = ring.stage;
        ring.next();
      }
    }
#if PINGPONG
    if (t + stride / 2 < tiles) named_barrier_arrive(TURN_BARRIER + (consumer ^ 1), 256);
#endif
    wgmma_wait<0>();
    constexpr int LAST = BLOCKS_M == 1 && ITERS % 2 ? 0 : 1;
    wgmma_pin(part[LAST]);
    release(last);
    finish(part[LAST], BLOCKS_M - 1, false);
#endif
#else
    sum_t sums[BLOCKS_M][TILE_N / 2];
    for (int i = 0; i < ITERS; i++) {
      mbar_wait(bars.full + ring.stage * 8, ring.phase);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < 4; k++)
#pragma unroll
        for (int b = 0; b < BLOCKS_M; b++) multiply(sums[b], b, k, k || i);
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
    for (int b = 0; b < BLOCKS_M; b++) wgmma_pin(sums[b]);
    wgmma_wait<0>();
#pragma unroll
    for (int b = 0; b < BLOCKS_M; b++) wgmma_pin(sums[b]);
    release(last);
    float acc[BLOCKS_M][TILE_N / 2];
#pragma unroll
    for (int b = 0; b < BLOCKS_M; b++)
#pragma unroll
      for (int i = 0; i < TILE_N / 2; i++) acc[b][i] = (float)sums[b][i];
#endif
    if (PINGPONG) ring.skip(ITERS);
#if BIAS || W_SCALE_ROW
    cp_async_wait<0>();
    named_barrier_sync(BIAS_BARRIER + consumer, 128);
#endif
#if !X_SCALE_GROUP
#if W_SCALE_TENSOR
    const float w_scale = __ldg(scales.w);
#endif
#pragma unroll
    for (int j = 0; j < TILE_N / 8; j++) {
      float2 s;
#if W_SCALE_ROW
      asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(s.x), "=f"(s.y) : "r"(slice + (j * 8 + lane % 4 * 2) * 4));
#else
      s.x = s.y = w_scale;
#endif
#pragma unroll
      for (int b = 0; b < BLOCKS_M; b++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
          acc[b][4 * j + 2 * h] *= x_scale[b][h] * s.x;
          acc[b][4 * j + 2 * h + 1] *= x_scale[b][h] * s.y;
        }
    }
#endif
#include "hopper_tile_end.cuh"
extern "C" __global__ void __launch_bounds__(128 * (CONSUMERS + 1), 1)
    matmul_hopper_scaled(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap w_map,
                         const float *x_scales, const float *w_scales,
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
    const Scales scales = {x_scales, w_scales, base + SCALES_AT + consumer * 2 * TILE_N * 4};
    consume(base, bars, e, bias_row, scales, consumer, rank);
    if (CLUSTER > 1) cluster_sync_relaxed();
  }
}
