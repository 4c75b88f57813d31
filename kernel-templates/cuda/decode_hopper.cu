// Attention of one query token over a paged KV cache for sm_90: a persistent grid that shares the tokens out evenly.
//
// A unit of work is one sequence, one KV head and up to 8 · HEAD_TILES of the query heads that read it. All units' tokens,
// in tiles of WARPS · TILE, make one row (sequence by sequence, unit by unit), and each block takes an equal stretch of it,
// whatever the lengths are. A block's part of one unit is a segment. Segments that do not hold a whole unit leave partial
// results in the workspace, and the last block to finish such a unit merges them. Of a block's segments only the first and
// the last can be partial, so it has two places there.
//
// In a tile each warp has TILE tokens of its own. It brings them to its own ring of STAGES buffers by bulk tensor copies
// (128-byte swizzle) and refills a buffer as soon as it has used it, for segments to come as well: no warp waits for
// another before the end of a segment.
//
//   S[16 heads × 8 tokens] = q · Kᵀ    A = q, padded to 16 heads, in registers; B = Kᵀ by ldmatrix
//   Oᵀ[16 dims × 8 heads] += Vᵀ · Pᵀ   A = Vᵀ by ldmatrix.trans; B = Pᵀ: what S leaves in the lane is the operand
//
// Under programmatic dependent launch the next grid may start when a block has requested its last tile. Ahead of its wait
// it works out its stretch from lengths and page numbers that may still change, and has the L2 fetch its first tiles: the
// DRAM stays busy while the grid before merges. After the wait everything is read again.
#include "mma.cuh"
#include "hopper.cuh"

#define GROUP (HEADS / KV_HEADS)
#define HEADS_BLOCK (8 * HEAD_TILES)
#define HEAD_BLOCKS ((GROUP + HEADS_BLOCK - 1) / HEADS_BLOCK)
#define HEADS_USED (GROUP < HEADS_BLOCK ? GROUP : HEADS_BLOCK)
#define UNITS (KV_HEADS * HEAD_BLOCKS) // of a sequence
#define THREADS (WARPS * 32)
#include "split_softmax.cuh"

constexpr int BLOCK_TILE = WARPS * TILE;
constexpr int SLABS = (HEAD_DIM + 63) / 64; // a slab is 64 dimensions of TILE tokens, one swizzled 128-byte row each
constexpr int SLAB_BYTES = TILE * 128;
constexpr int STAGE_BYTES = 2 * SLABS * SLAB_BYTES; // K, then V
constexpr int BOX = PAGE < TILE ? PAGE : TILE;      // tokens of one copy
constexpr int BOXES = TILE / BOX;
constexpr int ROW = HEAD_DIM + 4; // floats of a head in the merge of the warps; the 4 keep banks apart
// Shared memory: the warps' rings, their results, the barriers.
constexpr int MERGE_AT = WARPS * STAGES * STAGE_BYTES;
constexpr int MAX_SUM_AT = MERGE_AT + WARPS * HEADS_USED * ROW * 4;
constexpr int BARS_AT = MAX_SUM_AT + WARPS * HEADS_USED * 8;
constexpr float LAZY = 8.0f; // the running maximum is raised only when a score exceeds it by this power of two

static_assert(ELEM_BYTES == 2 && HEAD_DIM % 16 == 0 && HEAD_DIM >= 64 && HEAD_DIM <= 256, "elements and head_dim");
static_assert(TILE % 16 == 0 && PAGE % 8 == 0, "whole matrix tiles and whole swizzle atoms");
static_assert(PAGE % TILE == 0 || TILE % PAGE == 0, "a warp's tokens are whole pages or lie in one");
static_assert(HEADS % KV_HEADS == 0 && (HEAD_TILES == 1 || HEAD_TILES == 2), "heads");

// ---- the work ------------------------------------------------------------------------------------------------------
struct Work {
  const int *lens, *table;
  int batch, max_pages;
  int total, blocks; // tiles, and blocks that have some

  // Read past the L1, and kept within the table: ahead of the wait it may be anything.
  DEV int length(int seq) const { return min(max(ld_early(lens + seq), 0), max_pages * PAGE); }
  DEV static int tiles(int len) { return len > BLOCK_TILE ? (len + BLOCK_TILE - 1) / BLOCK_TILE : 1; }
  DEV int first_of(int block) const { return (int)((i64)total * block / blocks); }
  DEV int block_of(int tile) const { return (int)(((i64)(tile + 1) * blocks - 1) / total); } // the inverse of first_of
};

