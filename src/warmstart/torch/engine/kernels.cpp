// The engine's kernels for processors: matrix products, attention of new tokens, norms, and programmes of them.
//
// Plain C functions over row-major arrays, called through ctypes; torch's OpenMP runs them. Weights are read where they
// lie, (n, k) as in nn.Linear, so that nothing is packed beforehand and a changed weight is seen at once.
//
// Shapes: r rows, k inputs, n outputs, or n new tokens, m key-value heads, g query heads for each, d head size,
// c capacity (tokens that a cache slot holds), h hidden size.

#include "dropped.h"
#include "panels.h"
#include "within.h"

namespace {

// out (r, n) = the activation of the left half of x (r, 2 * n), times the right.
void gate(const float* x, long rows, long n, int64_t activation, float* out) {
#pragma omp for schedule(static)
    for (long row = 0; row < rows; ++row) {
        const float* from = x + row * 2 * n;
        std::memcpy(out + row * n, from, 4 * n);
        activate(out + row * n, 1, n, n, activation);
        for (long i = 0; i < n; ++i) out[row * n + i] *= from[n + i];
    }
}

// total (r, h) = x + y (y may be null, then total may be too), out = its norm.
void add_norm(const float* x, const float* y, long rows, long h, const Norm& norm, float* total, float* out) {
#pragma omp for schedule(static)
    for (long row = 0; row < rows; ++row) {
        const float* from = x + row * h;
        float* to = out + row * h;
        if (y) {
            float* sums = total + row * h;
            for (long i = 0; i < h; ++i) sums[i] = from[i] + y[row * h + i];
            from = sums;
        }
        if (!norm.weight) continue;
        float mean = 0, square = 0;
        if (!norm.is_rms) {
#pragma omp simd reduction(+ : mean)
            for (long i = 0; i < h; ++i) mean += from[i];
            mean /= static_cast<float>(h);
        }
#pragma omp simd reduction(+ : square)
        for (long i = 0; i < h; ++i) square += (from[i] - mean) * (from[i] - mean);
        float factor = 1.0f / std::sqrt(square / static_cast<float>(h) + norm.epsilon);
        for (long i = 0; i < h; ++i) to[i] = (from[i] - mean) * factor * norm.weight[i] + (norm.bias ? norm.bias[i] : 0.0f);
    }
}

// Programmes -----------------------------------------------------------------------------------------------------------

enum Kind : int64_t { PRODUCT, GATE, NORM, OWN, SOURCE, WITHIN, KEEP };

struct Op {  // one step of a programme; `source`, `other`, `total`, `to` are places of rows, in numbers of each row
    int64_t kind, layer, source, other, total, to;
    int64_t inputs, outputs;
    const Matrix* matrices;
    int64_t count, type, activation;
    Norm norm;
    Heads heads;
};

float* place(float* arena, long rows, int64_t at) { return at < 0 ? nullptr : arena + rows * at; }

// The weights of the next product behind `op`, or null.
const void* next_weights(const Op* op, const Op* end) {
    while (++op < end)
        if (op->kind == PRODUCT) return op->matrices[0].data;
    return nullptr;
}

Layers layers(const Op& op, const void* after) { return {op.matrices, op.count, op.type, op.activation, after}; }

void run(const Op& op, long rows, const Held* held, float* arena, char* scratch, const void* after) {
    float *from = place(arena, rows, op.source), *to = place(arena, rows, op.to);
    const Heads& heads = op.heads;
    long width = heads.heads * heads.size, queries = width * heads.group, all = queries + 2 * width;
    switch (op.kind) {
        case PRODUCT:
            return linear(from, rows, op.inputs, layers(op, after), to, scratch);
        case GATE:
            return gate(from, rows, op.outputs, op.activation, to);
        case NORM:
            return add_norm(from, place(arena, rows, op.other), rows, op.inputs, op.norm,
                            place(arena, rows, op.total), to);
        case OWN:
            return attend_own(from, from + queries, from + queries + width, all, all, all, heads, op.layer, *held, to);
        case SOURCE:
            return attend_source(from, queries, heads, op.layer, *held, to);
    }
}

// The same over rows that stay turned, the tokens of sources, of which `held` knows the number and where they start.
void run_turned(const Op& op, const Blocks& blocks, const Held& held, float* arena, char* scratch, const void* after) {
    long rows = blocks.units * LANES;
    float *from = place(arena, rows, op.source), *to = place(arena, rows, op.to);
    switch (op.kind) {
        case PRODUCT:
            return linear_turned(from, blocks, op.inputs, layers(op, after), to, scratch);
        case GATE:
            return gate_turned(from, blocks, op.outputs, op.activation, to);
        case NORM:
            return add_norm_turned(from, place(arena, rows, op.other), blocks, op.inputs, op.norm,
                                   place(arena, rows, op.total), to);
        case WITHIN:
#if defined(WARMSTART_PAIRS)
            if (op.type == 1 && op.heads.size % 2 == 0)  // int8 would be further from its modules
                return attend_within<Brain>(from, blocks, op.heads, held.sources, held.starts, to);
#endif
            return attend_within<float>(from, blocks, op.heads, held.sources, held.starts, to);
        case KEEP:
            return keep(from, blocks, op.heads, op.layer, held);
    }
}

long scratch_bytes(const Op* ops, long count, long rows) {
    long bytes = 0;
    for (long i = 0; i < count; ++i)
        if (ops[i].kind == PRODUCT) bytes = std::max(bytes, scratch_bytes(rows, ops[i].inputs, ops[i].type));
    return bytes;
}

}  // namespace

