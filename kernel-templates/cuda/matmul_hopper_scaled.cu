// y[m,n] = x[m,k] * w[n,k]^T of codes of 8 bits with scales on sm_90a: matmul_hopper with operands of a byte, whose order of tiles,
// ring, roles and ends it shares. A stage holds 128 codes of K, so that its rows are 128 bytes too.
//
// Integers are summed exactly, in s32, and scaled once. Sums of E4M3 keep some 14 bits while they stay in the tensor cores. With
// PROMOTE those of so many stages and 64 rows at a time go to registers of their own and are added up in f32 from there, beside the
// matrix instructions of the other warpgroup. Where x has scales for groups of 128 and w for blocks, they are multiplied by both on
// the way.
//
// Scales of tokens and rows are applied when all of K is in, from slices in shared memory that were fetched meanwhile.
constexpr int COLS = N, DEPTH = K; // the headers have template parameters of such names
#undef N
#undef K
#define WGMMA_N0 TILE_N
#include "wgmma_bytes.cuh"
#include "wgmma_epilogue.cuh"
#include "qk_norm.cuh"

// Of each kind one is defined, as 1; constant expressions need the others.
#if !X_SCALE_ROW
#define X_SCALE_ROW 0
#endif
#if !W_SCALE_ROW
#define W_SCALE_ROW 0
#endif

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

// Shared memory: the ring, the epilogue buffers, two slices of the bias and one of the scales per consumer, the barriers.
constexpr int BUFS_AT = STAGES * STAGE_BYTES;
constexpr int BIAS_AT = BUFS_AT + CONSUMERS * 4 * EPI_BUFS * BUF_BYTES;
constexpr int SCALES_AT = BIAS_AT + (BIAS ? CONSUMERS * 2 * TILE_N * 2 : 0);
constexpr int X_SCALES = X_SCALE_ROW ? WG_ROWS : 0, W_SCALES = W_SCALE_ROW ? TILE_N : 0;
constexpr int SLICE_BYTES = (W_SCALES + X_SCALES) * 4;
constexpr int BARS_AT = SCALES_AT + CONSUMERS * SLICE_BYTES;

constexpr int BIAS_BARRIER = 1, TURN_BARRIER = 4; // the first of one named barrier for each consumer

static_assert(ELEM_BYTES == 2, "16-bit results");
static_assert(DEPTH % 16 == 0 && COLS % (SWIGLU ? 16 : 8) == 0, "rows of 16-byte units");
static_assert(WG_ROWS % 64 == 0 && BLOCKS_M >= 1 && BLOCKS_M <= 2 && TILE_N % 16 == 0 && TILE_N <= 256, "wgmma shapes");
static_assert((BLOCKS_M + (PROMOTE > 0)) * TILE_N / 2 <= 208, "accumulator registers");
static_assert(PROMOTE <= 1 || BLOCKS_M == 1, "sums of several stages are those of all rows");
static_assert(TILE_M % (8 * CLUSTER_N) == 0 && TILE_N % (8 * CLUSTER_M) == 0, "shares are whole swizzle atoms");
static_assert(SLICES % SPLIT_K == 0, "equal parts of K");
static_assert((SPLIT_K - 1) * TILE_M * (TILE_N / SPLIT_K) * 4 <= STAGES * STAGE_BYTES, "the ring holds the partial sums");
static_assert(BLOCKS_M * CHUNKS % EPI_BUFS == 0, "buffers are used in turn across tiles");
static_assert(!PINGPONG || CONSUMERS == 2 && !PROMOTE, "two warpgroups take turns where none of them adds up");

#include "hopper_ring.cuh"

DEV float ld_shared_f32(u32 smem) {
  float v;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(smem) : "memory");
  return v;
}
DEV float2 ld_shared_f32x2(u32 smem) {
  float2 v;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(smem) : "memory");
  return v;
}

// What the epilogue takes for accumulators: those of a chunk are scaled when it is written. All at once they would need as many
// registers again as the sums, which the compiler gives up only together.
template <class Scale> struct ScaledSums {
  const Scale &scale;
  float chunk[(SWIGLU ? 2 : 1) * CHUNK / 2];
  int block;
  DEV ScaledSums &operator[](int b) {
    block = b;
    return *this;
  }
  DEV const float *operator+(int first) {
    scale(chunk, (SWIGLU ? 2 : 1) * CHUNK / 2, block, first);
    return chunk;
  }
};

struct Scales {
  const float *x, *w;
  u32 slice; // of this consumer, in shared memory
};

