/* jitune's runtime: kernels that were tuned and sealed into a bundle, looked up and launched.
 *
 * Link libjitune_c.so, or libjitune_c.a with -lpthread -ldl -lm. The NVIDIA driver is loaded when a bundle is opened on a
 * GPU, and only then.
 *
 * Functions that can fail return JITUNE_OK or what went wrong; jitune_last_error() says it in words. None of them ends the
 * process or lets an error of Rust pass through C. What a function makes is given back by the caller through the matching
 * *_free or jitune_close; NULL may be given to these. A kernel and a bound kernel stay usable after their runtime was
 * closed. A runtime and a kernel may be used by several threads at once, a bound kernel by one at a time.
 */
#ifndef JITUNE_H
#define JITUNE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    JITUNE_OK = 0,
    JITUNE_ARGUMENT = 1, /* a null pointer, text that is no UTF-8 or no problem, an index beyond the end */
    JITUNE_BUNDLE = 2,   /* the file cannot be read, is damaged, or holds nothing for this device */
    JITUNE_DEVICE = 3,   /* no driver, no such GPU, out of memory, or the driver reports an error */
    JITUNE_UNTUNED = 4,  /* no kernel serves the problem; the error names the nearest */
    JITUNE_BIND = 5,     /* addresses that do not fit the problem, or a queue of the other kind of device */
    JITUNE_INTERNAL = 6  /* a fault of jitune's own */
} jitune_status;

typedef struct jitune_runtime jitune_runtime; /* a bundle on a device */
typedef struct jitune_kernel jitune_kernel;   /* the kernel of one problem */
typedef struct jitune_bound jitune_bound;     /* a kernel with the addresses of its tensors */

/* One tensor of a problem: row-major, of the dtype and shape that the problem gives it. */
typedef struct {
    const char *name; /* lives as long as the kernel */
    uint64_t bytes;
    int output; /* 1 for what the kernel writes */
} jitune_tensor;

/* The version of the library. */
const char *jitune_version(void);

/* What the last failed call of this thread had to say; empty before. Valid until the thread's next call of this library. */
const char *jitune_last_error(void);

/* Opens a bundle on the host's processor, with a pool of so many threads; 0 for as many as the process may use. */
jitune_status jitune_open_cpu(const char *path, size_t threads, jitune_runtime **runtime);

/* Opens a bundle on the GPU of that ordinal, in its primary context. No thread needs that context current, here or later,
 * and one that a thread has stays as it is. */
jitune_status jitune_open_cuda(const char *path, size_t ordinal, jitune_runtime **runtime);

/* The same for a bundle that must be signed: a bundle is code, and is run as it is. The signature is beside it, in
 * PATH.minisig; `public_key` is the text of a file that `minisign -G` wrote, or its second line. Otherwise JITUNE_BUNDLE. */
jitune_status jitune_open_cpu_signed(const char *path, const char *public_key, size_t threads, jitune_runtime **runtime);
jitune_status jitune_open_cuda_signed(const char *path, const char *public_key, size_t ordinal, jitune_runtime **runtime);

void jitune_close(jitune_runtime *runtime);

/* The kernel of a problem, such as "matmul m=4 n=2048 k=2048 dtype=bf16": one that was tuned for it, or else one near it that
 * may run it. */
jitune_status jitune_lookup(const jitune_runtime *runtime, const char *problem, jitune_kernel **kernel);

void jitune_kernel_free(jitune_kernel *kernel);

/* Its template and config in words; lives as long as the kernel. */
const char *jitune_kernel_name(const jitune_kernel *kernel);

/* Its tensors, in the order in which jitune_bind takes their addresses. */
size_t jitune_tensor_count(const jitune_kernel *kernel);
jitune_status jitune_tensor_at(const jitune_kernel *kernel, size_t index, jitune_tensor *tensor);

/* Bytes of scratch memory that a launch needs, 0 for none; and whether they must be zero before the first launch. Every
 * launch leaves them zero again. One launch at a time may use them. */
uint64_t jitune_workspace_bytes(const jitune_kernel *kernel);
int jitune_workspace_zeroed(const jitune_kernel *kernel);

/* Binds a kernel to the address of each of its tensors, `count` of them, and of the workspace (0 where none is needed): on a
 * GPU device addresses; multiples of 16. The memory must be at least of the tensors' sizes; while launches run, it stays where
 * it is, and nobody else writes it or reads what they write. Tensors of indices (pages, slots, ids, positions, lengths) hold
 * values within their range: they are not checked. */
jitune_status jitune_bind(const jitune_kernel *kernel, const uint64_t *addresses, size_t count, uint64_t workspace,
                          jitune_bound **bound);

/* Other memory in the place of a tensor, by its index, or of the workspace: nothing is built again, and launches that were
 * enqueued or captured keep what they had. After an error nothing has changed. */
jitune_status jitune_set_tensor(jitune_bound *bound, size_t index, uint64_t address);
jitune_status jitune_set_workspace(jitune_bound *bound, uint64_t workspace);

void jitune_bound_free(jitune_bound *bound);

/* Runs a kernel of the processor; it is done when this returns. */
jitune_status jitune_launch_host(const jitune_bound *bound);

/* Enqueues a kernel of a GPU on a CUstream (or cudaStream_t) of that GPU's primary context, NULL for its default stream. The
 * stream may be capturing: the bound kernel must then outlive the graph. */
jitune_status jitune_launch_cuda(const jitune_bound *bound, void *stream);

#ifdef __cplusplus
}
#endif

#endif
