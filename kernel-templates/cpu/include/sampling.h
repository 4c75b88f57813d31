// Sampling of a token from a row of logits, for any shape. A row is cut into parts of whole chunks. Each part is scanned for
// what it has of the largest values and of the softmax; then, of a row that is sampled, for the weights of its chunks; and at
// last one task looks for the row's thresholds, where it has any, and chooses its token.
//
// What is drawn is the same on every device: a weight is an integer that follows from its logit in f32 operations that are each
// rounded once (the templates compile with -ffp-contract=off), and integers alone decide. See src/problem/sample.rs.
#include "base.h"
#include "shuffle.h"
#include "vmath.h"

#define BANKS 4
#define LANES (BANKS * VL)
#define MOST_TOP 20
// Chunks of a row, at most; a chunk is whole words of flags.
#define CHUNKS 1024
// Bins of a level of the search for a threshold.
#define BINS 2048
// Largest values of as many pieces of a row: the k-th of them is not above the row's k-th value.
#define PEAKS 1024
#define LOW (-__builtin_inff())

// ---- values ----------------------------------------------------------------------------------------------------------
typedef struct {
  const elem *x;
  const uint32_t *seen;
  long cols, chunk;
  float temperature, penalty;
  uint64_t share;   // top_p in units of 2^-32; 2^32 keeps all
  uint32_t least;   // min_p in units of 2^-31
  uint32_t u;       // in units of 2^-24
  long top_k;       // 0 keeps all
  float most, scale; // of a row that is sampled: its largest value, and log2(e) / temperature
  uint32_t low, high; // keys below and above these need no look
} row_t;

INLINE row_t row_of(const jt_arg *args, long row) {
  long cols = args[8].i;
  const float *s = (const float *)args[1].p + row * 6;
  row_t r;
  r.x = (const elem *)args[0].p + row * cols;
  r.seen = (const uint32_t *)args[3].p + row * cdiv_l(cols, 32);
  r.cols = cols;
  r.chunk = align_l(max_l(cdiv_l(cols, CHUNKS), 1024), 64);
  r.temperature = s[0];
  r.share = s[1] < 1 ? s[1] > 0 ? (uint64_t)(s[1] * 4294967296.0f) : 0 : (uint64_t)1 << 32;
  r.least = s[2] > 0 ? (uint32_t)__builtin_ceilf((s[2] < 1 ? s[2] : 1) * 2147483648.0f) : 0;
  r.penalty = s[3];
  r.u = s[4] > 0 ? (uint32_t)(s[4] < 0x1.fffffep-1f ? s[4] * 16777216.0f : 16777215.0f) : 0;
  r.top_k = ((const int32_t *)args[2].p)[row];
  if (r.top_k < 0 || r.top_k >= cols) r.top_k = 0;
  return r;
}
INLINE int sampled(const row_t *r) { return r->temperature > 0; }

// VL logits from i on, -inf beyond the row.
INLINE vf logits(const row_t *r, long i) {
  float t[VL];
  if (i + VL <= r->cols) return load(r->x + i);
  for (int l = 0; l < VL; l++) t[l] = i + l < r->cols ? get(r->x + i + l) : LOW;
  return load_f32(t);
}
// The same after the penalty. i is a multiple of VL, which divides 32. Flags beyond the row are nobody's.
INLINE vf penalised(const row_t *r, long i, vf v) {
  if (r->penalty == 1 || i >= r->cols) return v;
  int32_t flags = (int32_t)(r->seen[i / 32] >> i % 32);
  long inside = min_l(VL, r->cols - i);
  if (inside < 32) flags &= (1 << inside % 32) - 1;
  if (flags == 0) return v;
  vi seen = ((flags >> (vi)IOTA) & 1) != 0;
  return pick(seen, pick(v > 0, v / r->penalty, v * r->penalty), v);
}
INLINE vf values(const row_t *r, long i) { return penalised(r, i, logits(r, i)); }

// A number in the order of the values, -0 as 0; NaN below all.
INLINE vu keys(vf v) {
  vi bits = (vi)(v + 0.0f), negative = bits >> 31;
  return (vu)((bits ^ (negative | INT32_MIN)) & (v == v));
}

