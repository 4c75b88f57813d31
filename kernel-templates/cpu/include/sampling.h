// Sampling of a token from a row of logits, for any shape. A row is cut into parts of whole chunks. Each part is scanned for
// what it has of the largest values and of the softmax; then, of a row that is sampled, for the weights of its chunks, or for a
// histogram of them where a threshold is looked for; and at last the row's token is chosen by one task.
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
// Bins of a level of the search for a threshold: of the 32 bits of a key the levels take 11, 11 and 10.
#define BINS 2048
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
  float most, scale, floor; // of a row that is sampled: its largest value, log2(e) / temperature, and what the top_k are not below
} row_t;

INLINE row_t row_of(const jt_arg *args, long row) {
  long cols = args[8].i;
  const float *s = (const float *)args[1].p + row * 6;
  row_t r = {(const elem *)args[0].p + row * cols, (const uint32_t *)args[3].p + row * cdiv_l(cols, 32), cols};
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
// The same after the penalty. i is a multiple of VL, which divides 32.
INLINE vf penalised(const row_t *r, long i, vf v) {
  if (r->penalty == 1 || i >= r->cols) return v;
  int32_t flags = (int32_t)(r->seen[i / 32] >> i % 32);
  if (VL < 32) flags &= (1 << VL % 32) - 1;
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

INLINE int any(vi mask) {
  uint64_t m[SIMD / 8], all = 0;
  memcpy(m, &mask, SIMD);
  UNROLL for (int i = 0; i < SIMD / 8; i++) all |= m[i];
  return all != 0;
}

// ---- first stage: the largest values of a part -----------------------------------------------------------------------
typedef struct {
  float value;
  int32_t index;
} best_t;
typedef struct {
  best_t best;    // the largest value after the penalty, the lowest index among equals
  float floor;    // at least LANES values of the part are not below it
  float most;     // the largest logit
  double sum;     // of exp(logit - most)
  int found;      // logits in `top`
  best_t top[MOST_TOP];
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

static void scan(const row_t *r, long from, long to, int top, part_t *part) {
  vf value[BANKS], raw[BANKS];
  vi index[BANKS], now[BANKS];
  UNROLL for (int b = 0; b < BANKS; b++) {
    value[b] = raw[b] = splat(LOW);
    now[b] = (vi)IOTA + (int32_t)(from + b * VL);
    index[b] = now[b];
  }
  for (long i = from; i < to; i += LANES) UNROLL for (int b = 0; b < BANKS; b++) {
    vf x = logits(r, i + b * VL), v = penalised(r, i + b * VL, x);
    raw[b] = vmax(x, raw[b]);
    vi more = v > value[b];
    value[b] = pick(more, v, value[b]);
    index[b] = (index[b] & ~more) | (now[b] & more);
    now[b] += LANES;
  }
  part->best = (best_t){LOW, INT32_MAX};
  part->floor = __builtin_inff();
  part->most = LOW;
  float least = __builtin_inff();
  for (int b = 0; b < BANKS; b++)
    for (int l = 0; l < VL; l++) {
      best_t one = {value[b][l], index[b][l]};
      if (better(one, part->best)) part->best = one;
      part->floor = one.value < part->floor ? one.value : part->floor;
      part->most = raw[b][l] > part->most ? raw[b][l] : part->most;
      least = raw[b][l] < least ? raw[b][l] : least;
    }
  part->sum = sum_exp(r, from, to, part->most);
  part->found = 0;
  // Each lane has a logit that is not below the least of the lanes' largest, so where there are `top` lanes the others need no look.
  if (top > LANES) least = LOW;
  for (long i = from; top > 0 && i < to; i += VL) {
    vf x = logits(r, i);
    if (!any(x >= least)) continue;
    for (int l = 0; l < VL && i + l < to; l++)
      if (x[l] >= least) insert(part->top, &part->found, top, (best_t){x[l], (int32_t)(i + l)});
    if (part->found == top && part->top[top - 1].value > least) least = part->top[top - 1].value;
  }
}

// What the parts of a row have together.
INLINE part_t gather(const part_t *parts, long count, long stride) {
  part_t all = {{LOW, INT32_MAX}, LOW, LOW};
  for (long i = 0; i < count; i++) {
    const part_t *p = (const part_t *)((const char *)parts + i * stride);
    if (better(p->best, all.best)) all.best = p->best;
    all.floor = p->floor > all.floor ? p->floor : all.floor;
    all.most = p->most > all.most ? p->most : all.most;
  }
  for (long i = 0; i < count; i++) {
    const part_t *p = (const part_t *)((const char *)parts + i * stride);
    all.sum += p->most == all.most ? p->sum : p->sum * __builtin_exp((double)p->most - all.most);
  }
  return all;
}

// ---- second stage: weights -------------------------------------------------------------------------------------------
typedef struct {
  uint32_t count[BINS];
  uint64_t sum[BINS];
} bins_t;

INLINE void start(row_t *r, const part_t *all) {
  r->most = all->best.value;
  r->scale = 1.44269504f / r->temperature;
  r->floor = r->top_k > 0 && r->top_k <= LANES ? all->floor : LOW;
}
// Whether a threshold is looked for.
INLINE int cut(const row_t *r) { return r->top_k > 0 || r->share < (uint64_t)1 << 32; }

// Counts those whose key has the bits of `prefix` above `shift` + `bits`, and adds their weights, by the `bits` bits above `shift`.
// What weighs nothing is in no bin: it comes after all that counts.
static void fill_bins(const row_t *r, long from, long to, int shift, int bits, uint32_t prefix, bins_t *bins) {
  memset(bins, 0, sizeof(bins_t));
  for (long i = from; i < to; i += VL) {
    vf v = values(r, i);
    vu key = keys(v);
    vi mine = v >= r->floor;
    if (shift + bits < 32) mine &= (key >> (shift + bits)) == prefix;
    if (!any(mine)) continue;
    vu w = weights(r, v) & (vu)mine;
    key = (key >> shift) & ((1u << bits) - 1);
    UNROLL for (int l = 0; l < VL; l++) {
      bins->count[key[l]] += w[l] > 0;
      bins->sum[key[l]] += w[l];
    }
  }
}

// A threshold: which keys are kept, and up to which index those that are equal to the last.
typedef struct {
  uint32_t key;
  int32_t last;
} threshold_t;

// The weights from i on, of what is kept.
INLINE vu kept_weights(const row_t *r, long i, threshold_t t) {
  vf v = values(r, i);
  vu key = keys(v);
  vi kept = (key > t.key) | ((key == t.key) & ((vi)IOTA <= (int32_t)(t.last - i)));
  if (!any(kept)) return (vu){0};
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
#define EVERYTHING ((threshold_t){0, -1})

// Of a part, or of a whole row: bins by the highest bits of the keys, or the weights of its chunks.
static void weigh_part(const row_t *r, long from, long to, bins_t *bins, uint64_t *chunks) {
  if (cut(r)) fill_bins(r, from, to, 21, 11, 0, bins);
  else sum_chunks(r, from, to, EVERYTHING, chunks);
}

// ---- third stage: the token ------------------------------------------------------------------------------------------
typedef struct {
  uint32_t key;        // the largest one at which enough has come
  uint64_t above, left; // weight above it, and what is still needed of it
  uint64_t sum;        // the weight of all that have it
  uint32_t count;      // and how many they are
} found_t;

// Goes down the keys until so many have come, or so much weight; false where they are not so many. `first` are the bins of the
// highest bits.
static int descend(const row_t *r, const bins_t *first, int by_weight, uint64_t needed, found_t *f) {
  bins_t bins;
  *f = (found_t){0, 0, needed};
  for (int shift = 21, bits = 11; shift >= 0; bits = shift == 10 ? 10 : 11, shift -= bits) {
    const bins_t *b = shift == 21 ? first : &bins;
    long at = BINS - 1;
    if (b == &bins) fill_bins(r, 0, r->cols, shift, bits, f->key, &bins);
    for (; at >= 0; at--) {
      uint64_t amount = by_weight ? b->sum[at] : b->count[at];
      if (amount >= f->left) break;
      f->left -= amount;
      f->above += b->sum[at];
    }
    if (at < 0) return 0;
    f->key = f->key << bits | (uint32_t)at;
    f->sum = b->sum[at], f->count = b->count[at];
  }
  return 1;
}

// Which of the row's tokens are kept by top_k and top_p.
static threshold_t threshold(const row_t *r, const bins_t *bins) {
  threshold_t t = EVERYTHING;
  uint64_t weight = 0;
  found_t f;
  if (r->top_k > 0 && descend(r, bins, 0, (uint64_t)r->top_k, &f)) {
    t.key = f.key - 1; // those that are equal to the last stay
    weight = f.above + f.sum;
  } else
    for (int i = 0; i < BINS; i++) weight += bins->sum[i];
  if (r->share == (uint64_t)1 << 32) return t;
  uint64_t low = weight & 0xffffffff, needed = (weight >> 32) * r->share + ((low * r->share + 0xffffffff) >> 32);
  if (!descend(r, bins, 1, needed > 0 ? needed : 1, &f)) return t;
  uint64_t each = f.sum / f.count, ties = (f.left + each - 1) / each;
  t = (threshold_t){f.key - 1, -1};
  if (ties == f.count) return t;
  t.key = f.key;
  for (long i = 0; i < r->cols; i += VL) {
    vi equal = keys(values(r, i)) == f.key;
    if (!any(equal)) continue;
    for (int l = 0; l < VL; l++)
      if (equal[l] && --ties == 0) {
        t.last = (int32_t)(i + l);
        return t;
      }
  }
  return t;
}

// The token of a row that is sampled. `chunks` has their weights where there is no threshold.
static int32_t choose(const row_t *r, const bins_t *bins, uint64_t *chunks) {
  threshold_t t = EVERYTHING;
  uint64_t sum = 0;
  long count = cdiv_l(r->cols, r->chunk), at = 0;
  if (cut(r)) {
    t = threshold(r, bins);
    sum_chunks(r, 0, r->cols, t, chunks);
  }
  for (long i = 0; i < count; i++) sum += chunks[i];
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

// Writes what a row gives: its token, log-probabilities, and the ids of the largest logits.
static void finish(const jt_arg *args, long row, const row_t *r, const part_t *all, int32_t token) {
  long top = args[10].i, found = all->found;
  float *logprobs = (float *)args[5].p + row * (1 + top);
  int32_t *ids = (int32_t *)args[6].p + row * top;
  double log_sum = __builtin_log(all->sum);
#define LOGPROB(v) (float)(((v) == all->most ? 0.0 : (v) < all->most ? (double)(v) - all->most : (double)LOW) - log_sum)
  ((int32_t *)args[4].p)[row] = token;
  logprobs[0] = LOGPROB(get(r->x + token));
  for (long i = 0; i < found; i++) {
    ids[i] = all->top[i].index;
    logprobs[1 + i] = LOGPROB(all->top[i].value);
  }
  // Where the others are NaN, the first of those.
  for (long c = 0; found < top && c < r->cols; c++) {
    float v = get(r->x + c);
    if (v != v) ids[found] = (int32_t)c, logprobs[++found] = LOW;
  }
}

// ---- tasks -----------------------------------------------------------------------------------------------------------
// args: x, settings, top_k, seen, y, logprobs, ids, workspace, cols, parts, top.
typedef struct {
  part_t part;
  bins_t bins;
} place_t;

// The workspace of a row: a place for each part, then the weights of its chunks.
INLINE place_t *places(const jt_arg *args, long row) {
  long bytes = args[9].i * (long)sizeof(place_t) + CHUNKS * 8;
  return (place_t *)((char *)args[7].p + row * bytes);
}
INLINE long part_length(const row_t *r, long parts) { return align_l(cdiv_l(r->cols, parts), r->chunk); }

// Task: a part of a row.
void cpu_sample_scan(const jt_arg *args, long task, long tasks) {
  long parts = args[9].i, row = task / parts, part = task % parts;
  row_t r = row_of(args, row);
  long from = part * part_length(&r, parts), to = min_l(from + part_length(&r, parts), r.cols);
  (void)tasks;
  scan(&r, min_l(from, to), to, (int)args[10].i, &places(args, row)[part].part);
}

// Task: a part of a row.
void cpu_sample_weigh(const jt_arg *args, long task, long tasks) {
  long parts = args[9].i, row = task / parts, part = task % parts;
  row_t r = row_of(args, row);
  (void)tasks;
  if (!sampled(&r)) return;
  place_t *p = places(args, row);
  part_t all = gather(&p->part, parts, sizeof(place_t));
  if (all.best.value == LOW) return;
  start(&r, &all);
  long from = part * part_length(&r, parts), to = min_l(from + part_length(&r, parts), r.cols);
  weigh_part(&r, min_l(from, to), to, &p[part].bins, (uint64_t *)(p + parts));
}

// Task: a row.
void cpu_sample_choose(const jt_arg *args, long task, long tasks) {
  long parts = args[9].i;
  row_t r = row_of(args, task);
  place_t *p = places(args, task);
  part_t all = gather(&p->part, parts, sizeof(place_t));
  (void)tasks;
  for (long i = 0; i < parts; i++)
    for (int t = 0; t < p[i].part.found; t++) insert(all.top, &all.found, (int)args[10].i, p[i].part.top[t]);
  int32_t token = all.best.value > LOW ? all.best.index : 0;
  if (sampled(&r) && all.best.value > LOW) {
    start(&r, &all);
    for (long i = 1; i < parts && cut(&r); i++)
      for (int b = 0; b < BINS; b++) p->bins.count[b] += p[i].bins.count[b], p->bins.sum[b] += p[i].bins.sum[b];
    token = choose(&r, &p->bins, (uint64_t *)(p + parts));
  }
  finish(args, task, &r, &all, token);
}

// Task: a row, where it has one part.
void cpu_sample_row(const jt_arg *args, long task, long tasks) {
  row_t r = row_of(args, task);
  part_t all;
  (void)tasks;
  scan(&r, 0, r.cols, (int)args[10].i, &all);
  int32_t token = all.best.value > LOW ? all.best.index : 0;
  if (sampled(&r) && all.best.value > LOW) {
    bins_t bins;
    uint64_t chunks[CHUNKS];
    start(&r, &all);
    weigh_part(&r, 0, r.cols, &bins, chunks);
    token = choose(&r, &bins, chunks);
  }
  finish(args, task, &r, &all, token);
}
