// Attention on the warp-level matrix instructions of sm_80 (mma.sync), for queries in number: the portable tier.
//
// A block computes TILE_Q query rows of one head of one sequence and walks over the keys in tiles of TILE_KV. Each warp
// owns TILE_Q / WARPS of the rows over all keys of a tile, so that the softmax stays inside a quad of lanes:
//
//   scores = Q·Kᵀ (accumulators) -> running maximum, 2^(scaled score − maximum) -> fragments of P -> output += P·V
//
// K and V are written to shared memory by asynchronous copies. With STAGES = 1 the copy of V runs behind Q·Kᵀ and that of
// the next K behind the softmax and P·V; with more, whole tiles are in flight ahead. Rows are padded by 16 bytes:
// HEAD_DIM is a multiple of 16, so the pitch is an odd number of 16-byte chunks and any eight rows of one chunk lie in
// different banks.
//
// Invariants:
// - Rows of K and V past the last key are zero in shared memory: their probability is 0 and must not meet a NaN.
// - A score that is masked is -inf. A row that has seen no key keeps the maximum -inf, and its scale is taken as if the
//   maximum were 0; a row without any key is written as zeros.
// - The sum of a row is kept per lane and reduced over the quad once, at the end.
#include "mma.cuh"

constexpr int THREADS = WARPS * 32;
constexpr int WARP_ROWS = TILE_Q / WARPS;
constexpr int FRAGS_Q = WARP_ROWS / 16, FRAGS_KV = TILE_KV / 8, FRAGS_D = HEAD_DIM / 8, STEPS_D = HEAD_DIM / 16;
constexpr int PITCH = HEAD_DIM * 2 + 16;
constexpr int CHUNKS = HEAD_DIM / 8;
constexpr int KV_BYTES = TILE_KV * PITCH;
constexpr int GROUP = HEADS / KV_HEADS;

static_assert(ELEM_BYTES == 2, "the fragments are of 16-bit elements");
static_assert(HEAD_DIM % 16 == 0 && TILE_KV % 16 == 0, "one instruction covers 16 of k");
static_assert(WARP_ROWS % 16 == 0, "one instruction covers 16 rows");
static_assert(HEADS % KV_HEADS == 0, "query heads share KV heads evenly");

