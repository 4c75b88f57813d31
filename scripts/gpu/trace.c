/* Writes when each CUDA graph of a process began and ended on the GPU, in any program that uses the driver:
 *
 *     gcc -O2 -shared -fPIC -I CUPTI/include -o trace.so trace.c -L CUPTI/lib -lcupti
 *     CUDA_INJECTION64_PATH=$PWD/trace.so TRACE_FILE=graphs.txt program
 *
 * A line a launch: the graph's number, its stream, start and end in nanoseconds, in the order in which CUPTI hands them out.
 * Kernels are not traced one by one, which would keep those of a graph from overlapping.
 */
#include <cupti.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define BUFFER (4u << 20)

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
        if (record->kind != CUPTI_ACTIVITY_KIND_GRAPH_TRACE)
            continue;
        const CUpti_ActivityGraphTrace2 *graph = (const CUpti_ActivityGraphTrace2 *)record;
        fprintf(out, "%u %u %llu %llu\n", graph->graphId, graph->streamId, (unsigned long long)graph->start,
                (unsigned long long)graph->end);
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
    atexit(finish);
    return 1;
}
