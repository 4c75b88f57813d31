// y[t] = table[ids[t]]: rows copied as they are. A task takes TOKENS_EACH tokens.
#include "base.h"

void cpu_embedding(const jt_arg *args, long task, long tasks) {
  const int32_t *ids = args[0].p;
  const elem *table = args[1].p;
  elem *y = args[2].p;
  long t = task * TOKENS_EACH, end = min_l(t + TOKENS_EACH, args[3].i);
  (void)tasks;
  for (; t < end; t++) memcpy(y + t * HIDDEN, table + (long)ids[t] * HIDDEN, HIDDEN * ELEM_BYTES);
}
