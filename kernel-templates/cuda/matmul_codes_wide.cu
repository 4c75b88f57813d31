// y = x·Wᵀ for many tokens on the tensor cores of sm_90a where W is stored as scaled codes of 4 or 8 bits. The operands are
// swapped: 64 rows of W are the M side of wgmma, out of registers, where codes become elements; TILE_M tokens are its N
// side, out of shared memory.
//
// A tile is BLOCK_ROWS adjacent rows of W (columns of y) by TILE_M tokens. A block computes one after the other
// (persistent grid). In a block
//  - the last warpgroup is the producer, which gives its registers to the others: one thread fills a ring of STAGES slots,
//    each with 64 k of the tokens, and one of CODE_SLOTS, each with 64 bytes of codes of every row (a quad: QUAD_K k, for
//    QUAD_SLOTS slots of tokens), by bulk copies;
//  - CONSUMERS warpgroups turn codes into fragments and multiply; each has BLOCK_ROWS / CONSUMERS of the rows.
// CLUSTER_X adjacent blocks share their tokens: each loads a part and multicasts it. CLUSTER_K blocks have a part of k each;
// in the end each adds up, through distributed shared memory (the idle ring), and finishes its share of the tile's tokens.
//
//   codes ──bulk copies──▶ ring ──pairs, scale of the group──▶ fragments ─▶ wgmma ──▶ acc (──▶ inbox) ──▶ epilogue
//   x ──bulk copies, multicast──▶ ring ────────────────────────────────────▶┘
//
// BATCH_K of 64 rows are a batch of wgmma; while one runs, the fragments of the next are made. full[s] completes when all
// bytes of slot s are in, with the codes of the quad that starts there; empty[s] counts the consumer warps of every block
// that receives what this block sends. CODE_SLOTS is such that a slot of tokens is only filled again when the codes that are
// loaded with it find one of theirs that nobody reads.
//
// What is rounded: the scale of a row or of all of W is applied to the f32 sums. There is no room for sums of a group beside those
// of the tile, so a group's scale is multiplied into the weight, which is then rounded once to the type of the tokens; or, with
// EXACT, fragments are exact, and the sums are brought to the units of a group before it is added to them (code_fragments.cuh).
// While one warpgroup waits for its sums and multiplies them, the other one's products run.
//
// Fragment rows r and r + 8 of a warp are rows 2r and 2r + 1 of W, so that a thread has the pairs of columns of y that an
// epilogue works on, and eight lanes 32 adjacent bytes of a row of y.
#include "epilogue.cuh"
#include "qk_norm.cuh"
#define WGMMA_N0 TILE_M
#include "wgmma.cuh"
#include "codes.cuh"
#include "code_fragments.cuh"

#define ROW_BLOCKS (BLOCK_ROWS / CONSUMERS / 64) // of 64 rows, of a warpgroup
#define BATCHES (2 * ROW_BLOCKS)                 // of a unit
#define THREADS (CONSUMERS * 128 + 128)
#define UNITS (K / UNIT_K / CLUSTER_K)           // of a block
#define UNIT_SLOTS (UNIT_K / 64)                 // of tokens
#define QUAD_SLOTS (QUAD_K / 64)
#define SLOT_BATCHES (BATCHES / UNIT_SLOTS)      // that read one slot
#define CODE_SLOTS (STAGES / QUAD_SLOTS + QUAD_SLOTS - 1)
#define CODE_BYTES (BLOCK_ROWS * 64)
#define X_BYTES (TILE_M * 128)
#define CODES_AT (STAGES * X_BYTES)
#define RING_BYTES (CODES_AT + CODE_SLOTS * CODE_BYTES)
#define CLUSTER (CLUSTER_X * CLUSTER_K)
#define GROUPS ((N + BLOCK_ROWS * CLUSTER_X - 1) / (BLOCK_ROWS * CLUSTER_X)) // of rows, of a cluster
#define BAND (1024 / TILE_M)                 // tiles of tokens that stay in the L2 while all of W passes
#define TOKEN_STEPS (TILE_M / 8 / CLUSTER_K) // of eight tokens, that a block finishes

