// A CUDA driver without a GPU, for tests/cuda: two GPUs whose memory is the host's. It checks what the real one leaves to
// its callers: that a handle is used, and released, with its own context current, and never twice.
//
// A "cubin" is 64 bytes that begin as an ELF file does, and then text: a line for each kernel, `name static_smem size size …`.
// What is launched is written down, and run where `kernels.h` knows it.
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int result;
typedef uint64_t address;
enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, INVALID_CONTEXT = 201, INVALID_HANDLE = 400,
       NOT_FOUND = 500, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901 };
enum { GPUS = 2, STACK = 16, KERNELS = 16, PARAMETERS = 96, LOG = 4096 };
enum kind { MODULE, MEMORY, STREAM, EVENT, GRAPH, GRAPH_EXEC, KINDS };

typedef struct context { int ordinal, retained; } context;

typedef struct kernel {
  char name[64];
  int smem, max_dynamic, count, runs, loaded, sizes[PARAMETERS];
  struct handle *module;
} kernel;

typedef struct handle {
  enum kind kind;
  context *of;
  struct handle *next;
  size_t bytes;
  void *memory;
  int capturing, broken, count;
  uint64_t thread;
  kernel kernels[KERNELS];
} handle;

typedef struct launch {
  int ordinal, captured, smem;
  unsigned grid[3], block;
  char name[64];
  uint64_t values[PARAMETERS];
} launch;

// A launch that was captured, with the values of its first parameters.
typedef struct work {
  kernel *of;
  uint64_t values[8];
} work;

static context contexts[GPUS] = {{0, 0}, {1, 0}}, foreign = {-1, 1};
static handle *all;
static launch launches[LOG];
static int launched, faults, looked_up, synchronized;
static char failing[64];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static __thread context *stack[STACK];
static __thread int top;
static __thread int mode; // 0 global, 1 thread-local, 2 relaxed
static __thread char me;

#define LOCKED pthread_mutex_lock(&lock)
#define UNLOCK pthread_mutex_unlock(&lock)
#define FAILING(name) do { if (!strcmp(failing, name)) { failing[0] = 0; return INVALID_VALUE; } } while (0)

static context *current(void) { return top ? stack[top - 1] : NULL; }

static result fault(result code) {
  faults++;
  return code;
}

// A live handle of that kind whose context is current.
static result good(handle *h, enum kind kind) {
  result code = fault(INVALID_HANDLE);
  for (handle *p = all; p; p = p->next) {
    if (p == h && p->kind == kind) {
      if (p->of == current()) code = OK;
      break;
    }
  }
  if (code == OK) faults--;
  return code;
}

static handle *make(enum kind kind) {
  handle *h = calloc(1, sizeof(handle));
  h->kind = kind;
  h->of = current();
  h->next = all;
  all = h;
  return h;
}

static result destroy(handle *h, enum kind kind) {
  result code = good(h, kind);
  if (code) return code;
  handle **p = &all;
  while (*p != h) p = &(*p)->next;
  *p = h->next;
  free(h->memory);
  free(h);
  return OK;
}

// Whether a call that is not allowed while this thread captures (or, for `whole`, while anything of the context does)
// meets a capture; it breaks it.
static int captures(int whole) {
  int found = 0;
  for (handle *p = all; p; p = p->next) {
    if (p->kind == STREAM && p->capturing && p->of == current() &&
        (whole || (p->thread == (uint64_t)&me && mode != 2))) {
      p->broken = found = 1;
    }
  }
  return found;
}

static handle *memory_of(address at) {
  for (handle *p = all; p; p = p->next) {
    if (p->kind == MEMORY && at >= (address)p->memory && at < (address)p->memory + (p->bytes ? p->bytes : 1)) return p;
  }
  return NULL;
}

