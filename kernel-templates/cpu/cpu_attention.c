// Attention over dense K and V with a running softmax, causal or full, grouped query heads.
//
// The rows that share a KV head, (token, head of the group), are the rows of one matrix: a task owns BQ of them, so
// that a block of K and V serves the whole group. Causal tasks run from the last rows, the longest, to the first.
#include "base.h"
#include "vmath.h"
#include "cache.h"
#include "attend.h"

#define GROUP (HEADS / KV_HEADS)
#define IN_PLACE (DTYPE_F32 && HEAD_DIM == DP) // K and V are read where they lie, but for the ragged last block

void cpu_attention(const jt_arg *args, long task, long tasks) {
  const elem *q = args[0].p, *k = args[1].p, *v = args[2].p;
  elem *o = args[3].p;
  long batch = args[4].i, nq = args[5].i, kv = args[6].i;
  long pairs = batch * KV_HEADS, blocks = tasks / pairs, rows = nq * GROUP;
  long b = task % pairs / KV_HEADS, head = task % pairs % KV_HEADS, r0 = (blocks - 1 - task / pairs) * BQ;
  long real = min_l(BQ, rows - r0);
  k += (b * KV_HEADS + head) * kv * HEAD_DIM;
  v += (b * KV_HEADS + head) * kv * HEAD_DIM;
  attend_t a;
  int32_t limit[BQ];
  float kb[BK * HEAD_DIM] __attribute__((aligned(64))), vb[BK * DP] __attribute__((aligned(64)));

#define ROW(r) ((b * nq + (r0 + (r)) / GROUP) * HEADS + head * GROUP + (r0 + (r)) % GROUP)
  attend_init(&a);
  for (long r = 0; r < BQ; r++) {
    attend_query(&a, r, r < real ? q + ROW(r) * HEAD_DIM : 0);
    limit[r] = CAUSAL ? (r0 + min_l(r, real - 1)) / GROUP + kv - nq + 1 : kv;
  }
  long end = limit[BQ - 1], all = limit[0];
  for (long k0 = 0; k0 < end; k0 += BK) {
    long keys = min_l(BK, end - k0), padded = align_l(keys, KR);
    const float *kp = kb, *vp = vb;
    long ldv = DP;
#if IN_PLACE
    if (k0 + padded <= kv) {
      kp = k + k0 * HEAD_DIM;
      vp = v + k0 * HEAD_DIM;
      ldv = HEAD_DIM;
    } else
#endif
    {
      widen(kb, k + k0 * HEAD_DIM, keys * HEAD_DIM, padded * HEAD_DIM);
      for (long j = 0; j < keys; j++) widen(vb + j * DP, v + (k0 + j) * HEAD_DIM, HEAD_DIM, DP);
    }
    attend_scores(&a, 0, kp, padded, 0, 0);
    if (k0 + keys > all) attend_mask(&a, k0, keys, limit);
    attend_softmax(&a, keys);
    attend_values(&a, align_l(real, QR), &vp, BK, ldv, keys);
  }
  for (long r = 0; r < real; r++) attend_store(&a, r, o + ROW(r) * HEAD_DIM);
}
