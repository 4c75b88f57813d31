// The next token of each row of logits, for every shape; where there are fewer rows than multiprocessors, these share a row.
#define THREADS 256
#include "sample.cuh"
