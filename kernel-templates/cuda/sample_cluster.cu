// The next token of each row of logits, without log-probabilities of others. A row lies in the registers of a cluster's blocks, in the
// order of its indices: it is read once, and a step towards a threshold is a sum over them. See sampling.cuh for what is drawn.
#include "hopper.cuh"
#include "sampling.cuh"

#define WARPS (THREADS / 32)
#define VEC (16 / ELEM_BYTES)
#define CHUNK (THREADS * VEC) // what the block reads at once
#define CHUNKS ((COLS + CLUSTER * CHUNK - 1) / (CLUSTER * CHUNK))
#define ITEMS (CHUNKS * VEC)
#define ACCESS (COLS % VEC == 0 ? VEC : COLS % 4 == 0 ? 4 : COLS % 2 == 0 ? 2 : 1)

static_assert(WARPS >= PIVOTS && WARPS >= 2, "each of a step's sums has a warp");

#include "sample_candidate.cuh"
#include "sample_block.cuh"

// ---- over a cluster --------------------------------------------------------------------------------------------------
struct sum_of {
  static DEV u64 of(u64 a, u64 b) { return a + b; }
};
struct largest_of {
  static DEV u64 of(u64 a, u64 b) { return larger(a, b); }
};
template <class OP> DEV u64 over_warp(u64 v) {
#pragma unroll
  for (int o = 16; o > 0; o /= 2) v = OP::of(v, __shfl_xor_sync(0xffffffffu, v, o));
  return v;
}
DEV u64 remote(const u64 *p, int rank) {
  u64 v;
  asm volatile("ld.shared::cluster.u64 %0, [%1];" : "=l"(v) : "r"(cluster_map(smem_u32(p), rank)) : "memory");
  return v;
}
#define MOST_VALUES 3
// What the blocks tell each other. The one of two turns ago is read by nobody any more, since all have been at a barrier since.
struct told_t {
  u64 part[MOST_VALUES][WARPS], own[2][MOST_VALUES], all[CLUSTER > MOST_VALUES ? CLUSTER : MOST_VALUES];
};
template <class OP, int N> DEV void tell(told_t &t, u64 (&v)[N], int turn) {
#pragma unroll
  for (int n = 0; n < N; n++) {
    v[n] = over_warp<OP>(v[n]);
    if (lane_id() == 0) t.part[n][warp_id()] = v[n];
  }
  __syncthreads();
  if (warp_id() < N) {
    const u64 own = over_warp<OP>(lane_id() < WARPS ? t.part[warp_id()][lane_id()] : 0);
    if (lane_id() == 0) t.own[turn][warp_id()] = own;
  }
  __syncwarp(); // a warp arrives at the cluster's barrier as one
  cluster_sync();
}
// Of what all threads of the cluster have, in every thread; 0 changes no result.
template <class OP, int N> DEV void over_cluster(told_t &t, int &turn, u64 (&v)[N]) {
  static_assert(N <= MOST_VALUES, "a warp a value");
  tell<OP>(t, v, turn);
  if (warp_id() < N) {
    const u64 all = over_warp<OP>(lane_id() < CLUSTER ? remote(&t.own[turn][warp_id()], lane_id()) : 0);
    if (lane_id() == 0) t.all[warp_id()] = all;
  }
  __syncthreads();
#pragma unroll
  for (int n = 0; n < N; n++) v[n] = t.all[n];
  turn ^= 1;
}

