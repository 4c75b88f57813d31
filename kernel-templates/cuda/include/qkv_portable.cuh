#if OP_QKV
extern "C" __global__ void __launch_bounds__(128)
qkv_portable(const float *product, const elem *q_norm, const elem *k_norm, const int *positions, const int *slots,
             const float *cos_sin, elem *y, elem *k_cache, elem *v_cache, int heads, int kv_heads, int head_dim, int page,
             float eps) {
  __shared__ float part[4];
  pdl_launch();
  pdl_wait();
  const int all = heads + 2 * kv_heads, row = blockIdx.x / all, head = blockIdx.x % all;
  const bool is_q = head < heads, is_v = head >= heads + kv_heads;
  const float *const from = product + (i64)blockIdx.x * head_dim;
  elem *to = y + ((i64)row * heads + head) * head_dim;
  if (!is_q) {
    const int slot = slots[row], kv_head = head - heads - (is_v ? kv_heads : 0);
    if (slot < 0) return;
    to = (is_v ? v_cache : k_cache) + (((i64)(slot / page) * kv_heads + kv_head) * page + slot % page) * head_dim;
  }
  const elem *const weight = is_q ? q_norm : k_norm;
  float scale = 1.0f;
  if (weight && !is_v) {
    float sum = 0.0f;
    for (int c = threadIdx.x; c < head_dim; c += 128) sum = fmaf(from[c], from[c], sum);
    sum = warp_sum(sum);
    if (lane_id() == 0) part[warp_id()] = sum;
    __syncthreads();
    scale = rsqrtf((part[0] + part[1] + part[2] + part[3]) / head_dim + eps);
  }
  const float *const cs = cos_sin + (i64)positions[row] * head_dim;
  for (int c = 2 * threadIdx.x; c < head_dim; c += 256) {
    float a = from[c], b = from[c + 1];
    if (!is_v) {
      if (weight) a *= scale * to_f32(weight[c]), b *= scale * to_f32(weight[c + 1]);
      const float r = a * cs[c] - b * cs[c + 1];
      b = a * cs[c + 1] + b * cs[c];
      a = r;
    }
    to[c] = from_f32<elem>(a), to[c + 1] = from_f32<elem>(b);
  }
}
#endif