// floor(2^(31 + z)) for z <= 0, nearly, in the steps of src/problem/sample.rs: 2^31 at 0, 1 at -31; nothing below and of NaN.
INLINE vu weigh(vf z) {
  const float shift = 12582912.0f;
  vi some = z >= -31.0f;
  z = pick(some, z, splat(0));
  vf n = (z + shift) - shift, f = z - n;
  vf p = f * 1.5353362e-4f + 1.3398874e-3f;
  p = p * f + 9.618437e-3f;
  p = p * f + 5.5503325e-2f;
  p = p * f + 2.4022648e-1f;
  p = p * f + 6.931472e-1f;
  p = p * f + 1.0f;
  vi q = __builtin_convertvector(p * 16777216.0f, vi), by = __builtin_convertvector(-n, vi);
  return (((vu)q << 7) >> (vu)by) & (vu)some;
}
INLINE vu weights(const row_t *r, vf v) { return weigh(pick(v == r->most, splat(0), (v - r->most) * r->scale)); }

// A bit for each lane of a mask.
#if defined(__AVX512F__) && SIMD == 64
#include <immintrin.h>
INLINE uint32_t lanes(vi mask) { return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask); }
#elif defined(__AVX2__) && SIMD == 32
#include <immintrin.h>
INLINE uint32_t lanes(vi mask) { return (uint32_t)_mm256_movemask_ps((__m256)mask); }
#else
INLINE uint32_t lanes(vi mask) {
  uint32_t bits = 0;
  UNROLL for (int l = 0; l < VL; l++) bits |= (uint32_t)(mask[l] & 1) << l;
  return bits;
}
#endif
// The lowest of some lanes, which leaves them.
INLINE int next_lane(uint32_t *bits) {
  int l = __builtin_ctz(*bits);
  *bits &= *bits - 1;
  return l;
}

// ---- first stage: the largest values of a part -----------------------------------------------------------------------
typedef struct {
  float value;
  int32_t index;
} best_t;
typedef struct {
  best_t best;    // the largest value after the penalty, the lowest index among equals
  float most;     // the largest logit
  int found;      // logits in `top`
  double sum;     // of exp(logit - most)
  best_t top[MOST_TOP];
  float peaks[PEAKS]; // of a row with top_k
} part_t;

INLINE int better(best_t a, best_t b) { return a.value > b.value || (a.value == b.value && a.index < b.index); }

// Puts a logit among the largest, which are in order, or leaves it.
static void insert(best_t *top, int *found, int most, best_t new) {
  int at = *found;
  if (at == most && !better(new, top[at - 1])) return;
  if (at < most) ++*found;
  else at--;
  for (; at > 0 && better(new, top[at - 1]); at--) top[at] = top[at - 1];
  top[at] = new;
}

// The sum of exp(logit - most); infinities are equal or nothing.
static double sum_exp(const row_t *r, long from, long to, float most) {
  vf sums[2] = {{0}, {0}};
  double sum = 0;
  if (!(__builtin_fabsf(most) < __builtin_inff())) {
    for (long i = from; i < to; i++) sum += get(r->x + i) == most;
    return sum;
  }
  for (long i = from; i < to; i += 2 * VL) {
    sums[0] += vexp(logits(r, i) - most);
    sums[1] += vexp(logits(r, i + VL) - most);
    // Some thousand terms a lane keep their small ones.
    if ((i - from) / (2 * VL) % 1024 == 1023) sum += sum_lanes(sums[0] + sums[1]), sums[0] = sums[1] = splat(0);
  }
  return sum + sum_lanes(sums[0] + sums[1]);
}

// The pieces of one part of `parts` are segments by lanes.
INLINE long segments(long parts) { return max_l(PEAKS / LANES / parts, 1); }

