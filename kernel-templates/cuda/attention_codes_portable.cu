// Attention over a cache of codes for every shape that its ops allow, paged or of one query a sequence: every dimension is an
// argument. A block of 128 threads has one head of one query and walks the tokens that the query sees in chunks of 128: a
// warp scores every fourth token of a chunk, its lanes striding over the dimensions; then a thread adds up every 128th
// dimension of the output, which waits in shared memory with the query.
#include "e4m3.cuh"

#define THREADS 128
#define WARPS (THREADS / 32)

template <bool MAX> DEV float block_reduce(float v) {
  __shared__ float part[WARPS];
  v = MAX ? warp_max(v) : warp_sum(v);
  __syncthreads(); // an earlier call may still be reading
  if (lane_id() == 0) part[warp_id()] = v;
  __syncthreads();
  v = part[0];
#pragma unroll
  for (int i = 1; i < WARPS; i++) v = MAX ? fmaxf(v, part[i]) : v + part[i];
  return v;
}

#if OP_PAGED_ATTENTION
#define SOURCES const u8 *k, const u8 *v, const float *kv_scales, const int *block_table, const int *q_starts, const int *kv_lens
#define SIZES int page, int max_pages, int batch
#else
#define SOURCES const u8 *k, const u8 *v, const float *kv_scales, const int *block_table, const int *lens
#define SIZES int page, int max_pages
#endif

extern "C" __global__ void __launch_bounds__(THREADS)
attention_codes_portable(const elem *q, SOURCES, elem *o, int heads, int kv_heads, int head_dim, SIZES, float scale) {
  extern __shared__ float shared[];
  __shared__ float scores[THREADS];
  __shared__ i64 rows[THREADS]; // first element of each token of the chunk
  float *const query = shared, *const out = shared + head_dim;
  pdl_launch();
  pdl_wait();
  const int row = blockIdx.x / heads, kv_head = blockIdx.x % heads / (heads / kv_heads);
#if OP_PAGED_ATTENTION
  if (row >= q_starts[batch]) return; // padding
  int seq = 0; // the last sequence that begins at the row or before it
  for (int past = batch; past - seq > 1;) {
    const int middle = (seq + past) / 2;
    if (q_starts[middle] <= row) seq = middle; else past = middle;
  }
  const int len = kv_lens[seq] - (q_starts[seq + 1] - row - 1);
#else
  const int seq = row, len = lens[seq];
#endif
  const int lane = lane_id(), warp = warp_id();
  const float of_k = kv_scales[kv_head];
  for (int d = threadIdx.x; d < head_dim; d += THREADS) {
    query[d] = to_f32(q[(i64)blockIdx.x * head_dim + d]) * scale * of_k;
    out[d] = 0.0f;
  }
  float top = NEG_INF, sum = 0.0f;
  for (int first = 0; first < len; first += THREADS) {
    const int token = first + threadIdx.x, count = min(THREADS, len - first);
    if (token < len) {
      rows[threadIdx.x] =
          (((i64)block_table[(i64)seq * max_pages + token / page] * kv_heads + kv_head) * page + token % page) * head_dim;
    }
    __syncthreads();
    for (int t = warp; t < count; t += WARPS) {
      float s = 0.0f;
      for (int d = lane; d < head_dim; d += 32) s = fmaf(query[d], e4m3_to_f32(k[rows[t] + d]), s);
      s = warp_sum(s);
      if (lane == 0) scores[t] = s;
    }
    __syncthreads();
    const float mine = threadIdx.x < count ? scores[threadIdx.x] : NEG_INF;
    const float new_top = fmaxf(top, block_reduce<true>(mine)), shrink = exp2_approx((top - new_top) * LOG2E);
    const float p = threadIdx.x < count ? exp2_approx((mine - new_top) * LOG2E) : 0.0f;
    scores[threadIdx.x] = p;
    top = new_top, sum = sum * shrink + block_reduce<false>(p); // whose barriers make the scores visible
    for (int d = threadIdx.x; d < head_dim; d += THREADS) {
      float acc = out[d] * shrink;
      for (int t = 0; t < count; t++) acc = fmaf(scores[t], e4m3_to_f32(v[rows[t] + d]), acc);
      out[d] = acc;
    }
    __syncthreads();
  }
  const float of_v = kv_scales[kv_heads + kv_head];
  for (int d = threadIdx.x; d < head_dim; d += THREADS)
    o[(i64)blockIdx.x * head_dim + d] = from_f32<elem>(sum > 0.0f ? out[d] / sum * of_v : 0.0f);
}
