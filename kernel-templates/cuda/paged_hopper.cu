// Attention over a paged KV cache for sm_90a, 16-bit elements: any number of queries a sequence, causal, aligned at the end.
//
// A tile of work is 64 · WARPGROUPS rows of one KV head and one sequence, whose rows are (position, head of the group), and
// one of up to `parts` parts of the keys that it sees. One warp is the producer: it finds the tile's sequence and brings
// Q, and K and V by whole boxes of a page, to shared memory with the copy engine. The consumers are those of
// flash_wgmma.cuh. Blocks of keys go from the last visible one down.
//
// PACK      so many query heads of a KV head share a tile, the whole group where it fits a warpgroup's 64 rows.
// SECTION   KV heads worked on at a time, so that what is read of them stays inside the L2.
// DYNAMIC   a persistent grid that takes tiles from a counter, otherwise one block per tile; longest tiles come first.
//
// A tile whose keys are in one part is written to o, else its parts' unnormalised sums go to the workspace and a second
// launch merges them. Invariants: a tile never crosses a sequence or a KV head, and writes the rows of its own queries
// alone. What lies in a page behind the last key is read but never used; entries of the table behind it are not read.
#include "flash_wgmma.cuh"
#define KEY_BLOCK KV_TILE
#include "paged_parts.cuh"

#include "paged_work.cuh"

// ---- producer ------------------------------------------------------------------------------------------------------
// By the whole warp. `entry`: the page of piece lane % PIECES.
DEV void load_block(u32 dst, const CUtensorMap *map, u32 full, u32 empty, u32 phase, int row, int head, int entry) {
  mbar_wait(empty, phase ^ 1);
  if (lane_id() == 0) mbar_expect_tx(full, KV_BYTES);
  __syncwarp();
#pragma unroll
  for (int first = 0; first < PIECES * SLABS; first += 32) {
    const int i = first + lane_id(), piece = i % PIECES, slab = i / PIECES;
    const int page = __shfl_sync(0xffffffffu, entry, piece);
    if (i < PIECES * SLABS)
      tma_load_4d(dst + slab * KV_SLAB + piece * (BOX * 128), map, full, 64 * slab, (row + piece * BOX) % PAGE, head, page);
  }
}

#include "paged_produce.cuh"

// ---- consumer ------------------------------------------------------------------------------------------------------
#include "paged_consumer.cuh"

DEV void consume(const Smem sm, const CUtensorMap *om, const Args &a, int w) {
  Consumer c;
  Ring<Q_STAGES> qs;
  if (PINGPONG && w == 0) named_barrier_arrive(1, 256); // the first turn
  for (;;) {
    mbar_wait(sm.q_full(qs.stage), qs.phase);
    const Work t = read_work(work_at(sm, qs.stage));
    if (t.token < 0) break;
    const u32 q_smem = sm.q(qs.stage) + w * Q_GROUP;
    c.attend(sm, q_smem, w, t.begin, t.end, t.tail, [&](int i) {
      const int position = w * GROUP_POSITIONS;
      return position < t.count ? t.visible + min(position + i, t.count - 1) : 0;
    });
    c.release_q(); // a tile without keys has not done it
    if (t.part < 0) c.store(om, a.o, q_smem, w, t);
    else c.store_part(Partials(a.workspace, a.tokens, a.max_parts), w, t);
    c.q_held = sm.q_empty(qs.stage);
    if (!DYNAMIC) break;
    if (Q_STAGES == 1) c.release_q();
    qs.next();
  }
  c.release_q(); // shared memory must outlive the store's reads
}

extern "C" __global__ void __launch_bounds__(THREADS, WARPGROUPS == 1 ? 2 : 1)
    paged_hopper(const __grid_constant__ CUtensorMap qm, const __grid_constant__ CUtensorMap km,
                 const __grid_constant__ CUtensorMap vm, const __grid_constant__ CUtensorMap om, const int *block_table,
                 const int *q_starts, const int *kv_lens, elem *o, void *workspace, int tokens, int batch, int max_pages,
                 int max_parts) {
  extern __shared__ u8 raw[];
  const Smem sm{(smem_u32(raw) + 1023) & ~1023u};
  const Args a{block_table, q_starts, kv_lens, o, workspace, tokens, batch, max_pages, max_parts};
  if (threadIdx.x == 0) {
    tma_prefetch_map(&qm);
    tma_prefetch_map(&km);
    tma_prefetch_map(&vm);
  }
  prepare(sm);
  const int group = warp_uniform(threadIdx.x / 128);
  if (group == 0) {
    setmaxnreg_dec<PRODUCER_REGS>();
    if (warp_uniform(threadIdx.x / 32) == 0) {
      pdl_wait();
      produce(sm, &qm, &km, &vm, a, (int *)workspace);
      pdl_launch();
    }
  } else {
    setmaxnreg_inc<CONSUMER_REGS>();
    consume(sm, &om, a, group - 1);
  }
}
