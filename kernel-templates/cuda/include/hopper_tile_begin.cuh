  int tiles_m = cdiv(e.m, TILE_M * CLUSTER_M), tiles = tiles_m * TILES_N;
  int lane = e.lane, warp = warp_uniform(warp_id() & 3);
  int wg_row = PINGPONG ? 0 : consumer * WG_ROWS;
  // A free stage is reported to the blocks of this block's cluster row and column, one lane each.
  int other = lane - CLUSTER_M;
  u32 peer = rank.k * GROUP + (lane < CLUSTER_M ? rank.n * CLUSTER_M + lane
                                                : (other + (other >= rank.n)) * CLUSTER_M + rank.m);
  auto release = [&](u32 stage) {
    if (GROUP == 1) {
      if (lane == 0) mbar_arrive(bars.empty + stage * 8);
    } else if (lane < CLUSTER_M + CLUSTER_N - 1) {
      mbar_arrive_cluster(bars.empty + stage * 8, peer);
    }
  };
  u64 x_desc = desc_k_major<128>(ring_at + wg_row * 128), w_desc = desc_k_major<128>(ring_at + X_BYTES);

  Ring ring;
  int stride = gridDim.x / CLUSTER, t = blockIdx.x / CLUSTER;
  if (PINGPONG) {
    if (consumer == 1) ring.skip(ITERS), t += stride;
    stride *= 2;
  }
#if BIAS
  u32 bias_bufs = e.bias;
#endif
  int turn = 0;
  for (; t < tiles; t += stride, turn ^= 1) {
    Tile tile = tile_at(t, tiles_m, rank);
    int row = tile.row + wg_row + warp * 16, col = (SWIGLU ? tile.col / 2 : tile.col) + rank.k * CHUNKS * CHUNK;
#if BIAS
    e.bias = bias_bufs + turn * TILE_N * 2;
    int i = (threadIdx.x & 127) * 8;
    if (i < TILE_N) cp_async16(e.bias + i * 2, bias + min(tile.col + i, COLS - 8), tile.col + i < COLS ? 16 : 0);
    cp_async_commit();
#endif
#if RESIDUAL
    if (lane == 0) {
      tma_store_wait_read<0>();
      for (int i = 0; i < EPI_BUFS; i++) load_residual(e, i, row, col);
    }
#endif
#if ROPE
    int position[BLOCKS_M][2];
#pragma unroll
    for (int b = 0; b < BLOCKS_M; b++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        int r = row + b * 64 + lane / 4 + h * 8;
        position[b][h] = r < e.m ? e.positions[r] : 0;
      }
#endif
#if PINGPONG
    // A wait tells phases apart by parity only, so a consumer may look at the ring no earlier than one round ahead: it
    // starts when the other one has seen all of the tile before.
    if (t != (int)blockIdx.x / CLUSTER) named_barrier_sync(TURN_BARRIER + consumer, 256);
#endif