// A place in the row of tiles.
struct Cursor {
  int at, end;     // in the row; the block's stretch ends before `end`
  int seq, unit;
  int tile, tiles; // of the unit
  int len;

  DEV bool more() const { return at < end; }
  // Tokens of this warp in the tile, and where they begin in the sequence.
  DEV int start() const { return tile * BLOCK_TILE + warp_id() * TILE; }
  DEV int valid() const { return min(len - start(), TILE); }
  DEV bool last_of_segment() const { return tile + 1 == tiles || at + 1 == end; }
  DEV void next(const Work &w) {
    at++;
    if (++tile < tiles) return;
    tile = 0;
    if (++unit < UNITS) return;
    unit = 0;
    if (++seq == w.batch) end = at; // at the end it is so already, unless the lengths changed meanwhile
    if (!more()) return;
    len = w.length(seq);
    tiles = Work::tiles(len);
  }
};

// Sets up the work and gives the beginning of this block's stretch.
DEV Cursor begin(Work &w) {
  const int lane = lane_id();
  const int first_len = lane < w.batch ? w.length(lane) : 0; // the only ones where there are at most 32 sequences
  const auto len_of = [&](int seq) { return seq < 32 ? first_len : seq < w.batch ? w.length(seq) : 0; };
  const auto tiles_of = [&](int seq, int len) { return seq < w.batch ? Work::tiles(len) : 0; };
  w.total = 0;
  for (int base = 0; base < w.batch; base += 32)
    w.total += __reduce_add_sync(0xffffffffu, tiles_of(base + lane, len_of(base + lane)));
  w.total *= UNITS;
  w.blocks = min((int)gridDim.x, w.total);
  Cursor c = {};
  if ((int)blockIdx.x >= w.blocks) return c;
  c.at = w.first_of(blockIdx.x), c.end = w.first_of(blockIdx.x + 1);
  int rest = c.at; // tiles between the sequence looked at and c.at
  for (int base = 0; base < w.batch; base += 32) {
    const int len = len_of(base + lane), tiles = tiles_of(base + lane, len);
    int upto = tiles; // of the sequences up to this lane's
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
      const int below = __shfl_up_sync(0xffffffffu, upto, d);
      if (lane >= d) upto += below;
    }
    const u32 behind = __ballot_sync(0xffffffffu, upto * UNITS <= rest);
    if (behind == 0xffffffffu) {
      rest -= __shfl_sync(0xffffffffu, upto, 31) * UNITS;
      continue;
    }
    const int s = __popc(behind);
    rest -= __shfl_sync(0xffffffffu, upto - tiles, s) * UNITS;
    c.seq = base + s;
    c.len = __shfl_sync(0xffffffffu, len, s);
    c.tiles = __shfl_sync(0xffffffffu, tiles, s);
    c.unit = rest / c.tiles;
    c.tile = rest % c.tiles;
    break;
  }
  return c;
}

