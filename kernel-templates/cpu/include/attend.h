// Attention of BQ query rows over blocks of keys with a running softmax, shared by prefill and decode.
//
// The scores are kept transposed, s[key][row]: a vector holds neighbouring query rows, a key's elements are broadcast
// as they lie in memory, and the softmax (maximum, exp, sum) needs no movement between lanes. Q is transposed and
// scaled once. The second product broadcasts s[key][row] against vectors of V. So neither K nor V is ever transposed.
//
// Behind cache.h. Expects HEAD_DIM, BQ (rows), BK (keys of a block), KR (keys in registers), QV (row vectors in registers),
// QR (rows in registers) and DV (vectors of V in registers).
#define DP ((HEAD_DIM + DV * VL - 1) / (DV * VL) * (DV * VL)) // head_dim in whole register blocks
_Static_assert(BQ % (QV * VL) == 0 && BQ % QR == 0 && BK % KR == 0, "attention blocks");

typedef struct {
  float q[HEAD_DIM * BQ]; // [d][row], scaled
  float s[BK * BQ];       // [key][row]
  float o[BQ * DP];       // [row][d], not yet divided by l
  float m[BQ], l[BQ], alpha[BQ];
} attend_t __attribute__((aligned(64)));

INLINE void attend_init(attend_t *a) {
  for (long i = 0; i < BQ * DP; i += VL) store_f32(a->o + i, splat(0));
  for (long i = 0; i < BQ; i += VL) {
    store_f32(a->m + i, splat(-1e30f));
    store_f32(a->l + i, splat(0));
  }
}
// Row `r` of Q, or zeros.
INLINE void attend_query(attend_t *a, long r, const elem *q) {
  const float scale = 1.0f / __builtin_sqrtf((float)HEAD_DIM);
  for (long d = 0; d < HEAD_DIM; d++) a->q[d * BQ + r] = q ? get(q + d) * scale : 0.0f;
}
// s[key..key + keys] = K . Q^T; `keys` is a multiple of KR and every row of `k` is readable. Where they are given, as
// many rows of K and V from `next_k` and `next_v` on are fetched meanwhile, a line of each every STEP elements.
#define STEP (64 / (KR * KV_BYTES) > 1 && HEAD_DIM % (64 / (KR * KV_BYTES)) == 0 ? 64 / (KR * KV_BYTES) : 1)
INLINE void attend_scores(attend_t *a, long key, const float *k, long keys, const kv_elem *next_k, const kv_elem *next_v) {
  for (long j = 0; j < keys; j += KR)
    for (long r = 0; r < BQ; r += QV * VL) {
      vf acc[KR][QV];
      UNROLL for (int i = 0; i < KR; i++) UNROLL for (int v = 0; v < QV; v++) acc[i][v] = (vf){0};
      for (long d = 0; d < HEAD_DIM; d += STEP) {
        if (next_k) __builtin_prefetch(next_k + j * HEAD_DIM + d * KR, 0, 3);
        if (next_v) __builtin_prefetch(next_v + j * HEAD_DIM + d * KR, 0, 3);
        UNROLL for (int u = 0; u < STEP; u++) {
          vf b[QV];
          UNROLL for (int v = 0; v < QV; v++) {
            b[v] = load_f32(a->q + (d + u) * BQ + r + v * VL);
            KEEP(b[v]);
          }
          UNROLL for (int i = 0; i < KR; i++) {
            vf x = splat(k[(j + i) * HEAD_DIM + d + u]);
            KEEP(x);
            UNROLL for (int v = 0; v < QV; v++) acc[i][v] = x * b[v] + acc[i][v];
          }
        }
      }
      UNROLL for (int i = 0; i < KR; i++) UNROLL for (int v = 0; v < QV; v++)
        store_f32(a->s + (key + j + i) * BQ + r + v * VL, acc[i][v]);
    }
}
// Key k0 + j is visible to row r where k0 + j < limit[r].
INLINE void attend_mask(attend_t *a, long k0, long keys, const int32_t *limit) {
  for (long j = 0; j < keys; j++)
    for (long r = 0; r < BQ; r += VL) {
      vi lim;
      memcpy(&lim, limit + r, sizeof lim);
      float *s = a->s + j * BQ + r;
      store_f32(s, pick(lim > (int32_t)(k0 + j), load_f32(s), splat(-__builtin_inff())));
    }
}
// Turns the scores of `keys` keys into exp(s - max) and updates max and sum; `alpha` is what the old sums shrink by.
static void attend_softmax(attend_t *a, long keys) {
  for (long r = 0; r < BQ; r += VL) {
    vf m0 = load_f32(a->m + r), m = m0, m2 = m0, l = splat(0);
    long j = 0;
    for (; j + 2 <= keys; j += 2) {
      m = vmax(m, load_f32(a->s + j * BQ + r));
      m2 = vmax(m2, load_f32(a->s + (j + 1) * BQ + r));
    }
    if (j < keys) m = vmax(m, load_f32(a->s + j * BQ + r));
    m = vmax(m, m2);
    for (j = 0; j < keys; j++) {
      vf p = vexp(load_f32(a->s + j * BQ + r) - m);
      l += p;
      store_f32(a->s + j * BQ + r, p);
    }
    vf alpha = vexp(m0 - m);
    store_f32(a->alpha + r, alpha);
    store_f32(a->m + r, m);
    store_f32(a->l + r, load_f32(a->l + r) * alpha + l);
  }
}
// o[rows] = o * alpha + P . V for `keys` keys, which lie `per` to a run: key j is row j % per of runs[j / per].
static void attend_values(attend_t *a, long rows, const float *const *runs, long per, long ldv, long keys) {
  for (long d = 0; d < DP; d += DV * VL)
    for (long r = 0; r < rows; r += QR) {
      vf acc[QR][DV];
      UNROLL for (int i = 0; i < QR; i++) UNROLL for (int v = 0; v < DV; v++)
        acc[i][v] = load_f32(a->o + (r + i) * DP + d + v * VL) * a->alpha[r + i];
      const float *p = a->s + r;
      for (long j0 = 0; j0 < keys; j0 += per) {
        const float *v0 = runs[j0 / per] + d;
        for (long j = 0, n = min_l(per, keys - j0); j < n; j++, p += BQ) {
          vf b[DV];
          UNROLL for (int v = 0; v < DV; v++) {
            b[v] = load_f32(v0 + j * ldv + v * VL);
          }
          UNROLL for (int i = 0; i < QR; i++) {
            vf x = splat(p[i]);
            KEEP(x);
            UNROLL for (int v = 0; v < DV; v++) acc[i][v] = x * b[v] + acc[i][v];
          }
        }
      }
      UNROLL for (int i = 0; i < QR; i++) UNROLL for (int v = 0; v < DV; v++)
        store_f32(a->o + (r + i) * DP + d + v * VL, acc[i][v]);
    }
}
// A finished row.
INLINE void attend_store(const attend_t *a, long r, elem *o) {
  float inv = a->l[r] > 0 ? 1.0f / a->l[r] : 0.0f;
  long d = 0;
  for (; d + VL <= HEAD_DIM; d += VL) store(o + d, load_f32(a->o + r * DP + d) * inv);
  for (; d < HEAD_DIM; d++) put(o + d, a->o[r * DP + d] * inv);
}
