// The second launch of a `qkv` product whose heads are normed: RMS norm of every Q and K head over its own columns, RoPE of
// both, and the cache write of K and V. The first launch left x . w^T, with the bias, as rows of elements in the workspace.
#if QK_NORM
INLINE void norm_rotate(elem *to, const elem *from, const elem *weight, const float *cs, float eps) {
  vf sums = {0};
  float squares = 0;
  long c = 0;
  for (; c + VL <= HEAD_DIM; c += VL) {
    vf v = load(from + c);
    sums = v * v + sums;
  }
  for (; c < HEAD_DIM; c++) squares += get(from + c) * get(from + c);
  float scale = 1.0f / __builtin_sqrtf((squares + sum_lanes(sums)) / HEAD_DIM + eps);
  for (c = 0; c + VL <= HEAD_DIM; c += VL) store(to + c, rotate(load(from + c) * scale * load(weight + c), load_f32(cs + c)));
  for (; c < HEAD_DIM; c += 2) {
    float a = get(from + c) * scale * get(weight + c), b = get(from + c + 1) * scale * get(weight + c + 1);
    put(to + c, a * cs[c] - b * cs[c + 1]);
    put(to + c + 1, a * cs[c + 1] + b * cs[c]);
  }
}

// Task: one row.
void cpu_qk_norm_rope(const jt_arg *args, long task, long tasks) {
  const elem *from = (const elem *)args[0].p + task * N, *q_norm = args[1].p, *k_norm = args[2].p;
  const int32_t *positions = args[3].p, *slots = args[4].p;
  const float *cs = (const float *)args[5].p + (long)positions[task] * HEAD_DIM;
  elem *y = args[6].p, *k_cache = args[7].p, *v_cache = args[8].p;
  float eps = (float)args[9].f;
  (void)tasks;
  for (long h = 0; h < HEADS; h++, from += HEAD_DIM)
    norm_rotate(y + (task * HEADS + h) * HEAD_DIM, from, q_norm, cs, eps);
  long slot = slots[task];
  if (slot < 0) return;
  for (long h = 0; h < KV_HEADS; h++, from += HEAD_DIM) {
    long at = ((slot / PAGE * KV_HEADS + h) * PAGE + slot % PAGE) * HEAD_DIM;
    norm_rotate(k_cache + at, from, k_norm, cs, eps);
    memcpy(v_cache + at, from + KV_HEADS * HEAD_DIM, HEAD_DIM * sizeof(elem));
  }
}
#endif
