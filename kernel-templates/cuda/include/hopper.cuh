// Instructions of sm_90a as plain PTX wrappers: mbarriers, bulk tensor copies (TMA), clusters, register reallocation,
// stmatrix, and the ordering and descriptors of the warpgroup matrix instructions (wgmma.cuh has the instructions
// themselves). No policy. Shared-memory addresses are 32-bit (smem_u32).
#pragma once
#include "common.cuh"

struct alignas(64) CUtensorMap { u64 opaque[16]; };

// ---- mbarriers -----------------------------------------------------------------------------------------------------
// A barrier completes a phase when `arrivals` arrivals and all expected bytes are in. A wait names the phase by parity:
// it returns once the phase of that parity is complete, so on a fresh barrier a wait for parity 1 returns at once.
DEV void mbar_init(u32 bar, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(arrivals) : "memory");
}
// Makes initialised barriers visible to the copy engine and to the cluster; a block or cluster barrier must follow.
DEV void fence_mbar_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEV void mbar_arrive(u32 bar) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory"); }
DEV void mbar_expect_tx(u32 bar, u32 bytes) { // one arrival, and so many bytes to come
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
// Arrives on the barrier at the same offset in another block of the cluster (or in this one).
DEV void mbar_arrive_cluster(u32 bar, u32 rank) {
  asm volatile("{\n.reg .b32 remote;\n"
               "mapa.shared::cluster.u32 remote, %0, %1;\n"
               "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}" ::"r"(bar), "r"(rank) : "memory");
}
DEV bool mbar_try_wait(u32 bar, u32 parity) {
  u32 done;
  asm volatile("{\n.reg .pred p;\n"
               "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
               "selp.u32 %0, 1, 0, p;\n}" : "=r"(done) : "r"(bar), "r"(parity) : "memory");
  return done != 0;
}
DEV void mbar_wait(u32 bar, u32 parity) {
  while (!mbar_try_wait(bar, parity)) {}
}

// ---- bulk tensor copies --------------------------------------------------------------------------------------------
// L2 eviction priorities for the `hint` arguments.
#define L2_EVICT_NORMAL 0x1000000000000000ull
#define L2_EVICT_FIRST 0x12f0000000000000ull
#define L2_EVICT_LAST 0x14f0000000000000ull

DEV void tma_prefetch_map(const CUtensorMap *map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Loads of a box: coordinates innermost first. The bytes are counted on `bar`.
DEV void tma_load_2d(u32 dst, const CUtensorMap *map, u32 bar, int c0, int c1) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
               ::"r"(dst), "l"(map), "r"(bar), "r"(c0), "r"(c1) : "memory");
}
DEV void tma_load_2d(u32 dst, const CUtensorMap *map, u32 bar, int c0, int c1, u64 hint) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint "
               "[%0], [%1, {%3, %4}], [%2], %5;"
               ::"r"(dst), "l"(map), "r"(bar), "r"(c0), "r"(c1), "l"(hint) : "memory");
}
DEV void tma_load_3d(u32 dst, const CUtensorMap *map, u32 bar, int c0, int c1, int c2) {
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];"
               ::"r"(dst), "l"(map), "r"(bar), "r"(c0), "r"(c1), "r"(c2) : "memory");
}
DEV void tma_load_3d(u32 dst, const CUtensorMap *map, u32 bar, int c0, int c1, int c2, u64 hint) {
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint "
               "[%0], [%1, {%3, %4, %5}], [%2], %6;"
               ::"r"(dst), "l"(map), "r"(bar), "r"(c0), "r"(c1), "r"(c2), "l"(hint) : "memory");
}
DEV void tma_load_4d(u32 dst, const CUtensorMap *map, u32 bar, int c0, int c1, int c2, int c3) {
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];"
               ::"r"(dst), "l"(map), "r"(bar), "r"(c0), "r"(c1), "r"(c2), "r"(c3) : "memory");
}
DEV void tma_load_4d(u32 dst, const CUtensorMap *map, u32 bar, int c0, int c1, int c2, int c3, u64 hint) {
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint "
               "[%0], [%1, {%3, %4, %5, %6}], [%2], %7;"
               ::"r"(dst), "l"(map), "r"(bar), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "l"(hint) : "memory");
}
// The same box into the same offset of every block of the cluster whose bit is set in `mask`; the barrier at the same
// offset in each of them counts its own bytes.
DEV void tma_load_2d_multicast(u32 dst, const CUtensorMap *map, u32 bar, int c0, int c1, u16 mask, u64 hint) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint "
               "[%0], [%1, {%3, %4}], [%2], %5, %6;"
               ::"r"(dst), "l"(map), "r"(bar), "r"(c0), "r"(c1), "h"(mask), "l"(hint) : "memory");
}
DEV void tma_load_3d_multicast(u32 dst, const CUtensorMap *map, u32 bar, int c0, int c1, int c2, u16 mask, u64 hint) {
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint "
               "[%0], [%1, {%3, %4, %5}], [%2], %6, %7;"
               ::"r"(dst), "l"(map), "r"(bar), "r"(c0), "r"(c1), "r"(c2), "h"(mask), "l"(hint) : "memory");
}
DEV void tma_load_4d_multicast(u32 dst, const CUtensorMap *map, u32 bar, int c0, int c1, int c2, int c3, u16 mask, u64 hint) {
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint "
               "[%0], [%1, {%3, %4, %5, %6}], [%2], %7, %8;"
               ::"r"(dst), "l"(map), "r"(bar), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "h"(mask), "l"(hint) : "memory");
}

