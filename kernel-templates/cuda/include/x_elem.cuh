#if DTYPE_X_BF16
typedef bf16_t x_elem;
#elif DTYPE_X_F16
typedef f16_t x_elem;
#elif DTYPE_X_F32
typedef float x_elem;
#elif DTYPE_X_E4M3
typedef e4m3_t x_elem;
#else
#error "no DTYPE_X_ of a known type is defined"
#endif
