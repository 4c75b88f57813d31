// f64 reference of causal attention over a paged KV cache of codes: online softmax in f64. One block takes up to 32 queries of one
// head and one sequence and walks the keys 64 at a time; operands pass through shared memory in chunks of 16 dimensions
// (scores) or 16 keys (output), so that any head_dim up to 256 fits. Block i serves sequence b where
// q_starts[b] / 32 + b <= i, so that every sequence has blocks enough; the sequences are searched one by one.
#include "common.cuh"

#define QUERIES 32
#define KEYS 64
#define STEP 16
#define MAX_DIM 256

extern "C" __global__ void __launch_bounds__(256) paged_attention_e4m3_reference(
    const elem *q, const e4m3_t *k, const e4m3_t *v, const float *kv_scales, const int *block_table, const int *q_starts, const int *kv_lens,
    double *o, int batches, int heads, int kv_heads, int head_dim, int page, int max_pages) {
  __shared__ double qs[STEP][QUERIES + 1], ks[STEP][KEYS + 1], s[QUERIES][KEYS + 1];
  __shared__ i64 rows[KEYS]; // where the keys of this step lie
  __shared__ double row_max[QUERIES], row_sum[QUERIES], row_scale[QUERIES];

  const int head = (int)(blockIdx.x % heads), slot = (int)(blockIdx.x / heads), kv_head = head / (heads / kv_heads);
  int batch = 0;
  while (batch + 1 < batches && q_starts[batch + 1] / QUERIES + batch + 1 <= slot) batch++;
  const int first = q_starts[batch], q_len = q_starts[batch + 1] - first, kv_len = kv_lens[batch];
  const int q0 = (slot - first / QUERIES - batch) * QUERIES;
  if (q0 >= q_len) return;
  const double scale = (double)kv_scales[kv_head] / sqrt((double)head_dim), minus_inf = __longlong_as_double(0xfff0000000000000ll);
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16; // rows ty and ty+16; columns tx+16j

  double acc[MAX_DIM / 64][2][4] = {};
  if (threadIdx.x < QUERIES) row_max[threadIdx.x] = minus_inf, row_sum[threadIdx.x] = 0.0;

  const int visible = min(kv_len, q0 + QUERIES + kv_len - q_len);
  for (int t0 = 0; t0 < visible; t0 += KEYS) {
    if (threadIdx.x < KEYS && t0 + threadIdx.x < kv_len) {
      const int t = t0 + threadIdx.x;
      rows[threadIdx.x] =
          (((i64)block_table[(i64)batch * max_pages + t / page] * kv_heads + kv_head) * page + t % page) * head_dim;
    }
    double score[2][4] = {};
    for (int d0 = 0; d0 < head_dim; d0 += STEP) {
      __syncthreads();
      for (int i = threadIdx.x; i < (QUERIES + KEYS) * STEP; i += 256) {
        int r = i / STEP, d = d0 + i % STEP;
        if (r < QUERIES) {
          bool in = q0 + r < q_len && d < head_dim;
          qs[i % STEP][r] = in ? (double)to_f32(q[((i64)(first + q0 + r) * heads + head) * head_dim + d]) : 0.0;
        } else {
          int t = t0 + r - QUERIES;
          bool in = t < kv_len && d < head_dim;
          ks[i % STEP][r - QUERIES] = in ? (double)to_f32(k[rows[r - QUERIES] + d]) : 0.0;
        }
      }
      __syncthreads();
#pragma unroll 4
      for (int d = 0; d < STEP; d++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
          score[0][j] = fma(qs[d][ty], ks[d][tx + 16 * j], score[0][j]);
          score[1][j] = fma(qs[d][ty + 16], ks[d][tx + 16 * j], score[1][j]);
        }
    }
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int j = 0; j < 4; j++) {
        int row = ty + 16 * i, t = t0 + tx + 16 * j;
        bool seen = t < kv_len && t <= q0 + row + kv_len - q_len;
        s[row][tx + 16 * j] = seen ? score[i][j] * scale : minus_inf;
      }
    __syncthreads();
    // Eight threads share a row of scores.
    {
      const int row = threadIdx.x / 8, part = threadIdx.x % 8;
      double before = row_max[row], top = before, sum = 0.0;
      for (int c = part; c < KEYS; c += 8) top = fmax(top, s[row][c]);
      for (int b = 4; b > 0; b >>= 1) top = fmax(top, __shfl_xor_sync(0xffffffffu, top, b));
      for (int c = part; c < KEYS; c += 8) {
        double e = top == minus_inf ? 0.0 : exp(s[row][c] - top);
        s[row][c] = e;
        sum += e;
      }
      for (int b = 4; b > 0; b >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, b);
      __syncwarp(); // the row's eight threads have read row_max
      if (part == 0) {
        double shrink = before == minus_inf ? 0.0 : exp(before - top);
        row_max[row] = top, row_scale[row] = shrink, row_sum[row] = row_sum[row] * shrink + sum;
      }
    }
    __syncthreads();
#pragma unroll
    for (int c = 0; c < MAX_DIM / 64; c++) {
      if (c * 64 >= head_dim) break;
#pragma unroll
      for (int j = 0; j < 4; j++) acc[c][0][j] *= row_scale[ty], acc[c][1][j] *= row_scale[ty + 16];
      for (int t = 0; t < KEYS; t += STEP) {
        __syncthreads();
        for (int i = threadIdx.x; i < STEP * 64; i += 256) {
          int key = t0 + t + i / 64, d = c * 64 + i % 64;
          ks[i / 64][i % 64] = key < kv_len && d < head_dim ? (double)to_f32(v[rows[key - t0] + d]) : 0.0;
        }
        __syncthreads();
#pragma unroll 4
        for (int r = 0; r < STEP; r++)
#pragma unroll
          for (int j = 0; j < 4; j++) {
            acc[c][0][j] = fma(s[ty][t + r], ks[r][tx + 16 * j], acc[c][0][j]);
            acc[c][1][j] = fma(s[ty + 16][t + r], ks[r][tx + 16 * j], acc[c][1][j]);
          }
      }
    }
  }
  __syncthreads();
#pragma unroll
  for (int c = 0; c < MAX_DIM / 64; c++)
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int j = 0; j < 4; j++) {
        int row = ty + 16 * i, d = c * 64 + tx + 16 * j;
        if (q0 + row >= q_len || d >= head_dim) continue;
        double sum = row_sum[row];
        o[((i64)(first + q0 + row) * heads + head) * head_dim + d] = sum > 0.0 ? acc[c][i][j] / sum * (double)kv_scales[kv_heads + kv_head] : 0.0;
      }
}
