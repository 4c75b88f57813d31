#define PW (NV * VL)               // tokens of a panel
#define KPAD ((K + 1) / 2 * 2)     // K as packed: whole steps of two
#define LDW (KC + 16)              // row stride of the copied group; the 16 keep its rows off the same L1 set
#define LDA (COPY ? LDW : K)       // row stride of w where the registers are filled from
#define LDS (TILE_M + 8)           // row stride of the sums
_Static_assert(KC % 16 == 0 && TILE_M % PW == 0 && TILE_N % MR == 0 && TILE_N % 2 == 0, "tile shape");
_Static_assert(COPY || (ELEM_BYTES == 4 && K % 2 == 0 && N >= MR), "w is read in place in whole steps and groups");

// Task: one panel of x in every block of K. Layout of the result: [block of K][panel][k][PW].
void cpu_gemm_pack(const jt_arg *args, long task, long tasks) {
  const elem *x = args[0].p;
  float *packed = args[1].p;
  long m = args[2].i, rows = min_l(PW, m - task * PW), mpad = tasks * PW;
  for (long k0 = 0; k0 < K; k0 += KC) {
    long kc = min_l(KC, KPAD - k0), whole = min_l(kc, (K - k0) / TB * TB);
    float *to = packed + k0 * mpad + task * PW * kc;
    transpose_elems(to, PW, x + task * PW * K + k0, K, rows, whole, PW, whole);
    for (long k = whole; k < kc; k++)
      for (long i = 0; i < PW; i++)
        to[k * PW + i] = i < rows && k0 + k < K ? get(x + (task * PW + i) * K + k0 + k) : 0.0f;
  }
}

// sums[MR][nv vectors] (+)= w[MR][kc] . x[kc][PW]
INLINE void block(float *sums, const float *w, const float *x, long kc, const int nv, int first) {
  vf acc[MR][NV];
  UNROLL for (int i = 0; i < MR; i++) UNROLL for (int v = 0; v < nv; v++) acc[i][v] = (vf){0};
  for (long k = 0; k < kc; k += 2) {
    UNROLL for (int u = 0; u < 2; u++) {
      vf b[NV];
      UNROLL for (int v = 0; v < nv; v++) {
        b[v] = load_f32(x + u * PW + v * VL);
        KEEP(b[v]);
      }
      UNROLL for (int i = 0; i < MR; i++) {
        vf a = splat(w[i * LDA + u]);
        KEEP(a);
        UNROLL for (int v = 0; v < nv; v++) acc[i][v] = a * b[v] + acc[i][v];
      }
    }
    w += 2;
    x += 2 * PW;
  }
  UNROLL for (int i = 0; i < MR; i++) UNROLL for (int v = 0; v < nv; v++) {
    float *s = sums + i * LDS + v * VL;
    store_f32(s, first ? acc[i][v] : acc[i][v] + load_f32(s));
  }
}
static void block_full(float *sums, const float *w, const float *x, long kc, int first) {
  block(sums, w, x, kc, NV, first);
}
#if NV > 1 // for a last panel of at most one vector of tokens
static void block_one(float *sums, const float *w, const float *x, long kc, int first) {
  block(sums, w, x, kc, 1, first);
}
#else
#define block_one block_full
#endif