// ---- copies --------------------------------------------------------------------------------------------------------
// The page of box `lane` of this warp's tokens.
DEV int page_of(const Work &w, const Cursor &c) {
  const int box = lane_id();
  if (!c.more() || box >= BOXES || box * BOX >= c.valid()) return 0;
  return ld_early(w.table + (i64)c.seq * w.max_pages + (c.start() + box * BOX) / PAGE);
}
// Calls copy(map, offset in the stage, dimension, token in the page, page and KV head) for everything of the tile.
template <class Copy>
DEV void for_each_box(const CUtensorMap *km, const CUtensorMap *vm, const Cursor &c, int page, Copy copy) {
#pragma unroll
  for (int b = 0; b < BOXES; b++) {
    const int at = BOXES > 1 ? __shfl_sync(0xffffffffu, page, b) : page; // box 0 is lane 0's
    if (lane_id() == 0 && b * BOX < c.valid())
#pragma unroll
      for (int s = 0; s < SLABS; s++) {
        const int to = s * SLAB_BYTES + b * BOX * 128, row = at * KV_HEADS + c.unit / HEAD_BLOCKS;
        copy(km, to, 64 * s, c.start() % PAGE, row);
        copy(vm, to + SLABS * SLAB_BYTES, 64 * s, c.start() % PAGE, row);
      }
  }
}
// Calls take(place, page number, s) for the first STAGES tiles from c on, and gives the place behind them. All page
// numbers are under way before the first is waited for.
template <class Take> DEV Cursor first_tiles(const Work &w, const Cursor &c, Take take) {
  int pages[STAGES];
  Cursor at = c;
#pragma unroll
  for (int s = 0; s < STAGES; s++) {
    pages[s] = page_of(w, at);
    if (at.more()) at.next(w);
  }
  at = c;
#pragma unroll
  for (int s = 0; s < STAGES; s++)
    if (at.more()) {
      take(at, pages[s], s);
      at.next(w);
    }
  return at;
}
DEV void prefetch_3d(const CUtensorMap *map, int c0, int c1, int c2) {
  asm volatile("cp.async.bulk.prefetch.tensor.3d.L2.global.tile [%0, {%1, %2, %3}];"
               ::"l"(map), "r"(c0), "r"(c1), "r"(c2) : "memory");
}
DEV void load_tile(const CUtensorMap *km, const CUtensorMap *vm, const Cursor &c, int page, u32 stage, u32 full) {
  // A warp without tokens in the tile goes through the barrier all the same, so that its ring keeps step.
  if (lane_id() == 0) mbar_expect_tx(full, max(cdiv(c.valid(), BOX), 0) * (2 * SLABS * BOX * 128));
  for_each_box(km, vm, c, page, [&](const CUtensorMap *map, int to, int dim, int token, int row) {
    tma_load_3d(stage + to, map, full, dim, token, row);
  });
}

// ---- arithmetic ----------------------------------------------------------------------------------------------------
struct State {
  u32 q[HEAD_DIM / 16][4];
  float top[HEAD_TILES], sum[HEAD_TILES]; // of head g of each head tile; the sum is of this lane's tokens
  float out[HEAD_DIM / 16][HEAD_TILES][4]; // dimensions g, g + 8 of heads 2c, 2c + 1

  // `heads` of q from `from` on.
  DEV void start(const elem *from, int heads) {
    const int g = lane_id() / 4, c = lane_id() % 4;
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 16; i++)
#pragma unroll
      for (int r = 0; r < 4; r++) {
        const int head = g + r % 2 * 8;
        q[i][r] = 0;
        if ((r % 2 == 0 || HEAD_TILES > 1) && head < heads)
          asm volatile("ld.global.u32 %0, [%1];" : "=r"(q[i][r]) : "l"(from + head * HEAD_DIM + i * 16 + r / 2 * 8 + 2 * c));
      }
#pragma unroll
    for (int h = 0; h < HEAD_TILES; h++) top[h] = NEG_INF, sum[h] = 0.0f;
#pragma unroll
    for (int m = 0; m < HEAD_DIM / 16; m++)
#pragma unroll
      for (int h = 0; h < HEAD_TILES; h++)
#pragma unroll
        for (int e = 0; e < 4; e++) out[m][h][e] = 0.0f;
  }

  // The `valid` (at least 1) tokens that the stage holds. What it holds beyond them may be anything.
  DEV void attend(u32 stage, int valid) {
    const int lane = lane_id(), c = lane % 4;
    const u32 k = stage, v = stage + SLABS * SLAB_BYTES;
    // K: lane l gives row l % 8 of matrix l / 8, the four being 32 dimensions of eight tokens.
    const u32 k_lane = lane % 8 * 128 + ((lane / 8) ^ (lane % 8)) * 16;
    // V: the four are two times eight dimensions of the first eight tokens, then of the second eight.
    const u32 v_lane = (lane / 16 * 8 + lane % 8) * 128 + ((lane / 8 % 2) ^ (lane % 8)) * 16;

    float s[TILE / 8][4] = {}; // of 8 tokens: heads g (elements 0, 1) and g + 8 (2, 3) at tokens 2c and 2c + 1
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 16; i += 2)
#pragma unroll
      for (int t = 0; t < TILE / 8; t++) {
        u32 b[4];
        ldmatrix_x4(b, k + i / 4 * SLAB_BYTES + t * 1024 + (k_lane ^ (i % 4 * 32)));
        mma_16816(elem{}, s[t], q[i], b);
        if (i + 1 < HEAD_DIM / 16) mma_16816(elem{}, s[t], q[i + 1 < HEAD_DIM / 16 ? i + 1 : i], b + 2);
      }

    const float scale = SCALE * LOG2E;
    bool grows = false;
