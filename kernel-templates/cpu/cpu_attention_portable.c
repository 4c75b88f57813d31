// Attention for every shape that its ops allow, contiguous, paged or of one query a sequence: every dimension is an
// argument. A cache may be of another type than results, and codes with a scale a head. A task has one head of one query and keeps its unnormalised output as f32 in the workspace, with a running
// maximum and sum over the tokens that the query sees.
#include "base.h"
#include "cache.h"

enum { Q, K, V, SCALES, TABLE, STARTS, LENS, O, OUT, HEADS_, KV_HEADS_, DIM, QUERIES, KV, CAUSAL, PAGE_, MAX_PAGES_, BATCH_, SCALE };

void cpu_attention_portable(const jt_arg *args, long task, long tasks) {
  const elem *q = args[Q].p;
  const kv_elem *k = args[K].p, *v = args[V].p;
  const float *scales = args[SCALES].p;
  elem *o = args[O].p;
  long heads = args[HEADS_].i, kv_heads = args[KV_HEADS_].i, head_dim = args[DIM].i;
  float *out = (float *)args[OUT].p + task * head_dim, scale = (float)args[SCALE].f, top = -1e30f, sum = 0;
  long query = task / heads, kv_head = task % heads / (heads / kv_heads);
  (void)tasks;
#if OP_ATTENTION
  long queries = args[QUERIES].i, kv = args[KV].i, seq = query / queries, len = kv;
  if (args[CAUSAL].i) {
    len = query % queries + 1 + kv - queries;
    len = len < 0 ? 0 : len < kv ? len : kv;
  }
#else
  const int32_t *table = args[TABLE].p, *lens = args[LENS].p;
  long page = args[PAGE_].i, max_pages = args[MAX_PAGES_].i;
#if OP_PAGED_ATTENTION
  const int32_t *starts = args[STARTS].p;
  long batch = args[BATCH_].i, seq = 0; // the last sequence that begins at the query or before it
  if (query >= starts[batch]) return;   // padding
  for (long past = batch; past - seq > 1;) {
    long middle = (seq + past) / 2;
    if (starts[middle] <= query) seq = middle;
    else past = middle;
  }
  long len = lens[seq] - (starts[seq + 1] - query - 1);
#else
  long seq = query, len = lens[seq];
#endif
#endif
  float values = scales ? scales[kv_heads + kv_head] : 1.0f;
  if (scales) scale *= scales[kv_head];
  q += task * head_dim, o += task * head_dim;
  for (long d = 0; d < head_dim; d++) out[d] = 0;
  for (long t = 0; t < len; t++) {
#if OP_ATTENTION
    long row = ((seq * kv_heads + kv_head) * kv + t) * head_dim;
#else
    long row = ((table[seq * max_pages + t / page] * kv_heads + kv_head) * page + t % page) * head_dim;
#endif
    float s = 0;
    for (long d = 0; d < head_dim; d++) s += get(q + d) * get_kv(k + row + d);
    s *= scale;
    float new_top = s > top ? s : top, shrink = __builtin_expf(top - new_top), p = __builtin_expf(s - new_top);
    top = new_top, sum = sum * shrink + p;
    for (long d = 0; d < head_dim; d++) out[d] = out[d] * shrink + p * get_kv(v + row + d);
  }
  for (long d = 0; d < head_dim; d++) put(o + d, sum > 0 ? out[d] / sum * values : 0.0f);
}
