// What a matrix product does with finished sums: `finish_row` takes columns n0..n1 of token i as f32 and writes them as
// the op and its epilogue say. n0 is even, so that no pair of SwiGLU or RoPE is split. The tensors of the epilogue are
// the last arguments of the launch, in the order of the op's table, y among them; where the heads of a `qkv` are normed, y
// is the workspace and qk_norm.h finishes what it holds.
#define ROPE (OP_QKV && !QK_NORM)

typedef struct {
  elem *y;
  const elem *bias, *residual;
  const int32_t *positions, *slots;
  const float *cos_sin;
  elem *k_cache, *v_cache;
} epilogue_t;

INLINE epilogue_t epilogue_args(const jt_arg *a) {
  epilogue_t e = {0};
#if BIAS
  e.bias = (a++)->p;
#endif
#if RESIDUAL
  e.residual = (a++)->p;
#endif
#if ROPE
  e.positions = (a++)->p;
  e.slots = (a++)->p;
  e.cos_sin = (a++)->p;
#endif
  e.y = (a++)->p;
#if ROPE
  e.k_cache = (a++)->p;
  e.v_cache = (a++)->p;
#endif
  return e;
}

#if ROPE
// The columns of one head from `d` on: rotated for Q and K, as they are for V.
INLINE void finish_head(elem *to, const float *acc, const elem *bias, const float *cs, long n) {
  long c = 0;
  for (; c + VL <= n; c += VL) {
    vf v = load_f32(acc + c);
    if (bias) v += load(bias + c);
    store(to + c, cs ? rotate(v, load_f32(cs + c)) : v);
  }
  for (; c < n; c += 2) {
    float a = acc[c], b = acc[c + 1];
    if (bias) a += get(bias + c), b += get(bias + c + 1);
    float cosv = cs ? cs[c] : 1.0f, sinv = cs ? cs[c + 1] : 0.0f;
    put(to + c, a * cosv - b * sinv);
    put(to + c + 1, a * sinv + b * cosv);
  }
}
#endif

static void finish_row(const epilogue_t *e, long i, long n0, long n1, const float *acc) {
#if ROPE
  for (long c = n0; c < n1;) {
    long head = c / HEAD_DIM, d = c % HEAD_DIM, n = min_l(HEAD_DIM - d, n1 - c);
    const elem *bias = BIAS ? e->bias + c : 0;
    const float *cs = e->cos_sin + (long)e->positions[i] * HEAD_DIM + d;
    if (head < HEADS) {
      finish_head(e->y + i * (HEADS * HEAD_DIM) + c, acc + c - n0, bias, cs, n);
    } else {
      long kv = head - HEADS, v = kv >= KV_HEADS, slot = e->slots[i];
      if (slot < 0) {
        c += n;
        continue;
      }
      long row = (slot / PAGE * KV_HEADS + kv - v * KV_HEADS) * PAGE + slot % PAGE;
      finish_head((v ? e->v_cache : e->k_cache) + row * HEAD_DIM + d, acc + c - n0, bias, v ? 0 : cs, n);
    }
    c += n;
  }
#elif SWIGLU
  elem *y = e->y + i * (N / 2) + n0 / 2;
  long j = 0, n = (n1 - n0) / 2;
  for (; j + VL <= n; j += VL) {
    vf a = load_f32(acc + 2 * j), b = load_f32(acc + 2 * j + VL);
#if BIAS
    a += load(e->bias + n0 + 2 * j), b += load(e->bias + n0 + 2 * j + VL);
#endif
    store(y + j, vsilu(EVENS(a, b)) * ODDS(a, b));
  }
  if (j < n) {
    float g[VL] = {0}, u[VL] = {0};
    for (long t = j; t < n; t++) {
      g[t - j] = acc[2 * t], u[t - j] = acc[2 * t + 1];
#if BIAS
      g[t - j] += get(e->bias + n0 + 2 * t), u[t - j] += get(e->bias + n0 + 2 * t + 1);
#endif
    }
    store_part(y + j, vsilu(load_f32(g)) * load_f32(u), n - j);
  }
#else
  elem *y = e->y + i * N + n0;
  long c = 0, n = n1 - n0;
  for (; c + VL <= n; c += VL) {
    vf v = load_f32(acc + c);
#if BIAS
    v += load(e->bias + n0 + c);
#endif
#if RESIDUAL
    v += load(e->residual + i * N + n0 + c);
#endif
    store(y + c, v);
  }
  for (; c < n; c++) {
    float v = acc[c];
#if BIAS
    v += get(e->bias + n0 + c);
#endif
#if RESIDUAL
    v += get(e->residual + i * N + n0 + c);
#endif
    put(y + c, v);
  }
#endif
}
