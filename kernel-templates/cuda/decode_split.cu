// Attention of one query token over a paged KV cache, split over the sequence (flash decoding).
//
// A block takes SPLIT tokens of one sequence and one KV head, and all the query heads that read it; its warps take
// tiles of TILE tokens in turn and need no barrier before the end. Nothing of K or V passes through shared memory:
// lanes load them from global memory in the layout in which the matrix instruction wants them, which is possible
// because the order of the summed dimensions is free as long as both operands agree on it.
//
//   Sᵀ[16 tokens × 8 heads] = K · qᵀ   A = K: lane (g, c) = (lane/4, lane%4) holds tokens g and g+8, and 16 bytes of
//                                      every 64 of their rows, at c·16. B = qᵀ: head g, the same bytes.
//   Oᵀ[16 dims × 8 heads] += Vᵀ · Pᵀ   A = Vᵀ: lane (g, c) loads tokens 2c, 2c+1, 2c+8, 2c+9, 16 bytes of every 128 at
//                                      g·16, and pairs them up by byte permutation. B = Pᵀ: Sᵀ transposed in registers.
//
// Each word of V that a lane holds per token (two dimensions) is one row tile of Oᵀ, so a lane ends up with consecutive
// dimensions of heads 2c and 2c+1. Loads of the next tile are issued as soon as the registers are free: K's after the
// scores, V's after the product. The running maximum is raised only when a score exceeds it by 2^LAZY, so the usual
// tile costs one vote and no rescaling; the softmax is exact whatever the maximum is.
//
// Sequences of several splits write f32 partials to the workspace. The last block of a (sequence, head block) to arrive,
// or with COMBINE_LAUNCH a second kernel, merges them, and leaves the workspace zero as it was found.
#include "mma.cuh"

#define GROUP (HEADS / KV_HEADS)
#define HEADS_BLOCK (8 * HEAD_TILES)                        // heads of the group in one block, padded
#define HEAD_BLOCKS ((GROUP + HEADS_BLOCK - 1) / HEADS_BLOCK)
#define HEADS_USED (GROUP < HEADS_BLOCK ? GROUP : HEADS_BLOCK)
#define THREADS (WARPS * 32)
#define SUB (TILE / 16)                                     // 16-token tiles of the matrix instruction
#define K_WORDS (HEAD_DIM / 8)                              // words of one token's K row in one lane
#define V_WORDS (HEAD_DIM / 16)
#define Q_SHARED (HEAD_DIM > 128)
#define LAZY 8.0f
#include "split_softmax.cuh"

static_assert(HEAD_DIM % 16 == 0 && HEAD_DIM <= 256, "head_dim");
static_assert(!Q_SHARED || HEAD_DIM % 32 == 0, "head_dim above 128");
static_assert(SPLIT % TILE == 0 && TILE % 16 == 0, "a split is whole tiles");
static_assert((WARPS & (WARPS - 1)) == 0, "warps are merged in halves");

// ---- loads ---------------------------------------------------------------------------------------------------------
// Not .nc: with a programmatic launch the newest token is written while this grid is already resident.
template <int WORDS> DEV void load_words(u32 *r, const elem *p) {
  if (WORDS == 4)
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "l"(p));
  else if (WORDS == 2)
    asm volatile("ld.global.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "l"(p));
  else
    asm volatile("ld.global.L1::no_allocate.u32 %0, [%1];" : "=r"(r[0]) : "l"(p));
}
// A lane's part of a row of K or q: 8 of every 32 dimensions, and 4 of a rest of 16.
DEV void load_k_row(u32 (&r)[K_WORDS], const elem *row, int c) {
#pragma unroll
  for (int i = 0; i < HEAD_DIM / 32; i++) load_words<4>(r + 4 * i, row + 32 * i + 8 * c);
  if (HEAD_DIM % 32) load_words<2>(r + HEAD_DIM / 32 * 4, row + HEAD_DIM / 32 * 32 + 4 * c);
}
// The first dimension of word w of a lane's part of a row of V: 8 of every 64, 4 of a rest of 32, 2 of a rest of 16.
DEV int v_dim(int w, int g) {
  if (w < HEAD_DIM / 64 * 4) return w / 4 * 64 + 8 * g + w % 4 * 2;
  if (HEAD_DIM % 64 >= 32 && w < HEAD_DIM / 32 * 2) return HEAD_DIM / 64 * 64 + 4 * g + w % 2 * 2;
  return HEAD_DIM / 32 * 32 + 2 * g;
}
DEV void load_v_row(u32 (&r)[V_WORDS], const elem *row, int g) {
#pragma unroll
  for (int i = 0; i < HEAD_DIM / 64; i++) load_words<4>(r + 4 * i, row + 64 * i + 8 * g);
  if (HEAD_DIM % 64 >= 32) load_words<2>(r + HEAD_DIM / 64 * 4, row + HEAD_DIM / 64 * 64 + 4 * g);
  if (HEAD_DIM % 32) load_words<1>(r + V_WORDS - 1, row + HEAD_DIM / 32 * 32 + 2 * g);
}
DEV u32 transpose_8x8(u32 v) {
  u32 r;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(v));
  return r;
}
DEV u32 low_halves(u32 a, u32 b) { return __byte_perm(a, b, 0x5410); }
DEV u32 high_halves(u32 a, u32 b) { return __byte_perm(a, b, 0x7632); }

