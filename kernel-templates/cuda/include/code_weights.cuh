#if DTYPE_W_INT4
#define DTYPE_W_INT4_OR_8(a, b) a
#else
#define DTYPE_W_INT4_OR_8(a, b) b
#endif

#if W_ZERO_ZERO
typedef u8 zero_elem;
#else
typedef scale_elem zero_elem; // minima, or none
#endif

// Where the code of element i is among all codes (CodeLayout in src/problem/scaled.rs).
DEV i64 code_place(i64 i) {
#if W_LAYOUT_QUADS
  constexpr int BITS = DTYPE_W_INT4_OR_8(4, 8), UNIT = 512 / BITS, WORD = 32 / BITS;
  const int at = (int)(i % UNIT), of_lane = at % 8, in_word = of_lane % WORD;
  return i - at + at % 32 / 8 * (UNIT / 4) + at / 32 * 8 + of_lane / WORD * WORD + in_word % 2 * (WORD / 2) + in_word / 2;
#else
  return i;
#endif
}

// Code number i; of 4 bits the first of two is in the low half of a byte, and rows have an even number.
#if DTYPE_W_INT4
typedef u8 code_t;
DEV float code_at(const code_t *w, i64 i) { return (float)(w[i >> 1] >> (int)(i & 1) * 4 & 15); }
#elif DTYPE_W_INT8
typedef signed char code_t;
DEV float code_at(const code_t *w, i64 i) { return (float)w[i]; }
#elif DTYPE_W_E4M3
typedef e4m3_t code_t;
DEV float code_at(const code_t *w, i64 i) { return to_f32(w[i]); }
#else
#error "no DTYPE_W_ of a scaled format is defined"
#endif

struct weights {
  const code_t *codes;
  const scale_elem *scales;
  const zero_elem *zeros; // zero points or minima, where the format has them
};

// The element (row, col) of w[n, k] in arithmetic of T, float or double.
template <class T> DEV T weight(const weights &w, int row, int col, int k) {
#if W_SCALE_TENSOR
  const i64 at = 0;
#elif W_SCALE_ROW
  const i64 at = row;
#elif W_SCALE_GROUP
  const i64 at = (i64)row * cdiv(k, W_GROUP) + col / W_GROUP;
#elif W_SCALE_BLOCK
  const i64 at = (i64)(row / W_GROUP) * cdiv(k, W_GROUP) + col / W_GROUP;
#else
#error "no W_SCALE_ of scaled weights is defined"
#endif
  const T code = (T)code_at(w.codes, code_place((i64)row * k + col)), scale = (T)to_f32(w.scales[at]);
#if W_ZERO_ZERO
  return (code - (T)w.zeros[at]) * scale;
#elif W_ZERO_MIN
  return code * scale + (T)to_f32(w.zeros[at]);
#elif DTYPE_W_INT4
  return (code - (T)8) * scale;
#else
  return code * scale;
#endif
}
