#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int row = row0 + ty * 4 + i;
    if (row >= m) continue;
#if !SWIGLU && !ROPE
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const int col = col0 + tx * 4 + j;
      if (col >= n) continue;
      double v = acc[i][j];
#if BIAS
      v += to_f32(bias[col]);
#endif
#if RESIDUAL
      v += to_f32(residual[(i64)row * n + col]);
#endif
      y[(i64)row * n + col] = v;
    }
#else
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
      const int col = col0 + tx * 4 + j; // even, and n is even
      if (col + 1 >= n) continue;
      double u = acc[i][j], v = acc[i][j + 1];
#if BIAS
      u += to_f32(bias[col]), v += to_f32(bias[col + 1]);
#endif
#if SWIGLU
      y[(i64)row * (n / 2) + col / 2] = u / (1.0 + exp(-u)) * v;
#else
      const int head = col / head_dim, d = col % head_dim;
      if (head < heads + kv_heads) {
        const float *cs = cos_sin + ((i64)positions[row] * (head_dim / 2) + d / 2) * 2;
        double c = cs[0], s = cs[1], r = u * c - v * s;
        v = u * s + v * c;
        u = r;
      }
      double *to;
      if (head < heads) {
        to = y + (i64)row * heads * head_dim + col;
      } else {
        const bool is_k = head < heads + kv_heads;
        const int kv_head = head - heads - (is_k ? 0 : kv_heads), slot = slots[row];
        if (slot < 0) continue;
        to = (is_k ? k_cache : v_cache) + (((i64)(slot / page) * kv_heads + kv_head) * page + slot % page) * head_dim + d;
      }
      to[0] = u, to[1] = v;
#endif
    }
#endif
  }
}

#if QK_NORM
extern "C" __global__ void __launch_bounds__(32) qk_norm_reference(
    const double *product, const elem *q_norm, const elem *k_norm, const int *positions, const int *slots,
    const float *cos_sin, double *y, double *k_cache, double *v_cache, int heads, int kv_heads, int head_dim, int page,
    float eps) {
  const int all = heads + 2 * kv_heads, row = blockIdx.x / all, head = blockIdx.x % all;
  const bool is_q = head < heads, is_v = head >= heads + kv_heads;
  const double *from = product + (i64)blockIdx.x * head_dim;
  double *to = y + ((i64)row * heads + head) * head_dim;
  if (!is_q) {
    const int slot = slots[row], kv_head = head - heads - (is_v ? kv_heads : 0);
    if (slot < 0) return;
    to = (is_v ? v_cache : k_cache) + (((i64)(slot / page) * kv_heads + kv_head) * page + slot % page) * head_dim;
  }
  double sum = 0.0;
  for (int c = threadIdx.x; c < head_dim; c += 32) sum += from[c] * from[c];
  for (int o = 16; o > 0; o /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, o);
  const double scale = 1.0 / sqrt(sum / head_dim + (double)eps);
  const elem *weight = is_q ? q_norm : k_norm;
  const float *cs = cos_sin + (i64)positions[row] * head_dim;
  for (int c = 2 * threadIdx.x; c < head_dim; c += 64) {
    if (is_v) {
      to[c] = from[c], to[c + 1] = from[c + 1];
    } else {
      const double a = from[c] * scale * (double)to_f32(weight[c]), b = from[c + 1] * scale * (double)to_f32(weight[c + 1]);
      to[c] = a * cs[c] - b * cs[c + 1];
      to[c + 1] = a * cs[c + 1] + b * cs[c];
    }
  }
}
#endif