// ---- the split -----------------------------------------------------------------------------------------------------
extern "C" __global__ void __launch_bounds__(THREADS) decode_split(
    const elem *__restrict__ q, const elem *__restrict__ k_cache, const elem *__restrict__ v_cache,
    const int *__restrict__ block_table, const int *__restrict__ lens, elem *__restrict__ o, void *workspace, int batch,
    int max_pages, int max_splits) {
  const int kv_head = blockIdx.x / HEAD_BLOCKS, head_block = blockIdx.x % HEAD_BLOCKS, seq = blockIdx.z;
  const int split = blockIdx.y, lane = lane_id(), warp = warp_id(), g = lane / 4, c = lane % 4;
  const i64 head0 = (i64)seq * HEADS + kv_head * GROUP + head_block * HEADS_BLOCK; // in q and o
  const int heads = min(HEADS_BLOCK, GROUP - head_block * HEADS_BLOCK);
#if PDL
  pdl_launch();
  pdl_wait();
#endif
  const int len = lens[seq], begin = split * SPLIT, end = min(len, begin + SPLIT);
  if (begin >= len && split > 0) return;

  // q, in registers or, when those are short, in shared memory in the order of the lanes.
#if Q_SHARED
  __shared__ uint4 q_shared[HEAD_TILES][K_WORDS / 4][32];
  for (int i = warp; i < HEAD_TILES * K_WORDS / 4; i += WARPS) {
    const int h = i / (K_WORDS / 4), part = i % (K_WORDS / 4);
    u32 r[4] = {0, 0, 0, 0};
    if (h * 8 + g < heads) load_words<4>(r, q + (head0 + h * 8 + g) * HEAD_DIM + part * 32 + 8 * c);
    q_shared[h][part][lane] = make_uint4(r[0], r[1], r[2], r[3]);
  }
  __syncthreads();
#else
  u32 qf[HEAD_TILES][K_WORDS] = {};
#pragma unroll
  for (int h = 0; h < HEAD_TILES; h++)
    if (h * 8 + g < heads) load_k_row(qf[h], q + (head0 + h * 8 + g) * HEAD_DIM, c);
#endif

  // Tokens beyond the end are read as the last one and masked, so nothing that was never written is read.
  const int *table = block_table + (i64)seq * max_pages;
  const int last_start = (end - 1) & ~15;
  int entries = 0; // of the next 32 sub-tiles of this warp, one in each lane
  auto row_of = [&](int entry, int start, int r) { // element offset of token min(start + r, end - 1)
    if (PAGE % 16) {
      const u32 token = min(start + r, end - 1);
      return (((i64)table[token / PAGE] * KV_HEADS + kv_head) * PAGE + token % PAGE) * HEAD_DIM;
    }
    return (((i64)entry * KV_HEADS + kv_head) * PAGE + (u32)start % PAGE) * HEAD_DIM + min(r, end - 1 - start) * HEAD_DIM;
  };
  auto fetch_entries = [&](int step) {
    if (PAGE % 16 || step % (32 / SUB)) return;
    const int start = begin + (warp + (step + lane / SUB) * WARPS) * TILE + lane % SUB * 16;
    entries = table[(u32)min(start, last_start) / PAGE];
  };
  auto start_of = [&](int step, int u) { return begin + (warp + step * WARPS) * TILE + u * 16; };
  auto entry_of = [&](int step, int u) {
    return PAGE % 16 ? 0 : __shfl_sync(0xffffffffu, entries, step % (32 / SUB) * SUB + u);
  };

  u32 k[SUB][2][K_WORDS], v[SUB][4][V_WORDS];
  auto load_k = [&](int step) {
#pragma unroll
    for (int u = 0; u < SUB; u++) {
      const int entry = entry_of(step, u), start = min(start_of(step, u), last_start);
      load_k_row(k[u][0], k_cache + row_of(entry, start, g), c);
      load_k_row(k[u][1], k_cache + row_of(entry, start, g + 8), c);
    }
  };
  auto load_v = [&](int step) {
#pragma unroll
    for (int u = 0; u < SUB; u++) {
      const int entry = entry_of(step, u), start = min(start_of(step, u), last_start);
#pragma unroll
      for (int i = 0; i < 4; i++) load_v_row(v[u][i], v_cache + row_of(entry, start, 2 * c + i % 2 + i / 2 * 8), g);
    }
  };

  float out[V_WORDS][HEAD_TILES][4] = {}, top[HEAD_TILES][2], sum[HEAD_TILES][2] = {};
#pragma unroll
  for (int h = 0; h < HEAD_TILES; h++) top[h][0] = top[h][1] = NEG_INF;
  const float scale = SCALE * LOG2E;
  const int steps = (end - begin - warp * TILE + WARPS * TILE - 1) / (WARPS * TILE); // of this warp

  if (steps > 0) {
    fetch_entries(0);
    load_k(0);
    load_v(0);
  }
  for (int step = 0; step < steps; step++) {
    const bool more = step + 1 < steps;
    float s[SUB][HEAD_TILES][4] = {};
#pragma unroll
    for (int u = 0; u < SUB; u++)
#pragma unroll
      for (int i = 0; i < K_WORDS; i += 2) {
        const u32 a[4] = {k[u][0][i], k[u][1][i], k[u][0][i + 1], k[u][1][i + 1]};
#pragma unroll
        for (int h = 0; h < HEAD_TILES; h++) {
#if Q_SHARED
          const u32 *b = (const u32 *)&q_shared[h][i / 4][lane] + i % 4;
          const u32 b2[2] = {b[0], b[1]};
          mma_16816(elem{}, s[u][h], a, b2);
#else
          mma_16816(elem{}, s[u][h], a, qf[h] + i);
#endif
        }
      }
    if (more) {
      fetch_entries(step + 1);
      load_k(step + 1);
    }

    bool grows = false;
#pragma unroll
    for (int u = 0; u < SUB; u++) {
      const int left = end - start_of(step, u); // tokens of this sub-tile that exist
#pragma unroll
      for (int h = 0; h < HEAD_TILES; h++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          s[u][h][e] = g + e / 2 * 8 < left ? s[u][h][e] * scale : NEG_INF;
          grows |= s[u][h][e] > top[h][e % 2] + LAZY;
        }
    }
    if (__any_sync(0xffffffffu, grows)) {
#pragma unroll
      for (int h = 0; h < HEAD_TILES; h++)
#pragma unroll
        for (int j = 0; j < 2; j++) {
          float m = top[h][j];
#pragma unroll
          for (int u = 0; u < SUB; u++) m = fmaxf(m, fmaxf(s[u][h][j], s[u][h][j + 2]));
#pragma unroll
          for (int b = 4; b < 32; b *= 2) m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, b));
          const float shrink = exp2_below(top[h][j], m);
          top[h][j] = m, sum[h][j] *= shrink;
#pragma unroll
          for (int w = 0; w < V_WORDS; w++) out[w][h][j] *= shrink, out[w][h][j + 2] *= shrink;
        }
    }
    u32 p[SUB][HEAD_TILES][2];
