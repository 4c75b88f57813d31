DEV u64 candidate(float v, int i) { return (u64)key_of(v) << 32 | (u32)~i; }
DEV int index_of(u64 c) { return (int)~(u32)c; }
DEV u64 larger(u64 a, u64 b) { return a > b ? a : b; }
