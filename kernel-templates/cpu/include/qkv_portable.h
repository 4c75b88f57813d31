#if OP_QKV
void cpu_qkv_portable(const jt_arg *args, long task, long tasks) {
  const float *from = args[0].p;
  const elem *norms[2] = {args[1].p, args[2].p};
  const int32_t *positions = args[3].p, *slots = args[4].p;
  elem *y = args[6].p, *caches[2] = {args[7].p, args[8].p};
  long heads = args[9].i, kv_heads = args[10].i, head_dim = args[11].i, page = args[12].i, slot = slots[task];
  float eps = (float)args[13].f;
  const float *cs = (const float *)args[5].p + positions[task] * head_dim;
  (void)tasks;
  from += task * (heads + 2 * kv_heads) * head_dim;
  for (long head = 0; head < heads + 2 * kv_heads; head++, from += head_dim) {
    long is_kv = head >= heads, is_v = head >= heads + kv_heads, kv_head = head - heads - (is_v ? kv_heads : 0);
    if (is_kv && slot < 0) return;
    elem *to = is_kv ? caches[is_v] + ((slot / page * kv_heads + kv_head) * page + slot % page) * head_dim
                     : y + (task * heads + head) * head_dim;
    const elem *weight = is_v ? 0 : norms[is_kv];
    float squares = 0, scale = 1;
    if (weight) {
      for (long c = 0; c < head_dim; c++) squares += from[c] * from[c];
      scale = 1.0f / __builtin_sqrtf(squares / head_dim + eps);
    }
    for (long c = 0; c < head_dim; c += 2) {
      float a = from[c], b = from[c + 1];
      if (weight) a *= scale * get(weight + c), b *= scale * get(weight + c + 1);
      put(to + c, is_v ? a : a * cs[c] - b * cs[c + 1]);
      put(to + c + 1, is_v ? b : a * cs[c + 1] + b * cs[c]);
    }
  }
}
#endif
