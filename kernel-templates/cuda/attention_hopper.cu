// Attention prefill for sm_90a, 16-bit elements: O = softmax(Q Kᵀ / √d) V, one pass over K and V with a running softmax.
//
// A tile of work is 64 · WARPGROUPS query rows of one KV head. One warpgroup is the producer: a single thread brings Q,
// K and V to shared memory with the copy engine. Each consumer warpgroup owns 64 rows and keeps in registers
//   s[64 x KV_TILE]     = Q Kᵀ of one block of keys      wgmma, both operands from shared memory
//   p[64 x KV_TILE]     = exp2(s · scale - max · scale)  in the same layout, which is that of wgmma's A fragment
//   o[64 x HEAD_DIM]   += p V                            wgmma, A from registers, V as the transposed B operand
// Blocks of keys go from the last visible one down to 0, so that masks are needed only at the start of a tile.
//
// OVERLAP   the next block's Q Kᵀ is issued ahead of this block's P V, and its softmax runs while P V is in flight.
// PINGPONG  the warpgroups issue their matrix products in turn, so that one's softmax meets another's products.
// PACK      so many query heads of a KV head share a tile, whose rows are (position, head): they share what is read of K
//           and V, and the tile spans fewer positions, so that less of a causal tile is masked. 1: none share.
// MMA_SUM   the sums of the rows of p come from the product with V, which gets eight columns of ones.
// DYNAMIC   a persistent grid that takes tiles from a counter, otherwise one block per tile; longest tiles come first.
//
// Invariants: tiles never cross a batch or a head. Rows past the end arrive as zeros: keys are masked, queries are not
// stored. A row that sees no key gives zeros.
#include "flash_wgmma.cuh"

static_assert(64 % PACK == 0, "a warpgroup's rows are whole positions");
constexpr int UNITS = HEADS / PACK; // tiles of one batch and one range of positions

// ---- tiles ---------------------------------------------------------------------------------------------------------
struct Shape {
  int batch, q, kv;
  DEV int q_tiles() const { return cdiv(q, TILE_POSITIONS); }
  DEV int tiles() const { return q_tiles() * UNITS * batch; }
  // Keys that the query positions before `end` see.
  DEV int visible(int end) const { return CAUSAL ? max(0, min(kv, min(end, q) + kv - q)) : kv; }
};
struct Tile {
  int batch, unit, position; // unit: query head, or KV head where PACK > 1
  // Sections of SECTION KV heads keep what is read at a time inside the L2; in a section the longest tiles are first.
  DEV Tile(const Shape &p, int index) {
    const int units = UNITS * p.batch, q_tiles = p.q_tiles();
    const int section = SECTION * (UNITS / KV_HEADS);
    const int first = index / (section * q_tiles) * section;
    const int rest = index - first * q_tiles, wide = min(section, units - first);
    const int u = first + rest % wide, t = rest / wide;
    batch = u / UNITS;
    unit = u % UNITS;
    position = (CAUSAL ? q_tiles - 1 - t : t) * TILE_POSITIONS;
  }
  DEV int blocks(const Shape &p) const { return cdiv(p.visible(position + TILE_POSITIONS), KV_TILE); }
  DEV int head() const { return unit * PACK; }
};

// ---- producer ------------------------------------------------------------------------------------------------------
DEV void load_kv(u32 dst, const CUtensorMap *map, u32 full, u32 empty, u32 phase, int row, int head) {
  mbar_wait(empty, phase ^ 1);
  mbar_expect_tx(full, KV_BYTES);
#pragma unroll
  for (int c = 0; c < SLABS; c++) tma_load_3d(dst + c * KV_SLAB, map, full, 64 * c, row, head);
}

