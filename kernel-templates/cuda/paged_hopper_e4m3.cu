// Attention over a paged KV cache of E4M3 codes for sm_90a: `paged_hopper` for half the bytes of the cache.
//
// Codes come to shared memory with the copy engine, by boxes of 64 columns. Three warps beside the producer make each block the swizzled
// slabs of f16 that the products of flash_wgmma.cuh take, while the consumers are at the blocks before: 16 bytes of codes are 32 of a slab at
// twice their place. f16 holds every code exactly. The consumers bring Q to f16, times the scale of K, where it lies; P is f16 too, and the
// scale of V comes on top of the sums.
//
// Rings: codes (the copy engine fills, the three warps empty) and elements (the three warps fill, the consumers empty), of K and of V, of
// KV_STAGES each. Invariant: the three warps read what is to be done of a tile from its Q stage, which the consumers cannot give back before
// they have had all of the tile's blocks.
#include "e4m3.cuh"
// Products are of f16, and what results is of the model's type.
typedef elem out_elem;
#if DTYPE_BF16
#undef DTYPE_BF16
#define DTYPE_F16 1
#endif
#define elem f16_t
#include "flash_wgmma.cuh"
#undef elem
#define KEY_BLOCK KV_TILE
#include "paged_parts.cuh"

#include "paged_work.cuh"

static_assert(WARPGROUPS <= 3, "registers of the warps beside the producer");
constexpr int CODE_SLAB = KV_TILE * 64;
constexpr int CODE_BYTES = SLABS * CODE_SLAB;
constexpr int WIDENERS = 3; // warps
constexpr int OWN_BYTES = 256; // barriers and work of flash_wgmma.cuh and paged_work.cuh

// What the producer fills: its rings of K and V are those of codes.
struct Codes : Smem {
  DEV u32 code_bars() const { return bars() + OWN_BYTES; }
  DEV u32 k(int stage) const { return code_bars() + OWN_BYTES + stage * CODE_BYTES; }
  DEV u32 v(int stage) const { return k(KV_STAGES) + stage * CODE_BYTES; }
  DEV u32 k_full(int s) const { return code_bars() + 8 * s; }
  DEV u32 k_empty(int s) const { return k_full(KV_STAGES) + 8 * s; }
  DEV u32 v_full(int s) const { return k_empty(KV_STAGES) + 8 * s; }
  DEV u32 v_empty(int s) const { return v_full(KV_STAGES) + 8 * s; }
};
static_assert(8 * (2 * Q_STAGES + 4 * KV_STAGES) + WORK_BYTES * Q_STAGES <= OWN_BYTES && 32 * KV_STAGES <= OWN_BYTES, "room for barriers");

// ---- producer ------------------------------------------------------------------------------------------------------
// By the whole warp. `entry`: the page of piece lane % PIECES.
DEV void load_block(u32 dst, const CUtensorMap *map, u32 full, u32 empty, u32 phase, int row, int head, int entry) {
  mbar_wait(empty, phase ^ 1);
  if (lane_id() == 0) mbar_expect_tx(full, CODE_BYTES);
  __syncwarp();
#pragma unroll
  for (int first = 0; first < PIECES * SLABS; first += 32) {
    const int i = first + lane_id(), piece = i % PIECES, slab = i / PIECES;
    const int page = __shfl_sync(0xffffffffu, entry, piece);
    if (i < PIECES * SLABS)
      tma_load_4d(dst + slab * CODE_SLAB + piece * (BOX * 64), map, full, 64 * slab, (row + piece * BOX) % PAGE, head, page);
  }
}

#define Smem Codes
#include "paged_produce.cuh"
#undef Smem

// ---- codes to elements ---------------------------------------------------------------------------------------------
DEV uint4 ld_shared4(u32 at) {
  uint4 v;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at) : "memory");
  return v;
}
DEV void st_shared4(u32 at, u32 a, u32 b, u32 c, u32 d) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}

