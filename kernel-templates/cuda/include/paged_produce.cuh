#pragma once
DEV void produce(const Smem sm, const CUtensorMap *qm, const CUtensorMap *km, const CUtensorMap *vm, const Args &a,
                 int *counter) {
  Ring<Q_STAGES> qs;
  Ring<KV_STAGES> ks, vs;
  const int tiles = a.tiles(), places = a.places();
  bool stop = true; // the consumers are to be told that there is no tile more
  int index = blockIdx.x;
  while (index < tiles) {
    // Sections of KV heads, in each the last places, which have the longest tiles, first.
    const int first = index / (SECTION_UNITS * places * a.max_parts) * SECTION_UNITS;
    const int wide = min(SECTION_UNITS, UNITS - first), rest = index - first * places * a.max_parts;
    const int unit = first + rest % wide, part = rest / wide % a.max_parts;
    const Tile t(a.q_starts, a.kv_lens, a.batch, places - 1 - rest / wide / a.max_parts);
    const Part p(max(t.keys(), 0), part, a.max_parts);
    const int *table = a.block_table + (i64)t.seq * a.max_pages;
    // The row of the table comes while the sequence's length does.
    if (lane_id() * 32 < a.max_pages) asm volatile("prefetch.global.L2 [%0];" ::"l"(table + lane_id() * 32));
    if (t.count > 0 && p.begin < p.end) {
      const int kv_head = unit * PACK / (HEADS / KV_HEADS);
      const int last_page = (t.kv - 1) / PAGE;
      auto entry_of = [&](int n) { return table[min((n * KV_TILE + lane_id() % PIECES * BOX) / PAGE, last_page)]; };
      int n = p.end - 1, entry = entry_of(n);
      // K does not wait for the Q stage, which the tile before may still be leaving.
      load_block(sm.k(ks.stage), km, sm.k_full(ks.stage), sm.k_empty(ks.stage), ks.phase, n * KV_TILE, kv_head, entry);
      ks.next();
      mbar_wait(sm.q_empty(qs.stage), qs.phase ^ 1);
      if (lane_id() == 0) {
        write_work(work_at(sm, qs.stage), Work{t.token, t.count, t.visible, unit * PACK, p.begin, p.end,
                                               min(t.kv - n * KV_TILE, KV_TILE), p.parts > 1 ? part : -1});
        mbar_expect_tx(sm.q_full(qs.stage), WARPGROUPS * SLABS * Q_BOX);
#pragma unroll
        for (int i = 0; i < WARPGROUPS * SLABS; i++)
          tma_load_3d(sm.q(qs.stage) + i * Q_SLAB, qm, sm.q_full(qs.stage), i % SLABS * 64, unit * PACK,
                      t.token + i / SLABS * GROUP_POSITIONS);
      }
      __syncwarp();
      qs.next();
      for (; n >= p.begin; n--) {
        int next = entry;
        if (n > p.begin) {
          next = entry_of(n - 1);
          load_block(sm.k(ks.stage), km, sm.k_full(ks.stage), sm.k_empty(ks.stage), ks.phase, (n - 1) * KV_TILE, kv_head, next);
          ks.next();
        }
        load_block(sm.v(vs.stage), vm, sm.v_full(vs.stage), sm.v_empty(vs.stage), vs.phase, n * KV_TILE, kv_head, entry);
        vs.next();
        entry = next;
      }
      stop = DYNAMIC;
    }
    index = DYNAMIC ? gridDim.x + warp_uniform(lane_id() == 0 ? atomicAdd(counter, 1) : 0) : tiles;
  }
  if (stop) {
    mbar_wait(sm.q_empty(qs.stage), qs.phase ^ 1);
    if (lane_id() == 0) {
      write_work(work_at(sm, qs.stage), Work{-1});
      mbar_arrive(sm.q_full(qs.stage));
    }
  }
#if DYNAMIC
  // The last block to find no more tiles leaves the counters zero for the next launch.
  if (lane_id() == 0) {
    __threadfence();
    if (atomicAdd(counter + 1, 1) == gridDim.x - 1) {
      atomicExch(counter, 0);
      atomicExch(counter + 1, 0);
    }
  }
#endif
}
