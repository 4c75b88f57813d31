// y = x·Wᵀ for up to 32 tokens where tokens and W are codes of 8 bits with scales, integers both or E4M3 both: matmul_codes without the
// conversion. A stream of W from memory to registers, each byte read once, which mma.m16n8k32 takes as it is; 16 rows of W are the M side
// of the instruction and eight tokens its N side.
//
// A row group is BLOCK_ROWS adjacent rows of W (columns of y), computed by one block: its WARPS warps are SPLIT_K parts of k by
// WARPS / SPLIT_K parts of ROW_TILES * 16 rows. A lane of four reads 16 bytes of each row and of each token at a time, at the same
// k, of which words 0 and 1 are one product's fragments and words 2 and 3 another's: k is in an order of its own, the same on both sides.
// As soon as a vector is used, its registers are the target of the load that is one step further along the stream.
//
// Integers are summed exactly. Sums of E4M3 lose bits within the tensor cores, so those of 128 k are added in f32 from outside, and where
// tokens have scales for groups and W for blocks, multiplied by both on the way. Scales of tokens and rows, or one of either, come last.
//
// Fragment row t / 4 stands for weight row 2 * (t / 4), and t / 4 + 8 for the one after it: a thread has pairs of adjacent columns of y.
#include "epilogue.cuh"
#include "qk_norm.cuh"
#include "weight_stream.cuh"

#define QUAD_K 64 // of the vectors of four lanes
#define THREADS (WARPS * 32)
#define TOKEN_TILES (TILE_M / 8)
#define WARP_ROWS (ROW_TILES * 16)
#define BLOCK_ROWS (WARPS / SPLIT_K * WARP_ROWS)
#define GROUPS ((N + BLOCK_ROWS - 1) / BLOCK_ROWS)
#define STEP_K (SPLIT_K * UNROLL * QUAD_K)
#define STEPS ((K + STEP_K - 1) / STEP_K)
#define PERSISTENT (BLOCKS_SM > 0) // a block takes every gridDim.x-th row group, instead of just one
#define PARTIAL_STRIDE ((TILE_M + 15) / 16 * 16 + 4)
#define PARTIALS (SPLIT_K * BLOCK_ROWS * PARTIAL_STRIDE)
// Of each kind one is defined, as 1; constant expressions need the others.
#if !X_SCALE_GROUP
#define X_SCALE_GROUP 0
#endif
#if !X_SCALE_ROW
#define X_SCALE_ROW 0
#endif
#if !W_SCALE_ROW
#define W_SCALE_ROW 0
#endif
#if !W_SCALE_BLOCK
#define W_SCALE_BLOCK 0
#endif
#define SCALES_K ((K + 127) / 128) // groups of a token, blocks of a row

static_assert(ELEM_BYTES == 2 && K % QUAD_K == 0, "16-bit results, rows of whole vectors of four lanes");
static_assert(TILE_M % 8 == 0 && TILE_M <= 32 && WARPS % SPLIT_K == 0, "tokens are the N side of the instruction");
static_assert(!X_SCALE_GROUP || (W_SCALE_BLOCK && X_GROUP == 128 && UNROLL % 2 == 0), "128 k have one scale of each side, and are one warp's");

