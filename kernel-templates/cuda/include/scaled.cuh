// For templates whose w is of a scaled format: its codes, scales and zero points, and what an element of w is worth. `elem` is
// what results, and what is added to them, are stored in; x_elem what x is.
#pragma once
#include "common.cuh"

#include "x_elem.cuh"

#include "scale_elem.cuh"

#include "code_weights.cuh"
