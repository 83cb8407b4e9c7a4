// Products with more rows than few: inputs are turned, so that the lanes of a vector are rows, and weights are read as
// they lie, each once for all rows of a block.
//
// Shapes: r rows, k inputs, n outputs. A word is an input or a weight as it is multiplied: a float, or some in 32 bits. A
// unit is LANES rows; a block is up to MOST units; a tile is some outputs of a block.
#pragma once

#include "few.h"

namespace {

constexpr int MOST = 4;
constexpr long WIDE_STRIP = 48;

// Words of a tile: the inputs of so many stay in the first cache while the weights of a strip pass; vectors of 8
// are fed fast enough from the second, and weights are read further on.
constexpr long tile_depth(int units) { return LANES == 16 ? 512 / units / 16 * 16 : 768; }

// Blocks that are multiplied together: what a second cache has room for beside a strip's weights.
inline long together(long words) { return std::max(1L, (6L << 16) / (words * LANES * MOST)); }

// Rows as blocks of like size; the place of a block is that of its first unit, its width that of its rows.
struct Blocks {
    long units, count;
    explicit Blocks(long rows) : units((rows + LANES - 1) / LANES), count((units + MOST - 1) / MOST) {}
    long place(long block) const { return block * (units / count) + std::min(block, units % count); }
    long width(long block) const { return (place(block + 1) - place(block)) * LANES; }
    long of(long unit) const {
        long small = units / count, wider = units % count, first = wider * (small + 1);
        return unit < first ? unit / (small + 1) : wider + (unit - first) / small;
    }
};

// Some of the blocks of all rows, one after the other.
struct Part {
    Blocks blocks;
    long begin, end;
    long place() const { return blocks.place(begin); }
    long units() const { return blocks.place(end) - place(); }
    long rows() const { return units() * LANES; }
};

// The function for so many units, 1 to MOST.
template <typename Function>
inline void of_units(long units, Function function) {
    if (units == 1) return function(Constant<1>{});
    if (units == 2) return function(Constant<2>{});
    if (units == 3) return function(Constant<3>{});
    function(Constant<4>{});
}

// How weights of a type are multiplied, and what is done to the sums (width,) of an output afterwards.
template <typename T>
struct Way {
    typedef float Word, Number;  // of inputs and weights, of sums
    typedef Vector Some, Sum;    // LANES of them
    static constexpr long EACH = 1;  // weights of a word
    static constexpr bool WIDENS = std::is_same_v<T, Brain>;
    static constexpr int sums(int units) {  // of a tile of so many units
        return LANES == 16 && !streams(units) ? 24 : units == 1 ? 8 : 12;
    }
    // Where so many units are all there are: outputs of a tile have a part of the strip each. So many streams, which go on
    // from row to row, come faster by the processor's own reading ahead than what is asked for.
    static constexpr bool streams(long units) { return !WIDENS && (LANES == 8 ? units <= 2 : AMD_512 && units == 1); }
    static inline Sum add(Sum sum, Some weight, Some inputs) { return sum + weight * inputs; }
    static inline Number first(const Matrix& matrix, long output) { return matrix.bias ? matrix.bias[output] : 0.0f; }
    static inline void finish(const Matrix&, long, const float*, long, Number*) {}
};
#if defined(WARMSTART_PAIRS)
template <>
struct Way<Brain> {
    typedef int32_t Word;
    typedef float Number;
    typedef Integers Some;
    typedef Vector Sum;
    static constexpr long EACH = 2;
    static constexpr bool WIDENS = false;
    static constexpr int sums(int units) { return Way<float>::sums(units); }
    static constexpr bool streams(long units) { return Way<float>::streams(units); }
    static inline Sum add(Sum sum, Some weight, Some inputs) { return add_pairs(sum, inputs, weight); }
    static inline Number first(const Matrix& matrix, long output) { return Way<float>::first(matrix, output); }
    static inline void finish(const Matrix&, long, const float*, long, Number*) {}
};
#endif
#if defined(WARMSTART_INT8)
template <>
struct Way<int8_t> {
    typedef int32_t Word, Number;
    typedef Integers Some, Sum;
    static constexpr long EACH = WARMSTART_INT8;
    static constexpr bool WIDENS = WARMSTART_INT8 == 2;
    static constexpr int sums(int units) { return LANES == 16 ? Way<float>::sums(units) : units == MOST ? 12 : 9; }
    static constexpr bool streams(long units) { return LANES == 16 && Way<float>::streams(units); }
    static inline Sum add(Sum sum, Some weight, Some inputs) {
#if WARMSTART_INT8 == 4
        return (Sum)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)inputs, (__m512i)weight);
#else
        return sum + sums_of_pairs((Shorts)inputs, (Shorts)weight);
#endif
    }
    static inline Number first(const Matrix& matrix, long output) { return -ABOVE * matrix.sums[output]; }
    static inline void finish(const Matrix& matrix, long output, const float* scales, long width, Number* sums) {
        float scale = matrix.scales[output], bias = matrix.bias ? matrix.bias[output] : 0.0f;
        for (long at = 0; at < width; at += LANES) {
            Vector value = __builtin_convertvector(*reinterpret_cast<Integers*>(sums + at), Vector);
            *reinterpret_cast<Vector*>(sums + at) = value * (load(scales + at) * scale) + bias;
        }
    }
};
#endif