// Rows 0..rows of a [rows, HEAD_DIM] matrix into a padded tile; what lies past them is filled with zeros. So many threads
// share a row that every thread's copies are a constant distance apart.
constexpr int ROW_THREADS = CHUNKS & -CHUNKS;
template <int TILE> DEV void copy_tile(u32 smem, const elem *matrix, int row_elems, int rows) {
  constexpr int STEP = THREADS / ROW_THREADS;
  const int first = threadIdx.x / ROW_THREADS, chunk = threadIdx.x % ROW_THREADS;
  const elem *from = matrix + (i64)first * row_elems + chunk * 8;
  smem += first * PITCH + chunk * 16;
  const bool full = rows >= TILE; // nearly always, and then nothing needs a test
#pragma unroll
  for (int i = 0; i < (TILE + STEP - 1) / STEP; i++) {
    if (TILE % STEP != 0 && first + i * STEP >= TILE) break;
    const bool inside = full || first + i * STEP < rows;
#pragma unroll
    for (int c = 0; c < CHUNKS; c += ROW_THREADS) {
      const elem *p = from + (i64)i * STEP * row_elems + c * 8;
      if (full) cp_async16(smem + i * STEP * PITCH + c * 16, p);
      else cp_async16(smem + i * STEP * PITCH + c * 16, inside ? p : matrix, inside ? 16 : 0);
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
attention_mma(const elem *__restrict__ q_ptr, const elem *__restrict__ k_ptr, const elem *__restrict__ v_ptr,
              elem *__restrict__ o_ptr, int q_len, int kv_len) {
  extern __shared__ __align__(128) unsigned char shared[];
  pdl_wait();

  // Heads vary fastest, so that the ones that share K and V run together. The longest causal rows start first.
  const int head = blockIdx.x % HEADS, batch = blockIdx.y;
  const int q_tile = CAUSAL ? gridDim.x / HEADS - 1 - blockIdx.x / HEADS : blockIdx.x / HEADS;
  const int q0 = q_tile * TILE_Q, q_rows = q_len - q0;
  const i64 q_base = ((i64)(batch * (i64)q_len + q0) * HEADS + head) * HEAD_DIM;
  const i64 kv_base = ((i64)batch * KV_HEADS + head / GROUP) * kv_len * (i64)HEAD_DIM;
  const elem *k = k_ptr + kv_base, *v = v_ptr + kv_base;

  const int diagonal = kv_len - q_len; // query i sees the keys up to i + diagonal
  const int kv_end = CAUSAL ? min(kv_len, min(q0 + TILE_Q, q_len) + diagonal) : kv_len;
  const int tiles = kv_end > 0 ? cdiv(kv_end, TILE_KV) : 0;

  const u32 smem_q = smem_u32(shared), ring = smem_q + TILE_Q * PITCH;
  auto slot = [&](int t) { return ring + (STAGES == 1 ? 0 : t % STAGES) * (2 * KV_BYTES); };
  auto copy_k = [&](int t) {
    if (t < tiles) copy_tile<TILE_KV>(slot(t), k + (i64)t * TILE_KV * HEAD_DIM, HEAD_DIM, kv_len - t * TILE_KV);
  };
  auto copy_v = [&](int t) {
    if (t < tiles) copy_tile<TILE_KV>(slot(t) + KV_BYTES, v + (i64)t * TILE_KV * HEAD_DIM, HEAD_DIM, kv_len - t * TILE_KV);
  };

  copy_tile<TILE_Q>(smem_q, q_ptr + q_base, HEADS * HEAD_DIM, q_rows);
  if constexpr (STAGES == 1) {
    copy_k(0);
    cp_async_commit();
  } else {
#pragma unroll
    for (int t = 0; t < STAGES - 1; t++) {
      copy_k(t);
      copy_v(t);
      cp_async_commit();
    }
  }

  const int lane = lane_id(), warp_row = warp_id() * WARP_ROWS;
  const u32 q_lane = smem_q + (warp_row + (lane & 15)) * PITCH + (lane >> 4) * 16;
  const u32 k_lane = ((lane & 7) + (lane >> 4) * 8) * PITCH + ((lane >> 3) & 1) * 16;
  const u32 v_lane = KV_BYTES + (lane & 15) * PITCH + (lane >> 4) * 16;

  float out[FRAGS_Q][FRAGS_D][4] = {};
  float row_max[FRAGS_Q][2], row_sum[FRAGS_Q][2] = {};
#pragma unroll
  for (int i = 0; i < FRAGS_Q; i++) row_max[i][0] = row_max[i][1] = NEG_INF;
  u32 q_frag[Q_REGS ? STEPS_D : 1][FRAGS_Q][4];
  const float scale = LOG2E * SCALE;

  for (int t = 0; t < tiles; t++) {
    cp_async_wait<STAGES == 1 ? 0 : STAGES - 2>();
    __syncthreads(); // K of this tile is there, and nobody reads the tile before it any more
    if constexpr (STAGES == 1) {
      copy_v(t);
      cp_async_commit();
    } else {
      copy_k(t + STAGES - 1);
      copy_v(t + STAGES - 1);
      cp_async_commit();
    }
    if (Q_REGS && t == 0) {
#pragma unroll
      for (int d = 0; d < STEPS_D; d++)
#pragma unroll
        for (int i = 0; i < FRAGS_Q; i++) ldmatrix_x4(q_frag[Q_REGS ? d : 0][i], q_lane + i * 16 * PITCH + d * 32);
    }

    float s[FRAGS_Q][FRAGS_KV][4] = {};
#pragma unroll
    for (int d = 0; d < STEPS_D; d++) {
      if (!Q_REGS) {
#pragma unroll
        for (int i = 0; i < FRAGS_Q; i++) ldmatrix_x4(q_frag[0][i], q_lane + i * 16 * PITCH + d * 32);
      }
#pragma unroll
      for (int j = 0; j < FRAGS_KV; j += 2) {
        u32 b[4];
        ldmatrix_x4(b, slot(t) + k_lane + j * 8 * PITCH + d * 32);
#pragma unroll
        for (int i = 0; i < FRAGS_Q; i++) {
          mma_16816(elem{}, s[i][j], q_frag[Q_REGS ? d : 0][i], b);
          mma_16816(elem{}, s[i][j + 1], q_frag[Q_REGS ? d : 0][i], b + 2);
        }
      }
    }

    if constexpr (STAGES == 1) {
      cp_async_wait<0>();
      __syncthreads(); // V is there, and nobody reads K any more
      copy_k(t + 1);
      cp_async_commit();
    }

    // Only the last tiles have keys that some row must not see.
    const int key0 = t * TILE_KV, first_row = q0 + warp_row;
    if (key0 + TILE_KV > (CAUSAL ? min(kv_len, first_row + diagonal + 1) : kv_len)) {
#pragma unroll
      for (int i = 0; i < FRAGS_Q; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
          const int row = first_row + i * 16 + h * 8 + lane / 4;
          const int limit = CAUSAL ? min(kv_len, row + diagonal + 1) : kv_len;
#pragma unroll
          for (int j = 0; j < FRAGS_KV; j++)
#pragma unroll
            for (int c = 0; c < 2; c++)
              if (key0 + j * 8 + lane % 4 * 2 + c >= limit) s[i][j][2 * h + c] = NEG_INF;
        }
    }

#pragma unroll
    for (int i = 0; i < FRAGS_Q; i++) {
      float shrink[2];
#pragma unroll
      for (int h = 0; h < 2; h++) {
        float m = row_max[i][h];
#pragma unroll
        for (int j = 0; j < FRAGS_KV; j++) m = fmaxf(m, fmaxf(s[i][j][2 * h], s[i][j][2 * h + 1]));
        m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
        m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
        const float base = m == NEG_INF ? 0.0f : m, origin = base * scale;
        shrink[h] = exp2_approx((row_max[i][h] - base) * scale); // exactly 1 where the maximum stays
        row_max[i][h] = m;
        float sum = row_sum[i][h] * shrink[h];
#pragma unroll
        for (int j = 0; j < FRAGS_KV; j++)
#pragma unroll
          for (int c = 0; c < 2; c++) {
            s[i][j][2 * h + c] = exp2_approx(s[i][j][2 * h + c] * scale - origin);
            sum += s[i][j][2 * h + c];
          }
        row_sum[i][h] = sum;
      }
      // After the first tiles the maximum seldom moves. With few columns the branch costs more than it saves.
      if (HEAD_DIM < 128 || __any_sync(0xffffffffu, shrink[0] != 1.0f || shrink[1] != 1.0f)) {
#pragma unroll
        for (int d = 0; d < FRAGS_D; d++)
#pragma unroll
          for (int c = 0; c < 4; c++) out[i][d][c] *= shrink[c / 2];
      }
    }

#pragma unroll
    for (int j = 0; j < FRAGS_KV; j += 2) {
      // The accumulators of two 8-key tiles are exactly the A fragment of 16 keys.
      u32 p[FRAGS_Q][4];
#pragma unroll
      for (int i = 0; i < FRAGS_Q; i++)
#pragma unroll
        for (int r = 0; r < 4; r++) p[i][r] = pack2(elem{}, s[i][j + r / 2][r % 2 * 2], s[i][j + r / 2][r % 2 * 2 + 1]);
#pragma unroll
      for (int d = 0; d < FRAGS_D; d += 2) {
        u32 b[4];
        ldmatrix_x4_trans(b, slot(t) + v_lane + j * 8 * PITCH + d * 16);
#pragma unroll
        for (int i = 0; i < FRAGS_Q; i++) {
          mma_16816(elem{}, out[i][d], p[i], b);
          mma_16816(elem{}, out[i][d + 1], p[i], b + 2);
        }
      }
    }
  }
  cp_async_wait<0>();
  pdl_launch();

  // Neighbouring lanes swap halves of two 8-column tiles, so that each stores four adjacent columns.
  const int odd = lane & 1;
#pragma unroll
  for (int i = 0; i < FRAGS_Q; i++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float sum = row_sum[i][h];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      const float inverse = sum > 0.0f ? 1.0f / sum : 0.0f;
      const int row = warp_row + i * 16 + h * 8 + lane / 4;
      elem *to = o_ptr + q_base + (i64)row * (HEADS * HEAD_DIM) + odd * 8 + (lane & 2) * 2;
#pragma unroll
      for (int d = 0; d < FRAGS_D; d += 2) {
        const u32 even_tile = pack2(elem{}, out[i][d][2 * h] * inverse, out[i][d][2 * h + 1] * inverse);
        const u32 odd_tile = pack2(elem{}, out[i][d + 1][2 * h] * inverse, out[i][d + 1][2 * h + 1] * inverse);
        const u32 other = __shfl_xor_sync(0xffffffffu, odd ? even_tile : odd_tile, 1);
        if (row < q_rows) *reinterpret_cast<uint2 *>(to + d * 8) = odd ? make_uint2(other, odd_tile) : make_uint2(even_tile, other);
      }
    }
}
