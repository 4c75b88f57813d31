// For templates whose w is of a scaled format: its codes, scales and zero points. `elem` is what results, and what is added to
// them, are stored in; x_elem what x is.
#include "base.h"

#include "x_elem.h"

#include "code_weights.h"
