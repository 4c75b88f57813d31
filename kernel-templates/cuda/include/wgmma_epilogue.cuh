// The epilogues of matmul and qkv on wgmma accumulators: a warp's 16 rows of a tile go out in chunks of CHUNK columns, each
// rounded into a swizzled buffer in shared memory (stmatrix) and written by an asynchronous bulk tensor store, or row by
// row to the pages of the KV cache or, where the heads are yet to be normed (qk_norm.cuh), to the workspace.
//
// The template defines TILE_N, SPLIT_K (a block writes that part of the tile's columns), CHUNK and EPI_BUFS, and takes
// N away as a macro in favour of the constant COLS, before it includes this file.
#pragma once
#include "hopper.cuh"
#include "mma.cuh"

#define ROPE (OP_QKV && !QK_NORM) // here; heads that are normed first are rotated by qk_norm.cuh

constexpr int OUT_N = SWIGLU ? TILE_N / 2 : TILE_N;
constexpr int CHUNKS = OUT_N / CHUNK / SPLIT_K; // of the columns that this block writes
constexpr int BUF_BYTES = 16 * CHUNK * 2;
constexpr int SWIZZLE_OUT = CHUNK * 2;

static_assert(OUT_N % (CHUNK * SPLIT_K) == 0 && (CHUNK == 64 || CHUNK == 32 || CHUNK == 16), "epilogue chunks");
#if ROPE
static_assert(HEAD_DIM % CHUNK == 0, "a chunk lies within a head");
#endif

struct Epilogue {
#if QK_NORM
  elem *product;
#else
  const CUtensorMap *y;
#endif
  u32 bufs;  // of this warp
  u32 bias;  // slice of this tile, in shared memory
  int m, lane;
#if RESIDUAL
  const CUtensorMap *residual;
  u32 loaded; // barriers of this warp's buffers
  u32 parity; // of the next load of each buffer, one bit per buffer
#endif
#if ROPE
  const int *positions, *slots;
  const float2 *cos_sin;
  elem *k_cache, *v_cache;
#endif
};

#if RESIDUAL
// Fills buffer `index` % EPI_BUFS with the residual of chunk `index` of this warp's rows of the tile.
DEV void load_residual(const Epilogue &e, int index, int row, int col) {
  int b = index % EPI_BUFS;
  u32 bar = e.loaded + b * 8;
  mbar_expect_tx(bar, BUF_BYTES);
  tma_load_2d(e.bufs + b * BUF_BYTES, e.residual, bar, col + index % CHUNKS * CHUNK, row + index / CHUNKS * 64);
}
#endif

DEV uint4 ld_shared(u32 smem) {
  uint4 r;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "r"(smem) : "memory");
  return r;
}

#if BIAS
// The bias of two adjacent columns from the slice of this tile.
DEV float2 bias_pair(const Epilogue &e, int col) {
  float2 v;
  u32 s;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(s) : "r"(e.bias + col * 2));
  unpack2(elem(), s, v.x, v.y);
  return v;
}
#endif

#if SWIGLU
// silu(gate) * up of two neighbouring 8-column blocks of accumulators: 8 output columns, of which lane q of a quad holds
// q and q + 4; exchanged so that it holds 2q and 2q + 1.
DEV u32 swiglu_pair(const float *d, int lane) {
  u32 own = pack2(elem(), silu(d[0]) * d[1], silu(d[4]) * d[5]);
  int src = lane & 28 | lane << 1 & 2;
  u32 a = __shfl_sync(0xffffffffu, own, src), b = __shfl_sync(0xffffffffu, own, src + 1);
  return __byte_perm(a, b, lane & 2 ? 0x7632 : 0x5410);
}
#endif

#if ROPE
constexpr int Q_COLS = HEADS * HEAD_DIM, ROTATED_COLS = Q_COLS + KV_HEADS * HEAD_DIM;
// (cos, sin) of the column pairs of a chunk that this thread holds, for its two rows.
struct Rotation {
  float2 lo[CHUNK / 8], hi[CHUNK / 8];
};
DEV void load_rotation(Rotation &r, const Epilogue &e, const int (&position)[2], int col) {
  int first = col % HEAD_DIM / 2 + e.lane % 4;
  const float2 *lo = e.cos_sin + (i64)position[0] * (HEAD_DIM / 2) + first;
  const float2 *hi = e.cos_sin + (i64)position[1] * (HEAD_DIM / 2) + first;
#pragma unroll
  for (int j = 0; j < CHUNK / 8; j++) r.lo[j] = __ldg(lo + 4 * j), r.hi[j] = __ldg(hi + 4 * j);
}
DEV void rotate(float &a, float &b, float2 cs) {
  float r = a * cs.x - b * cs.y;
  b = a * cs.y + b * cs.x;
  a = r;
}
#else
struct Rotation {};
#endif

