// y = x·Wᵀ for one to eight tokens: a stream of the weights from memory to registers, each byte read once, with the
// multiply-adds on the way (on the tensor cores for 16-bit elements, in f32 for f32). The run time is the weights' bytes
// over the memory bandwidth, so everything here serves to keep enough loads in flight.
//
// A row group is BLOCK_ROWS adjacent rows of W (columns of y), computed by one block. WARPS warps split it into
// SPLIT_K parts along k and WARPS / SPLIT_K parts of ROWS rows. A warp reads a row as vectors of 16 bytes per lane; a
// step covers UNROLL such vectors of each of its ROWS rows, and all of them are in flight at once. As soon as a vector
// is used, its register is the target of the load that is one step further along the stream, across row groups too.
// x comes through the L1 cache, which holds it after its first use on the multiprocessor.
//
//   weights ──16-byte loads──▶ w[ROWS][UNROLL] ──dot products with x──▶ acc ──lanes──▶ partial[SPLIT_K] ──block──▶ epilogue
//
// Under programmatic dependent launch the first step of weights is requested before the wait for the kernel that
// produces x, and the dependent kernel may start at once: its own first weights then arrive under this kernel's tail.
#include "matvec.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
matvec(const elem *x, const elem *__restrict__ w, EPILOGUE_PARAMS, int m) {
  // Two buffers in turn, so that one barrier a row group is enough: a warp that is a group ahead writes the other one.
  __shared__ float partial[PERSISTENT ? 2 : 1][SPLIT_K][BLOCK_ROWS][TILE_M];
  const epilogue_args e = EPILOGUE_PACK;
  const int part_k = warp_id() % SPLIT_K, part_row = warp_id() / SPLIT_K;
  const weight_stream s = {w, part_k * (UNROLL * CHUNK_K) + lane_id() * VECTOR, part_row * ROWS};

  pdl_launch();
  uint4 wv[UNROLL][ROWS];
#pragma unroll
  for (int u = 0; u < UNROLL; u++)
#pragma unroll
    for (int r = 0; r < ROWS; r++) wv[u][r] = load_weight(s, blockIdx.x, 0, r, u);
  pdl_wait();

  int group = blockIdx.x, buffer = 0;
  do {
    dot_products acc = {};
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
        acc.add(wv[u], xv);
        if (more) {
#pragma unroll
          for (int r = 0; r < ROWS; r++) wv[u][r] = load_weight(s, next_group, next_step, r, u);
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