static void scan(const row_t *r, long from, long to, long parts, int top, part_t *part) {
  vf value[BANKS], raw[BANKS], peak[BANKS];
  vi index[BANKS], now[BANKS];
  long count = segments(parts), length = align_l(cdiv_l(to - from, count), LANES);
  UNROLL for (int b = 0; b < BANKS; b++) {
    value[b] = raw[b] = splat(LOW);
    now[b] = (vi)IOTA + (int32_t)(from + b * VL);
    index[b] = now[b];
  }
  for (long s = 0; s < count; s++) {
    UNROLL for (int b = 0; b < BANKS; b++) peak[b] = splat(LOW);
    for (long i = from + s * length, end = min_l(i + length, to); i < end; i += LANES) UNROLL for (int b = 0; b < BANKS; b++) {
      vf x = logits(r, i + b * VL), v = penalised(r, i + b * VL, x);
      raw[b] = vmax(x, raw[b]);
      peak[b] = vmax(v, peak[b]);
      vi more = v > value[b];
      value[b] = pick(more, v, value[b]);
      index[b] = (index[b] & ~more) | (now[b] & more);
      now[b] += LANES;
    }
    if (r->top_k > 0)
      for (int b = 0; b < BANKS; b++) store_f32(part->peaks + s * LANES + b * VL, peak[b]);
  }
  part->best = (best_t){LOW, INT32_MAX};
  part->most = LOW;
  float least = __builtin_inff();
  for (int b = 0; b < BANKS; b++)
    for (int l = 0; l < VL; l++) {
      best_t one = {value[b][l], index[b][l]};
      if (better(one, part->best)) part->best = one;
      part->most = raw[b][l] > part->most ? raw[b][l] : part->most;
      least = raw[b][l] < least ? raw[b][l] : least;
    }
  part->sum = sum_exp(r, from, to, part->most);
  part->found = 0;
  // Each lane has a logit that is not below the least of the lanes' largest, so where there are `top` lanes the others need no look.
  if (top > LANES) least = LOW;
  for (long i = from; top > 0 && i < to; i += VL) {
    vf x = logits(r, i);
    uint32_t bits = lanes(x >= least);
    while (bits) {
      int l = next_lane(&bits);
      if (i + l < to) insert(part->top, &part->found, top, (best_t){x[l], (int32_t)(i + l)});
    }
    if (part->found == top && part->top[top - 1].value > least) least = part->top[top - 1].value;
  }
}

// What the parts of a row have together, but for peaks.
INLINE void gather(const part_t *parts, long count, part_t *all) {
  all->best = (best_t){LOW, INT32_MAX};
  all->most = LOW, all->sum = 0, all->found = 0;
  for (const part_t *p = parts; p < parts + count; p++) {
    if (better(p->best, all->best)) all->best = p->best;
    all->most = p->most > all->most ? p->most : all->most;
  }
  for (const part_t *p = parts; p < parts + count; p++)
    all->sum += p->most == all->most ? p->sum : p->sum * __builtin_exp((double)p->most - all->most);
}

// ---- second stage: weights -------------------------------------------------------------------------------------------
INLINE void start(row_t *r, float most) {
  r->most = most;
  r->scale = 1.44269504f / r->temperature;
  r->low = 1, r->high = keys(splat(most))[0];
}

// A threshold: which keys are kept, and up to which index those that are equal to the last.
typedef struct {
  uint32_t key;
  int32_t last;
} threshold_t;
#define EVERYTHING ((threshold_t){0, -1})

// The weights from i on, of what is kept.
INLINE vu kept_weights(const row_t *r, long i, threshold_t t) {
  vf v = values(r, i);
  vu key = keys(v);
  vi kept = (key > t.key) | ((key == t.key) & ((vi)IOTA <= (int32_t)(t.last - i)));
  if (!lanes(kept)) return (vu){0};
  vu w = weights(r, v);
  return w & (vu)kept & (vu)(w >= r->least);
}
// Their sum.
static uint64_t sum_weights(const row_t *r, long from, long to, threshold_t t) {
  vu low = {0}, high = {0};
  uint64_t sum = 0;
  for (long i = from, n = 1; i < to; i += VL, n++) {
    vu w = kept_weights(r, i, t);
    low += w & 0xffff;
    high += w >> 16;
    // So many have room in 32 bits.
    if (n % 65536 == 0 || i + VL >= to) {
      for (int l = 0; l < VL; l++) sum += low[l] + ((uint64_t)high[l] << 16);
      low = high = (vu){0};
    }
  }
  return sum;
}
static void sum_chunks(const row_t *r, long from, long to, threshold_t t, uint64_t *chunks) {
  for (long i = from; i < to; i += r->chunk) chunks[i / r->chunk] = sum_weights(r, i, min_l(i + r->chunk, to), t);
}
INLINE uint64_t add(const row_t *r, const uint64_t *chunks) {
  uint64_t sum = 0;
  for (long i = 0; i < cdiv_l(r->cols, r->chunk); i++) sum += chunks[i];
  return sum;
}