#pragma unroll
    for (int t = 0; t < TILE / 8; t++)
#pragma unroll
      for (int e = 0; e < 2 * HEAD_TILES; e++) {
        s[t][e] = t * 8 + 2 * c + e % 2 < valid ? s[t][e] * scale : NEG_INF;
        grows |= s[t][e] > top[e / 2] + LAZY;
      }
    if (__any_sync(0xffffffffu, grows)) {
#pragma unroll
      for (int h = 0; h < HEAD_TILES; h++) {
        float m = top[h];
#pragma unroll
        for (int t = 0; t < TILE / 8; t++) m = fmaxf(m, fmaxf(s[t][2 * h], s[t][2 * h + 1]));
        m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
        m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
        const float shrink = exp2_below(top[h], m);
        top[h] = m, sum[h] *= shrink;
#pragma unroll
        for (int j = 0; j < 2; j++) {
          const float r = __shfl_sync(0xffffffffu, shrink, (2 * c + j) * 4);
#pragma unroll
          for (int d = 0; d < HEAD_DIM / 16; d++) out[d][h][j] *= r, out[d][h][j + 2] *= r;
        }
      }
    }
#pragma unroll
    for (int u = 0; u < TILE / 16; u++) {
      u32 p[HEAD_TILES][2], exists[2]; // masks of the words of V: tokens 2c and 2c + 1 of the first and the second eight
#pragma unroll
      for (int t = 0; t < 2; t++) {
#pragma unroll
        for (int h = 0; h < HEAD_TILES; h++) {
          const float *from = s[2 * u + t] + 2 * h;
          const float p0 = exp2_approx(from[0] - top[h]), p1 = exp2_approx(from[1] - top[h]);
          sum[h] += p0 + p1;
          p[h][t] = pack2(elem{}, p0, p1);
        }
        const int left = valid - u * 16 - t * 8 - 2 * c;
        exists[t] = left > 1 ? 0xffffffffu : left > 0 ? 0xffffu : 0u;
      }
#pragma unroll
      for (int d = 0; d < HEAD_DIM / 16; d++) {
        u32 a[4];
        ldmatrix_x4_trans(a, v + d / 4 * SLAB_BYTES + u * 2048 + (v_lane ^ (d % 4 * 32)));
#pragma unroll
        for (int r = 0; r < 4; r++) a[r] &= exists[r / 2];
#pragma unroll
        for (int h = 0; h < HEAD_TILES; h++) mma_16816(elem{}, out[d][h], a, p[h]);
      }
    }
  }

  // To this warp's rows of the merge.
  DEV void give(float *merge, float2 *max_sum) {
    const int warp = warp_id(), g = lane_id() / 4, c = lane_id() % 4;
#pragma unroll
    for (int h = 0; h < HEAD_TILES; h++) {
      sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 1);
      sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 2);
      if (c == 0 && h * 8 + g < HEADS_USED) max_sum[warp * HEADS_USED + h * 8 + g] = make_float2(top[h], sum[h]);
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const int head = h * 8 + 2 * c + e % 2;
        if (head >= HEADS_USED) continue;
        float *to = merge + (warp * HEADS_USED + head) * ROW + g + e / 2 * 8;
