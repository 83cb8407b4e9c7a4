// Attention of all tokens of a source over each other, as an encoder has it: tiles of queries over panels of keys.
//
// Shapes: n tokens of b sources, one source behind the other, m key-value heads, g query heads for each, d head size.
#pragma once

#include "attention.h"

namespace {

#if defined(__AVX512F__)
constexpr int TILE_ROWS = 12;  // 24 of 32 registers hold sums
#else
constexpr int TILE_ROWS = 6;  // 12 of 16
#endif
constexpr int PANEL = 2 * LANES;   // outputs of a tile

// (outputs, depth), rows `stride` apart, to a panel (depth, PANEL), those that are not there 0.
inline void turn(const float* x, long stride, long depth, long outputs, float* panel) {
    if (outputs < PANEL) std::fill_n(panel, depth * PANEL, 0.0f);
    turn_any(x, stride, outputs, depth, panel, PANEL);
}

// Sums of a tile's rows, each of PANEL outputs. They are put down here first: where sums go and what is done to them on
// the way is much code, beside which they would not stay in registers.
template <int ROWS>
__attribute__((noinline)) void tile(const float* x, long width, long depth, const float* panel, float* sums) {
    Vector low[ROWS], high[ROWS];
#pragma GCC unroll 12
    for (int i = 0; i < ROWS; ++i) low[i] = high[i] = Vector{};
#pragma GCC unroll 2
    for (long at = 0; at < depth; ++at) {
        Vector a = load(panel + at * PANEL), b = load(panel + at * PANEL + LANES);
#pragma GCC unroll 12
        for (int i = 0; i < ROWS; ++i) {
            float value = x[i * width + at];
            low[i] += value * a;
            high[i] += value * b;
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < ROWS; ++i) {
        *reinterpret_cast<Vector*>(sums + i * PANEL) = low[i];
        *reinterpret_cast<Vector*>(sums + i * PANEL + LANES) = high[i];
    }
}

template <int ROWS>
void sums_of(long rows, const float* x, long width, long depth, const float* panel, float* sums) {
    if constexpr (ROWS > 0) {
        if (rows == ROWS)
            tile<ROWS>(x, width, depth, panel, sums);
        else
            sums_of<ROWS - 1>(rows, x, width, depth, panel, sums);
    }
}

// A tile of up to TILE_ROWS rows, its `outputs` to y.
inline void tile_of(long rows, const float* x, long width, long depth, const float* panel, float* y, long stride,
                    long outputs) {
    alignas(64) float sums[TILE_ROWS * PANEL];
    sums_of<TILE_ROWS>(rows, x, width, depth, panel, sums);
    for (long i = 0; i < rows; ++i) std::memcpy(y + i * stride, sums + i * PANEL, 4 * outputs);
}

// A row of scores (length, room for a multiple of PANEL) as weights that add up to 1.
inline void weights_of(float* row, long length, float scale) {
    long width = (length + LANES - 1) / LANES * LANES;
    for (long t = length; t < width; ++t) row[t] = row[0];
    Vector most = load(row);
    for (long t = LANES; t < width; t += LANES) {
        Vector other = load(row + t);
        most = most > other ? most : other;
    }
    float top = most[0];
    for (int lane = 1; lane < LANES; ++lane) top = std::max(top, most[lane]);
    Vector total = Vector{}, shift = Vector{} + top * scale;
    for (long t = 0; t < width; t += LANES) {
        Vector weight = power_of_e(load(row + t) * scale - shift);
        *reinterpret_cast<Vector*>(row + t) = weight;
        if (t + LANES <= length) total += weight;
    }
    float all = sum(total);
    for (long t = length / LANES * LANES; t < length; ++t) all += row[t];
    float inverse = 1.0f / all;
    for (long t = 0; t < length; ++t) row[t] *= inverse;
}

// query (n, m * g * d), key and value (n, m * d), `stride` from token to token; source i has the tokens from starts[i]
// to starts[i + 1]; out (n, m * g * d). A scale is above 0.
void attend_within(const float* query, const float* key, const float* value, long stride, const Heads& of, long sources,
                   const int64_t* starts, float* out) {
    long heads = of.heads, group = of.group, size = of.size, wide = heads * group * size;
    long parts = (size + PANEL - 1) / PANEL;
#pragma omp for schedule(dynamic, 1)
    for (long task = 0; task < sources * heads; ++task) {
        static thread_local std::vector<float> kept;
        long start = starts[task / heads], length = starts[task / heads + 1] - start, head = task % heads;
        long width = (length + PANEL - 1) / PANEL * PANEL;
        kept.resize(width * size + parts * length * PANEL + TILE_ROWS * width);
        float *keys = kept.data(), *values = keys + width * size, *scores = values + parts * length * PANEL;
        for (long t = 0; t < length; t += PANEL)
            turn(key + (start + t) * stride + head * size, stride, size, std::min<long>(PANEL, length - t),
                 keys + t * size);
        for (long part = 0; part < parts; ++part) {
            long count = std::min<long>(PANEL, size - part * PANEL);
            for (long t = 0; t < length; ++t) {
                float* to = values + (part * length + t) * PANEL;
                std::memcpy(to, value + (start + t) * stride + head * size + part * PANEL, 4 * count);
                std::fill(to + count, to + PANEL, 0.0f);
            }
        }
        for (long g = 0; g < group; ++g)
            for (long row = 0; row < length; row += TILE_ROWS) {
                long height = std::min<long>(TILE_ROWS, length - row), column = (head * group + g) * size;
                const float* from = query + (start + row) * stride + column;
                for (long t = 0; t < length; t += PANEL)
                    tile_of(height, from, stride, size, keys + t * size, scores + t, width, PANEL);
                for (long i = 0; i < height; ++i) weights_of(scores + i * width, length, of.scale);
                for (long part = 0; part < parts; ++part)
                    tile_of(height, scores, width, length, values + part * length * PANEL,
                            out + (start + row) * wide + column + part * PANEL, wide,
                            std::min<long>(PANEL, size - part * PANEL));
            }
    }
}

}  // namespace