#pragma unroll
    for (int u = 0; u < SUB; u++)
#pragma unroll
      for (int h = 0; h < HEAD_TILES; h++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
          s[u][h][e] = exp2_approx(s[u][h][e] - top[h][e % 2]);
          sum[h][e % 2] += s[u][h][e];
        }
        p[u][h][0] = transpose_8x8(pack2(elem{}, s[u][h][0], s[u][h][1]));
        p[u][h][1] = transpose_8x8(pack2(elem{}, s[u][h][2], s[u][h][3]));
      }
#pragma unroll
    for (int u = 0; u < SUB; u++)
#pragma unroll
      for (int w = 0; w < V_WORDS; w++) {
        const u32 a[4] = {low_halves(v[u][0][w], v[u][1][w]), high_halves(v[u][0][w], v[u][1][w]),
                          low_halves(v[u][2][w], v[u][3][w]), high_halves(v[u][2][w], v[u][3][w])};
#pragma unroll
        for (int h = 0; h < HEAD_TILES; h++) mma_16816(elem{}, out[w][h], a, p[u][h]);
      }
    if (more) load_v(step + 1);
  }

  // Bring the warps to one maximum, then add them up in halves; a register's values lie in the order of the lanes.
  __shared__ float top_shared[WARPS][HEADS_BLOCK];
  __shared__ float merge[WARPS > 1 ? WARPS / 2 : 1][(V_WORDS * 4 + 2) * HEAD_TILES][32];
  if (g == 0)
