#pragma once // In the body of those kernels: which tile a block computes, and how a stage of its ring is filled.
  // GROUP_M rows of tiles share their W tiles in the L2 before the next rows begin.
  const int tiles_m = cdiv(m, TILE_M), tiles_n = (N + TILE_N - 1) / TILE_N, tiles = tiles_m * tiles_n;
  const int part = SPLIT_K == 1 ? 0 : blockIdx.x / tiles, tile = blockIdx.x - part * tiles;
  const int group = tile / (GROUP_M * tiles_n), in_group = tile - group * (GROUP_M * tiles_n);
  const int group_rows = min(GROUP_M, tiles_m - group * GROUP_M);
  const int row0 = (group * GROUP_M + in_group % group_rows) * TILE_M, col0 = in_group / group_rows * TILE_N;
  const int k_begin = part * K_TILES / SPLIT_K, k_tiles = (part + 1) * K_TILES / SPLIT_K - k_begin;

  const u32 ring = smem_u32(shared);
  tile_copy<TILE_M, false> copy_x;
  tile_copy<TILE_N, N % TILE_N == 0> copy_w;
  copy_x.init(x, row0, m);
  copy_w.init(w, col0, N);
  const u32 ring_end = ring + STAGES * STAGE_BYTES;
  auto next = [&](u32 stage) { return stage + STAGE_BYTES == ring_end ? ring : stage + STAGE_BYTES; };
  u32 fill_stage = ring;
  auto fill = [&](int t) {
    if (t < k_tiles) {
      copy_x.issue(fill_stage, (k_begin + t) * TILE_K);
      copy_w.issue(fill_stage + TILE_M * ROW_BYTES, (k_begin + t) * TILE_K);
    }
    cp_async_commit();
    fill_stage = next(fill_stage);
  };
