// y = x·Wᵀ for up to 64 tokens where W is stored as scaled codes of 4 or 8 bits: a stream of the codes from memory to
// registers, each byte read once, turned there into fragments of mma.m16n8k16. The operands are swapped: 16 rows of W are
// the M side of the instruction and eight tokens its N side. The run time is the codes' bytes over the memory bandwidth.
//
// A row group is BLOCK_ROWS adjacent rows of W (columns of y), computed by one block: its WARPS warps are SPLIT_K parts
// of k by WARPS / SPLIT_K parts of ROW_TILES * 16 rows. A lane reads 16 bytes of each of its 2 * ROW_TILES rows at a time; a
// step covers UNROLL such vectors, and all of them are in flight at once. As soon as a vector is used, its registers are the
// target of the load that is one step further along the stream, across row groups too. x comes through the L1 cache.
//
//   codes ──16-byte loads──▶ q[UNROLL][ROW_TILES][2] ──pairs──▶ A ─┐
//   x ──16-byte loads──────────────────────────────────────────▶ B ─┴─mma──▶ part ──scale of the group──▶ acc ──▶ epilogue
//
// A group's scale is applied to the f32 sum of its products, a row's or the tensor's to the result, and so is what codes are
// too large by, with the sum of the group's tokens, which comes from the tensor cores too. So nothing is rounded but sums. With fragment row t / 4 standing for weight row
// 2 * (t / 4), and t / 4 + 8 for the one after it, a thread's accumulators are pairs of adjacent columns of y.
//
// Under programmatic dependent launch the first codes are requested before the wait for the kernel that produces x, and
// the dependent kernel may start at once: its own first codes then arrive under this kernel's tail.
#include "epilogue.cuh"
#include "qk_norm.cuh"
#include "mma.cuh"
#include "weight_stream.cuh"
#include "codes.cuh"

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

#if W_SCALE_GROUP || W_SCALE_BLOCK
#define GROUPED 1
#else
#define GROUPED 0
#endif
#if GROUPED
#define GROUP_K (W_GROUP < QUAD_K ? W_GROUP : QUAD_K) // k of a vector of four lanes that one scale belongs to
#define SCALES_K ((K + W_GROUP - 1) / W_GROUP)         // groups of a row
#else
#define GROUP_K QUAD_K
#endif
#define VECTOR_GROUPS (QUAD_K / GROUP_K)
// Whether the sum of a group's tokens takes off what codes are too large by, or each pair of codes is made right: the former
// costs two products for each tile of tokens, the latter an instruction for each pair.
#define SUMMED (W_ZERO_MIN || (DTYPE_W_INT4 && TOKEN_TILES == 1))

static_assert(ELEM_BYTES == 2, "the tensor cores take 16-bit elements");
static_assert(K % QUAD_K == 0, "rows are whole vectors of four lanes");
static_assert(TILE_M % 8 == 0 && TILE_M <= 64, "tokens are the N side of the instruction");
static_assert(WARPS % SPLIT_K == 0, "the warps are SPLIT_K parts of k by parts of the rows");
static_assert(GROUP_K % 32 == 0, "a chunk of 32 k has one scale");

// A position in the codes: this lane's of this warp's first row of a row group.
struct code_stream {
  const u8 *w;
#if GROUPED
  const scale_elem *scales;
#if W_ZERO_ZERO
  const u8 *zeros;
#elif W_ZERO_MIN
  const scale_elem *mins;
#endif
#endif
};

// The codes of one vector of one row with what they are scaled by.
struct codes {
  uint4 q;
#if GROUPED
  beside<scale_elem, VECTOR_GROUPS> scales;
#if W_ZERO_ZERO
  beside<u8, VECTOR_GROUPS> zeros;
#elif W_ZERO_MIN
  beside<scale_elem, VECTOR_GROUPS> mins;
#endif
#endif

