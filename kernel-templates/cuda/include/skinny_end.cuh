#if SPLIT_K == 1
#pragma unroll
    for (int t = 0; t < TOKEN_TILES; t++)
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const int token = t * 8 + lane % 4 * 2 + j;
        if (token >= m) continue;
        const epilogue_row row = epilogue_row_of(e, token);
#pragma unroll
        for (int i = 0; i < ROW_TILES; i++) {
          const int col = group * BLOCK_ROWS + first_row + i * 16;
          if (col < N) epilogue_pair(e, row, col, acc[i][t][j], acc[i][t][2 + j]);
        }
      }
#else
    // One barrier a row group is enough: a warp that is a group ahead writes the other buffer.
    float *const partial = partials + buffer * PARTIALS;
#pragma unroll
    for (int i = 0; i < ROW_TILES; i++)
#pragma unroll
      for (int t = 0; t < TOKEN_TILES; t++) {
        float *p = partial + (part_k * BLOCK_ROWS + first_row + i * 16) * PARTIAL_STRIDE + t * 8 + lane % 4 * 2;
        *reinterpret_cast<float2 *>(p) = make_float2(acc[i][t][0], acc[i][t][1]);
        *reinterpret_cast<float2 *>(p + PARTIAL_STRIDE) = make_float2(acc[i][t][2], acc[i][t][3]);
      }
    __syncthreads();
    constexpr int PAIRS = BLOCK_ROWS / 2;
    for (int i = threadIdx.x; i < PAIRS * TILE_M; i += THREADS) {
      const int pair = i % PAIRS, token = i / PAIRS, col = group * BLOCK_ROWS + 2 * pair;
      const float *p = partial + 2 * pair * PARTIAL_STRIDE + token;
      float v0 = 0, v1 = 0;
#pragma unroll
      for (int j = 0; j < SPLIT_K; j++) {
        v0 += p[j * (BLOCK_ROWS * PARTIAL_STRIDE)];
        v1 += p[j * (BLOCK_ROWS * PARTIAL_STRIDE) + PARTIAL_STRIDE];
      }
      if (token < m && col < N) epilogue_pair(e, token, col, v0, v1);
    }
    if (PERSISTENT) buffer ^= 1;
#endif
    group += gridDim.x;
  } while (PERSISTENT && group < GROUPS);
}