// Stores. The thread that issued them commits the group and waits for it.
DEV void tma_store_2d(const CUtensorMap *map, u32 src, int c0, int c1) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];"
               ::"l"(map), "r"(src), "r"(c0), "r"(c1) : "memory");
}
DEV void tma_store_3d(const CUtensorMap *map, u32 src, int c0, int c1, int c2) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];"
               ::"l"(map), "r"(src), "r"(c0), "r"(c1), "r"(c2) : "memory");
}
DEV void tma_store_4d(const CUtensorMap *map, u32 src, int c0, int c1, int c2, int c3) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];"
               ::"l"(map), "r"(src), "r"(c0), "r"(c1), "r"(c2), "r"(c3) : "memory");
}
DEV void tma_store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Until at most COUNT groups still read their shared memory, or still write their global memory.
template <int COUNT> DEV void tma_store_wait_read() { asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(COUNT) : "memory"); }
template <int COUNT> DEV void tma_store_wait() { asm volatile("cp.async.bulk.wait_group %0;" ::"n"(COUNT) : "memory"); }
// Orders this thread's ordinary shared-memory accesses before later ones of the copy engine or the tensor cores; every
// writing thread executes it ahead of the barrier that the issuing thread waits on.
DEV void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- clusters, warpgroups, barriers --------------------------------------------------------------------------------
DEV u32 cluster_rank() {
  u32 r;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  return r;
}
DEV void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
DEV void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
DEV void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}
// An execution barrier only: it orders no memory accesses, and costs no memory barrier.
DEV void cluster_sync_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
}
DEV u32 cluster_map(u32 smem, u32 rank) { // the address of `smem` in another block of the cluster
  u32 r;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(smem), "r"(rank));
  return r;
}
// Barrier 0 is __syncthreads; 1 to 15 are free.
DEV void named_barrier_sync(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
DEV void named_barrier_arrive(int id, int threads) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
// Registers of the executing warpgroup, 24 to 240 in steps of 8. An increase waits until others have given theirs back.
template <int COUNT> DEV void setmaxnreg_inc() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT)); }
template <int COUNT> DEV void setmaxnreg_dec() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT)); }
DEV bool elect_one() { // true in one lane of a converged warp
  u32 r;
  asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(r));
  return r != 0;
}
// A value that is the same in the whole warp, told to the compiler so that branches on it stay uniform.
DEV int warp_uniform(int v) { return __shfl_sync(0xffffffffu, v, 0); }

