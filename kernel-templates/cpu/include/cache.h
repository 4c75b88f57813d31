// Caches of keys and values: elements as results are, values of a type of their own, or codes with a scale a head. Behind base.h.
#if DTYPE_KV_E4M3
#include "e4m3_vectors.h"
typedef uint8_t kv_elem;
#define KV_BYTES 1
INLINE vf load_kv(const kv_elem *p) { return load_codes(p); }
INLINE void store_kv(kv_elem *p, vf v) { store_codes(p, v); }
INLINE float get_kv(const kv_elem *p) {
  kv_elem all[VL] = {*p};
  return load_kv(all)[0];
}
INLINE void put_kv(kv_elem *p, float v) { put_code(p, v); }
#elif DTYPE_KV_BF16 && !DTYPE_BF16
typedef uint16_t kv_elem;
#define KV_BYTES 2
INLINE vf load_kv(const kv_elem *p) { return load_bf16(p); }
INLINE void store_kv(kv_elem *p, vf v) { store_bf16(p, v); }
INLINE float get_kv(const kv_elem *p) { return bf16_to_f32(*p); }
INLINE void put_kv(kv_elem *p, float v) { *p = f32_to_bf16(v); }
#elif DTYPE_KV_F16 && !DTYPE_F16
typedef _Float16 kv_elem;
#define KV_BYTES 2
INLINE vf load_kv(const kv_elem *p) { return load_f16(p); }
INLINE void store_kv(kv_elem *p, vf v) { store_f16(p, v); }
INLINE float get_kv(const kv_elem *p) { return (float)*p; }
INLINE void put_kv(kv_elem *p, float v) { *p = (_Float16)v; }
#else
typedef elem kv_elem;
#define KV_BYTES ELEM_BYTES
INLINE vf load_kv(const kv_elem *p) { return load(p); }
INLINE void store_kv(kv_elem *p, vf v) { store(p, v); }
INLINE float get_kv(const kv_elem *p) { return get(p); }
INLINE void put_kv(kv_elem *p, float v) { put(p, v); }
#endif
// `n` elements of a cache to f32; the tail up to `padded` becomes zero.
INLINE void widen_kv(float *to, const kv_elem *from, long n, long padded) {
  long i = 0;
  for (; i + VL <= n; i += VL) store_f32(to + i, load_kv(from + i));
  for (; i < n; i++) to[i] = get_kv(from + i);
  for (; i < padded; i++) to[i] = 0;
}
