// NVML without a GPU, for tests/cuda: it numbers the two GPUs of driver.c the other way round, behind one that CUDA does
// not see. The clock of each says which it is.
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { OK = 0, NOT_FOUND = 6 };

int nvmlInit_v2(void) { return OK; }
int nvmlShutdown(void) { return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
  *device = (void *)(uintptr_t)(index + 1);
  return index < 3 ? OK : NOT_FOUND;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
  char of[64];
  for (int ordinal = 0; ordinal < 2; ordinal++) {
    int b = 16 * ordinal;
    snprintf(of, sizeof of, "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b, b + 1, b + 2,
             b + 3, b + 4, b + 5, b + 6, b + 7, b + 8, b + 9, b + 10, b + 11, b + 12, b + 13, b + 14, b + 15);
    if (!strcmp(uuid, of)) {
      *device = (void *)(uintptr_t)(3 - ordinal);
      return OK;
    }
  }
  return NOT_FOUND;
}
int nvmlDeviceGetIndex(void *device, unsigned *index) { *index = (unsigned)(uintptr_t)device - 1; return OK; }
int nvmlDeviceGetClockInfo(void *device, int type, unsigned *mhz) {
  (void)type;
  // CUDA's GPU 0 is NVML's 2.
  static const unsigned clock[3] = {500, 1001, 1000};
  *mhz = clock[(uintptr_t)device - 1];
  return OK;
}
