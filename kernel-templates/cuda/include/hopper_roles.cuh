  extern __shared__ __align__(1024) u8 shared[];
  u32 base = smem_u32(shared);
  constexpr int WARPS = 4 * (PINGPONG ? 1 : CONSUMERS); // that read a stage, in each block
  Bars bars = {base + BARS_AT, base + BARS_AT + STAGES * 8, base + BARS_AT + STAGES * 16};
  if (threadIdx.x == 0) {
    tma_prefetch_map(&x_map);
    tma_prefetch_map(&w_map);
#if !QK_NORM
    tma_prefetch_map(&y_map);
#endif
    for (int i = 0; i < STAGES; i++) {
      mbar_init(bars.full + i * 8, 1);
      mbar_init(bars.empty + i * 8, WARPS * (CLUSTER_M + CLUSTER_N - 1));
    }
#if RESIDUAL
    tma_prefetch_map(&residual_map);
    for (int i = 0; i < CONSUMERS * 4 * EPI_BUFS; i++) mbar_init(bars.loaded + i * 8, 1);
#endif
    fence_mbar_init();
  }
  __syncwarp();
  if (CLUSTER > 1) cluster_sync_relaxed();
  else __syncthreads();
#if PDL
  pdl_launch();
#endif
  int r = CLUSTER > 1 ? (int)cluster_rank() : 0;
  Rank rank = {r % CLUSTER_M, r / CLUSTER_M % CLUSTER_N, SPLIT_K > 1 ? r / GROUP : 0};

  int warpgroup = warp_uniform(threadIdx.x / 128);
  if (warpgroup == 0) {
    if (CONSUMERS == 2) setmaxnreg_dec<40>();
    if (CONSUMERS == 3) setmaxnreg_dec<32>();
    if (warp_uniform(warp_id()) == 0 && elect_one()) produce(&x_map, &w_map, base, bars, m, rank);
    __syncwarp();
    if (SPLIT_K > 1) { // the barriers of reduce_parts
      cluster_sync_relaxed();
      cluster_sync();
    }
    if (CLUSTER > 1) cluster_sync_relaxed(); // no block leaves while another may still write to it or arrive at its barriers
  } else {
    if (CONSUMERS == 2) setmaxnreg_inc<232>();
    if (CONSUMERS == 3) setmaxnreg_inc<160>();
    int consumer = warpgroup - 1, warp = warp_uniform(warp_id() - 4);
    Epilogue e;
#if QK_NORM
    e.product = product;
#else
    e.y = &y_map;
#endif
    e.m = m;
    e.lane = lane_id();
    e.bufs = base + BUFS_AT + warp * EPI_BUFS * BUF_BYTES;
    const elem *bias_row = nullptr;
#if BIAS
    e.bias = base + BIAS_AT + consumer * 2 * TILE_N * 2;
    bias_row = bias;
#endif
#if RESIDUAL
    e.residual = &residual_map;
    e.loaded = bars.loaded + warp * EPI_BUFS * 8;
    e.parity = 0;
#endif
#if ROPE
    e.positions = positions, e.slots = slots, e.cos_sin = cos_sin, e.k_cache = k_cache, e.v_cache = v_cache;
#endif
#if PDL
    pdl_wait();
#endif
