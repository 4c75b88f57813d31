// The next token of each row of logits; SPLITS blocks share a row where all of it is read.
#include "sample.cuh"