// Outputs of a tile: its sums, the inputs of one step and one weight fill the registers, or its weights and one input.
template <typename T>
constexpr int tile_height(int units) {
    return Way<T>::sums(units) / units;
}

// Rows (r, words), `stride` apart, to panels: blocks one behind the other, each (words, its rows), rows that are not there
// 0. All threads of a team do it.
inline void turn_rows(const float* x, long rows, long words, long stride, float* panels) {
    constexpr long PART = 256;
    Blocks blocks(rows);
    long parts = (words + PART - 1) / PART;
#pragma omp for schedule(static)
    for (long task = 0; task < blocks.units * parts; ++task) {
        long unit = task / parts, block = blocks.of(unit), from = task % parts * PART, count = std::min(PART, words - from);
        long place = blocks.place(block), width = blocks.width(block);
        long row = unit * LANES, here = std::min<long>(LANES, rows - row);
        float* to = panels + place * LANES * words + from * width + (unit - place) * LANES;
        for (long at = 0; here < LANES && at < count; ++at) std::fill_n(to + at * width, LANES, 0.0f);
        turn_any(x + row * stride + from, stride, here, count, to, width);
    }
}

// Sums of a tile over `depth` words, of which the first `count` outputs' are added to `sums` (outputs, UNITS * LANES), each
// `spread` rows from the last. Meanwhile, if it ASKS, it asks for as many weights at `next`, whose rows are `next_pitch`
// bytes apart.
template <typename T, int UNITS, bool ASKS>
__attribute__((noinline)) void turned_tile(const typename Way<T>::Word* weights, long pitch, long depth,
                                           const typename Way<T>::Word* panel, typename Way<T>::Number* sums, long count,
                                           long spread, const char* next, long next_pitch) {
    typedef Way<T> Of;
    typedef typename Of::Some Some;
    typedef typename Of::Sum Sum;
    constexpr int HEIGHT = tile_height<T>(UNITS), LESS = std::min(HEIGHT, UNITS), MORE = std::max(HEIGHT, UNITS);
    Sum totals[HEIGHT][UNITS];
#pragma GCC unroll 24
    for (int i = 0; i < HEIGHT; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < UNITS; ++j) totals[i][j] = Sum{};
    // What there is less of, inputs or weights, is in registers for a step. A number minus 0 is that number in all lanes.
    constexpr bool HOLDS_INPUTS = UNITS <= HEIGHT;
    auto step = [&](long at) __attribute__((always_inline)) {
        Some held[LESS];
#pragma GCC unroll 4
        for (int n = 0; n < LESS; ++n) {
            if (HOLDS_INPUTS)
                held[n] = *reinterpret_cast<const Some*>(panel + (at * UNITS + n) * LANES);
            else
                held[n] = weights[n * pitch + at] - Some{};
            hold(held[n]);
        }
#pragma GCC unroll 24
        for (int n = 0; n < MORE; ++n) {
            if constexpr (HOLDS_INPUTS) {
                Some weight = weights[n * pitch + at] - Some{};
#pragma GCC unroll 4
                for (int j = 0; j < UNITS; ++j) {
                    totals[n][j] = Of::add(totals[n][j], weight, held[j]);
                    hold(totals[n][j]);
                }
            } else {
                Some input = *reinterpret_cast<const Some*>(panel + (at * UNITS + n) * LANES);
                if (std::is_same_v<typename Of::Word, float>) hold(input);  // products of integers need the register
#pragma GCC unroll 4
                for (int i = 0; i < HEIGHT; ++i) {
                    totals[i][n] = Of::add(totals[i][n], held[i], input);
                    hold(totals[i][n]);
                }
            }
        }
    };
    long at = 0;
    for (; at + 16 <= depth; at += 16) {
        const char* ask = ASKS ? next + at * Of::EACH * static_cast<long>(sizeof(T)) : nullptr;
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) {
            if (i < HEIGHT && ASKS) __builtin_prefetch(ask + i * next_pitch, 0, 2);
            step(at + i);
        }
    }
    for (; at < depth; ++at) step(at);
