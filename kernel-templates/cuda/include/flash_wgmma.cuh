// The consumer of attention on wgmma, shared by the kernels that differ in how tiles, K and V come to it: 16-bit elements,
// one pass over the blocks of keys with a running softmax.
//
// A tile is 64 · WARPGROUPS query rows of one KV head. Each consumer warpgroup owns 64 rows and keeps in registers
//   s[64 x KV_TILE]     = Q Kᵀ of one block of keys      wgmma, both operands from shared memory
//   p[64 x KV_TILE]     = exp2(s · scale - max · scale)  in the same layout, which is that of wgmma's A fragment
//   o[64 x HEAD_DIM]   += p V                            wgmma, A from registers, V as the transposed B operand
//
// OVERLAP   the next block's Q Kᵀ is issued ahead of this block's P V, and its softmax runs while P V is in flight.
// PINGPONG  the warpgroups issue their matrix products in turn, so that one's softmax meets another's products.
// PACK      so many query heads of a KV head share a tile, whose rows are (position, head).
// MMA_SUM   the sums of the rows of p come from the product with V, which gets eight columns of ones.
#pragma once
#define WGMMA_N0 KV_TILE
#if MMA_SUM
#define WGMMA_N1 72
#else
#define WGMMA_N1 HEAD_DIM
#endif
#include "wgmma.cuh"

static_assert(ELEM_BYTES == 2, "16-bit elements");
static_assert(WARPGROUPS >= 1 && WARPGROUPS <= 4, "one to four consumer warpgroups");
static_assert(KV_TILE % 16 == 0 && KV_TILE <= 256, "wgmma: N is KV_TILE in Q Kᵀ, K in P V; a box has at most 256 rows");
static_assert(HEAD_DIM % 16 == 0 && HEAD_DIM <= 256, "wgmma: K is HEAD_DIM in Q Kᵀ, N in P V");
static_assert(HEADS % KV_HEADS == 0, "every KV head serves as many query heads");
static_assert(KV_STAGES >= 2 && Q_STAGES >= 1, "the producer runs one K block ahead");
static_assert(!MMA_SUM || HEAD_DIM == 64, "the ones are the slab after the only one of V");

constexpr int SLABS = (HEAD_DIM + 63) / 64;          // a slab is 64 columns, one swizzled 128-byte row each
constexpr int Q_SLAB = 64 * 128;                     // bytes of one slab of one warpgroup's Q
constexpr int Q_GROUP = SLABS * Q_SLAB;
constexpr int Q_BYTES = WARPGROUPS * Q_GROUP;
constexpr int KV_SLAB = KV_TILE * 128;
constexpr int KV_BYTES = SLABS * KV_SLAB;
constexpr int GROUP_POSITIONS = 64 / PACK;           // query positions of a warpgroup
constexpr int TILE_POSITIONS = WARPGROUPS * GROUP_POSITIONS;
constexpr int O_COLS = HEAD_DIM + 8 * MMA_SUM;
// Registers that the roles trade at the start; in sum not more than a block of THREADS is launched with.
constexpr int PRODUCER_REGS = WARPGROUPS == 4 ? 24 : WARPGROUPS == 3 ? 32 : 40;
constexpr int CONSUMER_REGS = WARPGROUPS == 4 ? 112 : WARPGROUPS == 3 ? 160 : WARPGROUPS == 2 ? 232 : 216;
constexpr int THREADS = (WARPGROUPS + 1) * 128;
// o is rescaled only when a row's maximum has grown by more than this power of two: p then stays under 2^8, whose
// relative rounding is that of 1.
constexpr float LAZY_LIMIT = 8.0f;
constexpr float SCALE = (float)SCALE_LOG2; // log2(e) / √d

// ---- shared memory -------------------------------------------------------------------------------------------------
struct Smem {
  u32 base;
  DEV u32 q(int stage) const { return base + stage * Q_BYTES; }
  DEV u32 k(int stage) const { return base + Q_STAGES * Q_BYTES + stage * KV_BYTES; }
  DEV u32 v(int stage) const { return k(KV_STAGES) + stage * KV_BYTES; }
  DEV u32 ones() const { return k(2 * KV_STAGES); }
  DEV u32 bars() const { return ones() + MMA_SUM * KV_SLAB; }
  DEV u32 q_full(int s) const { return bars() + 8 * s; }
  DEV u32 q_empty(int s) const { return q_full(Q_STAGES) + 8 * s; }
  DEV u32 k_full(int s) const { return q_empty(Q_STAGES) + 8 * s; }
  DEV u32 k_empty(int s) const { return k_full(KV_STAGES) + 8 * s; }
  DEV u32 v_full(int s) const { return k_empty(KV_STAGES) + 8 * s; }
  DEV u32 v_empty(int s) const { return v_full(KV_STAGES) + 8 * s; }
  DEV u32 tile(int s) const { return v_empty(KV_STAGES) + 8 * s; } // DYNAMIC: the tile of the Q stage, -1: no more
};
DEV void st_shared(u32 a, int v) { asm volatile("st.shared.s32 [%0], %1;" ::"r"(a), "r"(v) : "memory"); }
DEV int ld_shared(u32 a) {
  int v;
  asm volatile("ld.shared.s32 %0, [%1];" : "=r"(v) : "r"(a) : "memory");
  return v;
}

