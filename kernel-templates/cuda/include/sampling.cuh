// What sampling from a row of logits is made of: the row's settings, logits after the penalty, their order as integers, and the
// weight of a logit, which is an integer that follows from it in f32 operations that are each rounded once, never contracted.
// See src/problem/sample.rs. The f64 reference shares this, and no more than this, with the kernels.
#pragma once
#include "common.cuh"

struct row_t {
  const elem *x;
  const u32 *seen;
  int cols, top_k;            // 0 keeps all
  float temperature, penalty;
  u64 share;                  // top_p in units of 2^-32; 2^32 keeps all
  u32 least;                  // min_p in units of 2^-31
  u32 u;                      // in units of 2^-24
  float most, scale;          // of a row that is sampled: its largest value, and log2(e) / temperature
};
#define ALL (1ull << 32)

DEV row_t row_of(const elem *x, const float *settings, const int *top_k, const u32 *seen, int cols, int row) {
  const float *s = settings + (i64)row * 6;
  row_t r;
  r.x = x + (i64)row * cols;
  r.seen = seen + (i64)row * cdiv(cols, 32);
  r.cols = cols;
  r.top_k = top_k[row] < 0 || top_k[row] >= cols ? 0 : top_k[row];
  r.temperature = s[0];
  r.share = s[1] < 1.0f ? s[1] > 0.0f ? (u64)(s[1] * 4294967296.0f) : 0 : ALL;
  r.least = s[2] > 0.0f ? (u32)ceilf(fminf(s[2], 1.0f) * 2147483648.0f) : 0;
  r.penalty = s[3];
  r.u = s[4] > 0.0f ? (u32)fminf(s[4] * 16777216.0f, 16777215.0f) : 0;
  return r;
}
DEV bool is_sampled(const row_t &r) { return r.temperature > 0.0f; }

DEV float logit(const row_t &r, int i) { return to_f32(r.x[i]); }
// A logit after the penalty.
DEV float penalised(const row_t &r, int i, float x) {
  if (r.penalty == 1.0f || !(r.seen[i / 32] >> i % 32 & 1)) return x;
  return x > 0.0f ? __fdiv_rn(x, r.penalty) : __fmul_rn(x, r.penalty);
}
DEV float value(const row_t &r, int i) { return penalised(r, i, logit(r, i)); }

// A number in the order of the values, -0 as 0; NaN below all. And the value of one, -inf of 0.
DEV u32 key_of(float v) {
  const u32 bits = __float_as_uint(__fadd_rn(v, 0.0f));
  return v != v ? 0 : bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
DEV float value_of(u32 key) {
  return key == 0 ? NEG_INF : __uint_as_float(key & 0x80000000u ? key ^ 0x80000000u : ~key);
}
// Of -inf: where no key is larger there is nothing to draw.
#define KEY_LOW 0x007fffffu

// floor(2^(31 + z)) for z <= 0, nearly: 2^31 at 0, 1 at -31; nothing below and of NaN.
DEV u32 weigh(float z) {
  const bool some = z >= -31.0f;
  z = some ? z : 0.0f;
  const float n = __fadd_rn(__fadd_rn(z, 12582912.0f), -12582912.0f), f = __fadd_rn(z, -n);
  float p = __fadd_rn(__fmul_rn(f, 1.5353362e-4f), 1.3398874e-3f);
  p = __fadd_rn(__fmul_rn(p, f), 9.618437e-3f);
  p = __fadd_rn(__fmul_rn(p, f), 5.5503325e-2f);
  p = __fadd_rn(__fmul_rn(p, f), 2.4022648e-1f);
  p = __fadd_rn(__fmul_rn(p, f), 6.931472e-1f);
  p = __fadd_rn(__fmul_rn(p, f), 1.0f);
  return some ? (u32)__fmul_rn(p, 16777216.0f) << 7 >> (u32)-n : 0;
}
DEV u32 weight(const row_t &r, float v) {
  return weigh(v == r.most ? 0.0f : __fmul_rn(__fadd_rn(v, -r.most), r.scale));
}
DEV void start(row_t &r, float most) {
  r.most = most;
  r.scale = __fdiv_rn(1.44269504f, r.temperature);
}

// The share of a sum of weights that top_p asks for, rounded up, and at least something; the part of it that u is at.
DEV u64 needed(const row_t &r, u64 sum) {
  const u64 n = (sum >> 32) * r.share + (((sum & 0xffffffffu) * r.share + 0xffffffffu) >> 32);
  return n > 0 ? n : 1;
}
DEV u64 target(const row_t &r, u64 sum) { return (sum >> 24) * r.u + ((sum & 0xffffffu) * r.u >> 24); }
