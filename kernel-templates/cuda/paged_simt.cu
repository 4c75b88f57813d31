// Attention over a paged KV cache in true f32 on the ordinary arithmetic units: for f32, and for every type, page and head
// dimension that the matrix instructions do not take.
//
// A block of 16 × 16 threads computes up to TILE_Q queries of one head of one sequence and walks over the keys in tiles of
// TILE_KV with a running softmax. Thread (ty, tx) owns TILE_Q / 16 adjacent rows: of the scores the keys tx, tx + 16, …,
// of the output the runs of four columns tx, tx + 16, …; the 16 threads of a row are half a warp.
//
//   Q, K, V --widened to f32--> shared memory;  scores in registers --softmax--> P in shared memory --P·V--> output
//
// Rows are padded so that their pitch is an odd number of 16-byte vectors: 8 threads that read one vector of 8 rows meet
// different banks. Rows past the end and columns past HEAD_DIM are zeros. A masked score is -inf; a row that has no key at
// all is written as zeros.
#define TILE_POSITIONS TILE_Q
#define KEY_BLOCK TILE_KV
#include "paged_tiles.cuh"

constexpr int THREADS = 256;
constexpr int ROWS = TILE_Q / 16, KEYS = TILE_KV / 16;
constexpr int VECTORS = (HEAD_DIM + 3) / 4;                 // of a row
constexpr int PITCH = (VECTORS + (VECTORS + 1) % 2) * 4;    // odd in vectors
constexpr int RUNS = (VECTORS + 15) / 16;                   // runs of four output columns of a thread
constexpr int PITCH_P = TILE_KV + 4;
constexpr int COPY = HEAD_DIM % 4 == 0 ? 4 : 1;

static_assert(TILE_Q % 16 == 0 && TILE_KV % 16 == 0, "rows and keys are dealt to 16 threads");
static_assert(HEADS % KV_HEADS == 0, "query heads share KV heads evenly");

// Rows 0..rows, as f32; row_at(i) is where row i lies.
template <int TILE, class RowAt> DEV void copy_tile(float *tile, const elem *matrix, int rows, const RowAt row_at) {
#pragma unroll 4
  for (int id = threadIdx.x; id < TILE * VECTORS; id += THREADS) {
    const int row = id / VECTORS, col = id % VECTORS * 4;
    float4 f = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (row < rows) {
      const elem *from = matrix + row_at(row) + col;
      if constexpr (COPY == 4) {
        const vec<4> v = *reinterpret_cast<const vec<4> *>(from);
        f = make_float4(to_f32(v.v[0]), to_f32(v.v[1]), to_f32(v.v[2]), to_f32(v.v[3]));
      } else {
        f.x = to_f32(from[0]);
        if (col + 1 < HEAD_DIM) f.y = to_f32(from[1]);
        if (col + 2 < HEAD_DIM) f.z = to_f32(from[2]);
        if (col + 3 < HEAD_DIM) f.w = to_f32(from[3]);
      }
    }
    *reinterpret_cast<float4 *>(tile + row * PITCH + col) = f;
  }
}