// ---- a row -----------------------------------------------------------------------------------------------------------
struct place_t {
  int rank, index;
};

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
sample_cluster(const elem *x, const float *settings, const int *top_k, const u32 *seen, int *y, float *logprobs) {
  extern __shared__ u32 weights[]; // ITEMS of each thread, those of a warp side by side
  __shared__ told_t told;
  __shared__ int here;
  pdl_launch();
  pdl_wait();
  const int rank = cluster_rank(), first = rank * CHUNKS * CHUNK + threadIdx.x * VEC;
  row_t r = row_of(x, settings, top_k, seen, COLS, blockIdx.x / CLUSTER);
  int turn = 0;
  const auto index = [&](int i) { return first + i / VEC * CHUNK + i % VEC; };

  u32 keys[ITEMS], raw = 0;
  u64 best = 0;
#pragma unroll
  for (int i = 0; i < ITEMS; i += ACCESS) {
    const int at = index(i);
    vec<ACCESS> v;
    const bool some = at < COLS;
    if (some) v = *(const vec<ACCESS> *)(r.x + at);
#pragma unroll
    for (int j = 0; j < ACCESS; j++) {
      const float logit = some ? to_f32(v.v[j]) : __int_as_float(0x7fffffff), value = some ? penalised(r, at + j, logit) : logit;
      raw = max(raw, key_of(logit));
      keys[i + j] = key_of(value);
      if (keys[i + j] > (u32)(best >> 32)) best = candidate(value, at + j);
    }
  }
  u64 peaks[2] = {best, raw};
  over_cluster<largest_of>(told, turn, peaks);
  best = peaks[0];
  const float most = value_of((u32)peaks[1]);
  const u32 high = (u32)(best >> 32);
  const bool drawn = is_sampled(r) && high > KEY_LOW, cut = r.top_k > 0 || r.share < ALL;
  if (drawn) start(r, value_of(high));

  // The softmax of the logits in units of 2^-40, and the weights. Equals first: of infinities there is no difference. NaN is neither.
  float part = 0.0f;
  u64 sums[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < ITEMS; i++) {
    const u32 key = keys[i];
    const float value = value_of(key);
    float logit = value;
    bool some = key > 0;
    if (r.penalty != 1.0f) {
      some = index(i) < COLS;
      logit = some ? to_f32(r.x[index(i)]) : value;
      some = some && logit == logit;
    }
    if (some) part += logit == most ? 1.0f : exp2_approx((logit - most) * LOG2E);
    if (drawn) {
      const u32 w = key > 0 ? weight(r, value) : 0;
      weights[i * THREADS + threadIdx.x] = w;
      sums[1] += w;
    }
  }
  sums[0] = __float2ull_rn(part * 0x1p40f);
  over_cluster<sum_of>(told, turn, sums);
  const float log_sum = logf((float)sums[0] * 0x1p-40f);
  const auto weight_at = [&](int i) { return weights[i * THREADS + threadIdx.x]; };

  // Where the amounts so far, in the order of indices, exceed a target that may follow from their sum; its index in the block that has it.
  const auto first_beyond = [&](auto amount, auto target_of) -> place_t {
    u64 own[CHUNKS], all[1] = {0};
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
      own[c] = 0;
#pragma unroll
      for (int i = 0; i < VEC; i++) own[c] += amount(c * VEC + i);
      all[0] += own[c];
    }
    tell<sum_of>(told, all, turn);
    if ((int)threadIdx.x < CLUSTER) told.all[threadIdx.x] = remote(&told.own[turn][0], threadIdx.x);
    turn ^= 1;
    __syncthreads();
    u64 sum = 0;
    for (int s = 0; s < CLUSTER; s++) sum += told.all[s];
    u64 left = target_of(sum);
    int s = 0;
    for (; s < CLUSTER - 1 && told.all[s] <= left; s++) left -= told.all[s];
    if (s == rank) {
      bool found = false;
#pragma unroll
      for (int c = 0; c < CHUNKS; c++) {
        if (found) continue;
        u64 with;
        u64 before = block_scan(own[c], with);
        found = left < with;
        if (found && before <= left && left < before + own[c]) {
#pragma unroll
          for (int i = 0; i < VEC; i++) {
            const u64 a = amount(c * VEC + i);
            if (before <= left && left < before + a) here = index(c * VEC + i);
            before += a;
          }
        }
        if (!found) left -= with;
      }
      __syncthreads();
    }
    return place_t{s, here};
  };

  place_t token = {0, high > KEY_LOW ? index_of(best) : 0};
  if (drawn) {
    // Of values of 16 bits, and no other ones, the lower bits of a key follow from the upper ones.
    if (r.penalty == 1.0f && ELEM_BYTES == 2) {
#pragma unroll
      for (int i = 0; i < ITEMS; i++) keys[i] >>= UNIT;
    }
    const u32 top = r.penalty == 1.0f && ELEM_BYTES == 2 ? high >> UNIT : high;
    // The largest key from which on so many have come, or so much weight, where from `low` on there is that.
    const auto search = [&](bool by_weight, u32 low, u64 wanted) {
      u32 high = top;
#pragma unroll 1
      while (low < high) {
        const u32 step = (high - low) / (PIVOTS + 1) + 1;
        u64 v[PIVOTS];
#pragma unroll
        for (int p = 0; p < PIVOTS; p++) v[p] = 0;
#pragma unroll
        for (int i = 0; i < ITEMS; i++) {
          const u32 w = weight_at(i), a = by_weight ? w : w > 0;
#pragma unroll
          for (int p = 0; p < PIVOTS; p++) v[p] += keys[i] >= low + (p + 1) * step ? a : 0;
        }
        over_cluster<sum_of>(told, turn, v);
        u32 n = 0;
#pragma unroll
        for (int p = 0; p < PIVOTS; p++) n += v[p] >= wanted;
        if (n < PIVOTS) high = min(high, low + (n + 1) * step - 1);
        low += n * step;
      }
      return low;
    };
    // Keys from this one on are kept, those that are equal to it up to an index.
    u32 from = 0;
    int last = COLS;
    u64 sum = sums[1];
    if (r.top_k > 0) {
      u64 v[1] = {0};
#pragma unroll
      for (int i = 0; i < ITEMS; i++) v[0] += weight_at(i) > 0;
      over_cluster<sum_of>(told, turn, v);
      // Where there are fewer, all stay.
      if (v[0] >= r.top_k) {
        from = search(false, 0, r.top_k);
        v[0] = 0;
#pragma unroll
        for (int i = 0; i < ITEMS; i++) v[0] += keys[i] >= from ? weight_at(i) : 0;
        over_cluster<sum_of>(told, turn, v);
        sum = v[0];
      }
    }
    if (r.share < ALL) {
      const u64 wanted = needed(r, sum);
      from = search(true, from, wanted);
      u64 v[2] = {0, 0};
#pragma unroll
      for (int i = 0; i < ITEMS; i++) {
        const u32 w = weight_at(i);
        v[0] += keys[i] > from ? w : 0;
        v[1] += keys[i] == from ? w : 0;
      }
      over_cluster<sum_of>(told, turn, v);
      // Those that have the key weigh the same each; as many of them as are needed stay, the first by index.
      const u64 left = wanted - v[0];
      if (left < v[1]) {
        const place_t end = first_beyond([&](int i) -> u64 { return keys[i] == from ? weight_at(i) : 0; }, [&](u64) { return left - 1; });
        u64 v[1] = {rank == end.rank && threadIdx.x == 0 ? (u64)end.index : 0};
        over_cluster<largest_of>(told, turn, v);
        last = (int)v[0];
      }
    }
    token = first_beyond(
        [&](int i) -> u64 {
          const u32 w = weight_at(i);
          return w >= r.least && (keys[i] > from || (keys[i] == from && index(i) <= last)) ? w : 0;
        },
        [&](u64 all) { return target(r, all); });
  }
  if (rank == token.rank && threadIdx.x == 0) {
    const int row = blockIdx.x / CLUSTER;
    const float v = logit(r, token.index);
    y[row] = token.index;
    logprobs[row] = v == most ? -log_sum : v < most ? v - most - log_sum : NEG_INF;
  }
  __syncwarp();
  cluster_sync(); // others may still read what this block told
}
