// Sampling of a token from a row of logits, for any shape, in three launches. SPLITS blocks of a row find what each has of the
// largest values and of the softmax; then, of a row that is sampled, the weights of theirs; and at last one block a row looks for
// the row's thresholds, where it has any, and chooses its token. Sums of integers do not depend on who adds them.
#include "sampling.cuh"

#define WARPS (THREADS / 32)
#define MOST_TOP 20
#define MOST_SPLITS 32
#define BINS 2048

static_assert(THREADS % 64 == 0 && BINS % THREADS == 0, "a range halves, and bins are spread evenly");

// What a block has of its row. A candidate is its key above the complement of its index: the larger one has the larger value,
// or the lower index. 0 is none.
struct split_t {
  u64 best;
  u64 weight;
  float most, sum; // of the logits: the largest, and the sum of exp(logit - most)
  u64 top[MOST_TOP];
};
#include "sample_candidate.cuh"

// The workspace: what each block of each row has, then the largest key of each of their threads.
DEV split_t *splits_of(void *workspace, int splits, int row) { return (split_t *)workspace + (i64)row * splits; }
DEV u32 *peaks_of(void *workspace, int rows, int splits, int row) {
  return (u32 *)((split_t *)workspace + (i64)rows * splits) + (i64)row * splits * THREADS;
}

#include "sample_block.cuh"

// The first index of a range with which the amounts so far exceed a target, which may follow from their sum. All amounts are
// added once; then the piece of one warp is shared by all, until it is a warp's width.
template <class AMOUNT, class TARGET> DEV int first_beyond(int from, int to, AMOUNT amount, TARGET target_of) {
  __shared__ u64 sums[WARPS];
  u64 left = 0;
  bool known = false;
  do {
    const int piece = cdiv(cdiv(to - from, WARPS), 32) * 32;
    const int low = from + warp_id() * piece, high = min(low + piece, to);
    u64 sum = 0;
#pragma unroll 4
    for (int i = low + lane_id(); i < high; i += 32) sum += amount(i);
#pragma unroll
    for (int o = 16; o > 0; o /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, o);
    __syncthreads();
    if (lane_id() == 0) sums[warp_id()] = sum;
    __syncthreads();
    if (!known) {
#pragma unroll 4
      for (int w = 0; w < WARPS; w++) left += sums[w];
      left = target_of(left);
      known = true;
    }
    int w = 0;
#pragma unroll 4
    for (; w < WARPS - 1 && sums[w] <= left; w++) left -= sums[w];
    from += w * piece;
    to = min(from + piece, to);
  } while (to - from > 32);
  const int i = from + lane_id();
  const u32 beyond = __ballot_sync(0xffffffffu, warp_scan(i < to ? amount(i) : 0) > left);
  return beyond ? from + __ffs(beyond) - 1 : 0;
}

// ---- thresholds ------------------------------------------------------------------------------------------------------
// Which keys are kept, and up to which index those that are equal to the last.
struct threshold_t {
  u32 key;
  int last;
};
DEV u64 kept(const row_t &r, int i, threshold_t t) {
  const float v = value(r, i);
  const u32 key = key_of(v), w = weight(r, v);
  const bool in = key > t.key || (key == t.key && i <= t.last);
  return in && w >= r.least ? w : 0;
}
#define EVERYTHING threshold_t{0, -1}

struct found_t {
  u32 key;         // the largest one at which enough has come
  u64 sum;         // the weight of those that have it
  u64 above, left; // the weight above it, and what is still needed
};