DEV float4 read4(const float *p) { return *reinterpret_cast<const float4 *>(p); }

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
paged_simt(const elem *q_ptr, const elem *k_ptr, const elem *v_ptr, const int *block_table, const int *q_starts,
           const int *kv_lens, elem *o_ptr, int batch, int max_pages) {
  extern __shared__ __align__(16) float shared[];
  float *tile_q = shared, *tile_k = tile_q + TILE_Q * PITCH;
  float *tile_v = tile_k + (KV_BUFFERS == 2 ? TILE_KV * PITCH : 0); // with one buffer V replaces K
  float *tile_p = tile_v + TILE_KV * PITCH;
  pdl_wait();

  // The last places, which have the longest rows, start first.
  const int head = blockIdx.x % HEADS, kv_head = head / (HEADS / KV_HEADS);
  const Tile t(q_starts, kv_lens, batch, gridDim.x / HEADS - 1 - blockIdx.x / HEADS);
  if (t.count <= 0) return;
  const int *table = block_table + (i64)t.seq * max_pages;
  const i64 q_base = ((i64)t.token * HEADS + head) * HEAD_DIM;
  const int q_rows = t.count, kv_end = t.keys();
  auto q_at = [&](int row) { return q_base + (i64)row * (HEADS * HEAD_DIM); };

  const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
  float out[ROWS][RUNS * 4] = {};
  float row_max[ROWS], row_sum[ROWS] = {};
#pragma unroll
  for (int i = 0; i < ROWS; i++) row_max[i] = NEG_INF;
  copy_tile<TILE_Q>(tile_q, q_ptr, q_rows, q_at);

  for (int key0 = 0; key0 < kv_end; key0 += TILE_KV) {
    auto kv_at = [&](int row) {
      const int key = key0 + row;
      return (((i64)table[key / PAGE] * KV_HEADS + kv_head) * PAGE + key % PAGE) * HEAD_DIM;
    };
    if (key0 > 0) __syncthreads(); // nobody reads the tile before this one any more
    copy_tile<TILE_KV>(tile_k, k_ptr, kv_end - key0, kv_at);
    if constexpr (KV_BUFFERS == 2) copy_tile<TILE_KV>(tile_v, v_ptr, kv_end - key0, kv_at);
    __syncthreads();

    float s[ROWS][KEYS] = {};
#pragma unroll 4
    for (int d = 0; d < VECTORS * 4; d += 4) {
      float4 a[ROWS], b[KEYS];
#pragma unroll
      for (int i = 0; i < ROWS; i++) a[i] = read4(tile_q + (ty * ROWS + i) * PITCH + d);
#pragma unroll
      for (int j = 0; j < KEYS; j++) b[j] = read4(tile_k + (tx + 16 * j) * PITCH + d);
#pragma unroll
      for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int j = 0; j < KEYS; j++)
          s[i][j] = fmaf(a[i].w, b[j].w, fmaf(a[i].z, b[j].z, fmaf(a[i].y, b[j].y, fmaf(a[i].x, b[j].x, s[i][j]))));
    }
    if constexpr (KV_BUFFERS == 1) {
      __syncthreads();
      copy_tile<TILE_KV>(tile_v, v_ptr, kv_end - key0, kv_at);
    }

#pragma unroll
    for (int i = 0; i < ROWS; i++) {
      const int limit = min(kv_end, t.visible + ty * ROWS + i);
      float m = row_max[i];
#pragma unroll
      for (int j = 0; j < KEYS; j++) {
        s[i][j] = key0 + tx + 16 * j < limit ? s[i][j] * (LOG2E * SCALE) : NEG_INF;
        m = fmaxf(m, s[i][j]);
      }
      m = warp_max<16>(m);
      const float origin = m == NEG_INF ? 0.0f : m;
      const float shrink = exp2f(row_max[i] - origin);
      row_max[i] = m;
      row_sum[i] *= shrink;
#pragma unroll
      for (int c = 0; c < RUNS * 4; c++) out[i][c] *= shrink;
#pragma unroll
      for (int j = 0; j < KEYS; j++) {
        const float p = exp2f(s[i][j] - origin);
        row_sum[i] += p;
        tile_p[(ty * ROWS + i) * PITCH_P + tx + 16 * j] = p;
      }
    }
    // The rows of P are read by the half warp that wrote them; V needs the whole block.
    if constexpr (KV_BUFFERS == 1) __syncthreads();
    else __syncwarp();

#pragma unroll 2
    for (int kv = 0; kv < TILE_KV; kv += 4) {
      float4 p[ROWS];
#pragma unroll
      for (int i = 0; i < ROWS; i++) p[i] = read4(tile_p + (ty * ROWS + i) * PITCH_P + kv);
#pragma unroll
      for (int r = 0; r < RUNS; r++) {
        const int col = (tx + 16 * r) * 4;
        if (VECTORS % 16 != 0 && col >= VECTORS * 4) continue;
#pragma unroll
        for (int x = 0; x < 4; x++) {
          const float4 v = read4(tile_v + (kv + x) * PITCH + col);
#pragma unroll
          for (int i = 0; i < ROWS; i++) {
            const float weight = x == 0 ? p[i].x : x == 1 ? p[i].y : x == 2 ? p[i].z : p[i].w;
            out[i][4 * r] = fmaf(weight, v.x, out[i][4 * r]);
            out[i][4 * r + 1] = fmaf(weight, v.y, out[i][4 * r + 1]);
            out[i][4 * r + 2] = fmaf(weight, v.z, out[i][4 * r + 2]);
            out[i][4 * r + 3] = fmaf(weight, v.w, out[i][4 * r + 3]);
          }
        }
      }
    }
  }
  pdl_launch();

#pragma unroll
  for (int i = 0; i < ROWS; i++) {
    const float sum = warp_sum<16>(row_sum[i]), inverse = sum > 0.0f ? 1.0f / sum : 0.0f;
    const int row = ty * ROWS + i;
    if (row >= q_rows) continue;
#pragma unroll
    for (int r = 0; r < RUNS; r++)
#pragma unroll
      for (int c = 0; c < 4; c += COPY) {
        const int col = (tx + 16 * r) * 4 + c;
        if (col >= HEAD_DIM) continue;
        vec<COPY> v;
#pragma unroll
        for (int x = 0; x < COPY; x++) v.v[x] = from_f32<elem>(out[i][4 * r + c + x] * inverse);
        *reinterpret_cast<vec<COPY> *>(o_ptr + q_base + (i64)row * (HEADS * HEAD_DIM) + col) = v;
      }
  }
}