// Bytes of live memory of the current context.
static result inside(address at, size_t bytes) {
  handle *h = memory_of(at);
  if (!h || h->of != current() || at + bytes > (address)h->memory + h->bytes) return fault(INVALID_VALUE);
  return OK;
}

#include "kernels.h"

static void run(const work *w) { run_kernel(w->of->name, w->of->runs++, w->values); }

// Runs it now, or with the graph that `stream` captures.
static void enqueue(kernel *k, void **parameters, handle *stream) {
  work w = {k, {0}};
  for (int i = 0; i < k->count && i < 8; i++) memcpy(&w.values[i], parameters[i], k->sizes[i] < 8 ? k->sizes[i] : 8);
  if (!stream || !stream->capturing) {
    run(&w);
    return;
  }
  stream->memory = realloc(stream->memory, (stream->count + 1) * sizeof w);
  ((work *)stream->memory)[stream->count++] = w;
}

// What tests ask.
int fake_count(int kind, int ordinal) {
  int n = 0;
  LOCKED;
  if (kind == KINDS) n = contexts[ordinal].retained;
  for (handle *p = all; p; p = p->next) n += (int)p->kind == kind && p->of && p->of->ordinal == ordinal;
  UNLOCK;
  return n;
}
int fake_faults(void) { return faults; }
int fake_looked_up(void) { return looked_up; }
int fake_synchronized(void) { return synchronized; }
int fake_launched(void) { return launched; }
const launch *fake_launch(int i) { return &launches[i % LOG]; }
void fake_fail(const char *name) { strncpy(failing, name, sizeof failing - 1); }
int fake_depth(void) { return top; }
void *fake_current(void) { return current(); }
void fake_push_foreign(void) { stack[top++] = &foreign; }
void fake_pop(void) { top--; }
void *fake_context(int ordinal) { return &contexts[ordinal]; }

result cuInit(unsigned flags) { return flags ? INVALID_VALUE : OK; }
result cuDriverGetVersion(int *version) { *version = 13000; return OK; }
result cuGetErrorName(result code, const char **text) { *text = code == CAPTURE_UNSUPPORTED ? "CAPTURE_UNSUPPORTED" : "SOME_ERROR"; return OK; }
result cuDeviceGetCount(int *count) { *count = GPUS; return OK; }
result cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal < GPUS ? OK : INVALID_DEVICE; }
result cuDeviceGetName(char *name, int len, int device) { strncpy(name, device ? "Fake 1" : "Fake 0", len); return OK; }
result cuDeviceTotalMem_v2(size_t *bytes, int device) { (void)device; *bytes = 1ull << 30; return OK; }
result cuDeviceGetUuid_v2(unsigned char *uuid, int device) {
  for (int i = 0; i < 16; i++) uuid[i] = 16 * device + i;
  return OK;
}
result cuDeviceGetAttribute(int *value, int which, int device) {
  (void)device;
  FAILING("cuDeviceGetAttribute");
  switch (which) {
  case 5: *value = 0x7fffffff; break;
  case 6: case 7: *value = 65535; break;
  case 13: *value = 1980000; break;
  case 16: *value = 132; break;
  case 36: *value = 2619000; break;
  case 37: *value = 5120; break;
  case 38: *value = 50 << 20; break;
  case 75: *value = 9; break;
  case 76: *value = 0; break;
  case 81: *value = 228 << 10; break;
  case 82: *value = 65536; break;
  case 97: *value = 227 << 10; break;
  default: *value = 0;
  }
  return OK;
}

