// The next token of each row of logits, for every shape; where there are fewer rows than threads, these share a row.
#include "sampling.h"
