// Attention of one query token over a paged KV cache of E4M3 codes, split over the sequence (flash decoding): `decode_split` for half the
// bytes.
//
// A block takes SPLIT tokens of one sequence and one KV head, and all the query heads that read it; its warps take
// tiles of TILE tokens in turn and need no barrier before the end. Codes of K and V go from global memory to registers, and become
// f16 there, which holds every code exactly, as the matrix instruction wants them: the order of the summed dimensions is free as long as
// both operands agree on it, so nothing moves between lanes.
//
//   S[16 heads × 8 tokens] = q · Kᵀ    A = q, padded to 16 heads. B = Kᵀ: lane (g, c) = (lane/4, lane%4) holds 16 codes
//                                      of every 64 of the row of token g, at c·16. A word of four codes is an operand of two pairs,
//                                      and q has its dimensions in that order.
//   Oᵀ[16 dims × 8 heads] += Vᵀ · Pᵀ   A = Vᵀ: lane (g, c) loads tokens 2c, 2c+1, 2c+8, 2c+9, 16 codes of every 128 at
//                                      g·16. A byte permutation puts two codes of two tokens in a word, one pair of which is of one
//                                      dimension and the other of the next. B = Pᵀ: what S leaves in the
//                                      lane, tokens 2c and 2c+1 of head g, is the operand as it stands.
//
// q is in f16 too. Of a head in bf16 the largest element becomes one in [2^14, 2^15) by a power of two: what is too small for f16 then is
// less than 2^-38 of it. P is in f16 and larger by 2^LARGER, for the same reason. These powers of two and the scales of the head are part of
// the softmax scale and of the output.
//
// Loads of the next tile are issued as soon as the registers are free: K's after the
// scores, V's after the product. The running maximum is raised only when a score exceeds it by 2^LAZY, so the usual
// tile costs one vote and no rescaling; the softmax is exact whatever the maximum is.
//
// The warps of a block merge through shared memory. If a sequence has several splits, f32 partials go to the workspace,
// and the last block to arrive, or with COMBINE_LAUNCH a second kernel, merges them.
#include "e4m3.cuh"
#include "mma.cuh"

#define GROUP (HEADS / KV_HEADS)
#define HEADS_BLOCK (8 * HEAD_TILES)                        // heads of the group in one block, padded
#define HEAD_BLOCKS ((GROUP + HEADS_BLOCK - 1) / HEADS_BLOCK)
#define HEADS_USED (GROUP < HEADS_BLOCK ? GROUP : HEADS_BLOCK)
#define THREADS (WARPS * 32)
#define UNITS (KV_HEADS * HEAD_BLOCKS)                      // blocks of one sequence and token range
#define PART_TOKENS SPLIT                                   // tokens behind one partial result
#define SUB (TILE / 16)                                     // 16-token tiles of the matrix instruction
#define Q_WORDS (HEAD_DIM / 8)                              // words of one head's q in one lane
#define K_WORDS (HEAD_DIM / 16)                             // words of one token's K row in one lane
#define V_WORDS (HEAD_DIM / 32)
#define OUTS (HEAD_DIM / 16)                                // pairs of dimensions of the output in one lane
#define Q_SHARED (HEAD_DIM > 128)
#define LAZY 8.0f
#define LARGER 7                                            // P is, in powers of two: it is under 2^(LAZY + LARGER)
#include "split_softmax.cuh"

static_assert(HEAD_DIM % 32 == 0 && HEAD_DIM <= 256, "head_dim");
static_assert(SPLIT % TILE == 0 && TILE % 16 == 0, "a split is whole tiles");
static_assert((WARPS & (WARPS - 1)) == 0, "warps are merged in halves");
static_assert(AHEAD == 0 || (PDL && PAGE % 16 == 0 && AHEAD * SUB <= 16), "a lane fetches 16 rows of K or V");