// Position in a ring of S stages.
template <int S> struct Ring {
  int stage = 0;
  u32 phase = 0;
  DEV void next() {
    if (++stage == S) stage = 0, phase ^= 1;
  }
};

// ---- consumer ------------------------------------------------------------------------------------------------------
// The warpgroups' turns: barrier 1 + w is warpgroup w's, and whoever passes the turn arrives there.
DEV void turn_wait(int w) {
  if (PINGPONG) named_barrier_sync(1 + w, 256);
}
DEV void turn_pass(int w) {
  if (PINGPONG) named_barrier_arrive(1 + (w + 1 == WARPGROUPS ? 0 : w + 1), 256);
}

struct Flash {
  float s[KV_TILE / 2], o[O_COLS / 2];
  u32 p[KV_TILE / 16][4];
  float row_max[2], row_sum[2], alpha[2]; // rows r and r + 8; row_sum is of this thread's columns only
  u64 q_desc;
  u32 q_held = 0; // the barrier that gives the Q stage of the tile before back, 0: none
  Ring<KV_STAGES> ks, vs;

  DEV void issue_qk(const Smem sm) {
    const u64 k_desc = desc_k_major<128>(sm.k(ks.stage));
#pragma unroll
    for (int i = 0; i < KV_TILE / 2; i++) asm volatile("" : "=f"(s[i])); // what s held is dead: no moves to keep it
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 16; i++)
      Wgmma<KV_TILE>::ss(s, desc_advance(q_desc, i / 4 * Q_SLAB + i % 4 * 32),
                         desc_advance(k_desc, i / 4 * KV_SLAB + i % 4 * 32), i != 0);
    wgmma_commit();
  }
  DEV void issue_pv(const Smem sm) {
    const u32 v = sm.v(vs.stage);
    const u64 v_desc = desc_mn_major<128>(v, MMA_SUM ? sm.ones() - v : KV_SLAB);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < KV_TILE / 16; i++) Wgmma<O_COLS>::rs<1>(o, p[i], desc_advance(v_desc, i * 2048), 1);
    wgmma_commit();
  }
  // One arrival per warp: a warp's own products are complete when its wait returns, another warp's need not be.
  DEV void release_k(const Smem sm) {
    if (lane_id() == 0) mbar_arrive(sm.k_empty(ks.stage));
    ks.next();
  }
  DEV void release_v(const Smem sm) {
    if (lane_id() == 0) mbar_arrive(sm.v_empty(vs.stage));
    vs.next();
  }

  // limit[r]: columns of s at or past it are not visible; it counts from this thread's first column.
  DEV void mask(const int (&limit)[2]) {
#pragma unroll
    for (int i = 0; i < KV_TILE / 2; i++)
      if (i / 4 * 8 + i % 2 >= limit[i / 2 % 2]) s[i] = NEG_INF;
  }
  // The largest s of each row. Floats that are not negative compare like integers, and Hopper has an integer maximum of
  // three: it is right whenever the row has seen a score >= 0, this block's or an earlier one's, and else done over.
  DEV void block_max(float (&m)[2]) {
    int top[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < KV_TILE / 2; i += 4)
#pragma unroll
      for (int r = 0; r < 2; r++)
        top[r] = max(max(top[r], __float_as_int(s[i + 2 * r])), __float_as_int(s[i + 2 * r + 1]));
#pragma unroll
    for (int r = 0; r < 2; r++) {
      top[r] = max(top[r], __shfl_xor_sync(0xffffffffu, top[r], 1));
      top[r] = max(top[r], __shfl_xor_sync(0xffffffffu, top[r], 2));
      m[r] = __int_as_float(top[r]);
    }
    if (!__any_sync(0xffffffffu, (top[0] == 0 & row_max[0] < 0.0f) | (top[1] == 0 & row_max[1] < 0.0f))) return;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      float even = s[2 * r], odd = s[2 * r + 1]; // two chains, for their latency
#pragma unroll
      for (int i = 4; i < KV_TILE / 2; i += 4) even = fmaxf(even, s[i + 2 * r]), odd = fmaxf(odd, s[i + 2 * r + 1]);
      m[r] = warp_max<4>(fmaxf(even, odd));
    }
  }
  // s becomes exp2(s · SCALE - max · SCALE); alpha is what o is to be multiplied with.
  template <bool MASKED> DEV void softmax() {
    float top[2];
    block_max(top);
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const float before = row_max[r];
      float m = fmaxf(top[r], before);
      if ((m - before) * SCALE <= LAZY_LIMIT) m = before;
      const float base = MASKED && m == NEG_INF ? 0.0f : m * SCALE;
      // (before - m) is exactly 0 where the maximum stayed, so that alpha is exactly 1.
      alpha[r] = MASKED && m == NEG_INF ? 1.0f : exp2_approx((before - m) * SCALE);
      row_max[r] = m;
      float sum = 0.0f;
#pragma unroll
      for (int i = 0; i < KV_TILE / 2; i++)
        if (i / 2 % 2 == r) {
          s[i] = exp2_approx(fmaf(s[i], SCALE, -base));
          if (!MMA_SUM) sum += s[i];
        }
      if (!MMA_SUM) row_sum[r] = row_sum[r] * alpha[r] + sum;
    }
  }
  // Without a branch on the softmax's results ptxas moves the wait that follows up to the wait for s, and the overlap is
  // lost. The branch is never taken: a sum of exponentials is not negative.
  DEV void hold() {
    const float last = MMA_SUM ? s[KV_TILE / 2 - 1] + s[KV_TILE / 2 - 3] : row_sum[0] + row_sum[1];
    if (last < 0.0f) asm volatile("nanosleep.u32 0;");
  }
  DEV void convert_p() {
#pragma unroll
    for (int i = 0; i < KV_TILE / 4; i++) p[i / 4][i % 4] = pack2(elem(), s[2 * i], s[2 * i + 1]);
  }
  DEV void rescale_o() {
    if (!__any_sync(0xffffffffu, alpha[0] != 1.0f | alpha[1] != 1.0f)) return;
#pragma unroll
    for (int i = 0; i < O_COLS / 2; i++) o[i] *= alpha[i / 2 % 2];
  }

  // The first block: there is no P V to go with it yet.
  DEV void first(const Smem sm, int w, const int (&limit)[2], bool masked) {
    mbar_wait(sm.k_full(ks.stage), ks.phase);
    turn_wait(w);
    issue_qk(sm);
    turn_pass(w);
    wgmma_wait<0>();
    wgmma_pin(s);
    release_k(sm);
    if (masked) mask(limit);
    softmax<true>();
    convert_p();
  }
  template <bool MASKED> DEV void step(const Smem sm, int w, const int (&limit)[2]) {
    mbar_wait(sm.k_full(ks.stage), ks.phase);
#if OVERLAP
    turn_wait(w);
    issue_qk(sm);
    mbar_wait(sm.v_full(vs.stage), vs.phase);
    issue_pv(sm);
    turn_pass(w);
    wgmma_wait<1>();
    wgmma_pin(s);
    release_k(sm);
    if (MASKED) mask(limit);
    softmax<MASKED>();
    hold();
    wgmma_wait<0>();
    wgmma_pin(o);
    release_v(sm);
#else
    last(sm);
    turn_wait(w);
    issue_qk(sm);
    turn_pass(w);
    wgmma_wait<0>();
    wgmma_pin(s);
    release_k(sm);
    if (MASKED) mask(limit);
    softmax<MASKED>();
#endif
    convert_p();
    rescale_o();
  }
  DEV void last(const Smem sm) {
    mbar_wait(sm.v_full(vs.stage), vs.phase);
    issue_pv(sm);
    wgmma_wait<0>();
    wgmma_pin(o);
    release_v(sm);
  }
  // A block that none of this warpgroup's rows see.
  DEV void skip(const Smem sm, int w) {
    mbar_wait(sm.k_full(ks.stage), ks.phase);
    release_k(sm);
    turn_wait(w);
    turn_pass(w);
    mbar_wait(sm.v_full(vs.stage), vs.phase);
    release_v(sm);
  }

  // The Q stage of the tile before, which holds its output until the copy engine has read it. One arrival per warp, by
  // the lane that has read the stage's tile number: an arrival orders only what its own thread did before.
  DEV void release_q() {
    if (lane_id() == 0 && q_held != 0) {
      if (warp_id() % 4 == 0) tma_store_wait_read<0>();
      mbar_arrive(q_held);
    }
    __syncwarp();
    q_held = 0;
  }

  // Blocks end - 1 down to `begin` of a tile. visible(i): keys that position i of this warpgroup sees, none fewer than the
  // position before. Of block end - 1 only `tail` keys exist, where those are not KV_TILE.
  template <class Visible>
  DEV void attend(const Smem sm, u32 q_smem, int w, int begin, int end, int tail, const Visible visible) {
    const int lane = lane_id(), row = warp_id() % 4 * 16 + lane / 4;
    q_desc = desc_k_major<128>(q_smem);
#pragma unroll
    for (int i = 0; i < O_COLS / 2; i++) o[i] = 0.0f;
    row_max[0] = row_max[1] = NEG_INF;
    row_sum[0] = row_sum[1] = 0.0f;
    // Blocks from `own` on are seen by none of the rows; blocks under `open` are seen whole by all.
    const int own = max(begin, cdiv(visible(GROUP_POSITIONS - 1), KV_TILE));
    const int open = max(begin, visible(0) / KV_TILE);
    int n = end - 1;
    for (; n >= own; n--) skip(sm, w);
    if (n < begin) return;
    int limit[2];
#pragma unroll
    for (int r = 0; r < 2; r++) limit[r] = visible((row + 8 * r) / PACK) - n * KV_TILE - 2 * (lane % 4);
    first(sm, w, limit, n >= open);
    release_q(); // by now the store of the tile before has read its shared memory
    if (tail < KV_TILE && n == end - 1) clear_tail(sm, w, tail);
    n--;
    for (; n >= open; n--) {
      limit[0] += KV_TILE;
      limit[1] += KV_TILE;
      step<true>(sm, w, limit);
    }
    for (; n >= begin; n--) step<false>(sm, w, limit);
    last(sm);
  }

  // Rows of V past the last key may hold anything; their probability is 0 and must not meet a NaN. Every warpgroup clears
  // them before its own product.
  DEV void clear_tail(const Smem sm, int w, int tail) {
    mbar_wait(sm.v_full(vs.stage), vs.phase);
    for (int slab = 0; slab < SLABS; slab++)
      for (int i = tail * 8 + threadIdx.x % 128; i < KV_TILE * 8; i += 128)
        asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(sm.v(vs.stage) + slab * KV_SLAB + i * 16), "r"(0) : "memory");
    fence_proxy_async();
    named_barrier_sync(5 + w, 128);
  }

  DEV float total(int r) const { return MMA_SUM ? o[O_COLS / 2 - 4 + 2 * r] : warp_sum<4>(row_sum[r]); }

  // o / sum to this warpgroup's own part of the Q stage, whose Q nobody reads any more.
  DEV void stage_o(u32 smem, int w) {
    float inv[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const float sum = total(r);
      inv[r] = row_max[r] == NEG_INF ? 0.0f : rcp_approx(sum);
    }
    const int lane = lane_id();
    // Lane l gives row l % 16 of the 16 x 16 block, its left or right half by l / 16.
    const u32 at = (warp_id() % 4 * 16 + lane % 16) * 128 + lane / 16 * 16;
    named_barrier_sync(5 + w, 128);
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 16; i++) {
      u32 r[4];
#pragma unroll
      for (int j = 0; j < 4; j++) r[j] = pack2(elem(), o[8 * i + 2 * j] * inv[j % 2], o[8 * i + 2 * j + 1] * inv[j % 2]);
      stmatrix_x4(smem + i / 4 * Q_SLAB + swizzled<128>(at + i % 4 * 32), r[0], r[1], r[2], r[3]);
    }
    fence_proxy_async();
    named_barrier_sync(5 + w, 128);
  }
};

// Barriers, and the columns of ones. By the whole block, ahead of everything else.
DEV void prepare(const Smem sm) {
  if (threadIdx.x == 0) {
    for (int s = 0; s < Q_STAGES; s++) {
      mbar_init(sm.q_full(s), 1);
      mbar_init(sm.q_empty(s), 4 * WARPGROUPS);
    }
    for (int s = 0; s < KV_STAGES; s++) {
      mbar_init(sm.k_full(s), 1);
      mbar_init(sm.v_full(s), 1);
      mbar_init(sm.k_empty(s), 4 * WARPGROUPS);
      mbar_init(sm.v_empty(s), 4 * WARPGROUPS);
    }
    fence_mbar_init();
  }
#if MMA_SUM
  for (int i = threadIdx.x; i < KV_SLAB / 4; i += THREADS) st_shared(sm.ones() + 4 * i, pack2(elem(), 1.0f, 1.0f));
  fence_proxy_async();
#endif
  __syncthreads();
}
