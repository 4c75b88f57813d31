// Matrix product y = x·Wᵀ on the warp-level matrix instructions of sm_80 (mma.sync): the portable tier.
//
// A block computes TILE_M × TILE_N outputs; its WARPS_M × WARPS_N warps own equal rectangles of them. A stage in shared
// memory is ROW_BYTES of every row of the x tile and of the W tile. STAGES of them form a ring that asynchronous copies
// fill:
//
//   global --cp.async--> ring --ldmatrix--> fragments (two sets) --mma--> accumulators --shuffle--> epilogue
//
// The fragments of the next 32 bytes of k are loaded while those of the current ones are multiplied, across stages too.
// Both operands are k-major, so ldmatrix (8 rows × 16 bytes) gives the fragments of 16-bit elements and of TF32 alike:
// one step of k is 32 bytes whatever the type.
//
// Invariants:
// - One group of copies is committed per step of the ring, empty ones too, so that the number of groups that may still
//   be in flight is the same in every iteration.
// - Rows past m or N are copies of the last row and their results are never stored. Columns past K are zero in both
//   operands.
// - The 16-byte chunk c of row r is stored at chunk c ^ swizzle(r): any eight rows of one chunk lie in different banks.
//
// With SPLIT_K > 1 a block covers one part of k and stores f32 partial sums; matmul_mma_reduce adds them in a fixed
// order and applies the epilogue.
#include "epilogue.cuh"
#include "qk_norm.cuh"
#include "mma.cuh"

#if SPLIT_K > 1
#define PARTIAL_PARAM , float *__restrict__ partial
#else
#define PARTIAL_PARAM
#endif

constexpr int TILE_K = ROW_BYTES / ELEM_BYTES;
constexpr int CHUNKS = ROW_BYTES / 16;
constexpr int CHUNK_ELEMS = 16 / ELEM_BYTES;
constexpr int K_STEPS = ROW_BYTES / 32;
constexpr int K_TILES = (K + TILE_K - 1) / TILE_K;
constexpr int THREADS = WARPS_M * WARPS_N * 32;
constexpr int WARP_M = TILE_M / WARPS_M, WARP_N = TILE_N / WARPS_N;
constexpr int FRAGS_M = WARP_M / 16, FRAGS_N = WARP_N / 8;
constexpr int STAGE_BYTES = (TILE_M + TILE_N) * ROW_BYTES;

static_assert(ROW_BYTES == 64 || ROW_BYTES == 128, "the swizzle is written for these");
static_assert(WARP_M % 16 == 0 && WARP_N % 16 == 0, "a warp loads 16 rows of either operand at a time");
static_assert(STAGES >= 2, "one stage is read while another is filled");
static_assert(SPLIT_K <= K_TILES, "every part of k has work");
static_assert(COPY_BYTES != 16 || K % CHUNK_ELEMS == 0, "16-byte copies need aligned rows");

DEV u32 swizzle(u32 row) { return ROW_BYTES == 128 ? row & 7 : (row >> 1) & 3; }

// Copies of one operand by one thread: always the same chunk of the row, every ROW_STEP-th row. With EXACT every row of
// the tile exists, and the distances are known when the kernel is compiled.
template <int ROWS, bool EXACT> struct tile_copy {
  static constexpr int ROW_STEP = THREADS / CHUNKS;
  static constexpr int COUNT = (ROWS + ROW_STEP - 1) / ROW_STEP;
  const elem *base;              // the thread's first row with EXACT, else the tile's
  u32 offset[EXACT ? 1 : COUNT]; // bytes from there to each row

  DEV void init(const elem *matrix, int first, int rows) {
    const int row = threadIdx.x / CHUNKS;
    base = matrix + (u64)(EXACT ? first + row : first) * K;
    if constexpr (!EXACT) {
#pragma unroll
      for (int i = 0; i < COUNT; i++) offset[i] = (u32)min(row + i * ROW_STEP, rows - 1 - first) * K * ELEM_BYTES;
    }
  }

  DEV void issue(u32 smem, int k) const {
    const int chunk = threadIdx.x % CHUNKS;
    k += chunk * CHUNK_ELEMS;
    const char *from = reinterpret_cast<const char *>(base + k);
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const int row = threadIdx.x / CHUNKS + i * ROW_STEP;
      if (ROWS % ROW_STEP == 0 || row < ROWS)
        copy(smem + row * ROW_BYTES + ((chunk ^ swizzle(row)) << 4),
             reinterpret_cast<const elem *>(from + (EXACT ? (u64)i * ROW_STEP * K * ELEM_BYTES : offset[i])), k);
    }
  }

  // One 16-byte chunk that starts at column k; `from` points at it. Columns past K are not read.
  DEV void copy(u32 smem, const elem *from, int k) const {
    if constexpr (COPY_BYTES == 16) {
      const bool inside = K % TILE_K == 0 || k < K;
      cp_async16(smem, inside ? from : base, inside ? 16 : 0);
    } else if constexpr (COPY_BYTES == 4) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const bool inside = k + i * (4 / ELEM_BYTES) < K;
        cp_async4(smem + i * 4, inside ? from + i * (4 / ELEM_BYTES) : base, inside ? 4 : 0);
      }
    } else { // rows start at any element: through registers
      u32 word[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        word[i] = 0;
#pragma unroll
        for (int j = 0; j < 2; j++) {
          if (k + 2 * i + j < K) word[i] |= (u32)reinterpret_cast<const u16 *>(from)[2 * i + j] << (16 * j);
        }
      }
      asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(smem), "r"(word[0]), "r"(word[1]), "r"(word[2]),
                   "r"(word[3]) : "memory");
    }
  }
};