// ---- loads ---------------------------------------------------------------------------------------------------------
// Not .nc: with a programmatic launch the newest token is written while this grid is already resident. LINE: the L2 is
// to fetch the whole 128 bytes around at once.
template <int WORDS, bool LINE = false> DEV void load_words(u32 *r, const void *p) {
  if (WORDS == 4 && LINE)
    asm volatile("ld.global.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "l"(p));
  else if (WORDS == 4)
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "l"(p));
  else if (WORDS == 2)
    asm volatile("ld.global.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "l"(p));
  else
    asm volatile("ld.global.L1::no_allocate.u32 %0, [%1];" : "=r"(r[0]) : "l"(p));
}
// A lane's part of a row of K: 16 of every 64 dimensions, and 8 of a rest of 32.
DEV void load_k_row(u32 (&r)[K_WORDS], const u8 *row, int c) {
#pragma unroll
  for (int i = 0; i < HEAD_DIM / 64; i++) load_words<4, WHOLE_LINES>(r + 4 * i, row + 64 * i + 16 * c);
  if (HEAD_DIM % 64) load_words<2>(r + HEAD_DIM / 64 * 4, row + HEAD_DIM / 64 * 64 + 8 * c);
}
// Eight dimensions of q that meet words 2 · part and 2 · part + 1 of K, as they are stored.
DEV void load_q_part(u32 *r, const elem *row, int part, int c) {
  load_words<4>(r, row + (part / 2 < HEAD_DIM / 64 ? part / 2 * 64 + 16 * c + part % 2 * 8 : HEAD_DIM / 64 * 64 + 8 * c));
}
// The exponent's field of a power of two that brings the largest of a head's elements to [2^14, 2^15), of which a lane has seen `most`.
DEV u32 larger_field(float most) {
#if DTYPE_BF16
  most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
  most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
  return min(268 - (__float_as_uint(most) >> 23), 253u);
#else
  return 127;
#endif
}
DEV float largest(const u32 (&r)[4], float most) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    float a, b;
    unpack2(elem{}, r[i], a, b);
    most = fmaxf(most, fmaxf(fabsf(a), fabsf(b)));
  }
  return most;
}
// Eight dimensions as pairs of f16, in the order of a word's pairs of codes.
DEV void q_halves(u32 *to, const u32 (&r)[4], u32 field) {
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
#if DTYPE_F16 && E4M3_NEIGHBOURS
    to[i] = r[i], to[i + 1] = r[i + 1];
#else
    const float by = __uint_as_float(field << 23);
    float a, b, d, e;
    unpack2(elem{}, r[i], a, b);
    unpack2(elem{}, r[i + 1], d, e);
    to[i] = pack2(f16_t{}, a * by, (E4M3_NEIGHBOURS ? b : d) * by);
    to[i + 1] = pack2(f16_t{}, (E4M3_NEIGHBOURS ? d : b) * by, e * by);
#endif
  }
}
// The first of the four dimensions of word w of a lane's part of a row of V: 16 of every 128, 8 of a rest of 64, 4 of a rest of 32.
DEV int v_dim(int w, int g) {
  if (w < HEAD_DIM / 128 * 4) return w / 4 * 128 + 16 * g + w % 4 * 4;
  if (HEAD_DIM % 128 >= 64 && w < HEAD_DIM / 64 * 2) return HEAD_DIM / 128 * 128 + 8 * g + w % 2 * 4;
  return HEAD_DIM / 64 * 64 + 4 * g;
}
// The first of the two dimensions of one of a lane's outputs.
DEV int out_dim(int i, int g) { return v_dim(i / 2, g) + i % 2 * 2; }
DEV void load_v_row(u32 (&r)[V_WORDS], const u8 *row, int g) {
#pragma unroll
  for (int i = 0; i < HEAD_DIM / 128; i++) load_words<4>(r + 4 * i, row + 128 * i + 16 * g);
  if (HEAD_DIM % 128 >= 64) load_words<2>(r + HEAD_DIM / 128 * 4, row + HEAD_DIM / 128 * 128 + 8 * g);
  if (HEAD_DIM % 64) load_words<1>(r + V_WORDS - 1, row + HEAD_DIM / 64 * 64 + 4 * g);
}
// Two codes each of two tokens' words, so that each pair is of one dimension.
DEV u32 low_pairs(u32 a, u32 b) { return __byte_perm(a, b, E4M3_NEIGHBOURS ? 0x5140 : 0x5410); }
DEV u32 high_pairs(u32 a, u32 b) { return __byte_perm(a, b, E4M3_NEIGHBOURS ? 0x7362 : 0x7632); }