#if X_SCALE_GROUP
static_assert(PROMOTE == 1 && X_GROUP == TILE_K && W_GROUP == TILE_K && W_SCALE_BLOCK, "a stage has one scale");
// Blocks of w that a tile's columns lie in: one, or two, the second from column `edge` of the tile on.
constexpr int W_BLOCKS = 128 % TILE_N ? 2 : 1, EDGE_STEP = W_BLOCKS == 2 ? TILE_N & -TILE_N : 128;
static_assert(TILE_N <= 128 + (TILE_N & -TILE_N), "a tile's columns lie in two blocks at most");
// Scales of four slices of K: each lane has those of one of the warp's rows, of slice `lane % 4` that of block `lane / 4` of w.
// Read once by each lane and shuffled, they neither wait for nor crowd the L1 cache, which the ring has left small.
struct Four {
  float x[4], w;
};
struct Factors {
  float of[BLOCKS_M][2][W_BLOCKS]; // x's times w's
};
// From slice `i` of this block's on; x: of this lane's row, null beyond the last; w: of this lane's block and slice, null likewise.
DEV Four four_at(const float *x, const float *w, int i, int lane) {
  Four f = {};
  if (x && SLICES % 4 == 0 && ITERS % 4 == 0) {
    const float4 v = __ldg((const float4 *)(x + i));
    f.x[0] = v.x, f.x[1] = v.y, f.x[2] = v.z, f.x[3] = v.w;
  } else if (x) {
#pragma unroll
    for (int j = 0; j < 4; j++)
      if (i + j < ITERS) f.x[j] = __ldg(x + i + j);
  }
  if (w && i + lane % 4 < ITERS) f.w = __ldg(w + i);
  return f;
}
// A shuffle that the compiler keeps behind the matrix instructions that are written before it.
DEV float shuffled(float v, int lane) {
  float r;
  asm volatile("shfl.sync.idx.b32 %0, %1, %2, 31, 0xffffffff;" : "=f"(r) : "f"(v), "r"(lane) : "memory");
  return r;
}
DEV Factors factors_of(const Four &four, int j, int lane) {
  const float own = j & 2 ? (j & 1 ? four.x[3] : four.x[2]) : (j & 1 ? four.x[1] : four.x[0]);
  float w[W_BLOCKS];
#pragma unroll
  for (int n = 0; n < W_BLOCKS; n++) w[n] = shuffled(four.w, n * 4 + j);
  Factors f;
#pragma unroll
  for (int b = 0; b < BLOCKS_M; b++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const float x = shuffled(own, b * 16 + h * 8 + lane / 4);
#pragma unroll
      for (int n = 0; n < W_BLOCKS; n++) f.of[b][h][n] = x * w[n];
    }
  return f;
}
#endif

