// TensorRT-LLM's executor behind a C interface. Every function that can fail returns 0 when it did not, and otherwise writes why to `error`,
// of at most `error_size` bytes with the zero at its end. No exception leaves it.
#ifndef JITUNE_TRTLLM_H
#define JITUNE_TRTLLM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Of this interface. Another one is refused by who loads it.
#define JITUNE_TRTLLM_ABI 1

typedef struct jitune_trtllm jitune_trtllm;

typedef struct {
    int32_t max_batch; // Most requests at a time; 0 for what the engine was built for.
    int32_t max_tokens; // Most tokens of a step; 0 for what the engine was built for.
    int32_t reuse_blocks; // Whether what is kept of one prompt may serve another.
    int32_t chunked_context; // Whether a prompt may be computed in parts.
    float memory_fraction; // Of the free memory, for keys and values; 0 for the usual one.
} jitune_trtllm_options;

typedef struct {
    float temperature; // 0 takes the most likely token.
    float top_p;
    int32_t top_k; // 0 leaves all tokens.
    uint64_t seed;
} jitune_trtllm_sampling;

enum { JITUNE_TRTLLM_TOKENS = 0, JITUNE_TRTLLM_END = 1 };
enum { JITUNE_TRTLLM_LENGTH = 0, JITUNE_TRTLLM_STOP = 1, JITUNE_TRTLLM_CANCELLED = 2, JITUNE_TRTLLM_FAILED = 3 };

typedef struct {
    uint64_t request;
    int32_t kind;
    int32_t why; // Of an end.
    const int32_t* ids; // Of tokens.
    size_t count;
    const char* error; // Of an end that failed, and null otherwise.
} jitune_trtllm_event;

int32_t jitune_trtllm_abi(void);

// The version of the library.
const char* jitune_trtllm_version(void);

// Opens the folder of a built engine.
int32_t jitune_trtllm_open(
    const char* path, const jitune_trtllm_options* options, jitune_trtllm** opened, char* error, size_t error_size);

// Asks for at most `most` tokens after `count` of a prompt; the token `end` ends the answer, none if it is negative.
int32_t jitune_trtllm_enqueue(jitune_trtllm* engine, const int32_t* ids, size_t count, int32_t most,
    const jitune_trtllm_sampling* sampling, int32_t end, uint64_t* request, char* error, size_t error_size);

// What was heard within a time, which may be nothing. It stays until this is called the next time, from one thread.
int32_t jitune_trtllm_await(jitune_trtllm* engine, int32_t milliseconds, const jitune_trtllm_event** events, size_t* count,
    char* error, size_t error_size);

// Ends a request early; its end is heard all the same. Nothing happens to one that has ended.
int32_t jitune_trtllm_cancel(jitune_trtllm* engine, uint64_t request, char* error, size_t error_size);

// Nothing may be called with it any more, nor be running.
void jitune_trtllm_close(jitune_trtllm* engine);

#ifdef __cplusplus
}
#endif

#endif
