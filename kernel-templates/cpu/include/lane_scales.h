// Scales of 16 rows at a time in `layout=lanes`, one in a lane, and what the values of their codes have added. The rows of a template
// that has PREFETCH are fetched ahead.
typedef struct {
  const scale_elem *scales;
  const zero_elem *zeros;
} scales_t;

INLINE scales_t scales_of(const scale_elem *scales, const zero_elem *zeros, long row) {
#if W_SCALE_TENSOR
  long at = 0 * row;
#elif W_SCALE_BLOCK
  long at = row / W_GROUP * RUNS;
#else
  long at = row * RUNS;
#endif
  return (scales_t){scales + at, zeros + (ADDS ? at : 0)};
}

INLINE void run_scales(vf s[V], vf a[V], scales_t w, long run) {
#if defined(PREFETCH) && PREFETCH && W_SCALE_GROUP
  __builtin_prefetch((const char *)(w.scales + run * LANES) + PREFETCH / 8, 0, 3);
#if ADDS
  __builtin_prefetch((const char *)(w.zeros + run * LANES) + PREFETCH / 8, 0, 3);
#endif
#endif
#if W_SCALE_TENSOR || W_SCALE_BLOCK
  UNROLL for (int v = 0; v < V; v++) s[v] = splat(get_scale(w.scales + run));
#else
  UNROLL for (int v = 0; v < V; v++) s[v] = load_scales(w.scales + run * LANES + v * VL);
#endif
#if W_ZERO_ZERO
  UNROLL for (int v = 0; v < V; v++) a[v] = -s[v] * __builtin_convertvector(*(const vb_any *)(w.zeros + run * LANES + v * VL), vf);
#elif W_ZERO_MIN
  UNROLL for (int v = 0; v < V; v++) a[v] = load_scales(w.zeros + run * LANES + v * VL);
#endif
  (void)a;
}