extern "C" {

// Whether int8 products (type 2) are here.
int64_t warmstart_has_int8() {
#if defined(WARMSTART_INT8)
    return 1;
#else
    return 0;
#endif
}

// Steps one after another, over rows that lie side by side in the arena: one team of threads for all of them.
void warmstart_run(const Op* ops, int64_t count, int64_t rows, const Held* held, float* arena) {
    Scratch scratch(scratch_bytes(ops, count, rows));
#pragma omp parallel
    for (long i = 0; i < count; ++i) run(ops[i], rows, held, arena, scratch.start(), next_weights(ops + i, ops + count));
}

// Tokens x (n, h) of the sources that are held go to the place `in` of the arena, which has room for whole units of 16;
// what is at `at` after all steps to out (n, h), if it is not null.
void warmstart_run_turned(const Op* ops, int64_t count, const Held* held, const float* x, int64_t h, int64_t in,
                          int64_t at, float* arena, float* out) {
    long rows = held->starts[held->sources];
    if (!rows) return;
    Blocks blocks(rows);
    long all = blocks.units * LANES;
    Scratch scratch(scratch_bytes(ops, count, all));
#pragma omp parallel
    {
        turn_rows(x, rows, h, h, place(arena, all, in));
        for (long i = 0; i < count; ++i)
            run_turned(ops[i], blocks, *held, arena, scratch.start(), next_weights(ops + i, ops + count));
        if (out) turn_back(place(arena, all, at), rows, h, out);
    }
}

void warmstart_linear(const float* x, int64_t rows, int64_t k, const Matrix* matrices, int64_t count, int64_t type,
                      int64_t activation, float* y) {
    Scratch scratch(scratch_bytes(rows, k, type));
#pragma omp parallel
    linear(x, rows, k, {matrices, count, type, activation, nullptr}, y, scratch.start());
}

void warmstart_attend_own(const float* query, const float* key, const float* value, int64_t query_stride,
                          int64_t key_stride, int64_t value_stride, const Heads* heads, int64_t layer, const Held* held,
                          float* out) {
#pragma omp parallel
    attend_own(query, key, value, query_stride, key_stride, value_stride, *heads, layer, *held, out);
}

void warmstart_attend_source(const float* query, int64_t query_stride, const Heads* heads, int64_t layer,
                             const Held* held, float* out) {
#pragma omp parallel
    attend_source(query, query_stride, *heads, layer, *held, out);
}

void warmstart_norm(const float* x, const float* y, int64_t rows, int64_t h, const Norm* norm, float* total, float* out) {
#pragma omp parallel if (rows * h > 16384)
    add_norm(x, y, rows, h, *norm, total, out);
}

// Dropout of x (count,), of floats (type 0) or bfloat16 (type 1).
void warmstart_drop(const void* x, int64_t count, int64_t type, const Noise* noise, void* out) {
    if (type == 0) return drop(static_cast<const float*>(x), count, *noise, static_cast<float*>(out));
    drop(static_cast<const Brain*>(x), count, *noise, static_cast<Brain*>(out));
}

// Scores (lines, width) in place to the softmax of `scale` times them; `dropped` are these weights with dropout.
void warmstart_weigh(float* scores, int64_t lines, int64_t width, float scale, const Noise* noise, float* dropped) {
#pragma omp parallel for schedule(static) if (lines * width > 16384)
    for (long line = 0; line < lines; ++line)
        weigh(scores + line * width, width, line * width, scale, *noise, dropped + line * width);
}

// The gradient of `dropped` (lines, width) in place to that of the scores.
void warmstart_slope(float* gradient, const float* weights, int64_t lines, int64_t width, float scale,
                     const Noise* noise) {
#pragma omp parallel for schedule(static) if (lines * width > 16384)
    for (long line = 0; line < lines; ++line)
        slope(gradient + line * width, weights + line * width, width, line * width, scale, *noise);
}

}  // extern "C"