#pragma GCC unroll 24
    for (int i = 0; i < HEIGHT; ++i) {
        if (i == count) return;
#pragma GCC unroll 4
        for (int j = 0; j < UNITS; ++j) {
            *reinterpret_cast<Sum*>(sums + (i * spread * UNITS + j) * LANES) += totals[i][j];
        }
    }
}

struct Results {  // where the outputs of a block go, row by row
    float* to;
    long rows, stride;
};

// From row to row of weights that were widened: not at the same places of a cache.
inline long wide_pitch(long words) { return words + LANES; }

// Weights of some outputs (outputs, k) as words, for all blocks that are multiplied with them.
template <typename T>
const typename Way<T>::Word* widened(const T* weights, long outputs, long k) {
    static thread_local std::vector<typename Way<T>::Word> held;
    long pitch = wide_pitch(k / Way<T>::EACH);
    long size = (outputs + tile_height<T>(1)) * pitch;  // the last tile may read on behind the last output
    if (static_cast<long>(held.size()) < size) held.resize(size);
    for (long i = 0; i < outputs; ++i) widen(weights + i * k, k, held.data() + i * pitch);
    return held.data();
}

// Outputs `from` to `to` of one block, a panel (words, UNITS * LANES), to sums (to - from, UNITS * LANES); `wide`: their
// weights widened, or null. Each tile asks for its share of the places where they go: these lie far apart, and stores would
// wait for one after the other. And it asks for the weights of the tile that follows, or, where all are wide, for its
// share of `next`; but nothing where these rows are all there are (`alone`) and their weights come in streams.
template <typename T, int UNITS>
void turned_block(const typename Way<T>::Word* panel, const float* scales, long k, const Matrix& matrix, long from,
                  long to, const typename Way<T>::Word* wide, typename Way<T>::Number* sums, const Results& results,
                  const T* next, bool alone) {
    typedef Way<T> Of;
    typedef typename Of::Word Word;
    constexpr int HEIGHT = tile_height<T>(UNITS);
    constexpr bool STREAMS = Of::streams(UNITS);  // to the end of a row, unless its inputs are too many to be near
    constexpr long DEPTH = STREAMS ? 4 * tile_depth(UNITS) : tile_depth(UNITS), WIDTH = UNITS * LANES, PITCH = DEPTH + LANES;
    alignas(64) Word near[HEIGHT * PITCH];  // weights that are no words yet, or fewer than a tile's
    const T* all = static_cast<const T*>(matrix.data);
    long words = k / Of::EACH, row = 0, whole = (to - from) / HEIGHT, rest = (to - from) % HEIGHT;
    long tiles = (words + DEPTH - 1) / DEPTH * (whole + (rest > 0));
    bool apart = STREAMS && alone;
    long spread = apart ? whole : 1, move = apart ? 1 : HEIGHT;
    for (long output = from; output < to; ++output)
        std::fill_n(sums + (output - from) * WIDTH, WIDTH, Of::first(matrix, output));
    for (long start = 0; start < words; start += DEPTH) {
        long depth = std::min(DEPTH, words - start);
        auto multiply = [&](long output, long count, long spread, const T* after) {
            const T* weights = all + output * k + start * Of::EACH;
            auto* tile = reinterpret_cast<const Word*>(weights);
            long pitch = spread * words;
            for (long end = std::min(results.rows, row + (results.rows + tiles - 1) / tiles); row < end; ++row)
                for (long at = 0; at < to - from; at += 16) __builtin_prefetch(results.to + row * results.stride + at, 1);
            if (wide) {
                pitch = wide_pitch(words);
                tile = wide + (output - from) * pitch + start;
            } else if (Of::WIDENS || count < HEIGHT) {
                for (long i = 0; i < count; ++i) widen(weights + i * spread * k, depth * Of::EACH, near + i * PITCH);
                for (long i = count; i < HEIGHT; ++i) std::fill_n(near + i * PITCH, depth, Word{});
                tile = near, pitch = PITCH;
            }
            auto run = [&](auto asks) {
                turned_tile<T, UNITS, decltype(asks)::value>(tile, pitch, depth, panel + start * WIDTH,
                                                             sums + (output - from) * WIDTH, count, spread,
                                                             reinterpret_cast<const char*>(after), k * sizeof(T));
            };
            if constexpr (STREAMS)
                if (apart) return run(Constant<0>{});
            run(Constant<1>{});
        };
        for (long n = 0; n < whole + (rest > 0); ++n) {
            long output = from + n * move;
            const T* after = next;
            if (wide)
                after += (output - from) * k + start * Of::EACH;
            else if (output + HEIGHT < to)
                after = all + (output + HEIGHT) * k + start * Of::EACH;
            else if (start + DEPTH < words)
                after = all + from * k + (start + DEPTH) * Of::EACH;
            if (n < whole)
                multiply(output, HEIGHT, spread, after);
            else
                multiply(to - rest, rest, 1, after);
        }
    }
    for (long output = from; output < to; ++output)
        Of::finish(matrix, output, scales, WIDTH, sums + (output - from) * WIDTH);
}