#if PROMOTE
#if X_SCALE_GROUP
DEV void promote(float (&acc)[TILE_N / 2], const float (&part)[TILE_N / 2], const Factors &f, int b, int edge) {
#pragma unroll
  for (int at = EDGE_STEP; at <= 128; at += EDGE_STEP) {
    if (W_BLOCKS == 2 && edge != at) continue; // one loop for each place where the edge may be
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
      for (int j = 0; j < TILE_N / 8; j++) {
        const float scale = f.of[b][h][W_BLOCKS == 2 && j * 8 >= at];
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
#if X_SCALE_GROUP
    const int edge = 128 - tile.col % 128, own_row = row + lane % 16 + (BLOCKS_M == 2 ? lane / 16 * 64 : 0);
    const int own_block = tile.col / 128 + lane / 4 % W_BLOCKS;
    const float *own_x = own_row < e.m ? scales.x + (i64)own_row * SLICES + rank.k * ITERS : nullptr;
    const float *own_w = own_block * 128 < COLS ? scales.w + own_block * SLICES + rank.k * ITERS + lane % 4 : nullptr;
    Four next = four_at(own_x, own_w, 0, lane), now = next;
    Factors factors;
#else
    const u32 slice = scales.slice; // of rows and columns that the matrices do not have, zeros
    named_barrier_sync(BIAS_BARRIER + consumer, 128); // all are done with that of the tile before
    const int own = threadIdx.x & 127;
    if (own * 4 < W_SCALES)
      cp_async16(slice + own * 16, scales.w + min(tile.col + own * 4, COLS - 4), tile.col + own * 4 < COLS ? 16 : 0);
    if (own < X_SCALES) {
      const int r = tile.row + wg_row + own;
      cp_async4(slice + (W_SCALES + own) * 4, scales.x + min(r, e.m - 1), r < e.m ? 4 : 0);
    }
    cp_async_commit();
#endif

    // Step k of four of the stage that is in, for this warpgroup's block b of 64 rows.
    auto multiply = [&](sum_t (&d)[TILE_N / 2], int b, int k, bool add) {
      WgmmaBytes<TILE_N>::ss(d, desc_advance(x_desc, ring.stage * STAGE_BYTES + b * 8192 + k * 32),
                             desc_advance(w_desc, ring.stage * STAGE_BYTES + k * 32), add);
    };
#if PROMOTE
    float sums[BLOCKS_M][TILE_N / 2], part[TILE_N / 2];
#pragma unroll
    for (int b = 0; b < BLOCKS_M; b++)
#pragma unroll
      for (int i = 0; i < TILE_N / 2; i++) sums[b][i] = 0.0f;
#if PROMOTE == 1
#pragma unroll 1
    for (int i = 0; i < ITERS; i++) {
#if X_SCALE_GROUP
      if (i % 4 == 0) {
        now = next;
        if (i + 4 < ITERS) next = four_at(own_x, own_w, i + 4, lane);
      }
#endif
      mbar_wait(bars.full + ring.stage * 8, ring.phase);
#pragma unroll
      for (int b = 0; b < BLOCKS_M; b++) {
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < 4; k++) multiply(part, b, k, k);
        wgmma_commit();
#if X_SCALE_GROUP
        if (b == 0) factors = factors_of(now, i % 4, lane);
#endif
        wgmma_wait<0>();
        wgmma_pin(part);
        if (b == BLOCKS_M - 1) release(ring.stage);
#if X_SCALE_GROUP
        promote(sums[b], part, factors, b, edge);
#else
        promote(sums[b], part);
#endif
      }
      ring.next();
    }
#else
#pragma unroll 1
    for (int first = 0; first < ITERS; first += PROMOTE) {
      u32 last = 0;
#pragma unroll
      for (int j = 0; j < PROMOTE; j++) {
        if (first + j == ITERS) break;
        mbar_wait(bars.full + ring.stage * 8, ring.phase);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < 4; k++) multiply(part, 0, k, k || j);
        wgmma_commit();
        wgmma_wait<1>();
        if (j) release(last);
        last = ring.stage;
        ring.next();
      }
      wgmma_wait<0>();
      wgmma_pin(part);
      release(last);
      promote(sums[0], part);
    }
#endif
#else
    sum_t sums[BLOCKS_M][TILE_N / 2];
    u32 last = 0;
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
#endif
    if (PINGPONG) ring.skip(ITERS);
#if BIAS || !X_SCALE_GROUP
    cp_async_wait<0>();
    named_barrier_sync(BIAS_BARRIER + consumer, 128);
#endif
#if X_SCALE_GROUP
    auto &acc = sums;
#else
    // Accumulators from number `first` of block b on, scaled.
    auto scale = [&](float *out, int count, int b, int first) {
      float x[2];
#pragma unroll
      for (int h = 0; h < 2; h++)
        x[h] = X_SCALE_ROW ? ld_shared_f32(slice + (W_SCALES + warp * 16 + lane / 4 + b * 64 + h * 8) * 4) : __ldg(scales.x);
#pragma unroll
      for (int c = 0; c < count; c += 4) {
        float2 w;
        if (W_SCALE_ROW) w = ld_shared_f32x2(slice + ((first + c) * 2 + lane % 4 * 2) * 4);
        else w.x = w.y = __ldg(scales.w);
#pragma unroll
        for (int h = 0; h < 2; h++) {
          out[c + 2 * h] = (float)sums[b][first + c + 2 * h] * (x[h] * w.x);
          out[c + 2 * h + 1] = (float)sums[b][first + c + 2 * h + 1] * (x[h] * w.y);
        }
      }
    };
#if SPLIT_K > 1
    float acc[BLOCKS_M][TILE_N / 2];
#pragma unroll
    for (int b = 0; b < BLOCKS_M; b++) scale(acc[b], TILE_N / 2, b, 0);
#else
    ScaledSums<decltype(scale)> acc = {scale};
#endif
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
    const Scales scales = {x_scales, w_scales, base + SCALES_AT + consumer * SLICE_BYTES};
    consume(base, bars, e, bias_row, scales, consumer, rank);
    if (CLUSTER > 1) cluster_sync_relaxed();
  }
}