// Goes down from the key `high` until so many have come, or so much weight. Where there is less down to `low` it says so, and
// `above` is the weight of all. What weighs nothing is not counted: it comes after all that counts.
DEV bool descend(const row_t &r, bool by_weight, u32 low, u32 high, u64 wanted, found_t &f) {
  // Sums of 64 bits in two words, since shared memory adds 32 at a time.
  __shared__ u32 count[BINS], sum[BINS], carry[BINS];
  __shared__ u32 chosen;
  __shared__ found_t at;
  f = found_t{0, 0, 0, wanted};
  for (;;) {
    int shift = 0;
    while ((high - low) >> shift >= BINS) shift++;
    __syncthreads();
    for (int i = threadIdx.x; i < BINS; i += THREADS) count[i] = sum[i] = carry[i] = 0;
    if (threadIdx.x == 0) chosen = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < r.cols; i += 4 * THREADS) {
      // All on their way before the first is used. NaN is in no bin.
      float v[4];
#pragma unroll
      for (int j = 0; j < 4; j++) v[j] = i + j * THREADS < r.cols ? value(r, i + j * THREADS) : __int_as_float(0x7fffffff);
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const u32 place = key_of(v[j]) - low;
        if (place > high - low) continue;
        const u32 w = weight(r, v[j]), bin = place >> shift;
        if (w == 0) continue;
        if (!by_weight) atomicAdd(&count[bin], 1u);
        const u32 before = atomicAdd(&sum[bin], w);
        if (before + w < before) atomicAdd(&carry[bin], 1u);
      }
    }
    __syncthreads();
    // Thread 0 has the highest bins.
    const int each = BINS / THREADS, first = BINS - 1 - (int)threadIdx.x * each;
    u64 weights = 0, amount = 0, all;
    for (int b = first; b > first - each; b--) {
      const u64 w = (u64)carry[b] << 32 | sum[b];
      weights += w;
      amount += by_weight ? w : count[b];
    }
    const u64 before = block_scan(amount, all), above = block_scan(weights, all);
    if (before < f.left && before + amount >= f.left) {
      found_t mine = {0, 0, f.above + above, f.left - before};
      for (int b = first;; b--) {
        mine.sum = (u64)carry[b] << 32 | sum[b];
        const u64 has = by_weight ? mine.sum : count[b];
        mine.key = low + ((u32)b << shift);
        if (has >= mine.left) break;
        mine.left -= has;
        mine.above += mine.sum;
      }
      at = mine;
      chosen = 1;
    }
    __syncthreads();
    if (!chosen) {
      f.above = all;
      return false;
    }
    f = at;
    low = f.key;
    if (shift == 0) return true;
    high = low + min(high - low, (1u << shift) - 1);
  }
}

// The k-th key of the threads' largest, of a row with top_k: as many of its keys are not below it. 0 where there are fewer.
DEV u32 floor_of_top(const row_t &r, const u32 *peaks, int splits) {
  u32 mine[4] = {0, 0, 0, 0}, floor = 0;
#pragma unroll 4
  for (int s = 0; s < splits; s += 4)
#pragma unroll
    for (int j = 0; j < 4; j++)
      if (s + j < splits) mine[j] = max(mine[j], peaks[(s + j) * THREADS + threadIdx.x]);
  for (u32 bit = 1u << 31; bit; bit >>= 1) {
    int n = 0;
#pragma unroll
    for (int j = 0; j < 4; j++) n += __syncthreads_count(mine[j] >= (floor | bit));
    if (n >= r.top_k) floor |= bit;
  }
  return floor;
}

// A key that no token of the nucleus is below, for all weights' sum: what weighs less than an equal share of the rest adds up to
// less than the rest. In floats, so with some room.
DEV u32 floor_of_nucleus(const row_t &r, u64 sum) {
  const float share = (float)((ALL - r.share) >> 8) * 0x1p-24f * ((float)sum * 0x1p-31f) / (float)r.cols;
  if (!(share > 0x1p-31f)) return 1;
  const float v = r.most + (log2f(share) - 0.01f) / r.scale, low = v - (fabsf(v) + fabsf(r.most)) * 0x1p-18f;
  return low <= r.most ? max(key_of(low), 1u) : 1;
}