// ---- third stage: the token ------------------------------------------------------------------------------------------
// Two of each, for even and odd lanes: neighbours often meet in a bin, and one need not wait for the other.
typedef struct {
  uint32_t count[2][BINS];
  uint64_t sum[2][BINS];
} bins_t;

// Adds the weights of the keys from `low` to `high` in bins of 2^shift keys, and counts them where that is asked for. What weighs
// nothing is not counted: it comes after all that counts.
INLINE void fill_bins(const row_t *r, int counted, uint32_t low, uint32_t high, int shift, bins_t *bins) {
  memset(bins, 0, sizeof(bins_t));
  for (long i = 0; i < r->cols; i += VL) {
    vf v = values(r, i);
    vu place = keys(v) - low;
    vi mine = place <= high - low;
    if (!lanes(mine)) continue;
    vu w = weights(r, v) & (vu)mine, bin = (place >> shift) & (BINS - 1);
    uint32_t at[VL], weight[VL], some = lanes((vi)(w > 0));
    memcpy(at, &bin, SIMD);
    memcpy(weight, &w, SIMD);
    if (__builtin_popcount(some) * 4 > VL) {
      UNROLL for (int l = 0; l < VL; l++) {
        if (counted) bins->count[l % 2][at[l]] += weight[l] > 0;
        bins->sum[l % 2][at[l]] += weight[l];
      }
    } else
      while (some) {
        int l = next_lane(&some);
        if (counted) bins->count[0][at[l]]++;
        bins->sum[0][at[l]] += weight[l];
      }
  }
}

typedef struct {
  uint32_t key;         // the largest one at which enough has come
  uint64_t sum;         // the weight of those that have it
  uint64_t above, left; // the weight above it, and what is still needed
} found_t;

// Goes down the keys until so many have come, or so much weight; false where there is less.
static int descend(const row_t *r, int by_weight, uint64_t needed, found_t *f) {
  bins_t b;
  uint32_t low = r->low, high = r->high;
  *f = (found_t){.left = needed};
  for (;;) {
    int shift = 0;
    while ((high - low) >> shift >= BINS) shift++;
    if (by_weight) fill_bins(r, 0, low, high, shift, &b);
    else fill_bins(r, 1, low, high, shift, &b);
    long at = (high - low) >> shift;
    for (; at >= 0; at--) {
      f->sum = b.sum[0][at] + b.sum[1][at];
      uint64_t amount = by_weight ? f->sum : b.count[0][at] + b.count[1][at];
      if (amount >= f->left) break;
      f->left -= amount;
      f->above += f->sum;
    }
    if (at < 0) return 0;
    low += (uint32_t)at << shift;
    f->key = low;
    if (shift == 0) return 1;
    high = low + (uint32_t)min_l(high - low, ((long)1 << shift) - 1);
  }
}

// The k-th key of the peaks, of a row with top_k: as many of its keys are not below it. 0 where there are fewer peaks.
static uint32_t floor_of_top(const row_t *r, const part_t *parts, long count) {
  uint32_t floor = 0;
  for (uint32_t bit = 1u << 31; bit; bit >>= 1) {
    long n = 0;
    for (const part_t *p = parts; p < parts + count; p++) {
      vi reach = {0};
      for (long i = 0; i < segments(count) * LANES; i += VL) reach -= keys(load_f32(p->peaks + i)) >= (floor | bit);
      for (int l = 0; l < VL; l++) n += reach[l];
    }
    if (n >= r->top_k) floor |= bit;
  }
  return floor;
}

