// Matrix product y = x·Wᵀ in true f32 on the ordinary arithmetic units: for f32, and for any shape of the other types.
//
// A block of 16 × 16 threads computes TILE_M × TILE_N outputs. A tile of k is read from global memory as rows, widened to
// f32 and stored transposed, so that a thread reads adjacent rows (of x and of W) as vectors:
//
//   global --registers--> shared [k][row], two buffers --vector loads--> outer products in registers --> epilogue
//
// The next tile is read into registers while the current one is multiplied; one barrier per tile separates the buffers.
// Rows past m or N and columns past K are zeros. With SPLIT_K > 1 a block covers one part of k and stores partial sums,
// which matmul_simt_reduce adds.
#include "epilogue.cuh"
#include "qk_norm.cuh"

#if SPLIT_K > 1
#define PARTIAL_PARAM , float *__restrict__ partial
#else
#define PARTIAL_PARAM
#endif

constexpr int THREADS = 256;
constexpr int ROWS = TILE_M / 16, COLS = TILE_N / 16;             // outputs of one thread
constexpr int RUN_M = ROWS < 4 ? ROWS : 4, RUN_N = COLS < 4 ? COLS : 4; // of which so many are adjacent
constexpr int K_TILES = (K + TILE_K - 1) / TILE_K;
constexpr int PITCH_M = TILE_M + 4, PITCH_N = TILE_N + 4;

static_assert(TILE_M % 32 == 0 && TILE_N % 32 == 0, "a thread owns runs of two or four");
static_assert(SPLIT_K <= K_TILES, "every part of k has work");
static_assert(COPY == 1 || (K % COPY == 0 && TILE_K % COPY == 0), "vector loads need aligned rows");

// One thread's share of a tile of TILE_ROWS × TILE_K elements, on its way from global to shared memory.
template <int TILE_ROWS> struct tile_copy {
  static constexpr int CHUNKS = TILE_K / COPY, TOTAL = TILE_ROWS * CHUNKS, COUNT = (TOTAL + THREADS - 1) / THREADS;
  vec<COPY> held[COUNT];

  DEV void read(const elem *matrix, int first, int rows, int k) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const int id = threadIdx.x + i * THREADS, row = first + id / CHUNKS, at = k + id % CHUNKS * COPY;
      const bool inside = row < rows && at < K && (TOTAL % THREADS == 0 || id < TOTAL);
      held[i] = inside ? *reinterpret_cast<const vec<COPY> *>(matrix + (u64)row * K + at) : vec<COPY>{};
    }
  }
  DEV void write(float *tile) const {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const int id = threadIdx.x + i * THREADS;
      if (TOTAL % THREADS == 0 || id < TOTAL) {
#pragma unroll
        for (int c = 0; c < COPY; c++)
          tile[(id % CHUNKS * COPY + c) * (TILE_ROWS + 4) + id / CHUNKS] = to_f32(held[i].v[c]);
      }
    }
  }
};

template <int COUNT> struct alignas(COUNT * 4) floats { float v[COUNT]; };

// The runs of thread coordinate t in one row of a transposed tile.
template <int RUN, int COUNT> DEV void read_runs(float (&v)[COUNT], const float *row, int t) {
#pragma unroll
  for (int i = 0; i < COUNT; i += RUN) {
    const floats<RUN> r = *reinterpret_cast<const floats<RUN> *>(row + i * 16 + t * RUN);
#pragma unroll
    for (int j = 0; j < RUN; j++) v[i + j] = r.v[j];
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
matmul_simt(const elem *__restrict__ x, const elem *__restrict__ w, EPILOGUE_PARAMS, int m PARTIAL_PARAM) {
  __shared__ __align__(16) float tile_x[2][TILE_K * PITCH_M];
  __shared__ __align__(16) float tile_w[2][TILE_K * PITCH_N];
  pdl_wait();

  const int tiles_m = cdiv(m, TILE_M), tiles = tiles_m * ((N + TILE_N - 1) / TILE_N);
  const int part = SPLIT_K == 1 ? 0 : blockIdx.x / tiles, tile = blockIdx.x - part * tiles;
  const int row0 = tile % tiles_m * TILE_M, col0 = tile / tiles_m * TILE_N;
  const int k_begin = part * K_TILES / SPLIT_K, k_tiles = (part + 1) * K_TILES / SPLIT_K - k_begin;
  // A warp is 4 × 8 threads: its reads of either tile touch few distinct vectors.
  const int ty = warp_id() / 2 * 4 + lane_id() / 8, tx = warp_id() % 2 * 8 + lane_id() % 8;

  tile_copy<TILE_M> copy_x;
  tile_copy<TILE_N> copy_w;
  float acc[ROWS][COLS] = {};
  copy_x.read(x, row0, m, k_begin * TILE_K);
  copy_w.read(w, col0, N, k_begin * TILE_K);
  copy_x.write(tile_x[0]);
  copy_w.write(tile_w[0]);
  __syncthreads();

  for (int t = 0; t < k_tiles; t++) {
    const bool more = t + 1 < k_tiles;
    if (more) {
      copy_x.read(x, row0, m, (k_begin + t + 1) * TILE_K);
      copy_w.read(w, col0, N, (k_begin + t + 1) * TILE_K);
    }
    const float *from_x = tile_x[t & 1], *from_w = tile_w[t & 1];
#pragma unroll
    for (int kk = 0; kk < TILE_K; kk++) {
      float a[ROWS], b[COLS];
      read_runs<RUN_M>(a, from_x + kk * PITCH_M, ty);
      read_runs<RUN_N>(b, from_w + kk * PITCH_N, tx);
#pragma unroll
      for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int j = 0; j < COLS; j++) acc[i][j] = fmaf(a[i], b[j], acc[i][j]);
    }
    if (more) {
      // The other buffer was last read before the barrier of the previous tile.
      copy_x.write(tile_x[(t + 1) & 1]);
      copy_w.write(tile_w[(t + 1) & 1]);
      __syncthreads();
    }
  }
  pdl_launch();

#if SPLIT_K == 1
  const epilogue_args e = EPILOGUE_PACK;
#endif
#pragma unroll
  for (int i = 0; i < ROWS; i++) {
    const int row = row0 + i / RUN_M * 16 * RUN_M + ty * RUN_M + i % RUN_M;
    if (row >= m) continue;
#if SPLIT_K == 1
    const epilogue_row r = epilogue_row_of(e, row);
#endif
#pragma unroll
    for (int j = 0; j < COLS; j += RUN_N) {
      const int col = col0 + j * 16 + tx * RUN_N;
      if (col >= N) continue;
      floats<RUN_N> v;
#pragma unroll
      for (int c = 0; c < RUN_N; c++) v.v[c] = acc[i][j + c];
#if SPLIT_K == 1
      epilogue_run<RUN_N>(e, r, col, v.v);
#else
      float *out = partial + ((u64)part * m + row) * epilogue_partial_stride + col;
      *reinterpret_cast<floats<RUN_N> *>(out) = v;
#endif
    }
  }
}

#if SPLIT_K > 1
extern "C" __global__ void __launch_bounds__(256)
matmul_simt_reduce(const float *__restrict__ partial, EPILOGUE_PARAMS, int m) {
  pdl_wait();
  const epilogue_args e = EPILOGUE_PACK;
  epilogue_reduce<SPLIT_K>(e, partial, m);
}
#endif