// Which of the row's tokens are kept by top_k and top_p. `sum` is the weight of a row without top_k.
DEV threshold_t threshold(const row_t &r, const u32 *peaks, int splits, u64 sum) {
  threshold_t t = EVERYTHING;
  found_t f;
  u32 low = r.top_k > 0 ? max(floor_of_top(r, peaks, splits), 1u) : floor_of_nucleus(r, sum);
#pragma unroll 1
  for (int by_weight = r.top_k == 0; by_weight < 2; by_weight++) {
    if (by_weight && r.share == ALL) return t;
    const bool some = descend(r, by_weight, low, key_of(r.most), by_weight ? needed(r, sum) : r.top_k, f);
    if (by_weight && !some) return t;
    if (by_weight) break;
    // Those that are equal to the k-th stay; where there are fewer, all do.
    sum = f.above + (some ? f.sum : 0);
    if (some) t.key = f.key - 1, low = f.key;
  }
  // Those that have the key weigh the same each; as many of them as are needed stay, the first by index.
  t = threshold_t{f.key - 1, -1};
  if (f.left == f.sum) return t;
  t.last = first_beyond(
      0, r.cols,
      [&](int i) -> u64 {
        const float v = value(r, i);
        return key_of(v) == f.key ? weight(r, v) : 0;
      },
      [&](u64) { return f.left - 1; });
  t.key = f.key;
  return t;
}

// ---- kernels ---------------------------------------------------------------------------------------------------------
// Indices of each block of a row.
DEV int share_of(int cols, int splits) { return cdiv(cdiv(cols, splits), 32) * 32; }
DEV bool is_cut(const row_t &r) { return r.top_k > 0 || r.share < ALL; }

extern "C" __global__ void __launch_bounds__(THREADS)
sample_scan(const elem *x, const float *settings, const int *top_k, const u32 *seen, void *workspace, int rows, int cols, int splits,
            int top) {
  pdl_launch();
  pdl_wait();
  const int row = blockIdx.x / splits, split = blockIdx.x % splits;
  const row_t r = row_of(x, settings, top_k, seen, cols, row);
  const int from = min(split * share_of(cols, splits), cols), to = min(from + share_of(cols, splits), cols);
  split_t &mine = splits_of(workspace, splits, row)[split];
  u64 best = 0, likeliest = 0;
#pragma unroll 4
  for (int i = from + threadIdx.x; i < to; i += THREADS) {
    const float v = logit(r, i);
    likeliest = larger(likeliest, candidate(v, i));
    best = larger(best, candidate(penalised(r, i, v), i));
  }
  if (r.top_k > 0) peaks_of(workspace, rows, splits, row)[split * THREADS + threadIdx.x] = (u32)(best >> 32);
  best = block_max(best);
  likeliest = block_max(likeliest);
  const float most = value_of((u32)(likeliest >> 32));
  float sum = 0.0f;
  for (int i = from + threadIdx.x; i < to; i += THREADS) {
    const float v = logit(r, i);
    // Equals first: of infinities there is no difference. NaN is neither.
    sum += v == most ? 1.0f : v < most ? exp2_approx((v - most) * LOG2E) : 0.0f;
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) mine.best = best, mine.most = most, mine.sum = sum;
  for (int n = 0; n < top; n++) {
    if (threadIdx.x == 0) mine.top[n] = likeliest;
    // Those after it, where there are any.
    u64 next = 0;
    for (int i = from + threadIdx.x; i < to; i += THREADS) {
      const u64 c = candidate(logit(r, i), i);
      if (c < likeliest) next = larger(next, c);
    }
    likeliest = block_max(next);
  }
}

// The largest of a row.
DEV u64 best_of(const split_t *list, int splits) {
  return block_max((int)threadIdx.x < splits ? list[threadIdx.x].best : 0);
}

