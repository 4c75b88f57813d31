#include "e4m3.h"

#if DTYPE_X_BF16
typedef uint16_t x_elem;
#define X_IS_ELEM DTYPE_BF16
INLINE float get_x(const x_elem *p) { return bf16_to_f32(*p); }
#elif DTYPE_X_F16
typedef _Float16 x_elem;
#define X_IS_ELEM DTYPE_F16
INLINE float get_x(const x_elem *p) { return (float)*p; }
#elif DTYPE_X_F32
typedef float x_elem;
#define X_IS_ELEM DTYPE_F32
INLINE float get_x(const x_elem *p) { return *p; }
#elif DTYPE_X_E4M3
typedef uint8_t x_elem;
INLINE float get_x(const x_elem *p) { return e4m3_to_f32(*p); }
#else
#error "no DTYPE_X_ of a known type is defined"
#endif
