// Attention over a paged KV cache of E4M3 codes on the warp-level matrix instructions of sm_80 (mma.sync), any number of queries a
// sequence: `paged_mma` for half the bytes.
//
// A block computes up to TILE_Q rows of one KV head and one sequence, whose rows are (position, head of the group), and
// walks over one part of the keys that they see in tiles of TILE_KV. Each warp owns TILE_Q / WARPS of the rows over all
// keys of a tile, so that the softmax stays inside a quad of lanes:
//
//   scores = Q·Kᵀ (accumulators) -> running maximum, 2^(scaled score − maximum) -> fragments of P -> output += P·V
//
// Codes of K and V are written to shared memory by asynchronous copies, STAGES tiles ahead. At the start of a tile all threads turn its
// codes into elements, once for all warps, beside which the copies of later tiles run. Rows of elements are padded by 16 bytes:
// HEAD_DIM is a multiple of 16, so the pitch is an odd number of 16-byte chunks and any eight rows of one chunk lie in
// different banks. The scale of the keys is part of the softmax scale, that of the values of the output.
//
// Invariants:
// - Rows of K and V past the last key are zero in shared memory: their probability is 0 and must not meet a NaN.
// - A score that is masked is -inf. A row that has seen no key keeps the maximum -inf, and its scale is taken as if the
//   maximum were 0; a row without any key is written as zeros.
// - The sum of a row is kept per lane and reduced over the quad once, at the end.
// - A tile whose keys are in one part is written to o, else its parts' unnormalised sums go to the workspace and a second
//   launch merges them.
#include "e4m3.cuh"
#include "mma.cuh"
#define TILE_POSITIONS (TILE_Q / PACK)
#define KEY_BLOCK TILE_KV
#include "paged_parts.cuh"

constexpr int THREADS = WARPS * 32;
constexpr int WARP_ROWS = TILE_Q / WARPS;
constexpr int FRAGS_Q = WARP_ROWS / 16, FRAGS_KV = TILE_KV / 8, FRAGS_D = HEAD_DIM / 8, STEPS_D = HEAD_DIM / 16;
constexpr int PITCH = HEAD_DIM * 2 + 16;
constexpr int CHUNKS = HEAD_DIM / 8;
constexpr int KV_BYTES = TILE_KV * PITCH;
constexpr int CODE_CHUNKS = HEAD_DIM / 16, CODE_BYTES = TILE_KV * HEAD_DIM; // of codes, whose rows are not padded
constexpr int GROUP = HEADS / KV_HEADS;
constexpr int UNITS = HEADS / PACK; // blocks of the same queries and keys

static_assert(ELEM_BYTES == 2, "the fragments are of 16-bit elements");
static_assert(HEAD_DIM % 16 == 0 && TILE_KV % 16 == 0, "one instruction covers 16 of k");
static_assert(WARP_ROWS % 16 == 0, "one instruction covers 16 rows");
static_assert(HEADS % KV_HEADS == 0, "query heads share KV heads evenly");

// Rows 0..rows into a tile, row i from row_at(i), COUNT chunks of 16 bytes each; what lies past them is filled with zeros. So many threads
// share a row that every thread's copies are a constant distance apart.
template <int TILE, int COUNT, int ROW_BYTES, class RowAt> DEV void copy_tile(u32 smem, const u8 *matrix, int rows, const RowAt row_at) {
  constexpr int ROW_THREADS = COUNT & -COUNT, STEP = THREADS / ROW_THREADS;
  const int first = threadIdx.x / ROW_THREADS, chunk = threadIdx.x % ROW_THREADS;
  smem += first * ROW_BYTES + chunk * 16;
#pragma unroll 4 // more addresses at a time cost too many registers
  for (int i = 0; i < (TILE + STEP - 1) / STEP; i++) {
    const int row = first + i * STEP;
    if (TILE % STEP != 0 && row >= TILE) break;
    const u8 *from = row < rows ? matrix + row_at(row) + chunk * 16 : matrix;
#pragma unroll
    for (int c = 0; c < COUNT; c += ROW_THREADS)
      cp_async16(smem + i * STEP * ROW_BYTES + c * 16, row < rows ? from + c * 16 : from, row < rows ? 16 : 0);
  }
}

