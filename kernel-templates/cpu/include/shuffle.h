// Lane movements that RoPE, SwiGLU and transposition need, for vectors of 4, 8 and 16 floats.
#if VL == 4
#define DUP_EVEN(a) __builtin_shufflevector(a, a, 0, 0, 2, 2)
#define DUP_ODD(a) __builtin_shufflevector(a, a, 1, 1, 3, 3)
#define SWAP_PAIRS(a) __builtin_shufflevector(a, a, 1, 0, 3, 2)
#define EVENS(a, b) __builtin_shufflevector(a, b, 0, 2, 4, 6)
#define ODDS(a, b) __builtin_shufflevector(a, b, 1, 3, 5, 7)
#define SIGNS {-1, 1, -1, 1}
#define IOTA {0, 1, 2, 3}
#elif VL == 8
#define DUP_EVEN(a) __builtin_shufflevector(a, a, 0, 0, 2, 2, 4, 4, 6, 6)
#define DUP_ODD(a) __builtin_shufflevector(a, a, 1, 1, 3, 3, 5, 5, 7, 7)
#define SWAP_PAIRS(a) __builtin_shufflevector(a, a, 1, 0, 3, 2, 5, 4, 7, 6)
#define EVENS(a, b) __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14)
#define ODDS(a, b) __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15)
#define SIGNS {-1, 1, -1, 1, -1, 1, -1, 1}
#define IOTA {0, 1, 2, 3, 4, 5, 6, 7}
#else
#define DUP_EVEN(a) __builtin_shufflevector(a, a, 0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10, 12, 12, 14, 14)
#define DUP_ODD(a) __builtin_shufflevector(a, a, 1, 1, 3, 3, 5, 5, 7, 7, 9, 9, 11, 11, 13, 13, 15, 15)
#define SWAP_PAIRS(a) __builtin_shufflevector(a, a, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14)
#define EVENS(a, b) __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)
#define ODDS(a, b) __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31)
#define SIGNS {-1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1}
#define IOTA {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
#endif

// Rotates the adjacent pairs of `v` by the (cos, sin) pairs of `cs`.
INLINE vf rotate(vf v, vf cs) { return v * DUP_EVEN(cs) + SWAP_PAIRS(v) * (DUP_ODD(cs) * (vf)SIGNS); }