static_assert(ELEM_BYTES == 2 && K % UNIT_K == 0, "rows are whole units");
static_assert(BLOCK_ROWS % (CONSUMERS * 64) == 0 && BLOCK_ROWS <= 256, "warpgroups of whole 64-row blocks; a box has at most 256 rows");
static_assert(TILE_M % (8 * CLUSTER_X) == 0 && TILE_M <= 256, "tokens are the N side of the instruction, shares are whole swizzle atoms");
static_assert(K / UNIT_K % CLUSTER_K == 0 && TILE_M % (8 * CLUSTER_K) == 0, "equal parts of k, equal shares of the sums");
static_assert(STAGES > UNIT_SLOTS, "codes are read a unit ahead");
static_assert(!RESCALED || ROW_BLOCKS == 1, "what is multiplied is all of a warpgroup");
static_assert(CLUSTER_K == 1 || TILE_M * BLOCK_ROWS * 4 <= RING_BYTES, "the ring holds the sums of all parts");

// Registers of a thread once they are dealt out. A block of one consumer that is alone has enough without.
constexpr int CONSUMER_REGS = CONSUMERS == 1 ? 216 : 232, PRODUCER_REGS = CONSUMERS == 1 && RESIDENT == 1 ? 0 : 40;
static_assert(CONSUMERS == 1 || RESIDENT == 1, "the registers of two blocks of three warpgroups hold no tile");

struct ring_position {
  int slot = 0;
  u32 phase = 0;
  DEV void advance() {
    if (++slot == STAGES) slot = 0, phase ^= 1;
  }
};

