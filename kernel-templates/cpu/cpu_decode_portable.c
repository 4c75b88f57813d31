// Attention of one query token over a paged KV cache for every shape that the op allows: every dimension is an argument. A
// task has one query head of one sequence and keeps its unnormalised output as f32 in the workspace, with a running
// maximum and sum over the tokens.
#include "base.h"

void cpu_decode_portable(const jt_arg *args, long task, long tasks) {
  const elem *q = args[0].p, *k_cache = args[1].p, *v_cache = args[2].p;
  const int32_t *table = args[3].p, *lens = args[4].p;
  elem *o = args[5].p;
  long heads = args[7].i, kv_heads = args[8].i, head_dim = args[9].i, page = args[10].i, max_pages = args[11].i;
  float *out = (float *)args[6].p + task * head_dim, scale = (float)args[12].f, top = -1e30f, sum = 0;
  long seq = task / heads, kv_head = task % heads / (heads / kv_heads);
  (void)tasks;
  q += task * head_dim, o += task * head_dim;
  for (long d = 0; d < head_dim; d++) out[d] = 0;
  for (long t = 0; t < lens[seq]; t++) {
    long row = ((table[seq * max_pages + t / page] * kv_heads + kv_head) * page + t % page) * head_dim;
    float s = 0;
    for (long d = 0; d < head_dim; d++) s += get(q + d) * get(k_cache + row + d);
    s *= scale;
    float new_top = s > top ? s : top, shrink = __builtin_expf(top - new_top), p = __builtin_expf(s - new_top);
    top = new_top, sum = sum * shrink + p;
    for (long d = 0; d < head_dim; d++) out[d] = out[d] * shrink + p * get(v_cache + row + d);
  }
  for (long d = 0; d < head_dim; d++) put(o + d, sum > 0 ? out[d] / sum : 0.0f);
}
