// y = x·Wᵀ for one to eight tokens: a stream of the weights from memory to registers, each byte read once, with f32
// multiply-adds on the way. The run time is the weights' bytes over the memory bandwidth, so everything here serves to
// keep enough loads in flight.
//
// A row group is BLOCK_ROWS adjacent rows of W (columns of y), computed by one block. WARPS warps split it into
// SPLIT_K parts along k and WARPS / SPLIT_K parts of ROWS rows. A warp reads a row as vectors of 16 bytes per lane; a
// step covers UNROLL such vectors of each of its ROWS rows, and all of them are in flight at once. As soon as a vector
// is used, its register is the target of the load that is one step further along the stream, across row groups too.
// x comes through the L1 cache, which holds it after its first use on the multiprocessor.
//
//   weights ──16-byte loads──▶ w[ROWS][UNROLL] ──fma with x──▶ acc ──lanes──▶ partial[SPLIT_K] ──block──▶ epilogue
//
// Under programmatic dependent launch the first step of weights is requested before the wait for the kernel that
// produces x, and the dependent kernel may start at once: its own first weights then arrive under this kernel's tail.
#include "epilogue.cuh"
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

// The elements of one 32-bit word of a vector.
#define WORD_ELEMS (4 / ELEM_BYTES)
DEV void unpack_word(float (&f)[WORD_ELEMS], u32 v) {
#if ELEM_BYTES == 2
  unpack2(elem{}, v, f[0], f[1]);
#else
  f[0] = __uint_as_float(v);
#endif
}
DEV u32 word(uint4 v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

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
DEV void store_partial(float *dst, const float (&acc)[ROWS][TILE_M]) {
  const int lane = lane_id();
#pragma unroll
  for (int first = 0; first < VALUES; first += BATCH) {
    float v[BATCH_PADDED];
#pragma unroll
    for (int i = 0; i < BATCH_PADDED; i++)
      v[i] = i < BATCH && first + i < VALUES ? acc[(first + i) / TILE_M][(first + i) % TILE_M] : 0.0f;
    const float sum = sum_over_lanes(v);
    constexpr int SPREAD = 32 / BATCH_PADDED;
    const int i = first + lane / SPREAD;
    if (lane % SPREAD == 0 && lane / SPREAD < BATCH && i < VALUES) dst[i] = sum;
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
matvec(const elem *x, const elem *__restrict__ w, EPILOGUE_PARAMS, int m) {
  // Two buffers in turn, so that one barrier a row group is enough: a warp that is a group ahead writes the other one.
  __shared__ float partial[PERSISTENT ? 2 : 1][SPLIT_K][BLOCK_ROWS][TILE_M];
  const epilogue_args e = EPILOGUE_PACK;
  const int part_k = warp_id() % SPLIT_K, part_row = warp_id() / SPLIT_K;
  const weight_stream s = {w, part_k * (UNROLL * CHUNK_K) + lane_id() * VECTOR, part_row * ROWS};

  pdl_launch();
  uint4 wv[ROWS][UNROLL];
#pragma unroll
  for (int u = 0; u < UNROLL; u++)
#pragma unroll
    for (int r = 0; r < ROWS; r++) wv[r][u] = load_weight(s, blockIdx.x, 0, r, u);
  pdl_wait();

  int group = blockIdx.x, buffer = 0;
  do {
    float acc[ROWS][TILE_M] = {};
#pragma unroll 1
    for (int step = 0; step < STEPS; step++) {
      const bool last = step == STEPS - 1;
      const int next_group = last ? group + gridDim.x : group, next_step = last ? 0 : step + 1;
      const bool more = PERSISTENT ? next_group < GROUPS : !last;
#pragma unroll
      for (int u = 0; u < UNROLL; u++) {
        const int k = step * STEP_K + u * CHUNK_K + s.k_lane;
        uint4 xv[TILE_M];
#pragma unroll
        for (int t = 0; t < TILE_M; t++) {
          const bool inside = (TILE_M == 1 || t < m) && (K % STEP_K == 0 || k < K);
          xv[t] = ld_tokens_if(x + k + t * K, inside);
        }
        // Word by word: it takes the fewest registers beside the loads in flight.
#pragma unroll
        for (int i = 0; i < 4; i++) {
          float xf[TILE_M][WORD_ELEMS], wf[ROWS][WORD_ELEMS];
#pragma unroll
          for (int t = 0; t < TILE_M; t++) unpack_word(xf[t], word(xv[t], i));
#pragma unroll
          for (int r = 0; r < ROWS; r++) unpack_word(wf[r], word(wv[r][u], i));
#pragma unroll
          for (int j = 0; j < WORD_ELEMS; j++)
#pragma unroll
            for (int r = 0; r < ROWS; r++)
#pragma unroll
              for (int t = 0; t < TILE_M; t++) acc[r][t] = fmaf(wf[r][j], xf[t][j], acc[r][t]);
        }
        if (more) {
#pragma unroll
          for (int r = 0; r < ROWS; r++) wv[r][u] = load_weight(s, next_group, next_step, r, u);
        }
      }
    }

    store_partial(partial[buffer][part_k][part_row * ROWS], acc);
    __syncthreads();
    constexpr int PAIRS = BLOCK_ROWS / 2;
    for (int i = threadIdx.x; i < PAIRS * TILE_M; i += THREADS) {
      const int pair = i % PAIRS, t = i / PAIRS, col = group * BLOCK_ROWS + 2 * pair;
      float v0 = 0, v1 = 0;
#pragma unroll
      for (int p = 0; p < SPLIT_K; p++) {
        v0 += partial[buffer][p][2 * pair][t];
        v1 += partial[buffer][p][2 * pair + 1][t];
      }
      if (t < m && col < N) epilogue_pair(e, t, col, v0, v1);
    }
    buffer ^= 1;
    group += gridDim.x;
  } while (PERSISTENT && group < GROUPS);
}
