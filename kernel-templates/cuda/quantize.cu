// Rows as codes with scales, each row in registers from the load to the store, optionally normed on the way: ROW_THREADS threads have a
// row, a block BLOCK_ROWS of them. A group of 128 lies within 128 / VEC lanes of a warp.
#include "vector_io.cuh"
#include "quantize.cuh"

#define THREADS (ROW_THREADS * BLOCK_ROWS)
#define ITEMS ((COLS + VEC * ROW_THREADS - 1) / (VEC * ROW_THREADS)) // accesses of one thread per row
#define ROW_WARPS (ROW_THREADS / 32)
#define GROUPS_OF_128 (CODES == 2)
#define GROUP_LANES (128 / VEC)
#define GROUPS ((COLS + 127) / 128)

static_assert(COLS % VEC == 0, "a row is whole accesses");
static_assert(THREADS % 32 == 0 && THREADS <= 1024, "block");
static_assert(!GROUPS_OF_128 || (GROUP_LANES <= 32 && ROW_THREADS % GROUP_LANES == 0), "a group lies within a warp");

// The sum or the largest over the threads of a row, in all of them. Calls with different slots need no barrier between them.
template <bool MAX> DEV float over_row(float v, int slot) {
  constexpr int WIDTH = ROW_THREADS < 32 ? ROW_THREADS : 32;
  v = MAX ? warp_max<WIDTH>(v) : warp_sum<WIDTH>(v);
#if ROW_THREADS > 32
  __shared__ float part[2][BLOCK_ROWS][ROW_WARPS];
  const int row = threadIdx.x / ROW_THREADS, warp = threadIdx.x % ROW_THREADS / 32;
  if (lane_id() == 0) part[slot][row][warp] = v;
  __syncthreads();
  v = part[slot][row][0];
#pragma unroll
  for (int i = 1; i < ROW_WARPS; i++) v = MAX ? fmaxf(v, part[slot][row][i]) : v + part[slot][row][i];
#endif
  return v;
}

extern "C" __global__ void __launch_bounds__(THREADS) quantize(const elem *__restrict__ x,
#if OP_NORM_QUANTIZE
                                                               const elem *__restrict__ weight,
#endif
                                                               u8 *__restrict__ y, float *__restrict__ y_scales, int rows
#if OP_NORM_QUANTIZE
                                                               , float eps
#endif
) {
  const int in_row = threadIdx.x % ROW_THREADS;
#if OP_NORM_QUANTIZE
  packed<VEC> w[ITEMS]; // constants, which may be fetched before the grid dependency resolves
#pragma unroll
  for (int i = 0; i < ITEMS; i++)
    if ((i * ROW_THREADS + in_row) * VEC < COLS) w[i] = load_constant<VEC>(weight + (i * ROW_THREADS + in_row) * VEC);
#endif
#if PDL
  pdl_launch();
  pdl_wait();
#endif
  const i64 row = (i64)blockIdx.x * BLOCK_ROWS + threadIdx.x / ROW_THREADS, at = row * COLS + in_row * VEC;
  const bool row_in = BLOCK_ROWS == 1 || row < rows;
  const auto in = [&](int i) { return row_in && (COLS % (VEC * ROW_THREADS) == 0 || (i * ROW_THREADS + in_row) * VEC < COLS); };
  packed<VEC> xs[ITEMS] = {};
#pragma unroll
  for (int i = 0; i < ITEMS; i++)
    if (in(i)) xs[i] = load<VEC>(x + at + i * ROW_THREADS * VEC);
  float v[ITEMS][VEC];
#pragma unroll
  for (int i = 0; i < ITEMS; i++) unpack(xs[i], v[i]);
#if OP_NORM_QUANTIZE
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < ITEMS; i++)
#pragma unroll
    for (int j = 0; j < VEC; j++) squares = fmaf(v[i][j], v[i][j], squares);
  const float scale = rsqrtf(over_row<false>(squares, 0) * (1.0f / COLS) + eps);
#pragma unroll
  for (int i = 0; i < ITEMS; i++)
    if (in(i)) {
      float of[VEC];
      unpack(w[i], of);
#pragma unroll
      for (int j = 0; j < VEC; j++) v[i][j] *= scale * of[j];
    }
#endif
  float top[ITEMS];
#pragma unroll
  for (int i = 0; i < ITEMS; i++) {
    top[i] = 0.0f;
#pragma unroll
    for (int j = 0; j < VEC; j++) top[i] = fmaxf(top[i], fabsf(v[i][j]));
  }
#if GROUPS_OF_128
#pragma unroll
  for (int i = 0; i < ITEMS; i++) {
    top[i] = warp_max<GROUP_LANES>(top[i]);
    if (in(i) && in_row % GROUP_LANES == 0) y_scales[row * GROUPS + (i * ROW_THREADS + in_row) / GROUP_LANES] = top[i] / largest_code(CODES);
  }
#else
  float most = 0.0f;
#pragma unroll
  for (int i = 0; i < ITEMS; i++) most = fmaxf(most, top[i]);
  most = over_row<true>(most, 1);
  if (row_in && in_row == 0) y_scales[row] = most / largest_code(CODES);
#pragma unroll
  for (int i = 0; i < ITEMS; i++) top[i] = most;
#endif
#pragma unroll
  for (int i = 0; i < ITEMS; i++)
    if (in(i)) {
      const float per = per_code(CODES, top[i]);
      struct alignas(VEC) { u8 v[VEC]; } codes;
#pragma unroll
      for (int j = 0; j < VEC; j++) codes.v[j] = code_of(CODES, v[i][j] * per);
      *reinterpret_cast<decltype(codes) *>(y + at + i * ROW_THREADS * VEC) = codes;
    }
}
