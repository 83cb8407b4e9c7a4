// What products are of: weights, some of their outputs, inputs.
//
// Shapes: k inputs, n outputs; a `stride` is the distance from row to row.
#pragma once

#include "lanes.h"

namespace {

struct Matrix {  // (n, k), a bias or null; int8 weights have a scale and the sum of their row for each output
    const void* data;
    const float* bias;
    int64_t outputs;
    const float* scales;
    const int32_t* sums;
};

struct Outputs {  // so many of a matrix, each `spread` from the last
    long from, count, spread;
};

struct Rows {  // inputs of a product; where they are int8, a scale for each
    const void* data;
    const float* scales;
    long stride;
};

}  // namespace