result cuDevicePrimaryCtxRetain(context **out, int device) {
  FAILING("cuDevicePrimaryCtxRetain");
  LOCKED;
  contexts[device].retained++;
  UNLOCK;
  *out = &contexts[device];
  return OK;
}
result cuDevicePrimaryCtxRelease_v2(int device) {
  LOCKED;
  // Nothing may be left in it: the real one would take it away under its owner.
  if (--contexts[device].retained == 0)
    for (handle *p = all; p; p = p->next) faults += p->of == &contexts[device];
  UNLOCK;
  return OK;
}
result cuCtxGetCurrent(context **out) { *out = current(); return OK; }
result cuCtxSetCurrent(context *c) {
  if (!top) top++;
  stack[top - 1] = c;
  return OK;
}
result cuCtxPushCurrent_v2(context *c) {
  if (top == STACK || !c->retained) return fault(INVALID_CONTEXT);
  stack[top++] = c;
  return OK;
}
result cuCtxPopCurrent_v2(context **out) {
  if (!top) return fault(INVALID_CONTEXT);
  *out = stack[--top];
  return OK;
}
result cuCtxSynchronize(void) {
  if (!current()) return fault(INVALID_CONTEXT);
  LOCKED;
  int broke = captures(1);
  synchronized++;
  UNLOCK;
  return broke ? CAPTURE_UNSUPPORTED : OK;
}

result cuModuleLoadData(handle **out, const char *image) {
  if (!current()) return fault(INVALID_CONTEXT);
  LOCKED;
  handle *h = make(MODULE);
  for (const char *line = image + 64; *line;) {
    kernel *k = &h->kernels[h->count++];
    char *end;
    size_t n = strcspn(line, " ");
    memcpy(k->name, line, n);
    k->module = h;
    k->max_dynamic = 48 << 10;
    k->smem = (int)strtol(line + n, &end, 10);
    while (*end == ' ') k->sizes[k->count++] = (int)strtol(end, &end, 10);
    line = *end ? end + 1 : end;
  }
  UNLOCK;
  *out = h;
  return OK;
}
result cuModuleUnload(handle *h) {
  LOCKED;
  result code = destroy(h, MODULE);
  UNLOCK;
  return code;
}
result cuModuleGetFunction(kernel **out, handle *h, const char *name) {
  LOCKED;
  looked_up++;
  result code = good(h, MODULE);
  *out = NULL;
  for (int i = 0; !code && i < h->count; i++)
    if (!strcmp(h->kernels[i].name, name)) *out = &h->kernels[i];
  UNLOCK;
  return code ? code : *out ? OK : NOT_FOUND;
}
result cuFuncLoad(kernel *k) {
  LOCKED;
  k->loaded = 1;
  UNLOCK;
  return good(k->module, MODULE);
}
result cuFuncGetAttribute(int *value, int which, kernel *k) {
  *value = which == 0 ? 1024 : which == 1 ? k->smem : 0;
  return good(k->module, MODULE);
}
result cuFuncSetAttribute(kernel *k, int which, int value) {
  LOCKED;
  result code = good(k->module, MODULE);
  if (!code && which == 8) {
    if (value + k->smem > 227 << 10) code = INVALID_VALUE;
    else k->max_dynamic = value;
  }
  UNLOCK;
  return code;
}
result cuFuncGetParamInfo(kernel *k, size_t i, size_t *at, size_t *bytes) {
  *at = 0;
  if (i >= (size_t)k->count) return INVALID_VALUE;
  *bytes = k->sizes[i];
  return OK;
}
result cuOccupancyMaxActiveBlocksPerMultiprocessor(int *n, kernel *k, int block, size_t smem) {
  (void)block, (void)smem;
  *n = 2;
  return good(k->module, MODULE);
}

// Bytes that were given back so far.
static uint64_t freed;
uint64_t fake_freed(void) { return freed; }

