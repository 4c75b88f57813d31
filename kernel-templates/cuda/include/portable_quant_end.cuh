    __syncthreads();
#pragma unroll
    for (int c = 0; c < STEP; c++) {
      float a[4], b[4];
#pragma unroll
      for (int i = 0; i < 4; i++) a[i] = xs[c][ty * 4 + i], b[i] = ws[c][tx * 4 + i];
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) acc[i][j] = fmaf(a[i], b[j], acc[i][j]);
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int row = row0 + ty * 4 + i;
    if (row >= m) continue;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const int col = col0 + tx * 4 + j;
      if (col >= n) continue;
      if (bias) acc[i][j] += to_f32(bias[col]);
#if OP_QKV
      product[(i64)row * n + col] = acc[i][j];
#else
      if (residual) acc[i][j] += to_f32(residual[(i64)row * n + col]);
      if (!swiglu) y[(i64)row * n + col] = from_f32<elem>(acc[i][j]);
      else if (j % 2) y[(i64)row * (n / 2) + col / 2] = from_f32<elem>(silu(acc[i][j - 1]) * acc[i][j]); // n is even
#endif
    }
  }
}

#include "qkv_portable.cuh"
