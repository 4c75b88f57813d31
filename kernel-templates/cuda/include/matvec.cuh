#include "epilogue.cuh"
#include "qk_norm.cuh"
#include "mma.cuh"
#include "weight_stream.cuh"

#define THREADS (WARPS * 32)
#define VECTOR (16 / ELEM_BYTES)                // elements of one 16-byte load
#define CHUNK_K (32 * VECTOR)                   // what one load of the warp covers along k
#define STEP_K (SPLIT_K * UNROLL * CHUNK_K)     // what one step of the block covers along k
#define STEPS ((K + STEP_K - 1) / STEP_K)
#define BLOCK_ROWS (WARPS / SPLIT_K * ROWS)
#define GROUPS ((N + BLOCK_ROWS - 1) / BLOCK_ROWS)
#define PERSISTENT (BLOCKS_SM > 0)              // a block takes every gridDim.x-th row group, instead of just one

static_assert(K % VECTOR == 0, "rows of W are read as aligned 16-byte vectors");
static_assert(WARPS % SPLIT_K == 0, "the warps are SPLIT_K parts of k by parts of the rows");
static_assert(BLOCK_ROWS % 2 == 0, "the epilogue takes pairs of columns");

struct weight_stream {
  const elem *w;
  int k_lane; // this lane's first element within a step
  int row;    // this warp's first row within a row group
};

// Vector `u` of row `r` in one step of one row group; zero outside of W.
DEV uint4 load_weight(const weight_stream &s, int group, int step, int r, int u) {
  const int row = group * BLOCK_ROWS + s.row + r;
  const int k = step * STEP_K + u * CHUNK_K + s.k_lane;
  const elem *p = s.w + (i64)row * K + k;
  if constexpr (N % BLOCK_ROWS == 0 && K % STEP_K == 0) return ld_weights(p);
  else return ld_weights_if(p, row < N && k < K);
}

#if ELEM_BYTES == 2
static_assert(ROWS % 2 == 0, "the tensor cores take pairs of rows");

// Dot products on the tensor cores, of vectors as the loads leave them. A thread's vectors of two rows of W are its part
// of the fragment A of mma.m16n8k16, its vector of x is its part of B: row i of A is then the k of lanes 4i to 4i + 3 of
// the first row of W, row i + 8 those of the second, and column j of B the k of lanes 4j to 4j + 3 of x. Where i = j the
// product is one that is wanted, so the dot products are the traces of the two halves of the accumulator. The other
// entries are wasted, but two instructions replace 16 multiply-adds and 24 conversions.
struct dot_products {
  float d[ROWS / 2][TILE_M][4];

  DEV void add(const uint4 (&w)[ROWS], const uint4 (&x)[TILE_M]) {
#pragma unroll
    for (int t = 0; t < TILE_M; t++) {
      const u32 b0[2] = {x[t].x, x[t].y}, b1[2] = {x[t].z, x[t].w};
#pragma unroll
      for (int r = 0; r < ROWS; r += 2) {
        const u32 a0[4] = {w[r].x, w[r + 1].x, w[r].y, w[r + 1].y}, a1[4] = {w[r].z, w[r + 1].z, w[r].w, w[r + 1].w};
        mma_16816(elem{}, d[r / 2][t], a0, b0);
        mma_16816(elem{}, d[r / 2][t], a1, b1);
      }
    }
  }
  // This lane's share of a dot product. Lane 4i + c has columns 2c and 2c + 1 of row i of the accumulator.
  DEV float share(int r, int t) const {
    const int lane = lane_id(), i = lane / 4, c = lane % 4;
    const float v = i % 2 ? d[r / 2][t][r % 2 * 2 + 1] : d[r / 2][t][r % 2 * 2];
    return i / 2 == c ? v : 0.0f;
  }
};
#else
// Dot products by multiply-adds, element by element of the vectors.
struct dot_products {
  float d[ROWS][TILE_M];

  DEV void add(const uint4 (&w)[ROWS], const uint4 (&x)[TILE_M]) {
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
      for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int t = 0; t < TILE_M; t++) d[r][t] = fmaf(element(w[r], i), element(x[t], i), d[r][t]);
  }
  DEV float share(int r, int t) const { return d[r][t]; }
  static DEV float element(uint4 v, int i) {
    return __uint_as_float(i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w);
  }
};
#endif

constexpr int power_of_two_from(int v) {
  int p = 1;
  while (p < v) p *= 2;
  return p;
}

// Sums COUNT values, a power of two of at most 32, over the lanes at once. Each exchange halves the values that a lane
// still carries, so that in the end lane l holds value l / (32 / COUNT).
template <int COUNT, int OFFSET = 16> DEV float sum_over_lanes(const float (&v)[COUNT]) {
  if constexpr (COUNT > 1) {
    const bool upper = lane_id() & OFFSET;
    float kept[COUNT / 2];
#pragma unroll
    for (int i = 0; i < COUNT / 2; i++) {
      const float give = upper ? v[i] : v[i + COUNT / 2];
      kept[i] = (upper ? v[i + COUNT / 2] : v[i]) + __shfl_xor_sync(0xffffffffu, give, OFFSET);
    }
    return sum_over_lanes<COUNT / 2, OFFSET / 2>(kept);
  } else {
    return warp_sum<2 * OFFSET>(v[0]);
  }
}

#define VALUES (ROWS * TILE_M)
#define BATCH (VALUES < 32 ? VALUES : 32)
#define BATCH_PADDED power_of_two_from(BATCH)

// Writes the warp's ROWS x TILE_M sums to dst, rows outermost.
DEV void store_partial(float *dst, const dot_products &acc) {
  const int lane = lane_id();
#pragma unroll
  for (int first = 0; first < VALUES; first += BATCH) {
    float v[BATCH_PADDED];
#pragma unroll
    for (int i = 0; i < BATCH_PADDED; i++)
      v[i] = i < BATCH && first + i < VALUES ? acc.share((first + i) / TILE_M, (first + i) % TILE_M) : 0.0f;
    const float sum = sum_over_lanes(v);
    constexpr int SPREAD = 32 / BATCH_PADDED;
    const int i = first + lane / SPREAD;
    if (lane % SPREAD == 0 && lane / SPREAD < BATCH && i < VALUES) dst[i] = sum;
  }
}