result cuMemAlloc_v2(address *out, size_t bytes) {
  if (!current()) return fault(INVALID_CONTEXT);
  if (bytes > 1ull << 30) return OUT_OF_MEMORY;
  LOCKED;
  result code = captures(0) ? fault(CAPTURE_UNSUPPORTED) : OK;
  if (!code) {
    handle *h = make(MEMORY);
    h->bytes = bytes;
    h->memory = aligned_alloc(256, (bytes + 255) / 256 * 256);
    memset(h->memory, 0xaa, bytes < 1 << 20 ? bytes : 1 << 20);
    *out = (address)h->memory;
  }
  UNLOCK;
  return code;
}
result cuMemFree_v2(address at) {
  LOCKED;
  handle *h = memory_of(at);
  size_t bytes = h ? h->bytes : 0;
  result code = captures(0) ? fault(CAPTURE_UNSUPPORTED) : h && (address)h->memory == at ? destroy(h, MEMORY) : fault(INVALID_VALUE);
  if (!code) freed += bytes;
  UNLOCK;
  return code;
}
result cuMemGetInfo_v2(size_t *free, size_t *total) { *free = *total = 1ull << 30; return current() ? OK : fault(INVALID_CONTEXT); }
result cuMemcpyHtoD_v2(address to, const void *from, size_t bytes) {
  LOCKED;
  result code = inside(to, bytes);
  if (!code) memcpy((void *)to, from, bytes);
  UNLOCK;
  return code;
}
result cuMemcpyDtoH_v2(void *to, address from, size_t bytes) {
  LOCKED;
  result code = inside(from, bytes);
  if (!code) memcpy(to, (void *)from, bytes);
  UNLOCK;
  return code;
}
result cuMemsetD8Async(address at, unsigned char byte, size_t bytes, handle *stream) {
  LOCKED;
  result code = inside(at, bytes);
  if (!code && stream) code = good(stream, STREAM);
  if (!code) memset((void *)at, byte, bytes);
  UNLOCK;
  return code;
}
result cuPointerGetAttribute(void *out, int which, address at) {
  LOCKED;
  handle *h = memory_of(at);
  if (h && which == 9) *(int *)out = h->of->ordinal;
  UNLOCK;
  return h && which == 9 ? OK : INVALID_VALUE;
}

result cuStreamCreate(handle **out, unsigned flags) {
  (void)flags;
  if (!current()) return fault(INVALID_CONTEXT);
  LOCKED;
  *out = make(STREAM);
  UNLOCK;
  return OK;
}
result cuStreamDestroy_v2(handle *h) {
  LOCKED;
  result code = destroy(h, STREAM);
  UNLOCK;
  return code;
}
result cuStreamSynchronize(handle *h) {
  if (!current()) return fault(INVALID_CONTEXT);
  LOCKED;
  result code = h ? good(h, STREAM) : OK;
  UNLOCK;
  return code;
}
result cuThreadExchangeStreamCaptureMode(int *m) {
  int before = mode;
  mode = *m;
  *m = before;
  return OK;
}
result cuStreamBeginCapture_v2(handle *h, int m) {
  LOCKED;
  result code = good(h, STREAM);
  if (!code && (h->capturing || m != 1)) code = INVALID_VALUE;
  if (!code) {
    h->capturing = 1;
    h->broken = h->count = 0;
    h->thread = (uint64_t)&me;
  }
  UNLOCK;
  return code;
}
result cuStreamEndCapture(handle *h, handle **graph) {
  LOCKED;
  result code = good(h, STREAM);
  *graph = NULL;
  if (!code && !h->capturing) code = INVALID_VALUE;
  if (!code) {
    h->capturing = 0;
    if (h->broken) code = CAPTURE_INVALIDATED;
    else {
      *graph = make(GRAPH);
      (*graph)->count = h->count;
      (*graph)->memory = h->memory;
      h->memory = NULL;
    }
  }
  UNLOCK;
  return code;
}
result cuGraphInstantiateWithFlags(handle **out, handle *graph, unsigned long long flags) {
  (void)flags;
  FAILING("cuGraphInstantiateWithFlags");
  LOCKED;
  *out = make(GRAPH_EXEC);
  (*out)->count = graph->count;
  (*out)->memory = malloc(graph->count * sizeof(work) + 1);
  memcpy((*out)->memory, graph->memory, graph->count * sizeof(work));
  UNLOCK;
  return OK;
}
result cuGraphDestroy(handle *graph) {
  LOCKED;
  graph->of = current(); // A graph has no context.
  result code = destroy(graph, GRAPH);
  UNLOCK;
  return code;
}
result cuGraphLaunch(handle *exec, handle *stream) {
  LOCKED;
  result code = good(exec, GRAPH_EXEC);
  if (!code) code = good(stream, STREAM);
  for (int i = 0; !code && i < exec->count; i++) run(&((work *)exec->memory)[i]);
  UNLOCK;
  return code;
}
result cuGraphExecDestroy(handle *exec) {
  LOCKED;
  result code = destroy(exec, GRAPH_EXEC);
  UNLOCK;
  return code;
}

