// y = norm(x)·Wᵀ for one to eight tokens: the product of matvec.cu, whose blocks norm the rows of x themselves. What the
// norm takes is hidden behind the first weights, which are requested before the wait for the kernel that produces x and
// arrive while the rows are summed up.
//
// Each block reads all of x, keeps the sums of its warps in shared memory, and then the normed rows, rounded to the element
// as a norm of its own would leave them; the products read them there.
#if OP_NORM_QKV
#define OP_QKV 1 // to the epilogue
#endif
#include "matvec.cuh"
#include "vector_io.cuh"

constexpr int CHUNKS = K / VECTOR, ITEMS = (CHUNKS + THREADS - 1) / THREADS; // 16 bytes of a row; those of a thread
constexpr bool KEPT = TILE_M * ITEMS <= 4; // the rows stay in registers, and otherwise come from the caches again

__shared__ __align__(16) elem normed[TILE_M][K];

// This thread's part of the norm's weights: constants, so they need no wait.
struct norm_weights {
  packed<VECTOR> v[ITEMS];
  DEV norm_weights(const elem *norm) {
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
      const int c = i * THREADS + threadIdx.x;
      if (c < CHUNKS) v[i] = load_constant<VECTOR>(norm + c * VECTOR);
    }
  }
};

DEV void norm_rows(const elem *x, const norm_weights &g, int m, float eps) {
  __shared__ float squares[TILE_M][WARPS];
  packed<VECTOR> kept[KEPT ? TILE_M : 1][KEPT ? ITEMS : 1];
#pragma unroll
  for (int t = 0; t < TILE_M; t++) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
      const int c = i * THREADS + threadIdx.x;
      packed<VECTOR> row = {};
      if (c < CHUNKS && t < m) row = load<VECTOR>(x + t * K + c * VECTOR);
      float v[VECTOR];
      unpack(row, v);
#pragma unroll
      for (int j = 0; j < VECTOR; j++) sum = fmaf(v[j], v[j], sum);
      if constexpr (KEPT) kept[t][i] = row;
    }
    sum = warp_sum(sum);
    if (lane_id() == 0) squares[t][warp_id()] = sum;
  }
  __syncthreads();
#pragma unroll
  for (int t = 0; t < TILE_M; t++) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < WARPS; i++) sum += squares[t][i];
    const float scale = rsqrtf(sum * (1.0f / K) + eps);
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
      const int c = i * THREADS + threadIdx.x;
      if (c >= CHUNKS || t >= m) continue;
      float v[VECTOR], w[VECTOR];
      if constexpr (KEPT) unpack(kept[t][i], v);
      else unpack(load<VECTOR>(x + t * K + c * VECTOR), v);
      unpack(g.v[i], w);
#pragma unroll
      for (int j = 0; j < VECTOR; j++) v[j] = v[j] * scale * w[j];
      store(&normed[t][c * VECTOR], pack(v));
    }
  }
  __syncthreads();
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
matvec_norm(const elem *x, const elem *__restrict__ norm, const elem *__restrict__ w, EPILOGUE_PARAMS, int m, float eps) {
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
  const norm_weights g(norm);
  pdl_wait();
  norm_rows(x, g, m, eps);

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
          xv[t] = inside ? *(const uint4 *)&normed[t][k] : make_uint4(0, 0, 0, 0);
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
