// y = x·Wᵀ for up to 64 tokens on the tensor cores: a stream of the weights through shared memory, each byte read once.
// The operands are swapped: 16 rows of W are the M side of mma.m16n8k16 and eight tokens its N side, so that few
// tokens waste nothing that matters; the run time is the weights' bytes over the memory bandwidth.
//
// A row group is BLOCK_ROWS adjacent rows of W (columns of y), computed by one block: its WARPS warps are SPLIT_K parts
// of k by WARPS / SPLIT_K parts of ROW_TILES * 16 rows. Every warp streams on its own: STAGES asynchronous copies of its
// rows by STAGE_K elements are in flight, a warp waits for its oldest, uses it, and requests in its place what comes
// STAGES steps later in the stream, across row groups too. The warps meet only to combine the parts of k.
//
//   weights ──cp.async──▶ ring[WARPS][STAGES] ─┐
//   x ──(shared memory, X_SMEM)────────────────┴─mma──▶ acc ──▶ partial[SPLIT_K] ──▶ epilogue
//
// Fragments without ldmatrix: a product does not depend on the order of k as long as both operands agree on it. In a
// chunk of 32 k, thread t takes the eight k from 8 * (t % 4) as one 16-byte vector, of rows 2 * (t / 4) and
// 2 * (t / 4) + 1 of the tile for W and of token t / 4 for x, and uses its four registers as the k pairs of two mma
// steps. With fragment row t / 4 standing for weight row 2 * (t / 4), and t / 4 + 8 for the one after it, a thread's
// accumulators are pairs of adjacent columns of y, as the epilogues need them.
//
// Under programmatic dependent launch the ring is requested before the wait for the kernel that produces x, and the
// dependent kernel may start at once: its own ring then fills under this kernel's tail.
#include "epilogue.cuh"
#include "qk_norm.cuh"
#include "mma.cuh"
#include "weight_stream.cuh"

#define THREADS (WARPS * 32)
#define CHUNK_K 32
#define TOKEN_TILES (TILE_M / 8)
#define WARP_ROWS (ROW_TILES * 16)
#define BLOCK_ROWS (WARPS / SPLIT_K * WARP_ROWS)
#define GROUPS ((N + BLOCK_ROWS - 1) / BLOCK_ROWS)
#define STEP_K (SPLIT_K * STAGE_K)
#define STEPS ((K + STEP_K - 1) / STEP_K)
#define PERSISTENT (BLOCKS_SM > 0) // a block takes every gridDim.x-th row group, instead of just one

// Shared memory, in bytes. The padding of rows lets the 16-byte accesses of eight threads, two rows by 64 bytes, touch
// every bank once: rows of x are an odd multiple of 64, rows of W, of which every other one is read, of 32. Rows of
// partial sums, in floats, are 4 more than a multiple of 16, so that the accumulators of a half warp do.
#define X_COLS ((K + CHUNK_K - 1) / CHUNK_K * CHUNK_K)
#define X_STRIDE (X_COLS * 2 % 128 == 64 ? X_COLS * 2 : X_COLS * 2 + 64)
#define X_BYTES (X_SMEM ? TILE_M * X_STRIDE : 0)
#define W_STRIDE (STAGE_K * 2 + 32)
#define STAGE_BYTES (WARP_ROWS * W_STRIDE)
#define RING_BYTES (WARPS * STAGES * STAGE_BYTES)
#define PARTIAL_STRIDE ((TILE_M + 15) / 16 * 16 + 4)
#define PARTIALS (SPLIT_K * BLOCK_ROWS * PARTIAL_STRIDE)

static_assert(ELEM_BYTES == 2, "the tensor cores take 16-bit elements");
static_assert(K % 8 == 0, "rows of W and x are read as aligned 16-byte vectors");
static_assert(TILE_M % 8 == 0 && TILE_M <= 64, "tokens are the N side of the instruction");
static_assert(STAGE_K % 128 == 0, "copies of a row are multiples of 256 bytes");
static_assert(WARPS % SPLIT_K == 0, "the warps are SPLIT_K parts of k by parts of the rows");

struct weight_stream {
  const elem *w;
  u32 ring;   // this warp's, in shared memory
  int k_part; // this warp's first element within a step
  int row;    // this warp's first row within a row group
};

