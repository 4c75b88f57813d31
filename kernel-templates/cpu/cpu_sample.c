// The next token of each row of logits; PARTS tasks share a row.
#include "sampling.h"