// ---- the split -----------------------------------------------------------------------------------------------------
#if ARCH == 890
#define BOUNDS __launch_bounds__(THREADS, 1) // else ptxas spills for a second block of eight warps
#else
#define BOUNDS __launch_bounds__(THREADS)
#endif
extern "C" __global__ void BOUNDS decode_split_e4m3(
    const elem *__restrict__ q, const u8 *__restrict__ k_cache, const u8 *__restrict__ v_cache,
    const float *__restrict__ kv_scales, const int *block_table, const int *lens, elem *__restrict__ o, void *workspace, int batch,
    int max_pages, int pages, int max_parts) {
  const int unit = blockIdx.x % UNITS, split = blockIdx.x / UNITS, seq = blockIdx.y;
  const int kv_head = unit / HEAD_BLOCKS, head_block = unit % HEAD_BLOCKS;
  const int lane = lane_id(), warp = warp_id(), g = lane / 4, c = lane % 4;
  const i64 head0 = (i64)seq * HEADS + kv_head * GROUP + head_block * HEADS_BLOCK; // in q and o
  const int heads = min(HEADS_BLOCK, GROUP - head_block * HEADS_BLOCK);
  const int *table = block_table + (i64)seq * max_pages;
  const int begin = split * SPLIT;
  auto start_of = [&](int step, int u) { return begin + (warp + step * WARPS) * TILE + u * 16; };
#if AHEAD
  // Behind the end of the kernel before, the L2 fetches the first tiles. What is read here may still be written: it only
  // says what to fetch.
  if (lane < AHEAD * SUB * 2) {
    const int token = start_of(lane / 2 / SUB, lane / 2 % SUB);
    if (token < min(ld_early(lens + seq), min(begin + SPLIT, max_pages * PAGE))) {
      const u32 page = min((u32)ld_early(table + token / PAGE), (u32)(pages - 1));
      prefetch_l2((lane % 2 ? v_cache : k_cache) + (((i64)page * KV_HEADS + kv_head) * PAGE + token % PAGE) * HEAD_DIM,
                  16 * HEAD_DIM);
    }
  }
#endif
#if PDL
  pdl_wait();
#endif
  // The first loads do not wait for the length: page numbers that turn out to lie beyond it are not used.
  int entries = 0; // page numbers of the next 32 sub-tiles of this warp, one in each lane
  auto fetch_entries = [&](int step) {
    if (PAGE % 16 == 0 && step % (32 / SUB) == 0)
      entries = table[min((u32)start_of(step + lane / SUB, lane % SUB) / PAGE, (u32)max_pages - 1)];
  };
  const int len = lens[seq];
  fetch_entries(0);

  // q, in registers or, when those are short, in shared memory in the order of the lanes.
  u32 field[HEAD_TILES];
#if Q_SHARED
  __shared__ uint4 q_shared[HEAD_TILES][Q_WORDS / 4][32];
#pragma unroll
  for (int h = 0; h < HEAD_TILES; h++) {
    const elem *row = q + (head0 + h * 8 + g) * HEAD_DIM;
    float most = 0.0f;
    u32 raw[4] = {};
    if (h * 8 + g < heads)
      for (int part = 0; part < Q_WORDS / 4; part++) {
        load_q_part(raw, row, part, c);
        most = largest(raw, most);
      }
    field[h] = larger_field(most);
    for (int part = warp; part < Q_WORDS / 4; part += WARPS) {
      u32 r[4];
      if (h * 8 + g < heads) load_q_part(raw, row, part, c);
      q_halves(r, raw, field[h]);
      q_shared[h][part][lane] = make_uint4(r[0], r[1], r[2], r[3]);
    }
  }
  __syncthreads();
#else
  u32 qf[HEAD_TILES][Q_WORDS];
#pragma unroll
  for (int h = 0; h < HEAD_TILES; h++) {
    u32 raw[Q_WORDS / 4][4] = {};
    float most = 0.0f;
    if (h * 8 + g < heads)
#pragma unroll
      for (int part = 0; part < Q_WORDS / 4; part++) load_q_part(raw[part], q + (head0 + h * 8 + g) * HEAD_DIM, part, c);
#pragma unroll
    for (int part = 0; part < Q_WORDS / 4; part++) most = largest(raw[part], most);
    field[h] = larger_field(most);
#pragma unroll
    for (int part = 0; part < Q_WORDS / 4; part++) q_halves(qf[h] + 4 * part, raw[part], field[h]);
  }
#endif
  if (begin >= len && split > 0) return;
  const int end = min(len, begin + SPLIT);

  // Tokens beyond the end are read as an existing one and masked, so nothing that was never written is read.
  auto row_of = [&](int step, int u) { // gives the function from row to element offset for a sub-tile
    const bool exists = u == 0 || start_of(step, u) < end;
    const int start = exists ? start_of(step, u) : start_of(step, 0), last = end - 1 - start;
    const int page = PAGE % 16 ? 0 : __shfl_sync(0xffffffffu, entries, step % (32 / SUB) * SUB + (exists ? u : 0));
    const i64 base = (((i64)page * KV_HEADS + kv_head) * PAGE + (u32)start % PAGE) * HEAD_DIM;
    return [=](int r) {
      if (PAGE % 16 == 0) return base + min(r, last) * HEAD_DIM;
      const u32 token = start + min(r, last);
      return (((i64)table[token / PAGE] * KV_HEADS + kv_head) * PAGE + token % PAGE) * HEAD_DIM;
    };
  };
  u32 k[SUB][2][K_WORDS], v[SUB][4][V_WORDS];
  auto load_k = [&](int step) {
#pragma unroll
    for (int u = 0; u < SUB; u++) {
      const auto row = row_of(step, u);
      load_k_row(k[u][0], k_cache + row(g), c);
      load_k_row(k[u][1], k_cache + row(g + 8), c);
    }
  };
  auto load_v = [&](int step) {
#pragma unroll
    for (int u = 0; u < SUB; u++) {
      const auto row = row_of(step, u);
#pragma unroll
      for (int i = 0; i < 4; i++) load_v_row(v[u][i], v_cache + row(2 * c + i % 2 + i / 2 * 8), g);
    }
  };

  // Of head g of each head tile; the sum is of this lane's tokens.
  float top[HEAD_TILES], scale[HEAD_TILES], sum[HEAD_TILES] = {}, out[OUTS][HEAD_TILES][4] = {};
#pragma unroll
  for (int h = 0; h < HEAD_TILES; h++) {
    top[h] = NEG_INF;
    scale[h] = SCALE * LOG2E * E4M3_HALF_UNIT * kv_scales[kv_head] * __uint_as_float((254 - field[h]) << 23);
  }

  // Takes the tile of a step from the registers and refills them. `more` is a constant at both calls: under a branch the
  // compiler would copy the loaded registers at its end, which waits for the loads.
  auto attend = [&](int step, bool more) __attribute__((always_inline)) {
    float s[SUB][2][4] = {}; // of 8 tokens: heads g (elements 0, 1) and g + 8 (2, 3) at tokens 2c and 2c + 1
#pragma unroll
    for (int i = 0; i < K_WORDS; i++) {
#if Q_SHARED
      u32 a[4] = {};
#pragma unroll
      for (int h = 0; h < HEAD_TILES; h++) {
        const u32 *from = (const u32 *)&q_shared[h][i / 2][lane] + i % 2 * 2;
        a[h] = from[0], a[h + 2] = from[1];
      }
#else
      const u32 a[4] = {qf[0][2 * i], HEAD_TILES > 1 ? qf[HEAD_TILES - 1][2 * i] : 0, qf[0][2 * i + 1],
                        HEAD_TILES > 1 ? qf[HEAD_TILES - 1][2 * i + 1] : 0};
#endif
#pragma unroll
      for (int u = 0; u < SUB; u++)
#pragma unroll
        for (int t = 0; t < 2; t++) {
          const u32 b[2] = {first_halves(k[u][t][i]), last_halves(k[u][t][i])};
          mma_16816(f16_t{}, s[u][t], a, b);
        }
    }
    if (more) {
      fetch_entries(step + 1);
      load_k(step + 1);
    }

    bool grows = false;
#pragma unroll
    for (int u = 0; u < SUB; u++) {
      const int left = end - start_of(step, u) - 2 * c; // tokens that exist, seen from this lane
#pragma unroll
      for (int t = 0; t < 2; t++)
#pragma unroll
        for (int e = 0; e < 2 * HEAD_TILES; e++) {
          // A step that another follows has all its tokens.
          s[u][t][e] = more || t * 8 + e % 2 < left ? s[u][t][e] * scale[e / 2] : NEG_INF;
          grows |= s[u][t][e] > top[e / 2] + LAZY;
        }
    }
    if (__any_sync(0xffffffffu, grows)) {
#pragma unroll
      for (int h = 0; h < HEAD_TILES; h++) {
        float m = top[h];
#pragma unroll
        for (int u = 0; u < SUB; u++)
#pragma unroll
          for (int t = 0; t < 2; t++) m = fmaxf(m, fmaxf(s[u][t][2 * h], s[u][t][2 * h + 1]));
        m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
        m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
        const float shrink = exp2_below(top[h], m);
        top[h] = m, sum[h] *= shrink;
#pragma unroll
        for (int j = 0; j < 2; j++) {
          const float r = __shfl_sync(0xffffffffu, shrink, (2 * c + j) * 4);
#pragma unroll
          for (int w = 0; w < OUTS; w++) out[w][h][j] *= r, out[w][h][j + 2] *= r;
        }
      }
    }
    u32 p[SUB][HEAD_TILES][2];
#pragma unroll
    for (int u = 0; u < SUB; u++)
#pragma unroll
      for (int t = 0; t < 2; t++)
#pragma unroll
        for (int h = 0; h < HEAD_TILES; h++) {
          const float least = top[h] - LARGER; // p is 2^LARGER where a score is the maximum
          const float p0 = exp2_approx(s[u][t][2 * h] - least), p1 = exp2_approx(s[u][t][2 * h + 1] - least);
          sum[h] += p0 + p1;
          p[u][h][t] = pack2(f16_t{}, p0, p1);
        }
#pragma unroll
    for (int u = 0; u < SUB; u++)
#pragma unroll
      for (int w = 0; w < V_WORDS; w++) {
        const u32 first[2] = {low_pairs(v[u][0][w], v[u][1][w]), low_pairs(v[u][2][w], v[u][3][w])};
        const u32 last[2] = {high_pairs(v[u][0][w], v[u][1][w]), high_pairs(v[u][2][w], v[u][3][w])};
        const u32 a[4] = {first_halves(first[0]), last_halves(first[0]), first_halves(first[1]), last_halves(first[1])};
        const u32 b[4] = {first_halves(last[0]), last_halves(last[0]), first_halves(last[1]), last_halves(last[1])};
#pragma unroll
        for (int h = 0; h < HEAD_TILES; h++) {
          mma_16816(f16_t{}, out[2 * w][h], a, p[u][h]);
          mma_16816(f16_t{}, out[2 * w + 1][h], b, p[u][h]);
        }
      }
    if (more) load_v(step + 1);
  };

  const int steps = (end - begin - warp * TILE + WARPS * TILE - 1) / (WARPS * TILE); // of this warp
  if (steps > 0) {
    load_k(0);
    load_v(0);
    for (int step = 0; step < steps - 1; step++) attend(step, true);
    attend(steps - 1, false);
  }

#if PDL
  pdl_launch(); // not at entry: blocks of the next grid would fill up the multiprocessors unevenly
#endif

  // Bring the warps to one maximum, then add them up in halves; a register's values lie in lane order.
  __shared__ float2 warp_ms[WARPS][HEADS_BLOCK];
  __shared__ float merge[WARPS > 1 ? WARPS / 2 : 1][OUTS * 4 * HEAD_TILES][32];
#pragma unroll
  for (int h = 0; h < HEAD_TILES; h++) {
    sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 1);
    sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 2);
    if (c == 0) warp_ms[warp][h * 8 + g] = make_float2(top[h], sum[h]);
  }
  __syncthreads();
  const float of_v = kv_scales[KV_HEADS + kv_head];
  float all_top[HEAD_TILES][2], all_sum[HEAD_TILES][2]; // of heads 2c and 2c + 1