// Rounds chunk `index` of this warp's rows of the tile and writes it. d: this thread's accumulators of the chunk;
// row, col: of the warp's first output.
DEV void write_chunk(Epilogue &e, int index, const float *d, int row, int col, const Rotation &rotation) {
  int lane = e.lane, buf_index = index % EPI_BUFS;
  u32 buf = e.bufs + buf_index * BUF_BYTES;
  // Lane address of the 16x16 blocks: matrices (rows 0-7, cols 0-7), (8-15, 0-7), (0-7, 8-15), (8-15, 8-15).
  u32 at = (lane & 15) * SWIZZLE_OUT + (lane >> 4) * 16;
#if RESIDUAL
  mbar_wait(e.loaded + buf_index * 8, e.parity >> buf_index & 1);
  e.parity ^= 1u << buf_index;
#else
  if (lane == 0) tma_store_wait_read<EPI_BUFS - 1>();
  __syncwarp();
#endif
#pragma unroll
  for (int c = 0; c < CHUNK; c += 16) {
    u32 v[4]; // in the order of the four matrices
#if SWIGLU
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const float *g = d + (2 * c + 16 * h) / 2;
#if BIAS
      const int at = 2 * col % TILE_N + 2 * c + 16 * h + lane % 4 * 2;
      const float2 lo = bias_pair(e, at), hi = bias_pair(e, at + 8);
      const float biased[8] = {g[0] + lo.x, g[1] + lo.y, g[2] + lo.x, g[3] + lo.y,
                               g[4] + hi.x, g[5] + hi.y, g[6] + hi.x, g[7] + hi.y};
      g = biased;
#endif
      v[2 * h] = swiglu_pair(g, lane);
      v[2 * h + 1] = swiglu_pair(g + 2, lane);
    }
#else
#if RESIDUAL
    u32 old[4];
    ldmatrix_x4(old, buf + swizzled<SWIZZLE_OUT>(at + c * 2));
#endif
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const float *g = d + (c + 8 * h) / 2;
      float a0 = g[0], a1 = g[1], b0 = g[2], b1 = g[3];
#if BIAS
      const float2 s = bias_pair(e, col % TILE_N + c + 8 * h + lane % 4 * 2);
      a0 += s.x, a1 += s.y, b0 += s.x, b1 += s.y;
#endif
#if RESIDUAL
      float s0, s1;
      unpack2(elem(), old[2 * h], s0, s1);
      a0 += s0, a1 += s1;
      unpack2(elem(), old[2 * h + 1], s0, s1);
      b0 += s0, b1 += s1;
#endif
#if ROPE
      if (col < ROTATED_COLS) {
        rotate(a0, a1, rotation.lo[c / 8 + h]);
        rotate(b0, b1, rotation.hi[c / 8 + h]);
      }
#endif
      v[2 * h] = pack2(elem(), a0, a1);
      v[2 * h + 1] = pack2(elem(), b0, b1);
    }
#endif
    stmatrix_x4(buf + swizzled<SWIZZLE_OUT>(at + c * 2), v[0], v[1], v[2], v[3]);
  }
#if ROPE
  if (col >= Q_COLS) { // rows of K and V go to their pages
    tma_store_commit(); // an empty group, so that the groups still count the buffers
    if (col >= COLS) return;
    __syncwarp();
    int head = (col - Q_COLS) / HEAD_DIM;
    elem *cache = head < KV_HEADS ? e.k_cache : e.v_cache;
    if (head >= KV_HEADS) head -= KV_HEADS;
    constexpr int UNITS = CHUNK / 8; // of 16 bytes in a row
#pragma unroll
    for (int i = lane; i < 16 * UNITS; i += 32) {
      int r = i / UNITS, u = i % UNITS;
      if (row + r < e.m) {
        int slot = e.slots[row + r], p = slot / PAGE;
        if (slot < 0) continue;
        i64 line = ((i64)p * KV_HEADS + head) * PAGE + (slot - p * PAGE);
        *(uint4 *)(cache + line * HEAD_DIM + col % HEAD_DIM + u * 8) = ld_shared(buf + swizzled<SWIZZLE_OUT>(i * 16));
      }
    }
    return;
  }
#endif
#if QK_NORM
  tma_store_commit();
  __syncwarp();
  constexpr int UNITS = CHUNK / 8; // of 16 bytes in a row
#pragma unroll
  for (int i = lane; i < 16 * UNITS; i += 32) {
    int r = row + i / UNITS, c = col + i % UNITS * 8;
    if (r < e.m && c < COLS) *(uint4 *)(e.product + (i64)r * COLS + c) = ld_shared(buf + swizzled<SWIZZLE_OUT>(i * 16));
  }
#else
  fence_proxy_async();
  __syncwarp();
  if (lane == 0) {
    tma_store_2d(e.y, buf, col, row);
    tma_store_commit();
  }
#endif
}
