// Where the codes of rows are, in either layout, and the lines that they lie in; for templates that walk K in blocks of KC.
#define LINES ((CODE_BYTES(KC) + 63) / 64) // lines of a row's codes in a block

typedef struct {
  const uint8_t *codes;
  const scale_elem *scales;
  const zero_elem *zeros;
} weights_t;

// Where the codes of a row from column `k`, the first of a word, are; and how far its words are apart.
#if W_LAYOUT_LANES
#define APART (LANES * 4)
INLINE const uint8_t *codes_at(const weights_t *w, long row, long k) {
  return w->codes + CODE_BYTES(row / LANES * LANES * K) + k / WORD * APART + row % LANES * 4;
}
// The part of the codes of 16 rows that line `l` of those of a row of them is.
INLINE const uint8_t *line_at(const weights_t *w, long row, long k, long l) {
  return codes_at(w, row / LANES * LANES, k) + (row % LANES * LINES + l) * 64;
}
#else
#define APART 4
INLINE const uint8_t *codes_at(const weights_t *w, long row, long k) { return w->codes + CODE_BYTES(row * K + k); }
INLINE const uint8_t *line_at(const weights_t *w, long row, long k, long l) { return codes_at(w, row, k) + l * 64; }
#endif