  // `row` and `k` are only looked at where rows or steps are cut off by the end of W.
  DEV void load(const code_stream &s, int u, int i, int j, int row, int k) {
    const bool inside = (N % BLOCK_ROWS == 0 || row + i * 16 + j < N) && (K % STEP_K == 0 || k + u * QUAD_K < K);
    const elem *const p = reinterpret_cast<const elem *>(s.w + (i * 16 + j) * (K * CODE_BITS / 8) + u * 64);
    if constexpr (N % BLOCK_ROWS == 0 && K % STEP_K == 0) q = ld_weights(p);
    else q = ld_weights_if(p, inside);
#if GROUPED
#if W_SCALE_BLOCK
    const i64 at = (i64)((row + i * 16 + j) / 128) * SCALES_K + (k + u * QUAD_K) / W_GROUP;
#else
    const int at = (i * 16 + j) * SCALES_K + (W_GROUP > QUAD_K ? (k + u * QUAD_K) / W_GROUP : u * VECTOR_GROUPS);
#endif
    scales = ld_beside_if<scale_elem, VECTOR_GROUPS>(s.scales + at, inside);
#if W_ZERO_ZERO
    zeros = ld_beside_if<u8, VECTOR_GROUPS>(s.zeros + at, inside);
#elif W_ZERO_MIN
    mins = ld_beside_if<scale_elem, VECTOR_GROUPS>(s.mins + at, inside);
#endif
#endif
  }
  // What is taken off each code of group g, in both halves, where their sum does not.
  DEV u32 less(int g) const {
#if W_ZERO_ZERO && GROUPED
    const float v = -CODE_BASE - zeros.v[g];
#else
    const float v = -CODE_BASE - 8.0f;
#endif
    return pack2(elem{}, v, v);
  }
  DEV u32 word(int i) const { return i == 0 ? q.x : i == 1 ? q.y : i == 2 ? q.z : q.w; }
  // What group g's products are multiplied with, and then the sum of its tokens.
  DEV void factors(int g, float &scale, [[maybe_unused]] float &offset) const {
#if GROUPED
    scale = to_f32(scales.v[g]);
#if W_ZERO_ZERO
    offset = -scale * (CODE_BASE + zeros.v[g]);
#elif W_ZERO_MIN
    offset = fmaf(-CODE_BASE, scale, to_f32(mins.v[g]));
#else
    offset = -scale * (CODE_BASE + 8.0f);
#endif
#endif
  }
};

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
matmul_codes(const elem *x, const u8 *__restrict__ w, const scale_elem *__restrict__ scales,
#if W_ZERO_ZERO
             const u8 *__restrict__ zeros,
#elif W_ZERO_MIN
             const scale_elem *__restrict__ mins,
#endif
             EPILOGUE_PARAMS, int m) {
#if SPLIT_K > 1
  extern __shared__ __align__(16) float partials[]; // two buffers in turn
#endif
  const epilogue_args e = EPILOGUE_PACK;
  const int lane = lane_id(), quad = lane / 4, part_k = warp_id() % SPLIT_K, part_row = warp_id() / SPLIT_K;
  const int first_k = part_k * (UNROLL * QUAD_K), first_row = part_row * WARP_ROWS + 2 * quad; // in a step, in a row group
  const auto stream_of = [&](int group) {
    const i64 row = group * BLOCK_ROWS + first_row;
    code_stream s;
    s.w = w + row * (K * CODE_BITS / 8) + (first_k * CODE_BITS / 8 + lane % 4 * 16);
#if W_SCALE_BLOCK
    s.scales = scales;
#elif GROUPED
    const i64 at = row * SCALES_K + (W_GROUP > QUAD_K ? 0 : first_k / W_GROUP);
    s.scales = scales + at;
#if W_ZERO_ZERO
    s.zeros = zeros + at;
#elif W_ZERO_MIN
    s.mins = mins + at;
#endif
#endif
    return s;
  };
  const auto advance = [&](code_stream &s) {
    s.w += STEP_K * CODE_BITS / 8;
#if GROUPED && !W_SCALE_BLOCK
    constexpr int GROUPS_ON = W_GROUP > QUAD_K ? 0 : STEP_K / W_GROUP;
    s.scales += GROUPS_ON;
#if W_ZERO_ZERO
    s.zeros += GROUPS_ON;
#elif W_ZERO_MIN
    s.mins += GROUPS_ON;
#endif
#endif
  };

  pdl_launch();
  codes q[UNROLL][ROW_TILES][2];
  code_stream s = stream_of(blockIdx.x); // one step ahead of the one in use
  const auto request = [&](int u, int group, int step) {
#pragma unroll
    for (int i = 0; i < ROW_TILES; i++)
#pragma unroll
      for (int j = 0; j < 2; j++)
        q[u][i][j].load(s, u, i, j, group * BLOCK_ROWS + first_row, step * STEP_K + first_k);
  };
#pragma unroll
  for (int u = 0; u < UNROLL; u++) request(u, blockIdx.x, 0);
  pdl_wait();

  // A token that is not there is another one: its column of the product is left alone.
  const elem *x_of[TOKEN_TILES];
#pragma unroll
  for (int t = 0; t < TOKEN_TILES; t++) x_of[t] = x + (i64)min(t * 8 + quad, m - 1) * K + (first_k + lane % 4 * 8);
  [[maybe_unused]] const u32 ones[4] = {ONES, ONES, ONES, ONES};

  [[maybe_unused]] int buffer = 0;
  int group = blockIdx.x;
  do {
    float acc[ROW_TILES][TOKEN_TILES][4] = {};
#if SUMMED && !GROUPED
    float sum[TOKEN_TILES][4] = {}; // of the tokens, in all rows alike
#endif
#pragma unroll 1
    for (int step = 0; step < STEPS; step++) {
      const bool last = step == STEPS - 1;
      const int next_group = last ? group + gridDim.x : group, next_step = last ? 0 : step + 1;
      const bool more = PERSISTENT ? next_group < GROUPS : !last;
      if (last && PERSISTENT) s = stream_of(next_group);
      else advance(s);
#pragma unroll
      for (int u = 0; u < UNROLL; u++) {
        const int k = step * STEP_K + u * QUAD_K;
        const bool inside = K % STEP_K == 0 || k + first_k < K;
        if (inside) {
#pragma unroll
          for (int g = 0; g < VECTOR_GROUPS; g++) {
#if GROUPED
            float part[ROW_TILES][TOKEN_TILES][4] = {};
#if SUMMED
            float sum[TOKEN_TILES][4] = {};
#endif
#else
            float(&part)[ROW_TILES][TOKEN_TILES][4] = acc;
#endif
#pragma unroll
            for (int c = g * (GROUP_K / 32); c < (g + 1) * (GROUP_K / 32); c++) {
              uint4 b[TOKEN_TILES];
#pragma unroll
              for (int t = 0; t < TOKEN_TILES; t++) b[t] = ld_tokens(x_of[t] + k + c * 32);
#pragma unroll
              for (int i = 0; i < ROW_TILES; i++) {
                u32 a[2][4]; // of two rows, the pairs of eight k
#pragma unroll
                for (int j = 0; j < 2; j++) {
#if DTYPE_W_INT4
                  pairs(a[j], q[u][i][j].word(c));
#if !SUMMED
                  const u32 less = q[u][i][j].less(g);
#pragma unroll
                  for (int p = 0; p < 4; p++) a[j][p] = fma2(elem{}, a[j][p], ONES, less);
#endif
#else
                  u32 lo[2], hi[2];
                  pairs(lo, q[u][i][j].word(2 * c));
                  pairs(hi, q[u][i][j].word(2 * c + 1));
                  a[j][0] = lo[0], a[j][1] = lo[1], a[j][2] = hi[0], a[j][3] = hi[1];
#endif
                }
                const u32 a0[4] = {a[0][0], a[1][0], a[0][1], a[1][1]}, a1[4] = {a[0][2], a[1][2], a[0][3], a[1][3]};
#pragma unroll
                for (int t = 0; t < TOKEN_TILES; t++) {
                  const u32 b0[2] = {b[t].x, b[t].y}, b1[2] = {b[t].z, b[t].w};
                  mma_16816(elem{}, part[i][t], a0, b0);
                  mma_16816(elem{}, part[i][t], a1, b1);
#if SUMMED
                  if (i == 0) {
                    mma_16816(elem{}, sum[t], ones, b0);
                    mma_16816(elem{}, sum[t], ones, b1);
                  }
#endif
                }
              }
            }
#if GROUPED
#pragma unroll
            for (int i = 0; i < ROW_TILES; i++) {
              float scale[2], offset[2];
              q[u][i][0].factors(g, scale[0], offset[0]), q[u][i][1].factors(g, scale[1], offset[1]);
#pragma unroll
              for (int t = 0; t < TOKEN_TILES; t++)
#pragma unroll
                for (int d = 0; d < 4; d++) {
                  acc[i][t][d] = fmaf(part[i][t][d], scale[d / 2], acc[i][t][d]);
#if SUMMED
                  acc[i][t][d] = fmaf(sum[t][d], offset[d / 2], acc[i][t][d]);
#endif
                }
            }
#endif
          }
        }
        if (more) request(u, next_group, next_step);
      }
    }
#if !GROUPED
#pragma unroll
    for (int i = 0; i < ROW_TILES; i++) {
      const int row = group * BLOCK_ROWS + first_row + i * 16;
#if W_SCALE_ROW
      const float scale[2] = {row < N ? to_f32(scales[row]) : 0.0f, row + 1 < N ? to_f32(scales[row + 1]) : 0.0f};
#else
      const float scale[2] = {to_f32(scales[0]), to_f32(scales[0])};
#endif
#if SUMMED || W_ZERO_ZERO
#if !SUMMED
#error "zero points of whole rows are for one tile of tokens"
#endif
      float less[2] = {-CODE_BASE - 8.0f, -CODE_BASE - 8.0f};
#if W_ZERO_ZERO
#pragma unroll
      for (int j = 0; j < 2; j++) less[j] = row + j < N ? -CODE_BASE - zeros[W_SCALE_ROW ? row + j : 0] : 0.0f;
#elif W_ZERO_MIN
#error "a minimum belongs to a group"
#endif
#endif
#pragma unroll
      for (int t = 0; t < TOKEN_TILES; t++)
#pragma unroll
        for (int d = 0; d < 4; d++) {
#if SUMMED
          acc[i][t][d] = fmaf(less[d / 2], sum[t][d], acc[i][t][d]);
#endif
          acc[i][t][d] *= scale[d / 2];
        }
    }
#endif

#include "skinny_end.cuh" // the sums of a row group, of all parts of k, to the epilogue; on to the next one
