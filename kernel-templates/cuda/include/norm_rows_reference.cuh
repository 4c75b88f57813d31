extern "C" __global__ void __launch_bounds__(32) norm_rows_reference(const elem *x, const elem *norm, elem *normed, int k, float eps) {
  const elem *row = x + (i64)blockIdx.x * k;
  double sum = 0.0;
  for (int c = threadIdx.x; c < k; c += 32) sum += (double)to_f32(row[c]) * (double)to_f32(row[c]);
  for (int o = 16; o > 0; o /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, o);
  const double scale = 1.0 / sqrt(sum / k + (double)eps);
  for (int c = threadIdx.x; c < k; c += 32)
    normed[(i64)blockIdx.x * k + c] = from_f32<elem>((float)((double)to_f32(row[c]) * scale * (double)to_f32(norm[c])));
}
