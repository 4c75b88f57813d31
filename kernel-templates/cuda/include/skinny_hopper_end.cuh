#if CLUSTER_K > 1
    cluster_wait();
#endif

    const bool odd = lane & 4;
#pragma unroll
    for (int t = 0; t < TILE_M / 8; t++) {
      const int token = t * 8 + lane % 4 * 2 + odd;
#if CLUSTER_K == 1
      epilogue_row row;
      if (token < m) row = epilogue_row_of(e, token);
#endif
#pragma unroll
      for (int r = 0; r < ROW_BLOCKS; r++)
#pragma unroll
        for (int h = 0; h < 2; h++) { // rows 0 to 7 and 8 to 15 of the warp
          const float d0 = acc[r][4 * t + 2 * h], d1 = acc[r][4 * t + 2 * h + 1];
          const float other = __shfl_xor_sync(0xffffffffu, odd ? d0 : d1, 4);
          const float v0 = odd ? other : d0, v1 = odd ? d1 : other;
          const int pair = (row_first + r * 64 + h * 8 + lane / 4) / 2;
#if CLUSTER_K == 1
          const int col = group * BLOCK_ROWS + 2 * pair;
          if (token < m && col < N) epilogue_pair(e, row, col, v0, v1);
#else
          const float2 *box = inbox + (rank * TILE_M + token) * SHARE + pair % SHARE;
          asm volatile("st.shared::cluster.v2.f32 [%0], {%1, %2};" ::"r"(cluster_map(smem_u32(box), pair / SHARE)), "f"(v0),
                       "f"(v1) : "memory");
#endif
        }
    }
    group += stride;
  } while (PERSISTENT && group < GROUPS);

#if CLUSTER_K > 1
  cluster_sync();
  for (int i = threadIdx.x; i < SHARE * TILE_M; i += CONSUMERS * 128) {
    const int token = i / SHARE, col = first_group * BLOCK_ROWS + 2 * (rank * SHARE + i % SHARE);
    float v0 = 0, v1 = 0;
#pragma unroll
    for (int j = 0; j < CLUSTER_K; j++) {
      const float2 v = inbox[j * (TILE_M * SHARE) + i];
      v0 += v.x, v1 += v.y;
    }
    if (token < m && col < N) epilogue_pair(e, token, col, v0, v1);
  }
#endif
}
