  // The first codes of the block's first row group: they do not depend on the kernel before this one.
  const int lane = lane_id(), quad = lane / 4, part_k = warp_id() % SPLIT_K, part_row = warp_id() / SPLIT_K;
  const int first_k = part_k * (UNROLL * QUAD_K), first_row = part_row * WARP_ROWS + 2 * quad; // in a step, in a row group
  const auto stream_of = [&](int group) {
    const i64 row = group * BLOCK_ROWS + first_row;
    code_stream s;
    s.w = w + row * (K * CODE_BITS / 8) + (first_k * CODE_BITS / 8 + lane % 4 * 16);
#if W_SCALE_BLOCK
    s.scales = scales;
#elif GROUPED
    const i64 at = row * SCALES_K + (W_GROUP > QUAD_K ? 0 : first_k / W_GROUP);
    s.scales = scales + at;
#if W_ZERO_ZERO
    s.zeros = zeros + at;
#elif W_ZERO_MIN
    s.mins = mins + at;
#endif
#endif
    return s;
  };
  const auto advance = [&](code_stream &s) {
    s.w += STEP_K * CODE_BITS / 8;
#if GROUPED && !W_SCALE_BLOCK
    constexpr int GROUPS_ON = W_GROUP > QUAD_K ? 0 : STEP_K / W_GROUP;
    s.scales += GROUPS_ON;
#if W_ZERO_ZERO
    s.zeros += GROUPS_ON;
#elif W_ZERO_MIN
    s.mins += GROUPS_ON;
#endif
#endif
  };

  pdl_launch();
  codes q[UNROLL][ROW_TILES][2];
  code_stream s = stream_of(blockIdx.x); // one step ahead of the one in use
  const auto request = [&](int u, int group, int step) {
#pragma unroll
    for (int i = 0; i < ROW_TILES; i++)
#pragma unroll
      for (int j = 0; j < 2; j++)
        q[u][i][j].load(s, u, i, j, group * BLOCK_ROWS + first_row, step * STEP_K + first_k);
  };
#pragma unroll
  for (int u = 0; u < UNROLL; u++) request(u, blockIdx.x, 0);