// Of a row that is sampled without top_k: min_p comes after top_p.
extern "C" __global__ void __launch_bounds__(THREADS)
sample_weigh(const elem *x, const float *settings, const int *top_k, const u32 *seen, void *workspace, int cols, int splits) {
  pdl_launch();
  pdl_wait();
  const int row = blockIdx.x / splits, split = blockIdx.x % splits;
  row_t r = row_of(x, settings, top_k, seen, cols, row);
  if (!is_sampled(r) || r.top_k > 0) return;
  split_t *list = splits_of(workspace, splits, row);
  const u32 high = (u32)(best_of(list, splits) >> 32);
  if (high <= KEY_LOW) return;
  start(r, value_of(high));
  if (is_cut(r)) r.least = 0;
  const int from = min(split * share_of(cols, splits), cols), to = min(from + share_of(cols, splits), cols);
  u64 sum = 0, all;
#pragma unroll 4
  for (int i = from + threadIdx.x; i < to; i += THREADS) sum += kept(r, i, EVERYTHING);
  block_scan(sum, all);
  if (threadIdx.x == 0) list[split].weight = all;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
sample_choose(const elem *x, const float *settings, const int *top_k, const u32 *seen, int *y, float *logprobs, int *ids, void *workspace,
              int rows, int cols, int splits, int top) {
  pdl_launch();
  pdl_wait();
  const int row = blockIdx.x, share = share_of(cols, splits), lane = lane_id();
  row_t r = row_of(x, settings, top_k, seen, cols, row);
  const split_t *list = splits_of(workspace, splits, row);
  const bool mine = (int)threadIdx.x < splits;
  const u64 best = best_of(list, splits);
  const u32 high = (u32)(best >> 32);
  int token = high > KEY_LOW ? index_of(best) : 0;
  if (is_sampled(r) && high > KEY_LOW) {
    start(r, value_of(high));
    threshold_t t = EVERYTHING;
    u64 sum = 0, left = 0;
    int from = 0, to = cols;
    if (r.top_k == 0) block_scan(mine ? list[threadIdx.x].weight : 0, sum);
    if (is_cut(r))
      t = threshold(r, peaks_of(workspace, rows, splits, row), splits, sum);
    else {
      // The block whose tokens the target is among.
      left = target(r, sum);
      int s = 0;
      for (; s < splits - 1 && list[s].weight <= left; s++) left -= list[s].weight;
      from = min(s * share, cols), to = min(from + share, cols);
    }
    const bool cut = is_cut(r);
    token = first_beyond(from, to, [&](int i) -> u64 { return kept(r, i, t); }, [&](u64 all) { return cut ? target(r, all) : left; });
  }
  // The softmax of all blocks' logits.
  const float least = mine ? list[threadIdx.x].most : NEG_INF;
  const float most = value_of((u32)(block_max((u64)key_of(least) << 32) >> 32));
  float sum = 0.0f;
  if (mine) sum = list[threadIdx.x].sum * (least == most ? 1.0f : exp2_approx((least - most) * LOG2E));
  const float log_sum = logf(block_sum(sum));
  if (warp_id() > 0) return;
  // Equals first: of infinities there is no difference. NaN is neither.
  auto logprob = [&](float v) { return v == most ? -log_sum : v < most ? v - most - log_sum : NEG_INF; };
  if (lane == 0) {
    y[row] = token;
    logprobs[(i64)row * (1 + top)] = logprob(logit(r, token));
  }
  // A lane has a block's list, which is in order: the largest of those at hand comes next.
  int at = 0;
  for (int n = 0; n < top; n++) {
    const u64 own = lane < splits && at < top ? list[lane].top[at] : 0;
    u64 next = own;
#pragma unroll
    for (int o = 16; o > 0; o /= 2) next = larger(next, __shfl_xor_sync(0xffffffffu, next, o));
    if (own == next) {
      // Indices differ, so one lane alone has it; but of nothing all have some.
      at++;
      if (next > 0) {
        ids[(i64)row * top + n] = index_of(next);
        logprobs[(i64)row * (1 + top) + 1 + n] = logprob(logit(r, index_of(next)));
      }
    }
  }
}