DEV void mbar_again(u32 bar, u32 arrivals) {
  asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(bar) : "memory");
  mbar_init(bar, arrivals);
}

// A block of codes as a block of elements, when its stage is free. Rows from `rows` on become 0.
DEV void widen(u32 to, u32 full, u32 empty, u32 phase, u32 codes, u32 codes_full, u32 codes_empty, int rows) {
  mbar_wait(codes_full, phase);
  mbar_wait(empty, phase ^ 1);
  const int first = threadIdx.x % 128 - (128 - 32 * WIDENERS);
#pragma unroll 2
  for (int i = first; i < CODE_BYTES / 16; i += 32 * WIDENERS) {
    const uint4 c = ld_shared4(codes + 16 * i);
    const u32 at = to + swizzled<128>(32 * i);
    st_shared4(at, first_halves(c.x), last_halves(c.x), first_halves(c.y), last_halves(c.y));
    st_shared4(at ^ 16, first_halves(c.z), last_halves(c.z), first_halves(c.w), last_halves(c.w));
  }
  if (rows < KV_TILE)
#pragma unroll 1
    for (int i = first; i < CODE_BYTES / 16; i += 32 * WIDENERS)
      if (i / 4 % KV_TILE >= rows) {
        st_shared4(to + swizzled<128>(32 * i), 0, 0, 0, 0);
        st_shared4((to + swizzled<128>(32 * i)) ^ 16, 0, 0, 0, 0);
      }
  fence_proxy_async();
  __syncwarp();
  if (lane_id() == 0) {
    mbar_arrive(full);
    mbar_arrive(codes_empty);
  }
}

DEV void widen_tiles(const Smem sm, const Codes codes) {
  Ring<Q_STAGES> qs;
  Ring<KV_STAGES> ks, vs;
  auto widen_k = [&] {
    const int s = ks.stage;
    widen(sm.k(s), sm.k_full(s), sm.k_empty(s), ks.phase, codes.k(s), codes.k_full(s), codes.k_empty(s),
          KV_TILE);
    ks.next();
  };
  for (;;) {
    mbar_wait(sm.q_full(qs.stage), qs.phase);
    const Work t = read_work(work_at(sm, qs.stage));
    if (t.token < 0) break;
    widen_k();
    for (int n = t.end - 1; n >= t.begin; n--) {
      if (n > t.begin) widen_k();
      const int s = vs.stage;
      // Behind the last key V may be anything; its probability is 0 and must not meet a NaN.
      widen(sm.v(s), sm.v_full(s), sm.v_empty(s), vs.phase, codes.v(s), codes.v_full(s), codes.v_empty(s),
            n == t.end - 1 ? t.tail : KV_TILE);
      vs.next();
    }
    if (!DYNAMIC) break;
    qs.next();
  }
}

// ---- consumer ------------------------------------------------------------------------------------------------------
struct CodesFlash : Flash {
  // This warpgroup's rows of Q in f16, times the scale of K.
  DEV void scale_q(u32 smem, int w, float by) const {
#pragma unroll
    for (int i = threadIdx.x % 128; i < Q_GROUP / 16; i += 128) {
      const uint4 v = ld_shared4(smem + 16 * i);
      const u32 from[4] = {v.x, v.y, v.z, v.w};
      u32 r[4];
#pragma unroll
      for (int j = 0; j < 4; j++) {
        float lo, hi;
        unpack2(out_elem(), from[j], lo, hi);
        r[j] = pack2(f16_t(), lo * by, hi * by);
      }
      st_shared4(smem + 16 * i, r[0], r[1], r[2], r[3]);
    }
    fence_proxy_async();
    named_barrier_sync(5 + w, 128);
  }
  DEV void scale_o(float by) {
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 2; i++) o[i] *= by;
  }
  // As Flash's, in the model's type.
  DEV void stage_o(u32 smem, int w) {
    float inv[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const float sum = total(r);
      inv[r] = row_max[r] == NEG_INF ? 0.0f : rcp_approx(sum);
    }
    const int lane = lane_id();
    const u32 at = (warp_id() % 4 * 16 + lane % 16) * 128 + lane / 16 * 16;
    named_barrier_sync(5 + w, 128);
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 16; i++) {
      u32 r[4];
#pragma unroll
      for (int j = 0; j < 4; j++) r[j] = pack2(out_elem(), o[8 * i + 2 * j] * inv[j % 2], o[8 * i + 2 * j + 1] * inv[j % 2]);
      stmatrix_x4(smem + i / 4 * Q_SLAB + swizzled<128>(at + i % 4 * 32), r[0], r[1], r[2], r[3]);
    }
    fence_proxy_async();
    named_barrier_sync(5 + w, 128);
  }
};

