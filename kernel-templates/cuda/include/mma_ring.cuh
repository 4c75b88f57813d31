#pragma once // A tile's copies, fragments and runs of accumulators, for matmul_mma.cu, which says how they go together, and matmul_mma_early.cu.
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

