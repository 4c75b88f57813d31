// Attention of several queries a sequence over a paged KV cache, causal, aligned at the end.
//
// The rows of a sequence that share a KV head, (query, head of the group), are the rows of one matrix: a task owns BQ of
// them, so that a block of K and V serves the whole group. Sequence b owns the places from its first row / BQ + b on.
// A cache becomes f32 as a block is read; where it is codes, the scale of the keys is part of the queries, that of the values of the output.
#include "base.h"
#include "cache.h"
#include "vmath.h"
#include "attend.h"

#define GROUP (HEADS / KV_HEADS)

void cpu_paged(const jt_arg *args, long task, long tasks) {
  const elem *q = args[0].p;
  const kv_elem *k_cache = args[1].p, *v_cache = args[2].p;
  const float *scales = args[3].p;
  const int32_t *table = args[4].p, *starts = args[5].p, *lens = args[6].p;
  elem *o = args[7].p;
  long batch = args[8].i, max_pages = args[9].i;
  long head = task % KV_HEADS, place = tasks / KV_HEADS - 1 - task / KV_HEADS;
  // The last sequence whose first place is not beyond this one.
  long low = 0, high = batch;
  while (high - low > 1) {
    long b = (low + high) / 2;
    if ((long)starts[b] * GROUP / BQ + b <= place) low = b;
    else high = b;
  }
  long b = low, start = starts[b], nq = starts[b + 1] - start, kv = lens[b];
  long r0 = (place - start * GROUP / BQ - b) * BQ, real = min_l(BQ, nq * GROUP - r0);
  if (real <= 0) return;
  table += b * max_pages;
  attend_t a;
  int32_t limit[BQ];
  float kb[BK * HEAD_DIM] __attribute__((aligned(64))), vb[BK * DP] __attribute__((aligned(64)));
  const float *runs = vb;

#define ROW(r) ((start + (r0 + (r)) / GROUP) * HEADS + head * GROUP + (r0 + (r)) % GROUP)
  attend_init(&a);
  for (long r = 0; r < BQ; r++) {
    attend_query(&a, r, r < real ? q + ROW(r) * HEAD_DIM : 0);
    limit[r] = (r0 + min_l(r, real - 1)) / GROUP + kv - nq + 1;
  }
  if (scales)
    for (long i = 0; i < HEAD_DIM * BQ; i++) a.q[i] *= scales[head];
  long end = limit[BQ - 1], all = limit[0];
  for (long k0 = 0; k0 < end; k0 += BK) {
    long keys = min_l(BK, end - k0), padded = align_l(keys, KR);
    for (long j = 0; j < keys;) { // runs of rows that lie in one page
      long t = k0 + j, n = min_l(PAGE - t % PAGE, keys - j);
      long from = (((long)table[t / PAGE] * KV_HEADS + head) * PAGE + t % PAGE) * HEAD_DIM;
      widen_kv(kb + j * HEAD_DIM, k_cache + from, n * HEAD_DIM, n * HEAD_DIM);
      for (long i = 0; i < n; i++) widen_kv(vb + (j + i) * DP, v_cache + from + i * HEAD_DIM, HEAD_DIM, DP);
      j += n;
    }
    memset(kb + keys * HEAD_DIM, 0, (padded - keys) * HEAD_DIM * sizeof(float));
    attend_scores(&a, 0, kb, padded, 0, 0);
    if (k0 + keys > all) attend_mask(&a, k0, keys, limit);
    attend_softmax(&a, keys);
    attend_values(&a, align_l(real, QR), &runs, BK, DP, keys);
  }
  if (scales)
    for (long i = 0; i < real * DP; i++) a.o[i] *= scales[KV_HEADS + head];
  for (long r = 0; r < real; r++) attend_store(&a, r, o + ROW(r) * HEAD_DIM);
}