// Tiles are walked in bands of tokens, the tokens fastest.
struct tile_place { int token, row; };
DEV tile_place tile_at(int t, int token_tiles, int rank_x) {
  const int band = t / (BAND * GROUPS), in = t - band * (BAND * GROUPS);
  const int width = min(BAND, token_tiles - band * BAND), group = in / width;
  return {(band * BAND + in - group * width) * TILE_M, (group * CLUSTER_X + rank_x) * BLOCK_ROWS};
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
matmul_codes_wide(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap w_map,
                  const scale_elem *__restrict__ scales,
#if W_ZERO_ZERO
                  const u8 *__restrict__ zeros,
#elif W_ZERO_MIN
                  const scale_elem *__restrict__ zeros,
#endif
                  EPILOGUE_PARAMS, int m) {
  extern __shared__ u8 smem[];
  const u32 ring = (smem_u32(smem) + 1023) & ~1023u; // the swizzle pattern repeats every 1024 bytes
  const u8 *const codes = smem + (ring - smem_u32(smem)) + CODES_AT;
  const u32 full = ring + RING_BYTES, empty = full + STAGES * 8;
  const epilogue_args e = EPILOGUE_PACK;
  const int rank = CLUSTER > 1 ? (int)cluster_rank() : 0, rank_x = rank % CLUSTER_X, rank_k = rank / CLUSTER_X;
  const int warp = warp_uniform(warp_id()), lane = lane_id();
  const int token_tiles = cdiv(m, TILE_M), tiles = token_tiles * GROUPS, stride = gridDim.x / CLUSTER;
  int t = blockIdx.x / CLUSTER;

  pdl_launch();
  if (threadIdx.x == 0) {
    tma_prefetch_map(&w_map);
    tma_prefetch_map(&x_map);
    for (int i = 0; i < STAGES; i++) {
      mbar_init(full + i * 8, 1);
      mbar_init(empty + i * 8, CONSUMERS * 4 * CLUSTER_X);
    }
    fence_mbar_init();
  }
  __syncwarp();
  if (CLUSTER > 1) cluster_sync();
  else __syncthreads();

  if (warp >= CONSUMERS * 4) {
    if (PRODUCER_REGS) setmaxnreg_dec<PRODUCER_REGS ? PRODUCER_REGS : 40>();
    const bool any = t < tiles;
    if (warp == CONSUMERS * 4 && lane == 0 && any) {
      tile_place tile = tile_at(t, token_tiles, rank_x);
      const auto load_codes = [&](int slot, int code_slot, int quad) {
        tma_load_2d(ring + CODES_AT + code_slot * CODE_BYTES, &w_map, full + slot * 8,
                    rank_k * (UNITS * UNIT_K * CODE_BITS / 8) + quad * 64, tile.row, L2_EVICT_NORMAL);
      };
      const auto load_x = [&](int slot, int slice) {
        constexpr int SHARE = TILE_M / CLUSTER_X;
        const u32 to = ring + slot * X_BYTES + rank_x * (SHARE * 128);
        const int k = rank_k * (UNITS * UNIT_K) + slice * 64, token = tile.token + rank_x * SHARE;
        if (CLUSTER_X > 1)
          tma_load_2d_multicast(to, &x_map, full + slot * 8, k, token, (u16)(((1 << CLUSTER_X) - 1) << (rank_k * CLUSTER_X)), L2_EVICT_NORMAL);
        else tma_load_2d(to, &x_map, full + slot * 8, k, token, L2_EVICT_NORMAL);
      };
      const auto expect = [&](int slot, int slice) {
        mbar_expect_tx(full + slot * 8, X_BYTES + (slice % QUAD_SLOTS == 0 ? CODE_BYTES : 0));
      };
      constexpr int EARLY = STAGES < UNITS * UNIT_SLOTS ? STAGES : UNITS * UNIT_SLOTS; // codes do not depend on the kernel before this one
      for (int i = 0; i < EARLY; i++) {
        expect(i, i);
        if (i % QUAD_SLOTS == 0) load_codes(i, i / QUAD_SLOTS, i / QUAD_SLOTS);
      }
      pdl_wait();
      ring_position at;
      int code_slot = 0;
      bool first = true;
      for (; t < tiles; t += stride, first = false) {
        tile = tile_at(t, token_tiles, rank_x);
        for (int i = 0; i < UNITS * UNIT_SLOTS; i++) {
          if (!first || i >= EARLY) {
            mbar_wait(empty + at.slot * 8, at.phase ^ 1);
            expect(at.slot, i);
            if (i % QUAD_SLOTS == 0) load_codes(at.slot, code_slot, i / QUAD_SLOTS);
          }
          if (i % QUAD_SLOTS == 0 && ++code_slot == CODE_SLOTS) code_slot = 0;
          load_x(at.slot, i);
          at.advance();
        }
      }
    }
    __syncwarp();
    if (CLUSTER_K > 1 && any) { // the barriers of the sums
      cluster_sync_relaxed();
      cluster_sync();
    }
    if (CLUSTER_X > 1) cluster_sync_relaxed(); // no block leaves while another may still write to it or arrive at its barriers
    return;
  }

  if (PRODUCER_REGS) setmaxnreg_inc<CONSUMER_REGS>();
  const int own = warp / 4 * (ROW_BLOCKS * 64) + warp % 4 * 16 + lane / 4 * 2; // first row of this thread in a row group
  const auto request = [&](row_factors (&f)[ROW_BLOCKS][2], int first_row, int unit, bool more) {
#if GROUPED || W_ZERO_ZERO
    const int k = (rank_k * UNITS + unit) * UNIT_K;
#pragma unroll
    for (int r = 0; r < ROW_BLOCKS; r++)
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const int row = first_row + own + r * 64 + j;
        f[r][j] = row_factors_at(scales, ZEROS, row, k, more && row < N);
      }
#endif
  };
  const u8 *const own_codes = codes + own * 64;
  const auto read = [&](batch_words (&words)[2][4], int code_slot, int b) {
    const u8 *const p = own_codes + code_slot * CODE_BYTES + b % ROW_BLOCKS * 4096;
#pragma unroll
    for (int j = 0; j < 2; j++)
#pragma unroll
      for (int v = 0; v < 4; v++) words[j][v] = batch_words_at(p + j * 64 + ((v ^ lane / 4 % 4) * 16), b / ROW_BLOCKS, lane); // swizzled<64>
  };
  const auto release = [&](int slot) {
    if (CLUSTER_X == 1) {
      if (lane == 0) mbar_arrive(empty + slot * 8);
    } else if (lane < CLUSTER_X) {
      mbar_arrive_cluster(empty + slot * 8, rank_k * CLUSTER_X + lane);
    }
  };

  if (t < tiles) {
    tile_place tile = tile_at(t, token_tiles, rank_x);
    row_factors now[ROW_BLOCKS][2], next[ROW_BLOCKS][2];
    u32 a[2][PARTS][BATCH_K / 16][4];
    batch_words words[2][4];
    [[maybe_unused]] float units[ROW_BLOCKS][2]; // of the sums
    ring_position at;
    int code_slot = 0, last = 0;
    request(now, tile.row, 0, true);
    pdl_wait();
    mbar_wait(full, 0);
    read(words, 0, 0);
    code_fragments(a[0], words, now[0], 0, lane);
    for (;; t += stride) {
      const bool another = CLUSTER_K == 1 && t + stride < tiles; // with parts of k, a cluster has one tile
      const tile_place after = tile_at(another ? t + stride : t, token_tiles, rank_x);
      float acc[ROW_BLOCKS][TILE_M / 2];
#if RESCALED
      // Group g of the unit begins: its products are in these units, and so is what the sums have.
      const auto begin_group = [&](int r, int g, bool any) {
        float ratio[2];
#pragma unroll
        for (int j = 0; j < 2; j++) {
          const float mantissa = mantissa_of(now[r][j].scales.v[g]);
          ratio[j] = units[r][j] * rcp_approx(mantissa);
          units[r][j] = mantissa;
        }
        if (!any) return;
        wgmma_wait<0>();
        wgmma_pin(acc[r]);
#pragma unroll
        for (int d = 0; d < TILE_M / 2; d++) acc[r][d] *= ratio[d / 2 % 2];
        wgmma_pin(acc[r]);
      };
#endif
#pragma unroll 1
      for (int unit = 0; unit < UNITS; unit++) {
        const bool ends = unit == UNITS - 1, more = !ends || another;
        request(next, ends ? after.row : tile.row, ends ? 0 : unit + 1, more);
#pragma unroll
        for (int b = 0; b < BATCHES; b++) {
          const int half = b / ROW_BLOCKS, r = b % ROW_BLOCKS, to = (b + 1) % BATCHES;
          if (QUAD_SLOTS > 1 && b > 0 && b % SLOT_BATCHES == 0) mbar_wait(full + at.slot * 8, at.phase);
          const u64 x = desc_advance(desc_k_major<128>(ring + at.slot * X_BYTES), UNIT_SLOTS == 1 ? half * BATCH_K * 2 : 0);
#if !RESCALED
          wgmma_fence();
#endif
#pragma unroll
          for (int i = 0; i < BATCH_K / 16; i++) {
#if RESCALED
            const int k = half * BATCH_K + i * 16;
            if (i == 0 || k % GROUP_K == 0) {
              if (i > 0) wgmma_commit();
              if (k % GROUP_K == 0) begin_group(r, k / GROUP_K, k > 0 || unit > 0);
              wgmma_fence();
            }
#endif
#pragma unroll
            for (int p = 0; p < PARTS; p++)
              Wgmma<TILE_M>::rs(acc[r], a[b % 2][p][i], desc_advance(x, i * 32), half > 0 || i > 0 || p > 0 || unit > 0);
          }
          wgmma_commit();
          const int freed = last;
          if ((b + 1) % SLOT_BATCHES == 0) {
            last = at.slot;
            at.advance();
          }
          if (to % (BATCHES * QUAD_K / UNIT_K) == 0 && ++code_slot == CODE_SLOTS) code_slot = 0;
          if (to > 0 || more) {
            if (to == 0 || (QUAD_SLOTS == 1 && to % SLOT_BATCHES == 0)) mbar_wait(full + at.slot * 8, at.phase);
            read(words, code_slot, to);
          }
          wgmma_wait<1>(); // for the batch before this one, whose fragments are then free
          pin_fragments(a[(b + 1) % 2]);
          if (b % SLOT_BATCHES == 0 && (b > 0 || unit > 0)) release(freed);
          code_fragments(a[(b + 1) % 2], words, to > 0 ? now[to % ROW_BLOCKS] : next[0], to / ROW_BLOCKS, lane);
        }
#pragma unroll
        for (int r = 0; r < ROW_BLOCKS; r++) now[r][0] = next[r][0], now[r][1] = next[r][1];
      }
      wgmma_wait<0>();
#pragma unroll
      for (int r = 0; r < ROW_BLOCKS; r++) wgmma_pin(acc[r]);
      release(last);
#if RESCALED
#pragma unroll
      for (int r = 0; r < ROW_BLOCKS; r++)
#pragma unroll
        for (int d = 0; d < TILE_M / 2; d++) acc[r][d] *= units[r][d / 2 % 2];
#endif

      // Four sums of a thread: columns col and col + 1 of two tokens.
      const auto finish = [&](int r, int step, const float *v) {
        const int col = tile.row + own + r * 64;
        if (col >= N) return;
        float scale[2] = {1, 1};
#if W_SCALE_ROW && !GROUPED
        scale[0] = to_f32(scales[col]), scale[1] = to_f32(scales[min(col + 1, N - 1)]);
#elif !GROUPED
        scale[0] = scale[1] = to_f32(scales[0]);
#endif
#pragma unroll
        for (int i = 0; i < 2; i++) {
          const int token = tile.token + step * 8 + lane % 4 * 2 + i;
          if (token < m) epilogue_pair(e, token, col, v[i] * scale[0], v[2 + i] * scale[1]);
        }
      };
#if CLUSTER_K == 1
#pragma unroll
      for (int r = 0; r < ROW_BLOCKS; r++)
#pragma unroll
        for (int step = 0; step < TILE_M / 8; step++) finish(r, step, acc[r] + step * 4);
#else
      // A thread sends its sums of a block's tokens to its counterpart there: a place of 16 bytes for each part, step and thread.
      constexpr int STEPS = ROW_BLOCKS * TOKEN_STEPS, PLACES = CONSUMERS * 128 * 16;
      const u32 inbox = ring + threadIdx.x * 16;
      __syncwarp();
      cluster_sync_relaxed(); // the rings are idle
#pragma unroll
      for (int to = 0; to < CLUSTER_K; to++) {
        const u32 box = cluster_map(inbox + rank_k * (STEPS * PLACES), to * CLUSTER_X + rank_x);
#pragma unroll
        for (int i = 0; i < STEPS; i++) {
          const float *v = acc[i / TOKEN_STEPS] + (to * TOKEN_STEPS + i % TOKEN_STEPS) * 4;
          asm volatile("st.shared::cluster.v4.f32 [%0], {%1,%2,%3,%4};" ::"r"(box + i * PLACES), "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]) : "memory");
        }
      }
      cluster_sync();
#pragma unroll 2
      for (int i = 0; i < STEPS; i++) {
        float v[4] = {};
#pragma unroll
        for (int part = 0; part < CLUSTER_K; part++) {
          float4 u;
          asm volatile("ld.shared.v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(u.x), "=f"(u.y), "=f"(u.z), "=f"(u.w)
                       : "r"(inbox + (part * STEPS + i) * PLACES) : "memory");
          v[0] += u.x, v[1] += u.y, v[2] += u.z, v[3] += u.w;
        }
        finish(i / TOKEN_STEPS, rank_k * TOKEN_STEPS + i % TOKEN_STEPS, v);
      }
#endif
      if (!another) break;
      tile = after;
    }
  }
  if (CLUSTER_X > 1) {
    __syncwarp();
    cluster_sync_relaxed();
  }
}