#pragma unroll
    for (int h = 0; h < HEAD_TILES; h++)
      top_shared[warp][h * 8 + 2 * c] = top[h][0], top_shared[warp][h * 8 + 2 * c + 1] = top[h][1];
  __syncthreads();
#pragma unroll
  for (int h = 0; h < HEAD_TILES; h++)
#pragma unroll
    for (int j = 0; j < 2; j++) {
      float m = NEG_INF;
#pragma unroll
      for (int w = 0; w < WARPS; w++) m = fmaxf(m, top_shared[w][h * 8 + 2 * c + j]);
      const float shrink = exp2_below(top[h][j], m);
      top[h][j] = m, sum[h][j] *= shrink;
#pragma unroll
      for (int b = 4; b < 32; b *= 2) sum[h][j] += __shfl_xor_sync(0xffffffffu, sum[h][j], b);
#pragma unroll
      for (int w = 0; w < V_WORDS; w++) out[w][h][j] *= shrink, out[w][h][j + 2] *= shrink;
    }
#pragma unroll
  for (int half = WARPS / 2; half > 0; half /= 2) {
    if (warp >= half && warp < 2 * half)
#pragma unroll
      for (int h = 0; h < HEAD_TILES; h++) {
        float(*to)[32] = merge[warp - half] + h * (V_WORDS * 4 + 2);
#pragma unroll
        for (int w = 0; w < V_WORDS * 4; w++) to[w][lane] = out[w / 4][h][w % 4];
        to[V_WORDS * 4][lane] = sum[h][0], to[V_WORDS * 4 + 1][lane] = sum[h][1];
      }
    __syncthreads();
    if (warp < half)
#pragma unroll
      for (int h = 0; h < HEAD_TILES; h++) {
        float(*from)[32] = merge[warp] + h * (V_WORDS * 4 + 2);
#pragma unroll
        for (int w = 0; w < V_WORDS * 4; w++) out[w / 4][h][w % 4] += from[w][lane];
        sum[h][0] += from[V_WORDS * 4][lane], sum[h][1] += from[V_WORDS * 4 + 1][lane];
      }
    if (half > 1) __syncthreads();
  }

  const int n = split_count(len);
  partials part(workspace, batch * KV_HEADS * HEAD_BLOCKS, batch, max_splits);
  if (warp == 0) {
#pragma unroll
    for (int h = 0; h < HEAD_TILES; h++)
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const int head = h * 8 + 2 * c + j;
        if (head >= heads) continue;
        if (n == 1) {
          const float inv = sum[h][j] > 0.0f ? 1.0f / sum[h][j] : 0.0f;
#pragma unroll
          for (int w = 0; w < V_WORDS; w++)
            store_pair(o + (head0 + head) * HEAD_DIM + v_dim(w, g), out[w][h][j] * inv, out[w][h][j + 2] * inv);
        } else {
          const i64 at = (head0 + head) * max_splits + split;
#pragma unroll
          for (int w = 0; w < V_WORDS; w++)
            *(float2 *)(part.out + at * HEAD_DIM + v_dim(w, g)) = make_float2(out[w][h][j], out[w][h][j + 2]);
          if (g == 0) part.max_sum[at] = make_float2(top[h][j], sum[h][j]);
        }
      }
  }
#if !COMBINE_LAUNCH
  if (n == 1) return;
  if (last_to_arrive(part.arrived + seq * KV_HEADS * HEAD_BLOCKS + blockIdx.x, n)) combine<HEADS_USED>(part, o, head0, heads, n);
#endif
}

#if COMBINE_LAUNCH
// One block per query head of a sequence.
extern "C" __global__ void __launch_bounds__(THREADS) decode_combine(const int *lens, elem *o, void *workspace, int batch,
                                                                     int max_splits) {
#if PDL
  pdl_launch();
  pdl_wait();
#endif
  const int n = split_count(lens[blockIdx.y]);
  if (n == 1) return;
  partials part(workspace, batch * KV_HEADS * HEAD_BLOCKS, batch, max_splits);
  combine<1>(part, o, (i64)blockIdx.y * HEADS + blockIdx.x, 1, n);
}
#endif