struct fragments {
  u32 a[FRAGS_M][4];
  u32 b[FRAGS_N / 2][4]; // of two adjacent 8-column tiles

  // Addresses are those of the thread's row for step 0; the step flips bits of the swizzled chunk.
  DEV void load(u32 a_addr, u32 b_addr, int step) {
#pragma unroll
    for (int i = 0; i < FRAGS_M; i++) ldmatrix_x4(a[i], (a_addr ^ (step << 5)) + i * 16 * ROW_BYTES);
#pragma unroll
    for (int j = 0; j < FRAGS_N / 2; j++) ldmatrix_x4(b[j], (b_addr ^ (step << 5)) + j * 16 * ROW_BYTES);
#if DTYPE_TF32
#pragma unroll
    for (int i = 0; i < FRAGS_M; i++)
#pragma unroll
      for (int r = 0; r < 4; r++) a[i][r] = to_tf32(__uint_as_float(a[i][r]));
#pragma unroll
    for (int j = 0; j < FRAGS_N / 2; j++)
#pragma unroll
      for (int r = 0; r < 4; r++) b[j][r] = to_tf32(__uint_as_float(b[j][r]));
#endif
  }

  DEV void multiply(float (&acc)[FRAGS_M][FRAGS_N][4]) const {
#pragma unroll
    for (int i = 0; i < FRAGS_M; i++)
#pragma unroll
      for (int j = 0; j < FRAGS_N; j++) {
        // Every other row runs backwards, so that consecutive instructions share a B fragment.
        const int c = i % 2 ? FRAGS_N - 1 - j : j;
#if DTYPE_TF32
        mma_1688_tf32(acc[i][c], a[i], &b[c / 2][c % 2 * 2]);
#else
        mma_16816(elem{}, acc[i][c], a[i], &b[c / 2][c % 2 * 2]);
#endif
      }
  }
};

