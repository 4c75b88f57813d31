// For templates whose x and w are each stored in a type of their own: x_elem and w_elem, read by get_x and get_w. `elem` is
// what results, and what is added to them, are stored in.
#include "base.h"

#include "x_elem.h"

#if DTYPE_W_BF16
typedef uint16_t w_elem;
#define W_IS_ELEM DTYPE_BF16
INLINE float get_w(const w_elem *p) { return bf16_to_f32(*p); }
#elif DTYPE_W_F16
typedef _Float16 w_elem;
#define W_IS_ELEM DTYPE_F16
INLINE float get_w(const w_elem *p) { return (float)*p; }
#elif DTYPE_W_F32
typedef float w_elem;
#define W_IS_ELEM DTYPE_F32
INLINE float get_w(const w_elem *p) { return *p; }
#elif DTYPE_W_E4M3
typedef uint8_t w_elem;
INLINE float get_w(const w_elem *p) { return e4m3_to_f32(*p); }
#else
#error "no DTYPE_W_ of a known type is defined"
#endif
