/* Writes when each CUDA graph of a process began and ended on the GPU, in any program that uses the driver:
 *
 *     gcc -O2 -shared -fPIC -I CUPTI/include -o trace.so trace.c -L CUPTI/lib -lcupti
 *     CUDA_INJECTION64_PATH=$PWD/trace.so TRACE_FILE=graphs.txt program
 *
 * A line a launch: the graph's number, its stream, start and end in nanoseconds, in the order in which CUPTI hands them out. What is in a graph
 * is not traced one by one. With TRACE_KERNELS set, kernels that are launched by themselves are there too, as of graph 0.
 */
#include <cupti.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define BUFFER (4u << 20)
/* Newer records have more at their end. */
#define KERNEL CUpti_ActivityKernel9

static FILE *out;
static size_t dropped;

static void check(CUptiResult result, const char *what)
{
    const char *why = "unknown";
    if (result == CUPTI_SUCCESS)
        return;
    cuptiGetResultString(result, &why);
    fprintf(stderr, "trace: %s: %s\n", what, why);
}

static void CUPTIAPI wanted(uint8_t **buffer, size_t *size, size_t *records)
{
    *buffer = aligned_alloc(8, BUFFER);
    *size = *buffer ? BUFFER : 0;
    *records = 0;
}

/* Called by one thread at a time. */
static void CUPTIAPI filled(CUcontext context, uint32_t stream, uint8_t *buffer, size_t size, size_t valid)
{
    CUpti_Activity *record = NULL;
    size_t lost = 0;
    while (out && cuptiActivityGetNextRecord(buffer, valid, &record) == CUPTI_SUCCESS) {
        if (record->kind == CUPTI_ACTIVITY_KIND_GRAPH_TRACE) {
            const CUpti_ActivityGraphTrace2 *graph = (const CUpti_ActivityGraphTrace2 *)record;
            fprintf(out, "%u %u %llu %llu\n", graph->graphId, graph->streamId, (unsigned long long)graph->start,
                    (unsigned long long)graph->end);
        } else if (record->kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) {
            const KERNEL *kernel = (const KERNEL *)record;
            if (kernel->graphId == 0)
                fprintf(out, "0 %u %llu %llu\n", kernel->streamId, (unsigned long long)kernel->start, (unsigned long long)kernel->end);
        }
    }
    if (cuptiActivityGetNumDroppedRecords(context, stream, &lost) == CUPTI_SUCCESS)
        dropped += lost;
    free(buffer);
    (void)size;
}

static void finish(void)
{
    check(cuptiActivityFlushAll(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED), "flush");
    if (dropped)
        fprintf(stderr, "trace: %zu records are lost\n", dropped);
    if (out && fclose(out))
        perror("trace");
    out = NULL;
}

/* The driver calls it as it is initialised. */
int InitializeInjection(void)
{
    const char *path = getenv("TRACE_FILE");
    out = fopen(path ? path : "graphs.txt", "w");
    if (!out) {
        perror(path ? path : "graphs.txt");
        return 0;
    }
    check(cuptiActivityRegisterCallbacks(wanted, filled), "callbacks");
    check(cuptiActivityEnable(CUPTI_ACTIVITY_KIND_GRAPH_TRACE), "trace of graphs");
    if (getenv("TRACE_KERNELS"))
        check(cuptiActivityEnable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL), "trace of kernels");
    atexit(finish);
    return 1;
}
