// Attention of one query token a sequence over a paged KV cache.
//
// A task owns one KV head of one sequence and CHUNK tokens of its context: the GROUP query heads that share the KV head
// are the rows, so K and V are read once. With more than one chunk a sequence, each leaves its unnormalised output,
// maximum and sum in the workspace, and `cpu_decode_combine` joins them. A cache that is not of f32 becomes f32 as a page is read; where
// it is codes, the scale of the keys is part of the queries, that of the values of the output.
#include "base.h"
#include "cache.h"
#include "vmath.h"
#define GROUP (HEADS / KV_HEADS)
#define BQ ((GROUP + VL - 1) / VL * VL)
#define QV 1
#define QR (GROUP >= 3 ? 4 : GROUP)
#include "attend.h"

#define PAGES_OF_BLOCK ((BK + PAGE - 1) / PAGE)
// A block's first key starts a page, and keys in registers never straddle two.
_Static_assert((BK % PAGE == 0 || PAGE % BK == 0) && PAGE % KR == 0 && CHUNK % BK == 0, "blocks of whole pages");
#define IN_PLACE (DTYPE_KV_F32 && HEAD_DIM == DP)
#define PARTIAL (HEAD_DIM + 2) // floats of a partial result: output, maximum, sum

void cpu_decode(const jt_arg *args, long task, long tasks) {
  const elem *q = args[0].p;
  const kv_elem *k_cache = args[1].p, *v_cache = args[2].p;
  const float *scales = args[3].p;
  const int32_t *table = args[4].p, *lens = args[5].p;
  elem *o = args[6].p;
  float *partial = args[7].p;
  long max_pages = args[8].i, splits = args[9].i;
  long split = task % splits, head = task / splits % KV_HEADS, b = task / splits / KV_HEADS;
  long begin = split * CHUNK, end = min_l(begin + CHUNK, lens[b]);
  long first = b * HEADS + head * GROUP; // row of q and o
#define ROW(t) (((long)table[b * max_pages + (t) / PAGE] * KV_HEADS + head) * PAGE + (t) % PAGE)
  attend_t a;
  const float *runs_k[PAGES_OF_BLOCK], *runs_v[PAGES_OF_BLOCK];
#if !IN_PLACE
  float kb[BK * HEAD_DIM] __attribute__((aligned(64))), vb[BK * DP] __attribute__((aligned(64)));
#endif
  (void)tasks;

  attend_init(&a);
  for (long r = 0; r < BQ; r++) attend_query(&a, r, r < GROUP ? q + (first + r) * HEAD_DIM : 0);
  if (scales)
    for (long i = 0; i < HEAD_DIM * BQ; i++) a.q[i] *= scales[head];
  for (long t0 = begin; t0 < end; t0 += BK) {
    long keys = min_l(BK, end - t0), per = min_l(PAGE, BK);
    for (long j = 0; j < keys; j += per) {
      long n = min_l(per, keys - j), t = t0 + j, after = t + per < end ? t + per : t;
      const kv_elem *k = k_cache + ROW(t) * HEAD_DIM, *v = v_cache + ROW(t) * HEAD_DIM;
#if IN_PLACE
      runs_k[j / per] = k;
      runs_v[j / per] = v;
#else
      widen_kv(kb + j * HEAD_DIM, k, n * HEAD_DIM, align_l(n, KR) * HEAD_DIM);
      for (long i = 0; i < n; i++) widen_kv(vb + (j + i) * DP, v + i * HEAD_DIM, HEAD_DIM, DP);
      runs_k[j / per] = kb + j * HEAD_DIM;
      runs_v[j / per] = vb + j * DP;
#endif
      // The pages of a sequence lie anywhere, so the hardware cannot guess the next one: it is fetched by hand.
      long next = ROW(after) * HEAD_DIM;
      attend_scores(&a, j, runs_k[j / per], align_l(n, KR), k_cache + next, v_cache + next);
    }
    attend_softmax(&a, keys);
    attend_values(&a, (GROUP + QR - 1) / QR * QR, runs_v, per, DP, keys);
  }
  if (scales)
    for (long i = 0; i < GROUP * DP; i++) a.o[i] *= scales[KV_HEADS + head];
  for (long r = 0; r < GROUP; r++) {
    if (splits == 1) {
      attend_store(&a, r, o + (first + r) * HEAD_DIM);
    } else {
      float *p = partial + ((first + r) * splits + split) * PARTIAL;
      memcpy(p, a.o + r * DP, HEAD_DIM * 4);
      p[HEAD_DIM] = a.m[r];
      p[HEAD_DIM + 1] = a.l[r];
    }
  }
}

// Task: one query head of one sequence.
void cpu_decode_combine(const jt_arg *args, long task, long tasks) {
  elem *o = args[0].p;
  long splits = args[2].i;
  const float *p = (const float *)args[1].p + task * splits * PARTIAL;
  float m = -1e30f, l = 0, sum[HEAD_DIM] = {0};
  (void)tasks;
  for (long s = 0; s < splits; s++) m = p[s * PARTIAL + HEAD_DIM] > m ? p[s * PARTIAL + HEAD_DIM] : m;
  for (long s = 0; s < splits; s++) {
    const float *part = p + s * PARTIAL;
    float w = vexp(splat(part[HEAD_DIM] - m))[0];
    l += w * part[HEAD_DIM + 1];
    for (long d = 0; d < HEAD_DIM; d++) sum[d] += w * part[d];
  }
  float inv = l > 0 ? 1.0f / l : 0.0f;
  for (long d = 0; d < HEAD_DIM; d++) put(o + task * HEAD_DIM + d, sum[d] * inv);
}