// Calls f(row)(col, v[4]) for every run of four accumulators inside the matrix. Neighbouring lanes swap halves of two 8-column tiles, so
// that each holds four adjacent columns and a quad covers 16.
template <class F> DEV void for_each_run(const float (&acc)[FRAGS_M][FRAGS_N][4], int row0, int col0, int m, F f) {
  const int lane = lane_id(), odd = lane & 1;
#pragma unroll
  for (int i = 0; i < FRAGS_M; i++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int row = row0 + i * 16 + h * 8 + lane / 4;
      auto sink = f(min(row, m - 1));
#pragma unroll
      for (int j = 0; j < FRAGS_N; j += 2) {
        const float *p = acc[i][j] + 2 * h, *q = acc[i][j + 1] + 2 * h;
        const float r0 = __shfl_xor_sync(0xffffffffu, odd ? p[0] : q[0], 1);
        const float r1 = __shfl_xor_sync(0xffffffffu, odd ? p[1] : q[1], 1);
        const float v[4] = {odd ? r0 : p[0], odd ? r1 : p[1], odd ? q[0] : r0, odd ? q[1] : r1};
        const int col = col0 + (j + odd) * 8 + (lane & 2) * 2;
        if (row < m && (N % TILE_N == 0 || col < N)) sink(col, v);
      }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
matmul_mma(const elem *__restrict__ x, const elem *__restrict__ w, EPILOGUE_PARAMS, int m PARTIAL_PARAM) {
  extern __shared__ __align__(128) unsigned char shared[];
  pdl_wait();

  // GROUP_M rows of tiles share their W tiles in the L2 before the next rows begin.
  const int tiles_m = cdiv(m, TILE_M), tiles_n = (N + TILE_N - 1) / TILE_N, tiles = tiles_m * tiles_n;
  const int part = SPLIT_K == 1 ? 0 : blockIdx.x / tiles, tile = blockIdx.x - part * tiles;
  const int group = tile / (GROUP_M * tiles_n), in_group = tile - group * (GROUP_M * tiles_n);
  const int group_rows = min(GROUP_M, tiles_m - group * GROUP_M);
  const int row0 = (group * GROUP_M + in_group % group_rows) * TILE_M, col0 = in_group / group_rows * TILE_N;
  const int k_begin = part * K_TILES / SPLIT_K, k_tiles = (part + 1) * K_TILES / SPLIT_K - k_begin;

  const u32 ring = smem_u32(shared);
  tile_copy<TILE_M, false> copy_x;
  tile_copy<TILE_N, N % TILE_N == 0> copy_w;
  copy_x.init(x, row0, m);
  copy_w.init(w, col0, N);
  const u32 ring_end = ring + STAGES * STAGE_BYTES;
  auto next = [&](u32 stage) { return stage + STAGE_BYTES == ring_end ? ring : stage + STAGE_BYTES; };
  u32 fill_stage = ring;
  auto fill = [&](int t) {
    if (t < k_tiles) {
      copy_x.issue(fill_stage, (k_begin + t) * TILE_K);
      copy_w.issue(fill_stage + TILE_M * ROW_BYTES, (k_begin + t) * TILE_K);
    }
    cp_async_commit();
    fill_stage = next(fill_stage);
  };
#pragma unroll
  for (int t = 0; t < STAGES - 1; t++) fill(t);

  const int lane = lane_id(), warp_row = warp_id() / WARPS_N * WARP_M, warp_col = warp_id() % WARPS_N * WARP_N;
  const u32 a_row = lane & 15, a_chunk = lane >> 4;
  const u32 b_row = (lane & 7) + (lane >> 4) * 8, b_chunk = (lane >> 3) & 1;
  const u32 a_lane = (warp_row + a_row) * ROW_BYTES + ((a_chunk ^ swizzle(a_row)) << 4);
  const u32 b_lane = (TILE_M + warp_col + b_row) * ROW_BYTES + ((b_chunk ^ swizzle(b_row)) << 4);

  float acc[FRAGS_M][FRAGS_N][4] = {};
  fragments frag[2];
  cp_async_wait<STAGES - 2>();
  __syncthreads();
  u32 stage = ring;
  frag[0].load(stage + a_lane, stage + b_lane, 0);

  for (int t = 0; t < k_tiles; t++) {
#pragma unroll
    for (int step = 0; step < K_STEPS; step++) {
      if (step == K_STEPS - 1) {
        // All fragments of this stage are in registers: past the barrier it may be overwritten.
        cp_async_wait<STAGES - 2>();
        __syncthreads();
        stage = next(stage);
      }
      frag[(step + 1) % 2].load(stage + a_lane, stage + b_lane, (step + 1) % K_STEPS);
      if (step == 0) fill(t + STAGES - 1);
      frag[step % 2].multiply(acc);
    }
  }
  cp_async_wait<0>();
  pdl_launch();

#if SPLIT_K > 1
  float *out = partial + (u64)part * m * epilogue_partial_stride;
  for_each_run(acc, row0 + warp_row, col0 + warp_col, m, [&](int row) {
    return [=](int col, const float(&v)[4]) {
      *reinterpret_cast<float4 *>(out + (u64)row * epilogue_partial_stride + col) = make_float4(v[0], v[1], v[2], v[3]);
    };
  });
#else
  const epilogue_args e = EPILOGUE_PACK;
  for_each_run(acc, row0 + warp_row, col0 + warp_col, m, [&](int row) {
    const epilogue_row r = epilogue_row_of(e, row);
    return [=](int col, const float(&v)[4]) { epilogue_run<4>(e, r, col, v); };
  });
#endif
}

#if SPLIT_K > 1
extern "C" __global__ void __launch_bounds__(256)
matmul_mma_reduce(const float *__restrict__ partial, EPILOGUE_PARAMS, int m) {
  pdl_wait();
  const epilogue_args e = EPILOGUE_PACK;
  epilogue_reduce<SPLIT_K>(e, partial, m);
}
#endif