// A key that no token of the nucleus is below, for all weights' sum: what weighs less than an equal share of the rest adds up to
// less than the rest. In floats, so with some room.
static uint32_t floor_of_nucleus(const row_t *r, uint64_t weight) {
  double share = (1 - (double)r->share * 0x1p-32) * (double)weight / (double)r->cols * 0x1p-31;
  if (!(share > 0x1p-31)) return 1;
  double z = __builtin_log2(share) - 0.01, v = r->most + z / r->scale;
  float low = (float)(v - __builtin_fabs(v) * 0x1p-20);
  return low <= r->most ? max_l(keys(splat(low))[0], 1) : 1;
}

// Which of the row's tokens are kept by top_k and top_p. `chunks` has the weights of a row without top_k.
static threshold_t threshold(row_t *r, const part_t *parts, long count, const uint64_t *chunks) {
  threshold_t t = EVERYTHING;
  uint64_t weight = 0;
  found_t f;
  if (r->top_k > 0) {
    r->low = (uint32_t)max_l(floor_of_top(r, parts, count), 1);
    // Those that are equal to the last stay; where there are fewer, all do.
    int some = descend(r, 0, (uint64_t)r->top_k, &f);
    weight = f.above + (some ? f.sum : 0);
    if (some) t.key = f.key - 1, r->low = f.key;
  } else {
    weight = add(r, chunks);
    r->low = floor_of_nucleus(r, weight);
  }
  if (r->share == (uint64_t)1 << 32) return t;
  uint64_t low = weight & 0xffffffff, needed = (weight >> 32) * r->share + ((low * r->share + 0xffffffff) >> 32);
  if (!descend(r, 1, needed > 0 ? needed : 1, &f)) return t;
  // Those that have the key weigh the same each; as many of them as are needed stay, the first by index.
  t = (threshold_t){f.key - 1, -1};
  if (f.left == f.sum) return t;
  t.key = f.key;
  uint64_t left = f.left;
  for (long i = 0; i < r->cols; i += VL) {
    vf v = values(r, i);
    uint32_t equal = lanes(keys(v) == f.key);
    while (equal) {
      int l = next_lane(&equal);
      uint64_t each = weights(r, v)[l];
      t.last = (int32_t)(i + l);
      if (left <= each) return t;
      left -= each;
    }
  }
  return t;
}

// Whether thresholds are looked for.
INLINE int cut(const row_t *r) { return r->top_k > 0 || r->share < (uint64_t)1 << 32; }

// The token of a row that is sampled. `chunks` has its weights, where it is without top_k.
static int32_t choose(row_t *r, const part_t *parts, long parts_count, uint64_t *chunks) {
  threshold_t t = EVERYTHING;
  long count = cdiv_l(r->cols, r->chunk), at = 0;
  if (cut(r)) {
    t = threshold(r, parts, parts_count, chunks);
    sum_chunks(r, 0, r->cols, t, chunks);
  }
  uint64_t sum = add(r, chunks);
  uint64_t target = (sum >> 24) * r->u + ((sum & 0xffffff) * r->u >> 24);
  for (; at + 1 < count && chunks[at] <= target; at++) target -= chunks[at];
  for (long i = at * r->chunk; i < r->cols; i += VL) {
    vu w = kept_weights(r, i, t);
    for (int l = 0; l < VL; l++) {
      if (w[l] > target) return (int32_t)(i + l);
      target -= w[l];
    }
  }
  return 0; // not reached: the weights add up to more than the target
}

// ln of the probability of a logit, -inf of NaN. Equals first: of infinities there is no difference.
INLINE float logprob(float v, float most, double log_sum) {
  return v == most ? (float)-log_sum : v < most ? (float)((double)v - most - log_sum) : LOW;
}

