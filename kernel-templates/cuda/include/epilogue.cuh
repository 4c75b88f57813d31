// What a matrix product does with its f32 accumulators on the way to memory: every epilogue of the ops `matmul` and `qkv`,
// on runs of adjacent columns of one row. It fits any accumulator layout that gives a thread adjacent column pairs
// (mma.sync, wgmma) and any reduction over partial sums.
//
//   extern "C" __global__ void my_matmul(const elem *x, const elem *w, EPILOGUE_PARAMS, int m) {
//     const epilogue_args e = EPILOGUE_PACK;
//     …
//     if (row < m && col < N) epilogue_pair(e, row, col, acc0, acc1);
//   }
//
// The description lists the arguments in the order of EPILOGUE_PARAMS, which is the op's own order of tensors. Where heads
// are normed (qk_norm.cuh) the product goes as it is, after the bias, to the workspace, and a second launch finishes it:
//
//   [derive]
//   normed = "op == 'qkv' and qk_norm == 1"
//   rope   = "op == 'qkv' and qk_norm == 0"
//
//   { tensor = "bias",      when = "bias" },
//   { tensor = "residual",  when = "residual" },
//   { tensor = "positions", when = "rope" },
//   { tensor = "slots",     when = "rope" },
//   { tensor = "cos_sin",   when = "rope" },
//   { tensor = "y",         when = "not normed" },
//   { workspace = "…",      when = "normed" },
//   { tensor = "k_cache",   when = "rope" },
//   { tensor = "v_cache",   when = "rope" },
//
// Layers, each built on the one before:
//   epilogue_row_of  what depends on the row alone (position, cache slot), so that a thread loads it once a row
//   epilogue_math    v[W] becomes the finished values; for swiglu they are the first W / 2
//   epilogue_run     epilogue_math, then the store, as one access where W columns are aligned
//   epilogue_pair    the run of two
//
// The caller keeps row < m, col < N and col % W == 0. A run that crosses N (N % W != 0) is cut off at N here.
// Nothing but the output rows and cache rows that belong to `row` is written, and no cache row where its slot is below 0.
//
// A template of a product includes this file before any other: common.cuh has template parameters called N, which the
// dimension's define must not reach. Afterwards N is a constant of the language, so test it with `if constexpr`,
// never with `#if`.
#pragma once
enum { PROBLEM_N = N };
#undef N
#include "common.cuh"
#define N PROBLEM_N

#define ROPE (OP_QKV && !QK_NORM) // here; heads that are normed first are rotated by qk_norm.cuh

#if BIAS
#define EPILOGUE_BIAS_PARAM const elem *__restrict__ bias,
#define EPILOGUE_BIAS bias,
#else
#define EPILOGUE_BIAS_PARAM
#define EPILOGUE_BIAS
#endif
#if RESIDUAL
#define EPILOGUE_RESIDUAL_PARAM const elem *__restrict__ residual,
#define EPILOGUE_RESIDUAL residual,
#else
#define EPILOGUE_RESIDUAL_PARAM
#define EPILOGUE_RESIDUAL
#endif
#if ROPE
#define EPILOGUE_PARAMS                                                                                               \
  EPILOGUE_BIAS_PARAM const int *__restrict__ positions, const int *__restrict__ slots,                               \
      const float *__restrict__ cos_sin, elem *__restrict__ y, elem *__restrict__ k_cache, elem *__restrict__ v_cache
#define EPILOGUE_PACK {EPILOGUE_BIAS positions, slots, cos_sin, y, k_cache, v_cache}
#else
#define EPILOGUE_PARAMS EPILOGUE_BIAS_PARAM EPILOGUE_RESIDUAL_PARAM elem *__restrict__ y
#define EPILOGUE_PACK {EPILOGUE_BIAS EPILOGUE_RESIDUAL y}
#endif
struct epilogue_args {
#if BIAS
  const elem *bias;
#endif
#if RESIDUAL
  const elem *residual;
#endif
#if ROPE
  const int *positions, *slots;
  const float *cos_sin;
#endif
  elem *y;
#if ROPE
  elem *k_cache, *v_cache;
#endif
};

#if SWIGLU
static_assert(N % 2 == 0, "swiglu pairs a gate column with the up column after it");
#endif
#if ROPE
static_assert(N == (HEADS + 2 * KV_HEADS) * HEAD_DIM, "columns are the Q heads, the K heads, the V heads");
static_assert(HEAD_DIM % 2 == 0, "RoPE rotates adjacent pairs");
constexpr u64 EPILOGUE_NO_SLOT = ~0ull;
#endif

struct epilogue_row {
  int row;
#if ROPE
  const float *cos_sin; // of the row's position
  u64 cache;            // element offset of the row in the caches, for KV head 0, or EPILOGUE_NO_SLOT
#endif
};

DEV epilogue_row epilogue_row_of(const epilogue_args &e, int row) {
  epilogue_row r;
  r.row = row;
#if ROPE
  r.cos_sin = e.cos_sin + (u64)e.positions[row] * HEAD_DIM;
  const int at = e.slots[row];
  const u32 slot = (u32)at;
  r.cache = at < 0 ? EPILOGUE_NO_SLOT : ((u64)(slot / PAGE) * (KV_HEADS * PAGE) + slot % PAGE) * HEAD_DIM;
#endif
  return r;
}

