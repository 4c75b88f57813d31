// What the products of few tokens by codes have in common (matmul_codes.cu, which says how they work): the stream of codes from
// memory to registers. In the kernel, codes_begin.cuh requests the first of them, and codes_products.cuh does the rest.
#pragma once
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
#define PARTIAL_BUFFERS (SPLIT_K == 1 ? 0 : PERSISTENT ? 2 : 1)

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