DEV void produce(const Smem sm, const CUtensorMap *qm, const CUtensorMap *km, const CUtensorMap *vm, const Shape &p,
                 int *counter) {
  Ring<Q_STAGES> qs;
  Ring<KV_STAGES> ks, vs;
  const int tiles = p.tiles();
  int index = blockIdx.x;
  while (index < tiles) {
    const Tile t(p, index);
    const int kv_head = t.batch * KV_HEADS + t.head() / (HEADS / KV_HEADS);
    int n = t.blocks(p) - 1;
    // K does not wait for the Q stage, which the tile before may still be leaving.
    if (n >= 0) {
      load_kv(sm.k(ks.stage), km, sm.k_full(ks.stage), sm.k_empty(ks.stage), ks.phase, n * KV_TILE, kv_head);
      ks.next();
    }
    mbar_wait(sm.q_empty(qs.stage), qs.phase ^ 1);
    if (DYNAMIC) st_shared(sm.tile(qs.stage), index);
    if (n >= 0) {
      mbar_expect_tx(sm.q_full(qs.stage), Q_BYTES);
#pragma unroll
      for (int i = 0; i < WARPGROUPS * SLABS; i++)
        tma_load_4d(sm.q(qs.stage) + i * Q_SLAB, qm, sm.q_full(qs.stage), i % SLABS * 64, t.head(),
                    t.position + i / SLABS * GROUP_POSITIONS, t.batch);
    } else {
      mbar_arrive(sm.q_full(qs.stage));
    }
    qs.next();
    for (; n >= 0; n--) {
      if (n > 0) {
        load_kv(sm.k(ks.stage), km, sm.k_full(ks.stage), sm.k_empty(ks.stage), ks.phase, (n - 1) * KV_TILE, kv_head);
        ks.next();
      }
      load_kv(sm.v(vs.stage), vm, sm.v_full(vs.stage), sm.v_empty(vs.stage), vs.phase, n * KV_TILE, kv_head);
      vs.next();
    }
    index = DYNAMIC ? gridDim.x + atomicAdd(counter, 1) : tiles;
  }
#if DYNAMIC
  mbar_wait(sm.q_empty(qs.stage), qs.phase ^ 1);
  st_shared(sm.tile(qs.stage), -1);
  mbar_arrive(sm.q_full(qs.stage));
  // The last block to find no more tiles leaves the counters zero for the next launch.
  __threadfence();
  if (atomicAdd(counter + 1, 1) == gridDim.x - 1) {
    atomicExch(counter, 0);
    atomicExch(counter + 1, 0);
  }
#endif
}

// ---- consumer ------------------------------------------------------------------------------------------------------
struct Consumer : Flash {
  // To memory, through this warpgroup's own part of the Q stage.
  DEV void store(const CUtensorMap *om, u32 smem, int w, const Tile &t, int position) {
    stage_o(smem, w);
    if (threadIdx.x % 128 == 0) {
#pragma unroll
      for (int c = 0; c < SLABS; c++) tma_store_4d(om, smem + c * Q_SLAB, 64 * c, t.head(), position, t.batch);
      tma_store_commit();
    }
    __syncwarp(); // what follows is executed by converged warps: barriers, wgmma
  }
};

DEV void consume(const Smem sm, const CUtensorMap *om, const Shape &p, int w) {
  Consumer c;
  Ring<Q_STAGES> qs;
  if (PINGPONG && w == 0) named_barrier_arrive(1, 256); // the first turn
  for (;;) {
    mbar_wait(sm.q_full(qs.stage), qs.phase);
#if DYNAMIC
    const int index = warp_uniform(lane_id() == 0 ? ld_shared(sm.tile(qs.stage)) : 0);
    if (index < 0) break;
#else
    const int index = blockIdx.x;
#endif
    const Tile t(p, index);
    const u32 q_smem = sm.q(qs.stage) + w * Q_GROUP;
    const int position = t.position + w * GROUP_POSITIONS;
    c.attend(sm, q_smem, w, 0, t.blocks(p), KV_TILE, [&](int i) { return p.visible(position + i + 1); });
    c.release_q(); // a tile without keys has not done it
    c.store(om, q_smem, w, t, position);
    c.q_held = sm.q_empty(qs.stage);
    if (!DYNAMIC) break;
    if (Q_STAGES == 1) c.release_q();
    qs.next();
  }
  c.release_q(); // shared memory must outlive the store's reads
}

extern "C" __global__ void __launch_bounds__(THREADS, WARPGROUPS == 1 ? 2 : 1)
    attention_hopper(const __grid_constant__ CUtensorMap qm, const __grid_constant__ CUtensorMap km,
                     const __grid_constant__ CUtensorMap vm, const __grid_constant__ CUtensorMap om, int batch, int q,
                     int kv, int *counter) {
  extern __shared__ u8 raw[];
  const Smem sm{(smem_u32(raw) + 1023) & ~1023u};
  const Shape p{batch, q, kv};
  if (threadIdx.x == 0) {
    tma_prefetch_map(&qm);
    tma_prefetch_map(&km);
    tma_prefetch_map(&vm);
  }
  prepare(sm);
  const int group = warp_uniform(threadIdx.x / 128);
  if (group == 0) {
    setmaxnreg_dec<PRODUCER_REGS>();
    if (threadIdx.x == 0) {
      pdl_wait();
      produce(sm, &qm, &km, &vm, p, counter);
      pdl_launch();
    }
  } else {
    setmaxnreg_inc<CONSUMER_REGS>();
    consume(sm, &om, p, group - 1);
  }
}
