// Linear layers over rows as they come: prepared for the kernels of their number and type, strip by strip.
//
// Shapes: r rows, k inputs, n outputs. Each function here is run by all threads of a team, which share its work and leave
// together.
#pragma once

#include <omp.h>

#include "turned.h"

namespace {

// Of each type: inputs of a word, and bytes of an input as it is multiplied; what is not here has none.
#if defined(WARMSTART_PAIRS)
constexpr long BRAIN_EACH = 2, BRAIN_BYTES = 2;
typedef PairBlock FewBrains;
#else
constexpr long BRAIN_EACH = 1, BRAIN_BYTES = 4;
typedef BrainBlock FewBrains;
#endif
#if defined(WARMSTART_INT8)
constexpr long EACH[] = {1, BRAIN_EACH, WARMSTART_INT8}, BYTES[] = {4, BRAIN_BYTES, sizeof(Small)};
#else
constexpr long EACH[] = {1, BRAIN_EACH, 1}, BYTES[] = {4, BRAIN_BYTES, 1};
#endif

// How far apart rows of k floats lie: not at the same places of the first cache, where few have room at once.
long apart(long k) {
    long stride = (k + 31) / 32 * 32;
    return stride % 1024 ? stride : stride + 32;
}

constexpr long WHOLE[] = {1, 2, 4};  // inputs of a type that a word may hold: turned rows are of whole words

bool is_turned(long rows, long k, int64_t type) { return rows > FEW[type] && k % WHOLE[type] == 0; }

long whole_lines(long bytes) { return (bytes + 63) / 64 * 64; }

long words_of(long k, int64_t type) { return std::max(1L, k / EACH[type]); }

long rows_together(long k, int64_t type) { return together(words_of(k, type)) * LANES * MOST; }

long scratch_bytes(long rows, long k, int64_t type) {
    rows = std::min(rows, rows_together(k, type));
    long units = (rows + LANES - 1) / LANES, bytes = BYTES[type];
    long panels = rows > FEW[type] ? whole_lines(units * LANES * k * bytes) : 0;
    long lines = bytes < 4 ? rows * whole_lines(k) * bytes : std::min(rows, FEW[type]) * apart(k) * 4;
    return whole_lines(units * LANES * 4) + panels + lines;
}

struct Scratch {  // room from the start of a line of the cache on
    std::unique_ptr<char[]> held;
    explicit Scratch(long bytes) : held(new char[bytes + 64]) {}
    char* start() const { return held.get() + (64 - reinterpret_cast<uintptr_t>(held.get()) % 64) % 64; }
};

// Rows whose inputs are made narrower, row by row, from `to` on, and turned if they are many; `narrow` gives a row's scale.
template <typename Input, typename Narrow>
Rows narrowed(const float* x, long rows, long k, int64_t type, float* scales, Input* to, Narrow narrow) {
    long stride = whole_lines(k), each = EACH[type];
#pragma omp for schedule(static)
    for (long row = 0; row < rows; ++row) scales[row] = narrow(x + row * k, k, stride, to + row * stride);
    if (!is_turned(rows, k, type)) return {to, scales, stride};
    auto* panels = reinterpret_cast<float*>(to + rows * stride);
    turn_rows(reinterpret_cast<const float*>(to), rows, k / each, stride / each, panels);  // moved bit by bit
    return {panels, scales, k / each};
}

// Inputs as the products of their type take them, written to the scratch where they are others than floats as they lie.
Rows prepared(const float* x, long rows, long k, int64_t type, char* scratch) {
    auto* scales = reinterpret_cast<float*>(scratch);
    scratch += whole_lines((rows + LANES - 1) / LANES * LANES * 4);
#if defined(WARMSTART_PAIRS)
    if (type == 1) return narrowed(x, rows, k, type, scales, reinterpret_cast<Brain*>(scratch), round_row);
#endif
#if defined(WARMSTART_INT8)
    if (type == 2) return narrowed(x, rows, k, type, scales, reinterpret_cast<Small*>(scratch), quantise);
#endif
    auto* panels = reinterpret_cast<float*>(scratch);
    if (type < 2 && is_turned(rows, k, type)) {
        turn_rows(x, rows, k, k, panels);
        return {panels, scales, k};
    }
    if (type == 1 || (type == 0 && rows > 4 && k % 1024 == 0)) {
        long stride = apart(k);
#pragma omp for schedule(static)
        for (long row = 0; row < rows; ++row) {
            if (type == 1)
                part(x + row * k, k, (k + 31) / 32 * 32, panels + row * stride);
            else
                std::memcpy(panels + row * stride, x + row * k, 4 * k);
        }
        return {panels, nullptr, stride};
    }
    return {x, nullptr, k};
}

struct Layers {  // some matrices side by side, the activation of their outputs, and the weights that are multiplied with
                 // after these, or null; types: 0 float, 1 bfloat16, 2 int8
    const Matrix* matrices;
    int64_t count, type, activation;
    const void* after;
    long outputs() const {
        long all = 0;
        for (long i = 0; i < count; ++i) all += matrices[i].outputs;
        return all;
    }
};

struct Strip {  // outputs of one of several matrices: which one, from which on, its column among all of them
    long which, from, column;
};

// The first strip of each matrix starts with it. Behind the last: the first of a matrix that is not there.
Strip strip_at(const Matrix* matrices, long count, long width, long index) {
    long which = 0, column = 0;
    for (; which < count; ++which) {
        long strips = (matrices[which].outputs + width - 1) / width;
        if (index < strips) break;
        index -= strips, column += matrices[which].outputs;
    }
    return {which, index * width, column};
}

// The activation of inputs, prepared as their type takes them, times each matrix, side by side. `part`: the blocks that
// they are turned to, or null; `rows`: how many are wanted.
void multiply(const Rows& inputs, const Part* part, long rows, long k, const Layers& layers, float* y, bool stays_turned) {
    long stride = layers.outputs(), strips = 0, threads = omp_get_num_threads();
    long bytes = layers.type == 0 ? 4 : layers.type == 1 ? 2 : 1, width = strip_width(k);
    if (part) width = WIDE_STRIP;
    auto streams = [&](long units) {
#if defined(WARMSTART_INT8)
        if (layers.type == 2) return Way<int8_t>::streams(units);
#endif
        return layers.type == 1 ? Way<Brain>::streams(units) : Way<float>::streams(units);
    };
    bool long_streams = part && streams(part->units());
    if (part && !long_streams && stride < 12 * threads * width) width /= 2;  // no thread waits for another
    for (long i = 0; i < layers.count; ++i) strips += (layers.matrices[i].outputs + width - 1) / width;
#pragma omp for schedule(dynamic, 1)
    for (long index = 0; index < strips; ++index) {
        Strip strip = strip_at(layers.matrices, layers.count, width, index);
        Strip next = strip_at(layers.matrices, layers.count, width, index + threads);  // this thread's, most likely
        const Matrix& matrix = layers.matrices[strip.which];
        const void* start = layers.after ? layers.after : matrix.data;
        if (next.which < layers.count) start = layers.matrices[next.which].data;
        const void* ahead = static_cast<const char*>(start) + next.from * k * bytes;
        long from = strip.from, to = std::min<long>(from + width, matrix.outputs);
        auto of = [&](auto type, auto block) {
            if (part)
                return turned<decltype(type)>(inputs, *part, rows, k, matrix, from, to, layers.activation,
                                              {y, stride, strip.column, stays_turned}, ahead);
            few<decltype(block)>(inputs, rows, k, matrix, from, to, y + strip.column, stride, ahead, false);
            activate(y + strip.column + from, rows, to - from, stride, layers.activation);
        };
#if defined(WARMSTART_INT8)
        if (layers.type == 2) of(int8_t{}, Int8Block{});
#endif
        if (layers.type == 1) of(Brain{}, FewBrains{});
        if (layers.type == 0) of(float{}, FloatBlock{});
    }
}

// y (r, all n) = the activation of x (r, k) times each matrix.
void linear(const float* x, long rows, long k, const Layers& layers, float* y, char* scratch) {
    long stride = layers.outputs(), most = rows_together(k, layers.type);
    for (long row = 0; row < rows; row += most) {
        long here = std::min(most, rows - row);
        Rows inputs = prepared(x + row * k, here, k, layers.type, scratch);
        Part part = {Blocks(here), 0, Blocks(here).count};
        bool turns = is_turned(here, k, layers.type);
        multiply(inputs, turns ? &part : nullptr, here, k, layers, y + row * stride, false);
    }
}

}  // namespace
