// f64 reference of attention for one query token over a paged KV cache of codes. One block per query head of a sequence; its
// warps take every eighth token each with an online softmax, a lane holding every 32nd dimension, and are merged at the
// end through shared memory.
#include "common.cuh"

#define WARPS 8
#define MAX_DIM ((HEAD_DIM + 31) / 32 * 32)

extern "C" __global__ void __launch_bounds__(WARPS * 32) decode_e4m3_reference(
    const elem *q, const e4m3_t *k_cache, const e4m3_t *v_cache, const float *kv_scales, const int *block_table, const int *lens,
    double *o, int heads,
    int kv_heads, int page, int max_pages) {
  __shared__ double part[WARPS][MAX_DIM], part_max[WARPS], part_sum[WARPS];
  const int head_dim = HEAD_DIM, head = (int)(blockIdx.x % heads), batch = (int)(blockIdx.x / heads), kv_head = head / (heads / kv_heads);
  const int lane = lane_id(), warp = warp_id(), len = lens[batch];
  const double scale = (double)kv_scales[kv_head] / sqrt((double)head_dim), minus_inf = __longlong_as_double(0xfff0000000000000ll);
  const i64 q_base = ((i64)batch * heads + head) * head_dim;

  double qd[MAX_DIM / 32], acc[MAX_DIM / 32] = {}, top = minus_inf, sum = 0.0;
#pragma unroll
  for (int i = 0; i < MAX_DIM / 32; i++) {
    int d = lane + 32 * i;
    qd[i] = d < head_dim ? (double)to_f32(q[q_base + d]) * scale : 0.0;
  }
  for (int t = warp; t < len; t += WARPS) {
    const i64 row = (((i64)block_table[(i64)batch * max_pages + t / page] * kv_heads + kv_head) * page + t % page) * head_dim;
    double s = 0.0;
#pragma unroll
    for (int i = 0; i < MAX_DIM / 32; i++)
      if (lane + 32 * i < head_dim) s = fma(qd[i], (double)to_f32(k_cache[row + lane + 32 * i]), s);
    for (int b = 16; b > 0; b >>= 1) s += __shfl_xor_sync(0xffffffffu, s, b);
    const double new_top = fmax(top, s), shrink = exp(top - new_top), e = exp(s - new_top);
    top = new_top;
    sum = sum * shrink + e;
#pragma unroll
    for (int i = 0; i < MAX_DIM / 32; i++)
      if (lane + 32 * i < head_dim) acc[i] = fma(e, (double)to_f32(v_cache[row + lane + 32 * i]), acc[i] * shrink);
  }
#pragma unroll
  for (int i = 0; i < MAX_DIM / 32; i++) part[warp][lane + 32 * i] = acc[i];
  if (lane == 0) part_max[warp] = top, part_sum[warp] = sum;
  __syncthreads();

  double all_max = minus_inf, all_sum = 0.0;
  for (int w = 0; w < WARPS; w++) all_max = fmax(all_max, part_max[w]);
  for (int w = 0; w < WARPS; w++) all_sum += len > 0 ? exp(part_max[w] - all_max) * part_sum[w] : 0.0;
  for (int d = threadIdx.x; d < head_dim; d += WARPS * 32) {
    double v = 0.0;
    for (int w = 0; w < WARPS; w++) v += len > 0 ? exp(part_max[w] - all_max) * part[w][d] : 0.0;
    o[q_base + d] = all_sum > 0.0 ? v / all_sum * (double)kv_scales[kv_heads + kv_head] : 0.0;
  }
}