#define Flash CodesFlash
#include "paged_consumer.cuh"
#undef Flash

DEV void consume(const Smem sm, const CUtensorMap *om, const float *kv_scales, const Args &a, int w) {
  Consumer c;
  Ring<Q_STAGES> qs;
  if (PINGPONG && w == 0) named_barrier_arrive(1, 256); // the first turn
  for (;;) {
    mbar_wait(sm.q_full(qs.stage), qs.phase);
    const Work t = read_work(work_at(sm, qs.stage));
    if (t.token < 0) break;
    const u32 q_smem = sm.q(qs.stage) + w * Q_GROUP;
    const float *scales = kv_scales + t.head / (HEADS / KV_HEADS);
    c.scale_q(q_smem, w, scales[0]);
    c.attend(sm, q_smem, w, t.begin, t.end, KV_TILE, [&](int i) {
      const int position = w * GROUP_POSITIONS;
      return position < t.count ? t.visible + min(position + i, t.count - 1) : 0;
    });
    c.scale_o(scales[KV_HEADS]);
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
    paged_hopper_e4m3(const __grid_constant__ CUtensorMap qm, const __grid_constant__ CUtensorMap km,
                      const __grid_constant__ CUtensorMap vm, const __grid_constant__ CUtensorMap om,
                      const float *kv_scales, const int *block_table, const int *q_starts, const int *kv_lens, elem *o,
                      void *workspace, int tokens, int batch, int max_pages, int max_parts) {
  extern __shared__ u8 raw[];
  const Smem sm{(smem_u32(raw) + 1023) & ~1023u};
  const Codes codes{sm};
  const Args a{block_table, q_starts, kv_lens, o, workspace, tokens, batch, max_pages, max_parts};
  if (threadIdx.x == 0) {
    tma_prefetch_map(&qm);
    tma_prefetch_map(&km);
    tma_prefetch_map(&vm);
    for (int s = 0; s < KV_STAGES; s++) {
      mbar_init(codes.k_full(s), 1);
      mbar_init(codes.v_full(s), 1);
      mbar_init(codes.k_empty(s), WIDENERS);
      mbar_init(codes.v_empty(s), WIDENERS);
    }
  }
  prepare(sm);
  // Elements come from three warps, each of which arrives, and not from the copy engine.
  if (threadIdx.x == 0) {
    for (int s = 0; s < KV_STAGES; s++) {
      mbar_again(sm.k_full(s), WIDENERS);
      mbar_again(sm.v_full(s), WIDENERS);
    }
    fence_mbar_init();
  }
  __syncthreads();
  const int group = warp_uniform(threadIdx.x / 128), warp = warp_uniform(threadIdx.x / 32);
  if (group == 0) {
    setmaxnreg_dec<PRODUCER_REGS>();
    if (warp == 0) {
      pdl_wait();
      produce(codes, &qm, &km, &vm, a, (int *)workspace);
      pdl_launch();
    } else {
      widen_tiles(sm, codes);
    }
  } else {
    setmaxnreg_inc<CONSUMER_REGS>();
    consume(sm, &om, kv_scales, a, group - 1);
  }
}