#if DTYPE_X_INT8
typedef int sum_t;
DEV void mma_16832(int (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
#else
typedef float sum_t;
DEV void mma_16832(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
#endif

DEV uint4 ld_codes(const u8 *p, bool inside) {
  const elem *const at = reinterpret_cast<const elem *>(p);
  if constexpr (N % BLOCK_ROWS == 0 && K % STEP_K == 0) return ld_weights(at);
  else return ld_weights_if(at, inside);
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
matmul_scaled(const u8 *x, const float *x_scales, const u8 *__restrict__ w, const float *__restrict__ w_scales, EPILOGUE_PARAMS, int m) {
#if SPLIT_K > 1
  extern __shared__ __align__(16) float partials[]; // two buffers in turn
#endif
  const epilogue_args e = EPILOGUE_PACK;
  const int lane = lane_id(), quad = lane / 4, part_k = warp_id() % SPLIT_K, part_row = warp_id() / SPLIT_K;
  const int first_k = part_k * (UNROLL * QUAD_K), first_row = part_row * WARP_ROWS + 2 * quad; // in a step, in a row group
  const auto stream_of = [&](int group) { return w + (i64)(group * BLOCK_ROWS + first_row) * K + (first_k + lane % 4 * 16); };

  pdl_launch();
  uint4 q[UNROLL][ROW_TILES][2];
  const u8 *s = stream_of(blockIdx.x); // one step ahead of the one in use
  const auto request = [&](int u, int group, int step) {
#pragma unroll
    for (int i = 0; i < ROW_TILES; i++)
#pragma unroll
      for (int j = 0; j < 2; j++)
        q[u][i][j] = ld_codes(s + (i * 16 + j) * K + u * QUAD_K, group * BLOCK_ROWS + first_row + i * 16 + j < N &&
                                                                     step * STEP_K + first_k + u * QUAD_K < K);
  };
#pragma unroll
  for (int u = 0; u < UNROLL; u++) request(u, blockIdx.x, 0);
  pdl_wait();

  // A token that is not there is another one: its column of the product is left alone.
  const u8 *x_of[TOKEN_TILES];
#pragma unroll
  for (int t = 0; t < TOKEN_TILES; t++) x_of[t] = x + (i64)min(t * 8 + quad, m - 1) * K + (first_k + lane % 4 * 16);
  const auto token_of = [&](int t, int j) { return min(t * 8 + lane % 4 * 2 + j, m - 1); };

  [[maybe_unused]] int buffer = 0;
  int group = blockIdx.x;
  do {
    float acc[ROW_TILES][TOKEN_TILES][4] = {};
#if DTYPE_X_INT8
    int sums[ROW_TILES][TOKEN_TILES][4] = {};
#else
    float sums[ROW_TILES][TOKEN_TILES][4];
#endif
#pragma unroll 1
    for (int step = 0; step < STEPS; step++) {
      const bool last = step == STEPS - 1;
      const int next_group = last ? group + gridDim.x : group, next_step = last ? 0 : step + 1;
      const bool more = PERSISTENT ? next_group < GROUPS : !last;
      if (last && PERSISTENT) s = stream_of(next_group);
      else s += STEP_K;
#pragma unroll
      for (int u = 0; u < UNROLL; u++) {
        const int k = step * STEP_K + u * QUAD_K;
#if !DTYPE_X_INT8
        if (u % 2 == 0) {
#pragma unroll
          for (int i = 0; i < ROW_TILES; i++)
#pragma unroll
            for (int t = 0; t < TOKEN_TILES; t++)
#pragma unroll
              for (int d = 0; d < 4; d++) sums[i][t][d] = 0.0f;
        }
#endif
        if (K % STEP_K == 0 || k + first_k < K) {
          uint4 b[TOKEN_TILES];
#pragma unroll
          for (int t = 0; t < TOKEN_TILES; t++) b[t] = *reinterpret_cast<const uint4 *>(x_of[t] + k);
#pragma unroll
          for (int i = 0; i < ROW_TILES; i++) {
            const uint4 a = q[u][i][0], c = q[u][i][1];
#pragma unroll
            for (int t = 0; t < TOKEN_TILES; t++) {
              mma_16832(sums[i][t], a.x, c.x, a.y, c.y, b[t].x, b[t].y);
              mma_16832(sums[i][t], a.z, c.z, a.w, c.w, b[t].z, b[t].w);
            }
          }
        }
        if (more) request(u, next_group, next_step);
#if !DTYPE_X_INT8
        if (u % 2 == 1 || u == UNROLL - 1) {
#pragma unroll
          for (int i = 0; i < ROW_TILES; i++)
#pragma unroll
            for (int t = 0; t < TOKEN_TILES; t++) {
              float factor[2][2] = {{1, 1}, {1, 1}}; // of a token, of a row
#if X_SCALE_GROUP
              const int at = min((k + first_k) / 128, SCALES_K - 1), row = group * BLOCK_ROWS + first_row + i * 16;
#pragma unroll
              for (int j = 0; j < 2; j++)
#pragma unroll
                for (int r = 0; r < 2; r++)
                  factor[j][r] = x_scales[(i64)token_of(t, j) * SCALES_K + at] * __ldg(w_scales + (i64)(min(row + r, N - 1) / 128) * SCALES_K + at);
#endif
#pragma unroll
              for (int d = 0; d < 4; d++) acc[i][t][d] = fmaf(sums[i][t][d], factor[d % 2][d / 2], acc[i][t][d]);
            }
        }
#endif
      }
    }
#if !X_SCALE_GROUP
#pragma unroll
    for (int i = 0; i < ROW_TILES; i++)
#pragma unroll
      for (int t = 0; t < TOKEN_TILES; t++)
#pragma unroll
        for (int d = 0; d < 4; d++) {
          const int row = min(group * BLOCK_ROWS + first_row + i * 16 + d / 2, N - 1), token = token_of(t, d % 2);
#if DTYPE_X_INT8
          acc[i][t][d] = (float)sums[i][t][d];
          sums[i][t][d] = 0;
#endif
          acc[i][t][d] *= x_scales[X_SCALE_ROW ? token : 0] * __ldg(w_scales + (W_SCALE_ROW ? row : 0));
        }
#endif

#include "skinny_end.cuh" // the sums of a row group, of all parts of k, to the epilogue; on to the next one
