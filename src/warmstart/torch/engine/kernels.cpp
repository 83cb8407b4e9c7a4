// The engine's kernels for processors: matrix products, attention of new tokens, norms, and programmes of them.
//
// Plain C functions over row-major arrays, called through ctypes; torch's OpenMP runs them. Weights are read where they
// lie, (n, k) as in nn.Linear, so that nothing is packed beforehand and a changed weight is seen at once.
//
// Shapes: r rows, k inputs, n outputs, or n new tokens, m key-value heads, g query heads for each, d head size,
// c capacity (tokens that a cache slot holds), h hidden size.

#include "dropped.h"
#include "turned.h"
#include "within.h"

namespace {

// Each function here is run by all threads of a team, which share its work and leave together.

// How far apart rows of k floats lie: not at the same places of the first cache, where few have room at once.
long apart(long k) {
    long stride = (k + 31) / 32 * 32;
    return stride % 1024 ? stride : stride + 32;
}

bool is_turned(long rows, long k, int64_t type) { return rows > FEW[type] && (type != 2 || k % 4 == 0); }

long whole_lines(long bytes) { return (bytes + 63) / 64 * 64; }

long scratch_bytes(long rows, long k, int64_t type) {
    rows = std::min(rows, together(type == 2 ? k / 4 : k));
    long units = (rows + LANES - 1) / LANES, bytes = type == 2 ? 1 : 4;
    long panels = rows > FEW[type] ? whole_lines(units * LANES * k * bytes) : 0;
    long lines = type == 2 ? rows * whole_lines(k) : std::min(rows, FEW[type]) * apart(k) * 4;
    return whole_lines(units * LANES * 4) + panels + lines;
}

struct Scratch {  // room from the start of a line of the cache on
    std::unique_ptr<char[]> held;
    explicit Scratch(long bytes) : held(new char[bytes + 64]) {}
    char* start() const { return held.get() + (64 - reinterpret_cast<uintptr_t>(held.get()) % 64) % 64; }
};

// Inputs as the products of their type take them, written to the scratch where they are others than floats as they lie.
Rows prepared(const float* x, long rows, long k, int64_t type, char* scratch) {
    auto* scales = reinterpret_cast<float*>(scratch);
    scratch += whole_lines((rows + LANES - 1) / LANES * LANES * 4);
    auto* panels = reinterpret_cast<float*>(scratch);
    if (type < 2 && is_turned(rows, k, type)) {
        turn_rows(x, rows, k, k, panels);
        return {panels, scales, k};
    }
#if defined(WARMSTART_WIDE)
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
    if (type == 2) {
        long stride = whole_lines(k);
        auto* to = reinterpret_cast<uint8_t*>(scratch);
#pragma omp for schedule(static)
        for (long row = 0; row < rows; ++row) scales[row] = quantise(x + row * k, k, stride, to + row * stride);
        if (!is_turned(rows, k, type)) return {to, scales, stride};
        panels = reinterpret_cast<float*>(scratch + rows * stride);
        turn_rows(reinterpret_cast<const float*>(to), rows, k / 4, stride / 4, panels);  // moved bit by bit
        return {panels, scales, k / 4};
    }
#endif
    return {x, nullptr, k};
}

// The activation of outputs `from` to `to` of a matrix, to y.
template <typename T, typename Block>
void product(const Rows& x, long rows, long k, bool turns, const Matrix& matrix, long from, long to, int64_t activation,
             float* y, long stride, const void* next) {
    if (turns) return turned<T>(x, rows, k, matrix, from, to, activation, y, stride, next);
    few<Block>(x, rows, k, matrix, from, to, y, stride, next, rows > GROUP);  // of several, the first would wait
    activate(y + from, rows, to - from, stride, activation);
}

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

// y (r, all n) = the activation of x (r, k) times each matrix, side by side. Types: 0 float, 1 bfloat16, 2 int8.
// `after`: the weights that are multiplied with after these, or null.
void linear_together(const float* x, long rows, long k, const Matrix* matrices, long count, int64_t type,
                     int64_t activation, float* y, char* scratch, const void* after) {
    Rows inputs = prepared(x, rows, k, type, scratch);
    bool turns = is_turned(rows, k, type);
    long stride = 0, strips = 0, threads = omp_get_num_threads(), bytes = type == 0 ? 4 : type == 1 ? 2 : 1;
    for (long i = 0; i < count; ++i) stride += matrices[i].outputs;
    long width = strip_width(k);
    if (turns) width = stride < 12 * threads * WIDE_STRIP ? WIDE_STRIP / 2 : WIDE_STRIP;  // no thread waits for another
    for (long i = 0; i < count; ++i) strips += (matrices[i].outputs + width - 1) / width;
#pragma omp for schedule(dynamic, 1)
    for (long index = 0; index < strips; ++index) {
        Strip strip = strip_at(matrices, count, width, index);
        Strip next = strip_at(matrices, count, width, index + threads);  // this thread's, most likely
        const Matrix& matrix = matrices[strip.which];
        const void* start = next.which < count ? matrices[next.which].data : after ? after : matrix.data;
        const void* ahead = static_cast<const char*>(start) + next.from * k * bytes;
        long to = std::min<long>(strip.from + width, matrix.outputs);
        float* out = y + strip.column;
        auto of = [&](auto type_of, auto block) {
            product<decltype(type_of), decltype(block)>(inputs, rows, k, turns, matrix, strip.from, to, activation, out,
                                                        stride, ahead);
        };
#if defined(WARMSTART_INT8)
        if (type == 2) of(int8_t{}, Int8Block{});
#endif
        if (type == 1) of(Brain{}, BrainBlock{});
        if (type == 0) of(float{}, FloatBlock{});
    }
}

void linear(const float* x, long rows, long k, const Matrix* matrices, long count, int64_t type, int64_t activation,
            float* y, char* scratch, const void* after) {
    long stride = 0;
    for (long i = 0; i < count; ++i) stride += matrices[i].outputs;
    long most = together(type == 2 ? k / 4 : k);
    for (long row = 0; row < rows; row += most)
        linear_together(x + row * k, std::min(most, rows - row), k, matrices, count, type, activation,
                        y + row * stride, scratch, after);
}

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

struct Norm {  // layer norm, or of root mean squares; no weight: none
    const float *weight, *bias;
    float epsilon;
    int64_t is_rms;
};

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

// Keys or values x (n, m * d), `stride` from token to token, of sources whose tokens begin at starts (b + 1,), to the
// (m, its length, d) of each.
template <typename To>
void keep(const float* x, long stride, long heads, long size, long sources, const int64_t* starts, To* const* kept) {
#pragma omp for schedule(static)
    for (long task = 0; task < sources * heads; ++task) {
        long source = task / heads, head = task % heads, length = starts[source + 1] - starts[source];
        const float* from = x + starts[source] * stride + head * size;
        To* to = kept[source] + head * length * size;
        for (long t = 0; t < length; ++t, from += stride, to += size)
            each(from, size, 0.0f, [&](long at, Vector numbers, int count) { store(to + at, numbers, count); });
    }
}

// Programmes -----------------------------------------------------------------------------------------------------------

enum Kind : int64_t { PRODUCT, GATE, NORM, OWN, SOURCE, WITHIN };

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

void run(const Op& op, long rows, const Held* held, float* arena, char* scratch, const void* after) {
    float *from = place(arena, rows, op.source), *to = place(arena, rows, op.to);
    const Heads& heads = op.heads;
    long width = heads.heads * heads.size, queries = width * heads.group, all = queries + 2 * width;
    switch (op.kind) {
        case PRODUCT:
            return linear(from, rows, op.inputs, op.matrices, op.count, op.type, op.activation, to, scratch,
                          after);
        case GATE:
            return gate(from, rows, op.outputs, op.activation, to);
        case NORM:
            return add_norm(from, place(arena, rows, op.other), rows, op.inputs, op.norm,
                            place(arena, rows, op.total), to);
        case OWN:
            return attend_own(from, from + queries, from + queries + width, all, all, all, heads, op.layer, *held, to);
        case SOURCE:
            return attend_source(from, queries, heads, op.layer, *held, to);
        case WITHIN:  // all that is known of an encoder's sources is their number and where they start
            return attend_within(from, from + queries, from + queries + width, all, heads, held->sources, held->starts, to);
    }
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
    long bytes = 0;
    for (long i = 0; i < count; ++i)
        if (ops[i].kind == PRODUCT) bytes = std::max(bytes, scratch_bytes(rows, ops[i].inputs, ops[i].type));
    Scratch scratch(bytes);
#pragma omp parallel
    for (long i = 0; i < count; ++i) run(ops[i], rows, held, arena, scratch.start(), next_weights(ops + i, ops + count));
}

void warmstart_linear(const float* x, int64_t rows, int64_t k, const Matrix* matrices, int64_t count, int64_t type,
                      int64_t activation, float* y) {
    Scratch scratch(scratch_bytes(rows, k, type));
#pragma omp parallel
    linear(x, rows, k, matrices, count, type, activation, y, scratch.start(), nullptr);
}

// out (r, k) = each row of x over its largest number, which goes to scales (r,): what int8 products take.
void warmstart_even(const float* x, int64_t rows, int64_t k, float* scales, float* out) {
#pragma omp parallel for schedule(static) if (rows * k > 16384)
    for (long row = 0; row < rows; ++row) {
        const float* from = x + row * k;
        float most = 0;
#pragma omp simd reduction(max : most)
        for (long i = 0; i < k; ++i) most = std::max(most, std::fabs(from[i]));
        float inverse = most > 0 ? 1.0f / most : 0.0f;
        for (long i = 0; i < k; ++i) out[row * k + i] = from[i] * inverse;
        scales[row] = most;
    }
}

// y (r, n) in place: each row times its scale, plus the bias (n,) or null.
void warmstart_uneven(float* y, int64_t rows, int64_t n, const float* scales, const float* bias) {
#pragma omp parallel for schedule(static) if (rows * n > 16384)
    for (long row = 0; row < rows; ++row)
        for (long i = 0; i < n; ++i) y[row * n + i] = y[row * n + i] * scales[row] + (bias ? bias[i] : 0.0f);
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

void warmstart_keep(const float* x, int64_t stride, int64_t heads, int64_t size, int64_t sources, const int64_t* starts,
                    int64_t type, void* const* kept) {
#pragma omp parallel
    if (type == 0)
        keep(x, stride, heads, size, sources, starts, reinterpret_cast<float* const*>(kept));
    else
        keep(x, stride, heads, size, sources, starts, reinterpret_cast<Brain* const*>(kept));
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