struct Output {  // rows `stride` apart, or panels of so many numbers; outputs go to the columns from `column` on
    float* y;
    long stride, column;
    bool stays_turned;
};

// The activation of outputs `from` to `to` of a part of the rows, whose inputs lie in panels. `next`: weights that come
// afterwards.
template <typename T>
void turned(const Rows& x, const Part& part, long rows, long k, const Matrix& matrix, long from, long to,
            int64_t activation, const Output& output, const void* next) {
    typedef typename Way<T>::Word Word;
    typedef typename Way<T>::Number Number;
    alignas(64) Number room[WIDE_STRIP * MOST * LANES];
    const T* weights = static_cast<const T*>(matrix.data) + from * k;
    const Word* wide = nullptr;
    bool alone = part.end - part.begin == 1;
    if (Way<T>::WIDENS && !alone) wide = widened(weights, to - from, k);
    for (long block = part.begin; block < part.end; ++block) {
        long place = part.blocks.place(block), width = part.blocks.width(block), before = (place - part.place()) * LANES;
        const Word* panel = static_cast<const Word*>(x.data) + before * (k / Way<T>::EACH);
        const T* after = !wide && block + 1 < part.end ? weights : static_cast<const T*>(next);
        float* y = output.y + place * LANES * output.stride;
        Results results = {y + output.column + from, std::min(width, rows - place * LANES), output.stride};
        Number* sums = room;
        if (output.stays_turned) {
            sums = reinterpret_cast<Number*>(y + (output.column + from) * width);
            results.rows = 0;
        }
        of_units(width / LANES, [&](auto units) {
            turned_block<T, decltype(units)::value>(panel, x.scales + before, k, matrix, from, to, wide, sums, results,
                                                    after, alone);
        });
        auto* numbers = reinterpret_cast<float*>(sums);
        activate(numbers, to - from, width, width, activation);
        for (long row = 0; row < results.rows; row += LANES)
            turn_any(numbers + row, width, to - from, std::min<long>(LANES, results.rows - row),
                     results.to + row * results.stride, results.stride);
    }
}

}  // namespace