// A tile of codes as a padded tile of elements.
DEV void widen_tile(unsigned char *to, const unsigned char *codes) {
#pragma unroll 4
  for (int i = threadIdx.x; i < TILE_KV * CODE_CHUNKS; i += THREADS) {
    const uint4 v = *reinterpret_cast<const uint4 *>(codes + i * 16);
    const u32 words[4] = {v.x, v.y, v.z, v.w};
    u32 pairs[8];
#pragma unroll
    for (int j = 0; j < 4; j++) {
      // The odd bytes of a word are codes of two neighbours, its even ones 0.
      pairs[2 * j] = odd_codes(__byte_perm(words[j], 0, 0x1404));
      pairs[2 * j + 1] = odd_codes(__byte_perm(words[j], 0, 0x3424));
    }
    uint4 *const row = reinterpret_cast<uint4 *>(to + i / CODE_CHUNKS * PITCH + i % CODE_CHUNKS * 32);
    row[0] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    row[1] = make_uint4(pairs[4], pairs[5], pairs[6], pairs[7]);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
paged_mma_e4m3(const elem *q_ptr, const u8 *k_ptr, const u8 *v_ptr, const float *__restrict__ kv_scales, const int *block_table,
               const int *q_starts, const int *kv_lens, elem *o_ptr, void *workspace, int tokens, int batch, int max_pages,
               int max_parts) {
  extern __shared__ __align__(128) unsigned char shared[];
  pdl_wait();

  // Heads vary fastest, so that a sequence's pages are read together. The last places, the longest rows, start first.
  const int unit = blockIdx.x % UNITS, place = gridDim.x / UNITS - 1 - blockIdx.x / UNITS;
  const int kv_head = unit * PACK / GROUP;
  const Tile at(q_starts, kv_lens, batch, place);
  const Part part(max(at.keys(), 0), blockIdx.y, max_parts);
  if (at.count <= 0 || part.begin >= part.end) return;
  const int *table = block_table + (i64)at.seq * max_pages;
  const int rows = at.count * PACK, tiles = part.end - part.begin, kv_end = at.keys();
  auto row_at = [&](int row) { return ((i64)(at.token + row / PACK) * HEADS + unit * PACK + row % PACK) * HEAD_DIM; };

  // Rows of Q, a tile of K and one of V as elements, then STAGES of both as codes.
  constexpr int WIDE = TILE_Q * PITCH, CODES = WIDE + 2 * KV_BYTES;
  const u32 smem_q = smem_u32(shared), tile = smem_q + WIDE;
  auto slot = [&](int t) { return CODES + t % STAGES * (2 * CODE_BYTES); };
  auto copy_codes = [&](u32 smem, const u8 *cache, int t) {
    const int key0 = (part.begin + t) * TILE_KV;
    if (t < tiles)
      copy_tile<TILE_KV, CODE_CHUNKS, HEAD_DIM>(smem, cache, kv_end - key0, [&](int row) {
        const u32 key = key0 + row;
        return (((i64)table[key / PAGE] * KV_HEADS + kv_head) * PAGE + key % PAGE) * HEAD_DIM;
      });
  };
  auto copy_kv = [&](int t) {
    copy_codes(smem_q + slot(t), k_ptr, t);
    copy_codes(smem_q + slot(t) + CODE_BYTES, v_ptr, t);
    cp_async_commit();
  };

  copy_tile<TILE_Q, CHUNKS, PITCH>(smem_q, (const u8 *)q_ptr, rows, [&](int row) { return row_at(row) * 2; });
#pragma unroll
  for (int t = 0; t < STAGES; t++) copy_kv(t);

  const int lane = lane_id(), warp_row = warp_id() * WARP_ROWS;
  const u32 q_lane = smem_q + (warp_row + (lane & 15)) * PITCH + (lane >> 4) * 16;
  const u32 k_lane = ((lane & 7) + (lane >> 4) * 8) * PITCH + ((lane >> 3) & 1) * 16;
  const u32 v_lane = KV_BYTES + (lane & 15) * PITCH + (lane >> 4) * 16;

  float out[FRAGS_Q][FRAGS_D][4] = {};
  float row_max[FRAGS_Q][2], row_sum[FRAGS_Q][2] = {};
#pragma unroll
  for (int i = 0; i < FRAGS_Q; i++) row_max[i][0] = row_max[i][1] = NEG_INF;
  u32 q_frag[Q_REGS ? STEPS_D : 1][FRAGS_Q][4];
  const float scale = LOG2E * SCALE * kv_scales[kv_head], of_v = kv_scales[KV_HEADS + kv_head];

  for (int t = 0; t < tiles; t++) {
    cp_async_wait<STAGES - 1>();
    __syncthreads(); // codes of this tile are there, and nobody reads the elements of the tile before it any more
    widen_tile(shared + WIDE, shared + slot(t));
    widen_tile(shared + WIDE + KV_BYTES, shared + slot(t) + CODE_BYTES);
    __syncthreads(); // elements are there, and nobody reads the codes any more
    copy_kv(t + STAGES);
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
        ldmatrix_x4(b, tile + k_lane + j * 8 * PITCH + d * 32);
#pragma unroll
        for (int i = 0; i < FRAGS_Q; i++) {
          mma_16816(elem{}, s[i][j], q_frag[Q_REGS ? d : 0][i], b);
          mma_16816(elem{}, s[i][j + 1], q_frag[Q_REGS ? d : 0][i], b + 2);
        }
      }
    }

    // Only the last tiles have keys that some row must not see.
    const int key0 = (part.begin + t) * TILE_KV;
    if (key0 + TILE_KV > at.visible + warp_row / PACK) {
#pragma unroll
      for (int i = 0; i < FRAGS_Q; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
          const int limit = at.visible + min((warp_row + i * 16 + h * 8 + lane / 4) / PACK, at.count - 1);
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
        ldmatrix_x4_trans(b, tile + v_lane + j * 8 * PITCH + d * 16);
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
  const Partials partials(workspace, tokens, max_parts);
#pragma unroll
  for (int i = 0; i < FRAGS_Q; i++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float sum = row_sum[i][h];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      const int row = warp_row + i * 16 + h * 8 + lane / 4;
      if (part.parts > 1) {
        if (row >= rows) continue;
        const i64 to = partials.at(at.token + row / PACK, unit * PACK + row % PACK, blockIdx.y);
        if (lane % 4 == 0) partials.max_sum[to] = make_float2(row_max[i][h] * scale, sum);
#pragma unroll
        for (int d = 0; d < FRAGS_D; d++)
          *(float2 *)(partials.out + to * HEAD_DIM + d * 8 + lane % 4 * 2) = make_float2(out[i][d][2 * h] * of_v, out[i][d][2 * h + 1] * of_v);
        continue;
      }
      const float inverse = sum > 0.0f ? of_v / sum : 0.0f;
      elem *to = o_ptr + (row < rows ? row_at(row) : 0) + odd * 8 + (lane & 2) * 2;
#pragma unroll
      for (int d = 0; d < FRAGS_D; d += 2) {
        const u32 even_tile = pack2(elem{}, out[i][d][2 * h] * inverse, out[i][d][2 * h + 1] * inverse);
        const u32 odd_tile = pack2(elem{}, out[i][d + 1][2 * h] * inverse, out[i][d + 1][2 * h + 1] * inverse);
        const u32 other = __shfl_xor_sync(0xffffffffu, odd ? even_tile : odd_tile, 1);
        if (row < rows) *reinterpret_cast<uint2 *>(to + d * 8) = odd ? make_uint2(other, odd_tile) : make_uint2(even_tile, other);
      }
    }
}
