// Transposition of small f32 blocks: 8x8 where vectors have at least 8 lanes, else 4x4.
#if VL >= 8
#define TB 8
typedef float vt __attribute__((vector_size(32)));
typedef float vt_any __attribute__((vector_size(32), aligned(4), may_alias));
INLINE void transpose_regs(vt r[8]) {
  vt a[8], b[8];
  UNROLL for (int i = 0; i < 8; i += 2) {
    a[i] = __builtin_shufflevector(r[i], r[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    a[i + 1] = __builtin_shufflevector(r[i], r[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  UNROLL for (int i = 0; i < 8; i += 4) UNROLL for (int j = 0; j < 2; j++) {
    b[i + 2 * j] = __builtin_shufflevector(a[i + j], a[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
    b[i + 2 * j + 1] = __builtin_shufflevector(a[i + j], a[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
  }
  UNROLL for (int i = 0; i < 4; i++) {
    r[i] = __builtin_shufflevector(b[i], b[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    r[i + 4] = __builtin_shufflevector(b[i], b[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}
#else
#define TB 4
typedef float vt __attribute__((vector_size(16)));
typedef float vt_any __attribute__((vector_size(16), aligned(4), may_alias));
INLINE void transpose_regs(vt r[4]) {
  vt a = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5), b = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7);
  vt c = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5), d = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
  r[0] = __builtin_shufflevector(a, c, 0, 1, 4, 5);
  r[1] = __builtin_shufflevector(a, c, 2, 3, 6, 7);
  r[2] = __builtin_shufflevector(b, d, 0, 1, 4, 5);
  r[3] = __builtin_shufflevector(b, d, 2, 3, 6, 7);
}
#endif

// to[j * ldt + i] = from[i * ldf + j] for a TB x TB block of f32.
INLINE void transpose_block(float *to, long ldt, const float *from, long ldf) {
  vt r[TB];
  UNROLL for (int i = 0; i < TB; i++) r[i] = *(const vt_any *)(from + i * ldf);
  transpose_regs(r);
  UNROLL for (int i = 0; i < TB; i++) *(vt_any *)(to + i * ldt) = r[i];
}
// to[j * ldt + i] = from[i][j] for i < rows, j < cols of a row-major matrix of elements; rows up to `pad_rows` and
// columns up to `pad_cols` (both multiples of TB) become zero.
static void transpose_elems(float *to, long ldt, const elem *from, long ldf, long rows, long cols, long pad_rows,
                            long pad_cols) {
  for (long j = 0; j < pad_cols; j += TB)
    for (long i = 0; i < pad_rows; i += TB) {
      if (i + TB <= rows && j + TB <= cols) {
#if DTYPE_F32
        transpose_block(to + j * ldt + i, ldt, from + i * ldf + j, ldf);
#else
        float t[TB * TB];
        UNROLL for (int r = 0; r < TB; r++) {
#if VL > TB
          for (int c = 0; c < TB; c++) t[r * TB + c] = get(from + (i + r) * ldf + j + c);
#else
          store_f32(t + r * TB, load(from + (i + r) * ldf + j));
#endif
        }
        transpose_block(to + j * ldt + i, ldt, t, TB);
#endif
      } else {
        for (int c = 0; c < TB; c++)
          for (int r = 0; r < TB; r++)
            to[(j + c) * ldt + i + r] = i + r < rows && j + c < cols ? get(from + (i + r) * ldf + j + c) : 0.0f;
      }
    }
}