// W adjacent elements as f32; p is aligned to W elements.
template <int W> DEV void epilogue_load(float (&v)[W], const elem *p) {
  const vec<W> t = *reinterpret_cast<const vec<W> *>(p);
#pragma unroll
  for (int i = 0; i < W; i++) v[i] = to_f32(t.v[i]);
}

// The first S of v; p is aligned to S elements.
template <int S, int W> DEV void epilogue_store(elem *p, const float (&v)[W]) {
  vec<S> t;
#pragma unroll
  for (int i = 0; i < S; i++) t.v[i] = from_f32<elem>(v[i]);
  *reinterpret_cast<vec<S> *>(p) = t;
}

template <int W> DEV void epilogue_math(const epilogue_args &e, const epilogue_row &r, int col, float (&v)[W]) {
#if BIAS
  float b[W];
  epilogue_load<W>(b, e.bias + col);
#pragma unroll
  for (int i = 0; i < W; i++) v[i] += b[i];
#endif
#if RESIDUAL
  float a[W];
  epilogue_load<W>(a, e.residual + (u64)r.row * N + col);
#pragma unroll
  for (int i = 0; i < W; i++) v[i] += a[i];
#endif
#if SWIGLU
#pragma unroll
  for (int i = 0; i < W / 2; i++) v[i] = silu(v[2 * i]) * v[2 * i + 1];
#endif
#if ROPE
  if (col < (HEADS + KV_HEADS) * HEAD_DIM) {
    const float2 *angles = reinterpret_cast<const float2 *>(r.cos_sin + col % HEAD_DIM);
#pragma unroll
    for (int i = 0; i < W; i += 2) {
      const float2 cs = angles[i / 2];
      const float a0 = v[i], a1 = v[i + 1];
      v[i] = a0 * cs.x - a1 * cs.y;
      v[i + 1] = a0 * cs.y + a1 * cs.x;
    }
  }
#endif
}

// Where the run that starts at `col` goes; null for K and V of a row without a slot.
DEV elem *epilogue_target(const epilogue_args &e, const epilogue_row &r, int col) {
#if SWIGLU
  return e.y + (u64)r.row * (N / 2) + col / 2;
#elif ROPE
  constexpr int Q_COLS = HEADS * HEAD_DIM, K_COLS = KV_HEADS * HEAD_DIM;
  if (col < Q_COLS) return e.y + (u64)r.row * Q_COLS + col;
  if (r.cache == EPILOGUE_NO_SLOT) return nullptr;
  const bool is_k = col < Q_COLS + K_COLS;
  const u32 c = (u32)(col - Q_COLS - (is_k ? 0 : K_COLS));
  return (is_k ? e.k_cache : e.v_cache) + r.cache + (u64)(c / HEAD_DIM) * (PAGE * HEAD_DIM) + c % HEAD_DIM;
#else
  return e.y + (u64)r.row * N + col;
#endif
}

// The widest run of at most W columns that stays aligned in every row and inside one head.
template <int W> struct epilogue_width {
#if ROPE
  static constexpr int value = HEAD_DIM % W == 0 ? W : epilogue_width<W / 2>::value;
#else
  static constexpr int value = N % W == 0 ? W : epilogue_width<W / 2>::value;
#endif
};
template <> struct epilogue_width<1> { static constexpr int value = 1; };

template <int W> DEV void epilogue_run(const epilogue_args &e, const epilogue_row &r, int col, const float (&v)[W]) {
  constexpr int S = epilogue_width<W>::value;
#pragma unroll
  for (int i = 0; i < W; i += S) {
    if (S == W || col + i < N) {
      float t[S];
#pragma unroll
      for (int j = 0; j < S; j++) t[j] = v[i + j];
      epilogue_math<S>(e, r, col + i, t);
      constexpr int OUT = SWIGLU ? S / 2 : S;
      elem *const to = epilogue_target(e, r, col + i);
#if ROPE
      if (to == nullptr) continue;
#endif
      epilogue_store<OUT>(to, t);
    }
  }
}

DEV void epilogue_pair(const epilogue_args &e, const epilogue_row &r, int col, float v0, float v1) {
  const float v[2] = {v0, v1};
  epilogue_run<2>(e, r, col, v);
}
DEV void epilogue_pair(const epilogue_args &e, int row, int col, float v0, float v1) {
  epilogue_pair(e, epilogue_row_of(e, row), col, v0, v1);
}

// The second launch of a product whose k was split: one thread adds the PARTS partial sums of four columns, in order, and
// finishes them. Rows of `partial` are epilogue_partial_stride long, so that every run of four is aligned.
constexpr int epilogue_partial_stride = (N + 3) / 4 * 4;
template <int PARTS> DEV void epilogue_reduce(const epilogue_args &e, const float *partial, int m) {
  constexpr int RUNS = epilogue_partial_stride / 4;
  const i64 id = (i64)blockIdx.x * blockDim.x + threadIdx.x;
  if (id >= (i64)m * RUNS) return;
  const int row = (int)(id / RUNS), col = (int)(id % RUNS) * 4;
  const float *p = partial + (u64)row * epilogue_partial_stride + col;
  float v[4] = {};
#pragma unroll
  for (int s = 0; s < PARTS; s++) {
    const float4 t = *reinterpret_cast<const float4 *>(p + (u64)s * m * epilogue_partial_stride);
    v[0] += t.x, v[1] += t.y, v[2] += t.z, v[3] += t.w;
  }
  epilogue_run<4>(e, epilogue_row_of(e, row), col, v);
}
