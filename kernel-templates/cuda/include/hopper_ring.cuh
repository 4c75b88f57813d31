// ---- the order of tiles --------------------------------------------------------------------------------------------
// Cluster tiles are walked in groups of GROUP_M rows, the row fastest, so that the tiles in flight share rows of x and w
// in the L2 cache.
struct Tile { int row, col; };
struct Rank { int m, n, k; }; // of this block in its cluster
DEV Tile tile_at(int t, int tiles_m, Rank rank) {
  int group = t / (GROUP_M * TILES_N), r = t - group * (GROUP_M * TILES_N);
  int rows = min(GROUP_M, tiles_m - group * GROUP_M);
  int col = r / rows, row = group * GROUP_M + r - col * rows;
  return {(row * CLUSTER_M + rank.m) * TILE_M, (col * CLUSTER_N + rank.n) * TILE_N};
}

struct Ring {
  u32 stage = 0, phase = 0;
  DEV void next() {
    if (++stage == STAGES) {
      stage = 0;
      phase ^= 1;
    }
  }
  DEV void skip(int n) {
    u32 s = stage + n;
    phase ^= (s / STAGES) & 1;
    stage = s % STAGES;
  }
};

// ---- the two roles -------------------------------------------------------------------------------------------------
struct Bars {
  u32 full, empty, loaded;
};

DEV void produce(const CUtensorMap *x_map, const CUtensorMap *w_map, u32 ring_at, Bars bars, int m, Rank rank) {
  int tiles_m = cdiv(m, TILE_M * CLUSTER_M), tiles = tiles_m * TILES_N;
  // The blocks of this block's cluster row (they share x) and cluster column (they share w).
  int first_rank = rank.k * GROUP;
  u16 x_mask = 0, w_mask = (u16)(((1 << CLUSTER_M) - 1) << (first_rank + rank.n * CLUSTER_M));
#pragma unroll
  for (int j = 0; j < CLUSTER_N; j++) x_mask |= (u16)(1 << (first_rank + j * CLUSTER_M + rank.m));
  auto load_x = [&](u32 stage, int k, int row) {
    u32 dst = ring_at + stage * STAGE_BYTES + rank.n * X_SHARE * 128, bar = bars.full + stage * 8;
    if (CLUSTER_N > 1) tma_load_2d_multicast(dst, x_map, bar, k, row + rank.n * X_SHARE, x_mask, L2_EVICT_NORMAL);
    else tma_load_2d(dst, x_map, bar, k, row, L2_EVICT_NORMAL);
  };
  auto load_w = [&](u32 stage, int k, int col) {
    u32 dst = ring_at + stage * STAGE_BYTES + X_BYTES + rank.m * W_SHARE * 128, bar = bars.full + stage * 8;
    if (CLUSTER_M > 1) tma_load_2d_multicast(dst, w_map, bar, k, col + rank.m * W_SHARE, w_mask, L2_EVICT_NORMAL);
    else tma_load_2d(dst, w_map, bar, k, col, L2_EVICT_NORMAL);
  };

  int t = blockIdx.x / CLUSTER, k_first = rank.k * ITERS;
  // The first slices of w do not depend on the kernel before this one.
  constexpr int AHEAD = ITERS < STAGES ? ITERS : STAGES;
  if (t < tiles) {
    Tile tile = tile_at(t, tiles_m, rank);
    for (int i = 0; i < AHEAD; i++) {
      mbar_expect_tx(bars.full + i * 8, STAGE_BYTES);
      load_w(i, (k_first + i) * TILE_K, tile.col);
    }
  }
#if PDL
  pdl_wait();
#endif
  Ring ring;
  bool first = true;
  for (; t < tiles; t += gridDim.x / CLUSTER) {
    Tile tile = tile_at(t, tiles_m, rank);
    for (int i = 0; i < ITERS; i++) {
      if (!first || i >= AHEAD) {
        mbar_wait(bars.empty + ring.stage * 8, ring.phase ^ 1);
        mbar_expect_tx(bars.full + ring.stage * 8, STAGE_BYTES);
        load_w(ring.stage, (k_first + i) * TILE_K, tile.col);
      }
      load_x(ring.stage, (k_first + i) * TILE_K, tile.row);
      ring.next();
    }
    first = false;
  }
}

#if SPLIT_K > 1
DEV void st_cluster(u32 smem, float a, float b, float c, float d) {
  asm volatile("st.shared::cluster.v4.f32 [%0], {%1,%2,%3,%4};" ::"r"(smem), "f"(a), "f"(b), "f"(c), "f"(d) : "memory");
}

// Adds up the parts of K. Each thread sends its sums of another block's columns to its own counterpart there, so the
// layout in shared memory is merely one 16-byte slot per thread and step. On return share rank.k of the accumulators
// is complete.
DEV void reduce_parts(float (&acc)[BLOCKS_M][TILE_N / 2], u32 ring_at, Rank rank) {
  constexpr int SHARE = TILE_N / 2 / SPLIT_K, STEPS = BLOCKS_M * SHARE / 4, THREADS = 128 * CONSUMERS;
  u32 at = ring_at + (threadIdx.x - 128) * 16;
  __syncwarp();
  cluster_sync_relaxed(); // the rings are idle
#pragma unroll
  for (int to = 0; to < SPLIT_K; to++) {
    if (to == rank.k) continue;
    u32 part = rank.k - (rank.k > to);
    u32 dst = cluster_map(at + part * STEPS * THREADS * 16, to * GROUP + rank.n * CLUSTER_M + rank.m);
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
      const float *v = acc[i * 4 / SHARE] + to * SHARE + i * 4 % SHARE;
      st_cluster(dst + i * THREADS * 16, v[0], v[1], v[2], v[3]);
    }
  }
  cluster_sync();
#pragma unroll
  for (int mine = 0; mine < SPLIT_K; mine++) {
    if (mine != rank.k) continue;
#pragma unroll
    for (int i = 0; i < STEPS * (SPLIT_K - 1); i++) {
      float *v = acc[i % STEPS * 4 / SHARE] + mine * SHARE + i % STEPS * 4 % SHARE;
      uint4 u = ld_shared(at + i * THREADS * 16);
      v[0] += __uint_as_float(u.x), v[1] += __uint_as_float(u.y);
      v[2] += __uint_as_float(u.z), v[3] += __uint_as_float(u.w);
    }
  }
}
#endif