// Writes what a row gives: its token, log-probabilities, and the ids of the largest logits.
static void finish(const jt_arg *args, long row, const row_t *r, const part_t *all, int32_t token) {
  long top = args[10].i, found = all->found;
  float *logprobs = (float *)args[5].p + row * (1 + top);
  int32_t *ids = (int32_t *)args[6].p + row * top;
  double log_sum = __builtin_log(all->sum);
  ((int32_t *)args[4].p)[row] = token;
  logprobs[0] = logprob(get(r->x + token), all->most, log_sum);
  for (long i = 0; i < found; i++) {
    ids[i] = all->top[i].index;
    logprobs[1 + i] = logprob(all->top[i].value, all->most, log_sum);
  }
  // Where the others are NaN, the first of those.
  for (long c = 0; found < top && c < r->cols; c++) {
    float v = get(r->x + c);
    if (v != v) ids[found] = (int32_t)c, logprobs[++found] = LOW;
  }
}

// ---- tasks -----------------------------------------------------------------------------------------------------------
// args: x, settings, top_k, seen, y, logprobs, ids, workspace, cols, parts, top.
// The workspace of a row: its parts, then the weights of its chunks.
INLINE part_t *parts_of(const jt_arg *args, long row) {
  long bytes = args[9].i * (long)sizeof(part_t) + CHUNKS * 8;
  return (part_t *)((char *)args[7].p + row * bytes);
}
INLINE long part_length(const row_t *r, long parts) { return align_l(cdiv_l(r->cols, parts), r->chunk); }

// Task: a part of a row.
void cpu_sample_scan(const jt_arg *args, long task, long tasks) {
  long parts = args[9].i, row = task / parts, part = task % parts;
  row_t r = row_of(args, row);
  long to = min_l((part + 1) * part_length(&r, parts), r.cols), from = min_l(part * part_length(&r, parts), to);
  (void)tasks;
  scan(&r, from, to, parts, (int)args[10].i, parts_of(args, row) + part);
}

// The weights of a part's chunks; min_p comes after top_p.
INLINE void weigh_part(row_t r, long from, long to, uint64_t *chunks) {
  if (cut(&r)) r.least = 0;
  if (r.top_k == 0) sum_chunks(&r, from, to, EVERYTHING, chunks);
}

// Task: a part of a row.
void cpu_sample_weigh(const jt_arg *args, long task, long tasks) {
  long parts = args[9].i, row = task / parts, part = task % parts;
  row_t r = row_of(args, row);
  part_t *p = parts_of(args, row);
  float most = LOW;
  (void)tasks;
  for (long i = 0; i < parts; i++) most = p[i].best.value > most ? p[i].best.value : most;
  if (!sampled(&r) || most == LOW) return;
  start(&r, most);
  long to = min_l((part + 1) * part_length(&r, parts), r.cols), from = min_l(part * part_length(&r, parts), to);
  weigh_part(r, from, to, (uint64_t *)(p + parts));
}

// Task: a row.
void cpu_sample_choose(const jt_arg *args, long task, long tasks) {
  long parts = args[9].i;
  row_t r = row_of(args, task);
  part_t *p = parts_of(args, task), all;
  gather(p, parts, &all);
  (void)tasks;
  for (long i = 0; i < parts; i++)
    for (int t = 0; t < p[i].found; t++) insert(all.top, &all.found, (int)args[10].i, p[i].top[t]);
  int32_t token = all.best.value > LOW ? all.best.index : 0;
  if (sampled(&r) && all.best.value > LOW) {
    start(&r, all.best.value);
    token = choose(&r, p, parts, (uint64_t *)(p + parts));
  }
  finish(args, task, &r, &all, token);
}

// Task: a row, where it has one part.
void cpu_sample_row(const jt_arg *args, long task, long tasks) {
  row_t r = row_of(args, task);
  part_t all;
  (void)tasks;
  scan(&r, 0, r.cols, 1, (int)args[10].i, &all);
  int32_t token = all.best.value > LOW ? all.best.index : 0;
  if (sampled(&r) && all.best.value > LOW) {
    uint64_t chunks[CHUNKS];
    start(&r, all.best.value);
    weigh_part(r, 0, r.cols, chunks);
    token = choose(&r, &all, 1, chunks);
  }
  finish(args, task, &r, &all, token);
}