#pragma unroll
        for (int d = 0; d < HEAD_DIM / 16; d++) to[d * 16] = out[d][h][e];
      }
    }
  }
};

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    decode_hopper(const __grid_constant__ CUtensorMap km, const __grid_constant__ CUtensorMap vm, const elem *q,
                  const int *block_table, const int *lens, elem *o, void *workspace, int batch, int max_pages) {
  extern __shared__ u8 raw[];
  const u32 base = (smem_u32(raw) + 1023) & ~1023u; // the swizzle pattern repeats every 1024 bytes
  u8 *const smem = raw + (base - smem_u32(raw));
  float *const merge = reinterpret_cast<float *>(smem + MERGE_AT);
  float2 *const max_sum = reinterpret_cast<float2 *>(smem + MAX_SUM_AT);
  const int warp = warp_uniform(warp_id()), lane = lane_id();
  const u32 ring = base + warp * (STAGES * STAGE_BYTES), full = base + BARS_AT + warp * (STAGES * 8);
  if (lane == 0) {
    if (warp == 0) {
      tma_prefetch_map(&km);
      tma_prefetch_map(&vm);
    }
    for (int s = 0; s < STAGES; s++) mbar_init(full + s * 8, 1);
    fence_mbar_init();
  }
  __syncthreads();

  Work w{lens, block_table, batch, max_pages};
  Cursor c = begin(w);
  first_tiles(w, c, [&](const Cursor &at, int page, int) {
    for_each_box(&km, &vm, at, page,
                 [&](const CUtensorMap *map, int, int dim, int token, int row) { prefetch_3d(map, dim, token, row); });
  });
  pdl_wait();

  c = begin(w);
  Cursor load = first_tiles(w, c, [&](const Cursor &at, int page, int s) { // stays STAGES tiles ahead of c
    load_tile(&km, &vm, at, page, ring + s * STAGE_BYTES, full + s * 8);
  });
  int page = page_of(w, load), stage = 0;
  u32 phase = 0;

  const partials part(workspace, batch * UNITS, 2 * (i64)gridDim.x * HEADS_USED);
  State state;
  while (c.more()) {
    const int head_block = c.unit % HEAD_BLOCKS, heads = min(HEADS_BLOCK, GROUP - head_block * HEADS_BLOCK);
    const i64 head0 = (i64)c.seq * HEADS + c.unit / HEAD_BLOCKS * GROUP + head_block * HEADS_BLOCK; // in q and o
    const bool from_start = c.tile == 0, first_segment = c.at == w.first_of(blockIdx.x);
    state.start(q + head0 * HEAD_DIM, heads);
    for (;;) {
      mbar_wait(full + stage * 8, phase);
      if (c.valid() > 0) state.attend(ring + stage * STAGE_BYTES, c.valid());
      __syncwarp(); // all lanes have read the stage
      if (load.more()) {
        load_tile(&km, &vm, load, page, ring + stage * STAGE_BYTES, full + stage * 8);
        load.next(w);
        page = page_of(w, load);
      } else {
        pdl_launch();
      }
      if (++stage == STAGES) stage = 0, phase ^= 1;
      if (c.last_of_segment()) break;
      c.next(w);
    }

    // Of the unit's n blocks from `first` on, this one.
    int first = blockIdx.x, n = 1;
    if (!from_start || c.tile + 1 < c.tiles) {
      first = w.block_of(c.at - c.tile);
      n = w.block_of(c.at - c.tile + c.tiles - 1) - first + 1;
    }
    const int place = 2 * blockIdx.x + !first_segment;
    state.give(merge, max_sum);
    __syncthreads();
    for (int task = threadIdx.x; task < heads * (HEAD_DIM / 4); task += THREADS) {
      const int head = task / (HEAD_DIM / 4), quad = task % (HEAD_DIM / 4);
      quad_state s;
#pragma unroll
      for (int i = 0; i < WARPS; i++)
        s.merge(max_sum[i * HEADS_USED + head],
                *reinterpret_cast<const float4 *>(merge + (i * HEADS_USED + head) * ROW + quad * 4));
      if (n == 1) {
        s.write(o + (head0 + head) * HEAD_DIM + quad * 4);
      } else {
        const i64 at = (i64)place * HEADS_USED + head;
        reinterpret_cast<float4 *>(part.out + at * HEAD_DIM)[quad] = s.acc;
        if (quad == 0) part.max_sum[at] = make_float2(s.top, s.sum);
      }
    }
    if (n > 1 && last_to_arrive(part.arrived + c.seq * UNITS + c.unit, n)) {
      // The unit is the first block's last segment, unless that block begins with it.
      const int first_place = 2 * first + (w.first_of(first) != c.at - c.tile);
      combine<HEADS_USED>(part, o, head0, heads, n, [&](int head, int i) {
        return (i64)(i == 0 ? first_place : 2 * (first + i)) * HEADS_USED + head;
      });
    }
    __syncthreads(); // the merge area is free again
    c.next(w);
  }
}