#pragma unroll
  for (int h = 0; h < HEAD_TILES; h++)
#pragma unroll
    for (int j = 0; j < 2; j++) {
      const int head = h * 8 + 2 * c + j;
      float m = NEG_INF, total = 0.0f;
#pragma unroll
      for (int w = 0; w < WARPS; w++) m = fmaxf(m, warp_ms[w][head].x);
#pragma unroll
      for (int w = 0; w < WARPS; w++) {
        const float2 ms = warp_ms[w][head];
        total += ms.y * exp2_below(ms.x, m);
      }
      all_top[h][j] = m, all_sum[h][j] = total;
      // The unit first: a scale by it could be too much for a float.
      const float shrink = exp2_below(warp_ms[warp][head].x, m) * E4M3_HALF_UNIT;
#pragma unroll
      for (int w = 0; w < OUTS; w++) {
        out[w][h][j] = out[w][h][j] * shrink * of_v;
        out[w][h][j + 2] = out[w][h][j + 2] * shrink * of_v;
      }
    }
#pragma unroll
  for (int half = WARPS / 2; half > 0; half /= 2) {
    if (warp >= half && warp < 2 * half)
#pragma unroll
      for (int i = 0; i < OUTS * HEAD_TILES * 4; i++)
        merge[warp - half][i][lane] = out[i / 4 / HEAD_TILES][i / 4 % HEAD_TILES][i % 4];
    __syncthreads();
    if (warp < half)
#pragma unroll
      for (int i = 0; i < OUTS * HEAD_TILES * 4; i++)
        out[i / 4 / HEAD_TILES][i / 4 % HEAD_TILES][i % 4] += merge[warp][i][lane];
    if (half > 1) __syncthreads();
  }

  const int n = part_count(len);
  const partials part(workspace, batch * UNITS, batch, max_parts);
  if (warp == 0) {
#pragma unroll
    for (int h = 0; h < HEAD_TILES; h++)
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const int head = h * 8 + 2 * c + j;
        if (head >= heads) continue;
        if (n == 1) {
          const float inv = all_sum[h][j] > 0.0f ? 1.0f / all_sum[h][j] : 0.0f;
#pragma unroll
          for (int w = 0; w < OUTS; w++)
            store_pair(o + (head0 + head) * HEAD_DIM + out_dim(w, g), out[w][h][j] * inv, out[w][h][j + 2] * inv);
        } else {
          const i64 at = (head0 + head) * max_parts + split;
#pragma unroll
          for (int w = 0; w < OUTS; w++)
            *(float2 *)(part.out + at * HEAD_DIM + out_dim(w, g)) = make_float2(out[w][h][j], out[w][h][j + 2]);
          if (g == 0) part.max_sum[at] = make_float2(all_top[h][j], all_sum[h][j]);
        }
      }
  }
#if !COMBINE_LAUNCH
  if (n == 1) return;
  if (last_to_arrive(part.arrived + seq * UNITS + unit, n))
    combine<HEADS_USED>(part, o, head0, heads, n);
#endif
}

#if COMBINE_LAUNCH
// One block per query head of a sequence.
extern "C" __global__ void __launch_bounds__(THREADS) decode_combine_e4m3(const int *lens, elem *o, void *workspace, int batch,
                                                                     int max_parts) {
#if PDL
  pdl_launch();
  pdl_wait();
#endif
  const int n = part_count(lens[blockIdx.y]);
  if (n == 1) return;
  const partials part(workspace, batch * UNITS, batch, max_parts);
  combine<1>(part, o, (i64)blockIdx.y * HEADS + blockIdx.x, 1, n);
}
#endif