// Requests the warp's part of one step of one row group; zero outside of W.
DEV void copy_weights(const weight_stream &s, int slot, int group, int step) {
  constexpr int ROW_VECTORS = STAGE_K / 8;
  const int lane = lane_id();
#pragma unroll
  for (int i = 0; i < WARP_ROWS * ROW_VECTORS / 32; i++) {
    const int r = ROW_VECTORS >= 32 ? i / (ROW_VECTORS / 32) : i * (32 / ROW_VECTORS) + lane / ROW_VECTORS;
    const int v = ROW_VECTORS >= 32 ? i % (ROW_VECTORS / 32) * 32 + lane : lane % ROW_VECTORS;
    const int row = group * BLOCK_ROWS + s.row + r, k = step * STEP_K + s.k_part + v * 8;
    const elem *p = s.w + (i64)row * K + k;
    const u32 dst = s.ring + slot * STAGE_BYTES + r * W_STRIDE + v * 16;
    if constexpr (N % BLOCK_ROWS == 0 && K % STEP_K == 0) {
      cp_async16(dst, p);
    } else {
      const bool inside = row < N && k < K;
      cp_async16(dst, inside ? p : s.w, inside ? 16 : 0);
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
matmul_skinny(const elem *x, const elem *__restrict__ w, EPILOGUE_PARAMS, int m) {
  extern __shared__ __align__(16) u8 smem[]; // ring, x, two buffers of partial sums in turn
  [[maybe_unused]] u8 *const x_tile = smem + RING_BYTES;
  [[maybe_unused]] float *const partials = reinterpret_cast<float *>(smem + RING_BYTES + X_BYTES);
  const epilogue_args e = EPILOGUE_PACK;
  const int lane = lane_id(), quad = lane / 4, part_k = warp_id() % SPLIT_K, part_row = warp_id() / SPLIT_K;
  const u32 ring_at = warp_id() * (STAGES * STAGE_BYTES);
  const weight_stream s = {w, smem_u32(smem) + ring_at, part_k * STAGE_K, part_row * WARP_ROWS};
  const u8 *const w_thread = smem + ring_at + 2 * quad * W_STRIDE + lane % 4 * 16;
  const int first_row = s.row + 2 * quad; // of this thread within a row group

  pdl_launch();
  // The stream's position STAGES steps ahead of the one in use. One group of copies is committed a step, empty past the
  // end, so that the oldest group is always the one waited for.
  int next_group = blockIdx.x, next_step = 0;
  const auto request_next = [&](int slot) {
    if (next_group < GROUPS) {
      copy_weights(s, slot, next_group, next_step);
      if (++next_step == STEPS) {
        next_step = 0;
        next_group = PERSISTENT ? next_group + gridDim.x : GROUPS;
      }
    }
    cp_async_commit();
  };
#pragma unroll
  for (int i = 0; i < STAGES; i++) request_next(i);
  pdl_wait();

#if X_SMEM
  constexpr int X_VECTORS = X_COLS / 8;
#pragma unroll 8
  for (int i = threadIdx.x; i < TILE_M * X_VECTORS; i += THREADS) {
    const int t = i / X_VECTORS, v = i % X_VECTORS;
    *reinterpret_cast<uint4 *>(x_tile + t * X_STRIDE + v * 16) = ld_tokens_if(x + t * K + v * 8, t < m && v * 8 < K);
  }
  __syncthreads();
#endif

  [[maybe_unused]] int buffer = 0;
  int group = blockIdx.x, slot = 0;
  do {
    float acc[ROW_TILES][TOKEN_TILES][4] = {};
#pragma unroll 1
    for (int step = 0; step < STEPS; step++) {
      cp_async_wait<STAGES - 1>();
      __syncwarp();
      const u8 *const w_stage = w_thread + slot * STAGE_BYTES;
      const int k_step = step * STEP_K + s.k_part;
#pragma unroll
      for (int u = 0; u < STAGE_K / CHUNK_K; u++) {
        if (K % STEP_K != 0 && k_step + u * CHUNK_K >= K) break;
        u32 a[ROW_TILES][2][4];
#pragma unroll
        for (int i = 0; i < ROW_TILES; i++) {
          const uint4 even = *reinterpret_cast<const uint4 *>(w_stage + i * 16 * W_STRIDE + u * 64);
          const uint4 odd = *reinterpret_cast<const uint4 *>(w_stage + (i * 16 + 1) * W_STRIDE + u * 64);
          a[i][0][0] = even.x, a[i][0][1] = odd.x, a[i][0][2] = even.y, a[i][0][3] = odd.y;
          a[i][1][0] = even.z, a[i][1][1] = odd.z, a[i][1][2] = even.w, a[i][1][3] = odd.w;
        }
#pragma unroll
        for (int t = 0; t < TOKEN_TILES; t++) {
          const int k = k_step + u * CHUNK_K + lane % 4 * 8;
#if X_SMEM
          const uint4 b = *reinterpret_cast<const uint4 *>(x_tile + (t * 8 + quad) * X_STRIDE + k * 2);
#else
          const uint4 b = ld_tokens_if(x + (quad * K + k) + t * 8 * K, t * 8 + quad < m && (K % STEP_K == 0 || k < K));
#endif
          const u32 b0[2] = {b.x, b.y}, b1[2] = {b.z, b.w};
#pragma unroll
          for (int i = 0; i < ROW_TILES; i++) {
            mma_16816(elem{}, acc[i][t], a[i][0], b0);
            mma_16816(elem{}, acc[i][t], a[i][1], b1);
          }
        }
      }
      __syncwarp();
      request_next(slot);
      if (++slot == STAGES) slot = 0;
    }

#include "skinny_end.cuh" // the sums of a row group, of all parts of k, to the epilogue; on to the next one
