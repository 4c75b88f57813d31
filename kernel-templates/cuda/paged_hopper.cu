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

static_assert(PAGE % BOX == 0 && KV_TILE % BOX == 0 && BOX % 8 == 0, "a box lies in one page and in one block");
constexpr int UNITS = HEADS / PACK;              // tiles of the same queries
constexpr int SECTION_UNITS = SECTION * (UNITS / KV_HEADS) < UNITS ? SECTION * (UNITS / KV_HEADS) : UNITS;
constexpr int PIECES = KV_TILE / BOX;            // boxes of a block and slab
constexpr int Q_BOX = PACK * GROUP_POSITIONS * 128; // bytes of a slab that are loaded: whole positions
static_assert(PIECES <= 32, "a lane holds a piece's page");
static_assert(PACK <= 64, "a warpgroup holds whole positions");

struct Args {
  const int *block_table, *q_starts, *kv_lens;
  elem *o;
  void *workspace;
  int tokens, batch, max_pages, max_parts;
  DEV int places() const { return tokens / TILE_POSITIONS + (TILE_POSITIONS == 1 ? 0 : batch); }
  DEV int tiles() const { return places() * UNITS * max_parts; }
};

// What a consumer has to know of a tile, in shared memory beside the Q stage.
struct Work {
  int token, count, visible, head; // of the tile's first row; token < 0: no more tiles
  int begin, end, tail, part;      // blocks of keys; keys of block end - 1 that exist; the part, -1: the only one
};
constexpr int WORK_BYTES = 32;
DEV u32 work_at(const Smem sm, int stage) { return sm.tile(0) + stage * WORK_BYTES; }
DEV void write_work(u32 at, const Work &w) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(w.token), "r"(w.count), "r"(w.visible), "r"(w.head)
               : "memory");
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(at + 16), "r"(w.begin), "r"(w.end), "r"(w.tail), "r"(w.part)
               : "memory");
}
// By lane 0, whose arrival gives the stage back, and from it to the warp.
DEV Work read_work(u32 at) {
  Work w{};
  if (lane_id() == 0) {
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(w.token), "=r"(w.count), "=r"(w.visible), "=r"(w.head) : "r"(at) : "memory");
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(w.begin), "=r"(w.end), "=r"(w.tail), "=r"(w.part) : "r"(at + 16) : "memory");
  }
  w.token = warp_uniform(w.token), w.count = warp_uniform(w.count), w.visible = warp_uniform(w.visible);
  w.head = warp_uniform(w.head), w.begin = warp_uniform(w.begin), w.end = warp_uniform(w.end);
  w.tail = warp_uniform(w.tail), w.part = warp_uniform(w.part);
  return w;
}

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

// ---- consumer ------------------------------------------------------------------------------------------------------
struct Consumer : Flash {
  // Positions of the tile that this warpgroup has.
  DEV int positions(const Work &t, int w) const { return min(GROUP_POSITIONS, t.count - w * GROUP_POSITIONS); }

  // To memory, through this warpgroup's own part of the Q stage: whole with the copy engine, else the rows that exist.
  DEV void store(const CUtensorMap *om, elem *o, u32 smem, int w, const Work &t) {
    const int positions = this->positions(t, w), token = t.token + w * GROUP_POSITIONS;
    if (positions <= 0) return;
    stage_o(smem, w);
    if (positions == GROUP_POSITIONS) {
      if (threadIdx.x % 128 == 0) {
#pragma unroll
        for (int c = 0; c < SLABS; c++) tma_store_3d(om, smem + c * Q_SLAB, 64 * c, t.head, token);
        tma_store_commit();
      }
    } else {
      for (int i = threadIdx.x % 128; i < positions * PACK * (HEAD_DIM / 8); i += 128) {
        const int row = i / (HEAD_DIM / 8), chunk = i % (HEAD_DIM / 8);
        uint4 v;
        asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                     : "r"(smem + chunk / 8 * Q_SLAB + swizzled<128>(row * 128 + chunk % 8 * 16)) : "memory");
        *(uint4 *)(o + ((i64)(token + row / PACK) * HEADS + t.head + row % PACK) * HEAD_DIM + chunk * 8) = v;
      }
    }
    __syncwarp(); // what follows is executed by converged warps: barriers, wgmma
  }

  DEV void store_part(const Partials &to, int w, const Work &t) {
    const int positions = this->positions(t, w), lane = lane_id();
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const float sum = total(r);
      const int row = warp_id() % 4 * 16 + lane / 4 + 8 * r, position = row / PACK;
      if (position >= positions) continue;
      const i64 at = to.at(t.token + w * GROUP_POSITIONS + position, t.head + row % PACK, t.part);
      if (lane % 4 == 0) to.max_sum[at] = make_float2(row_max[r] * SCALE, row_max[r] == NEG_INF ? 0.0f : sum);
      float *out = to.out + at * HEAD_DIM + 2 * (lane % 4);
#pragma unroll
      for (int i = 0; i < HEAD_DIM / 8; i++) *(float2 *)(out + 8 * i) = make_float2(o[4 * i + 2 * r], o[4 * i + 2 * r + 1]);
    }
    __syncwarp();
  }
};

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