// ---- stmatrix ------------------------------------------------------------------------------------------------------
// Stores 8x8 matrices of 16-bit elements: lane i gives the address of row i % 8 of matrix i / 8; register j of lane t
// holds columns 2(t%4) and 2(t%4)+1 of row t/4 of matrix j, which is how wgmma and mma leave their accumulators.
DEV void stmatrix_x4(u32 smem, u32 r0, u32 r1, u32 r2, u32 r3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared::cta.b16 [%0], {%1, %2, %3, %4};"
               ::"r"(smem), "r"(r0), "r"(r1), "r"(r2), "r"(r3) : "memory");
}
DEV void stmatrix_x2(u32 smem, u32 r0, u32 r1) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.shared::cta.b16 [%0], {%1, %2};" ::"r"(smem), "r"(r0), "r"(r1) : "memory");
}

// ---- swizzle and matrix descriptors --------------------------------------------------------------------------------
// The byte offset at which a swizzled tile with rows of SWIZZLE bytes (32, 64, 128) keeps byte offset `o`: the 16-byte
// chunk index within the row is xored with bits of the row index. Tiles are aligned to 8 * SWIZZLE bytes.
template <int SWIZZLE> DEV u32 swizzled(u32 o) {
  return SWIZZLE == 128 ? o ^ (o >> 3 & 0x70) : SWIZZLE == 64 ? o ^ (o >> 3 & 0x30) : o ^ (o >> 3 & 0x10);
}
template <int SWIZZLE> DEV u64 desc_swizzle_bits() {
  static_assert(SWIZZLE == 128 || SWIZZLE == 64 || SWIZZLE == 32, "swizzle");
  return (SWIZZLE == 128 ? 1ull : SWIZZLE == 64 ? 2ull : 3ull) << 62;
}
// A K-major operand: rows of the operand's M or N, each SWIZZLE bytes of consecutive K, as one box of a tensor map with
// that swizzle leaves them. Step K by 16 elements inside the row with desc_advance(d, 32).
template <int SWIZZLE> DEV u64 desc_k_major(u32 smem) {
  return desc_swizzle_bits<SWIZZLE>() | (u64)(8 * SWIZZLE >> 4) << 32 | 1ull << 16 | (u64)((smem & 0x3ffff) >> 4);
}
// An MN-major operand (transposed: tnspB): rows of K, each SWIZZLE bytes of consecutive M or N; columns beyond one row
// continue in the next slab, `slab_bytes` further (a slab is one box: SWIZZLE bytes by the rows of K). Step K by 16
// with desc_advance(d, 16 * SWIZZLE).
template <int SWIZZLE> DEV u64 desc_mn_major(u32 smem, u32 slab_bytes) {
  return desc_swizzle_bits<SWIZZLE>() | (u64)(8 * SWIZZLE >> 4) << 32 | (u64)(slab_bytes >> 4) << 16 |
         (u64)((smem & 0x3ffff) >> 4);
}
DEV u64 desc_advance(u64 desc, u32 bytes) { return desc + (bytes >> 4); }

// ---- order of wgmma ------------------------------------------------------------------------------------------------
// wgmma_fence comes before the first instruction of a batch and after registers it reads or accumulates into were
// touched; a batch is closed by wgmma_commit; wgmma_wait<COUNT> returns when at most COUNT batches are in flight.
DEV void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEV void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int COUNT> DEV void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(COUNT) : "memory"); }
// Keeps the compiler from moving accesses to the accumulators across this point.
template <int COUNT> DEV void wgmma_pin(float (&d)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; i++) asm volatile("" : "+f"(d[i])::"memory");
}