result cuEventCreate(handle **out, unsigned flags) {
  (void)flags;
  if (!current()) return fault(INVALID_CONTEXT);
  LOCKED;
  *out = make(EVENT);
  UNLOCK;
  return OK;
}
result cuEventDestroy_v2(handle *h) {
  LOCKED;
  result code = destroy(h, EVENT);
  UNLOCK;
  return code;
}
result cuEventRecord(handle *h, handle *stream) {
  LOCKED;
  result code = good(h, EVENT);
  if (!code) code = good(stream, STREAM);
  UNLOCK;
  return code;
}
result cuEventElapsedTime_v2(float *ms, handle *a, handle *b) {
  *ms = 1;
  LOCKED;
  result code = good(a, EVENT);
  if (!code) code = good(b, EVENT);
  UNLOCK;
  return code;
}

struct config { unsigned grid[3], block[3], smem; handle *stream; void *attributes; unsigned count; };
result cuLaunchKernelEx(const struct config *c, kernel *k, void **parameters, void **extra) {
  (void)extra;
  LOCKED;
  result code = good(k->module, MODULE);
  if (!code && c->stream) code = good(c->stream, STREAM);
  if (!code && (int)c->smem > k->max_dynamic) code = INVALID_VALUE;
  // The real one would load it now, which may wait for all that runs.
  if (!k->loaded) faults++;
  if (!code) {
    launch *l = &launches[launched++ % LOG];
    memset(l, 0, sizeof *l);
    l->ordinal = k->module->of->ordinal;
    l->captured = c->stream && c->stream->capturing;
    l->smem = c->smem;
    memcpy(l->grid, c->grid, sizeof l->grid);
    l->block = c->block[0];
    strcpy(l->name, k->name);
    enqueue(k, parameters, c->stream);
    for (int i = 0; i < k->count; i++) {
      // Of a tensor map the address.
      memcpy(&l->values[i], parameters[i], k->sizes[i] < 8 ? k->sizes[i] : 8);
      handle *h = k->sizes[i] >= 8 ? memory_of(l->values[i]) : NULL;
      if (h && h->of != current()) faults++;
    }
  }
  UNLOCK;
  return code;
}
result cuLaunchKernel(kernel *k, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                      unsigned smem, handle *stream, void **parameters, void **extra) {
  struct config c = {{gx, gy, gz}, {bx, by, bz}, smem, stream, NULL, 0};
  return cuLaunchKernelEx(&c, k, parameters, extra);
}
result cuTensorMapEncodeTiled(address *map, int type, unsigned rank, address at, const uint64_t *dims,
                              const uint64_t *strides, const unsigned *box, const unsigned *steps, int interleave,
                              int swizzle, int promotion, int fill) {
  (void)type, (void)dims, (void)steps, (void)interleave, (void)swizzle, (void)promotion, (void)fill;
  if (!current()) return fault(INVALID_CONTEXT);
  if (at % 16) return INVALID_VALUE;
  for (unsigned i = 0; i < rank; i++)
    if (box[i] < 1 || box[i] > 256 || (i && strides[i - 1] % 16)) return INVALID_VALUE;
  map[0] = at;
  return OK;
}
