  // All row groups of the block. `tokens` are rows of TOKEN_STRIDE elements, which LOAD_TOKENS reads 16 bytes of.
  // A token that is not there is another one: its column of the product is left alone.
  const elem *x_of[TOKEN_TILES];
#pragma unroll
  for (int t = 0; t < TOKEN_TILES; t++) x_of[t] = tokens + (i64)min(t * 8 + quad, m - 1) * TOKEN_STRIDE + (first_k + lane % 4 * 8);
  [[maybe_unused]] const u32 ones[4] = {ONES, ONES, ONES, ONES};

  [[maybe_unused]] int buffer = 0;
  int group = blockIdx.x;
  do {
    float acc[ROW_TILES][TOKEN_TILES][4] = {};
#if SUMMED && !GROUPED
    float sum[TOKEN_TILES][4] = {}; // of the tokens, in all rows alike
#endif
#pragma unroll 1
    for (int step = 0; step < STEPS; step++) {
      const bool last = step == STEPS - 1;
      const int next_group = last ? group + gridDim.x : group, next_step = last ? 0 : step + 1;
      const bool more = PERSISTENT ? next_group < GROUPS : !last;
      if (last && PERSISTENT) s = stream_of(next_group);
      else advance(s);
#pragma unroll
      for (int u = 0; u < UNROLL; u++) {
        const int k = step * STEP_K + u * QUAD_K;
        const bool inside = K % STEP_K == 0 || k + first_k < K;
        if (inside) {
#pragma unroll
          for (int g = 0; g < VECTOR_GROUPS; g++) {
#if GROUPED
            float part[ROW_TILES][TOKEN_TILES][4] = {};
#if SUMMED
            float sum[TOKEN_TILES][4] = {};
#endif
#else
            float(&part)[ROW_TILES][TOKEN_TILES][4] = acc;
#endif
#pragma unroll
            for (int c = g * (GROUP_K / 32); c < (g + 1) * (GROUP_K / 32); c++) {
              uint4 b[TOKEN_TILES];
#pragma unroll
              for (int t = 0; t < TOKEN_TILES; t++) b[t] = LOAD_TOKENS(x_of[t] + k + c * 32);
#pragma unroll
              for (int i = 0; i < ROW_TILES; i++) {
                u32 a[2][4]; // of two rows, the pairs of eight k
#pragma unroll
                for (int j = 0; j < 2; j++) {
#if DTYPE_W_INT4
                  pairs(a[j], q[u][i][j].word(c));
#if !SUMMED
                  const u32 less = q[u][i][j].less(g);
#pragma unroll
                  for (int p = 0; p < 4; p++) a[j][p] = fma2(elem{}, a[j][p], ONES, less);
#endif
#else
                  u32 lo[2], hi[2];
                  pairs(lo, q[u][i][j].word(2 * c));
                  pairs(hi, q[u][i][j].word(2 * c + 1));
                  a[j][0] = lo[0], a[j][1] = lo[1], a[j][2] = hi[0], a[j][3] = hi[1];
#endif
                }
                const u32 a0[4] = {a[0][0], a[1][0], a[0][1], a[1][1]}, a1[4] = {a[0][2], a[1][2], a[0][3], a[1][3]};
#pragma unroll
                for (int t = 0; t < TOKEN_TILES; t++) {
                  const u32 b0[2] = {b[t].x, b[t].y}, b1[2] = {b[t].z, b[t].w};
                  mma_16816(elem{}, part[i][t], a0, b0);
                  mma_16816(elem{}, part[i][t], a1, b1);
#if SUMMED
                  if (i == 0) {
                    mma_16816(elem{}, sum[t], ones, b0);
                    mma_16816(elem{}, sum[t], ones, b1);
                  }
#endif
                }
              }
            }
#if GROUPED
#pragma unroll
            for (int i = 0; i < ROW_TILES; i++) {
              float scale[2], offset[2];
              q[u][i][0].factors(g, scale[0], offset[0]), q[u][i][1].factors(g, scale[1], offset[1]);
#pragma unroll
              for (int t = 0; t < TOKEN_TILES; t++)
#pragma unroll
                for (int d = 0; d < 4; d++) {
                  acc[i][t][d] = fmaf(part[i][t][d], scale[d / 2], acc[i][t][d]);
#if SUMMED
                  acc[i][t][d] = fmaf(sum[t][d], offset[d / 2], acc[i][t][d]);
#endif
                }
            }
#endif
          }
        }
        if (more) request(u, next_group, next_step);
      }
    }
#if !GROUPED
#pragma unroll
    for (int i = 0; i < ROW_TILES; i++) {
      const int row = group * BLOCK_ROWS + first_row + i * 16;
#if W_SCALE_ROW
      const float scale[2] = {row < N ? to_f32(scales[row]) : 0.0f, row + 1 < N ? to_f32(scales[row + 1]) : 0.0f};
#else
      const float scale[2] = {to_f32(scales[0]), to_f32(scales[0])};
#endif
#if SUMMED || W_ZERO_ZERO
#if !SUMMED
#error "zero points of whole rows are for one tile of tokens"
#endif
      float less[2] = {-CODE_BASE - 8.0f, -CODE_BASE - 8.0f};
#if W_ZERO_ZERO
#pragma unroll
      for (int j = 0; j < 2; j++) less[j] = row + j < N ? -CODE_BASE - zeros[W_SCALE_ROW ? row + j : 0] : 0.0f;
#elif W_ZERO_MIN
#error "a minimum belongs to a group"
#endif
#endif
#pragma unroll
      for (int t = 0; t < TOKEN_TILES; t++)
#pragma unroll
        for (int d = 0; d < 4; d++) {
#if SUMMED
          acc[i][t][d] = fmaf(less[d / 2], sum[t][d], acc[i][t][d]);
#endif
          acc[i][t][d] *= scale[d / 2];
        }
    }
#endif

#include "skinny_end.cuh" // the sums of a row group, of all parts of k, to the epilogue; on to the next one
