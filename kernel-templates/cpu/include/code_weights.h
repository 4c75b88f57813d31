#if SCALE_F32
typedef float scale_elem;
INLINE float get_scale(const scale_elem *p) { return *p; }
#elif SCALE_F16
typedef _Float16 scale_elem;
INLINE float get_scale(const scale_elem *p) { return (float)*p; }
#elif SCALE_BF16
typedef uint16_t scale_elem;
INLINE float get_scale(const scale_elem *p) { return bf16_to_f32(*p); }
#else
#error "no SCALE_ of a known type is defined"
#endif

#if W_ZERO_ZERO
typedef uint8_t zero_elem;
#else
typedef scale_elem zero_elem; // minima, or none
#endif

#define LANES 16 // rows whose words stand in turn in layout=lanes
#if DTYPE_W_INT4
#define WORD 8 // codes of a word
#else
#define WORD 4
#endif

// Where the code of element i is among all codes of rows of k (CodeLayout in src/problem/scaled.rs).
INLINE long code_place(long i, long k) {
  (void)k;
#if W_LAYOUT_QUADS
  long unit = 16 * WORD, at = i % unit, of_lane = at % 8, in_word = of_lane % WORD;
  return i - at + at % 32 / 8 * (unit / 4) + at / 32 * 8 + of_lane / WORD * WORD + in_word % 2 * (WORD / 2) + in_word / 2;
#elif W_LAYOUT_LANES
  long row = i / k, col = i % k;
  return row / LANES * LANES * k + col / WORD * (LANES * WORD) + row % LANES * WORD + col % WORD;
#else
  return i;
#endif
}

// The code of element i; of 4 bits the first of two is in the low half of a byte, and rows have an even number.
#if DTYPE_W_INT4
typedef uint8_t code_t;
INLINE float get_code(const code_t *w, long i, long k) {
  i = code_place(i, k);
  return (float)(w[i >> 1] >> (i & 1) * 4 & 15);
}
#elif DTYPE_W_INT8
typedef int8_t code_t;
INLINE float code_value(code_t code) { return (float)code; }
INLINE float get_code(const code_t *w, long i, long k) { return code_value(w[code_place(i, k)]); }
#elif DTYPE_W_E4M3
typedef uint8_t code_t;
// Sign, exponent and mantissa in the places of f32's, whose exponents count from elsewhere; there is no NaN among codes.
INLINE float code_value(code_t code) {
  union {
    uint32_t bits;
    float value;
  } v = {(uint32_t)(code & 0x80) << 24 | (uint32_t)(code & 0x7f) << 20};
  return v.value * 0x1p120f;
}
INLINE float get_code(const code_t *w, long i, long k) { return code_value(w[code_place(i, k)]); }
#else
#error "no DTYPE_W_ of a scaled format is defined"
#endif

// What the codes of one run of a row are worth: (code - zero) * scale + min.
typedef struct {
  float scale, zero, min;
} worth_t;

// Elements of a row that share a scale.
INLINE long run_of(long k) {
#if W_SCALE_TENSOR || W_SCALE_ROW
  return k;
#else
  (void)k;
  return W_GROUP;
#endif
}

// Of run `run` of `row`, of which a row has `runs`.
INLINE worth_t worth_of(const scale_elem *scales, const zero_elem *zeros, long row, long run, long runs) {
#if W_SCALE_TENSOR
  long at = 0 * (row + run + runs);
#elif W_SCALE_BLOCK
  long at = row / W_GROUP * runs + run;
#elif W_LAYOUT_LANES
  long at = row / LANES * LANES * runs + run * LANES + row % LANES;
#else
  long at = row * runs + run;
#endif
  worth_t w = {get_scale(scales + at), 0, 0};
#if W_ZERO_ZERO
  w.zero = (float)zeros[at];
#elif W_ZERO_MIN
  w.min = get_scale(zeros + at);
#elif DTYPE_W_INT4
  w.zero = 8;
#endif
  (void)zeros;
  return w;
}
