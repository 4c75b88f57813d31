#pragma once // In the body of those kernels, behind the first stages: the products, and what is done with them.
  const int lane = lane_id(), warp_row = warp_id() / WARPS_N * WARP_M, warp_col = warp_id() % WARPS_N * WARP_N;
  const u32 a_row = lane & 15, a_chunk = lane >> 4;
  const u32 b_row = (lane & 7) + (lane >> 4) * 8, b_chunk = (lane >> 3) & 1;
  const u32 a_lane = (warp_row + a_row) * ROW_BYTES + ((a_chunk ^ swizzle(a_row)) << 4);
  const u32 b_lane = (TILE_M + warp_col + b_row) * ROW_BYTES + ((b_chunk ^ swizzle(b_row)) << 4);

  float acc[FRAGS_M][FRAGS_N][4] = {};
  fragments frag[2];
  cp_async_wait<STAGES - 2>();
  __syncthreads();
  u32 stage = ring;
  frag[0].load(stage + a_lane, stage + b_lane, 0);

  for (int t = 0; t < k_tiles; t++) {
#pragma unroll
    for (int step = 0; step < K_STEPS; step++) {
      if (step == K_STEPS - 1) {
        // All fragments of this stage are in registers: past the barrier it may be overwritten.
        cp_async_wait<STAGES - 2>();
        __syncthreads();
        stage = next(stage);
      }
      frag[(step + 1) % 2].load(stage + a_lane, stage + b_lane, (step + 1) % K_STEPS);
      if (step == 0) fill(t + STAGES - 1);
      frag[step % 2].multiply(acc);
    }
  }
  cp_async_wait<0>();
  pdl_launch();

#if SPLIT_K > 1
  float *out = partial + (u64)part * m * epilogue_partial_stride;
  for_each_run(acc, row0 + warp_row, col0 + warp_col, m, [&](int row) {
    return [=](int col, const float(&v)[4]) {
      *reinterpret_cast<float4 *>(out + (u64)row * epilogue_partial_stride + col) = make_float4(v[0], v[1], v[2], v[3]);
    };
  });
#else
  const epilogue_args e = EPILOGUE_PACK;
  for_each_run(acc, row0 + warp_row, col0 + warp_col, m, [&](int row) {
    const epilogue_row r = epilogue_row_of(e, row);
    return [=](int col, const float(&v)[4]) { epilogue_run<4>(e, r, col, v); };
  });
#endif
