// Attention of all tokens of a source over each other, as an encoder has it: tiles of queries over panels of keys.
//
// Shapes: n tokens of b sources, one source behind the other, m key-value heads, g query heads for each, d head size. A
// panel is PANEL tokens or PANEL numbers of a head; GROUP_ROWS queries pass over each while it is in the first cache.
// What pads a panel is whatever lay there: nothing that comes of it is kept.
#pragma once

#include "attention.h"
#include "turned.h"

namespace {

constexpr int WITHIN_UNITS = LANES == 16 ? 4 : 2, PANEL = WITHIN_UNITS * LANES;
constexpr long GROUP_ROWS = 4 * tile_height(WITHIN_UNITS);

// Rows x (GROUP_ROWS, depth) times a panel (depth, PANEL), added to sums (GROUP_ROWS, PANEL), of which `rows` are wanted.
inline void add_products(const float* x, long rows, long depth, long pitch, const float* panel, float* sums) {
    constexpr int HEIGHT = tile_height(WITHIN_UNITS);
    for (long row = 0; row < rows; row += HEIGHT)
        turned_tile<float, WITHIN_UNITS>(x + row * pitch, pitch, depth, panel, sums + row * PANEL,
                                         reinterpret_cast<const char*>(panel), 0);
}

// Scores of a query, PANEL here and PANEL each `apart` numbers further on, `length` in all, as weights; gives what their sum
// has to be multiplied with to be 1.
inline float weights_of(float* scores, long apart, long length, float scale) {
    long panels = (length + PANEL - 1) / PANEL;
    float* end = scores + (panels - 1) * apart;
    std::fill(end + length - (panels - 1) * PANEL, end + PANEL, -1e30f);  // no weight to speak of
    Vector most[WITHIN_UNITS], total = Vector{};
    for (int i = 0; i < WITHIN_UNITS; ++i) most[i] = load(scores + i * LANES);
    for (long t = 1; t < panels; ++t)
        for (int i = 0; i < WITHIN_UNITS; ++i) most[i] = larger(most[i], load(scores + t * apart + i * LANES));
    for (int i = 1; i < WITHIN_UNITS; ++i) most[0] = larger(most[0], most[i]);
    Vector shift = Vector{} + largest(most[0]) * scale;
    for (long t = 0; t < panels; ++t)
        for (int i = 0; i < WITHIN_UNITS; ++i) {
            float* at = scores + t * apart + i * LANES;
            Vector weight = power_of_e(load(at) * scale - shift);
            *reinterpret_cast<Vector*>(at) = weight;
            total += weight;
        }
    return 1.0f / sum(total);
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
        long panels = (length + PANEL - 1) / PANEL, width = panels * PANEL;
        kept.resize(width * size + parts * length * PANEL + GROUP_ROWS * (width + size + PANEL));
        float *keys = kept.data(), *values = keys + width * size, *scores = values + parts * length * PANEL;
        float *queries = scores + GROUP_ROWS * width, *sums = queries + GROUP_ROWS * size;
        for (long t = 0; t < length; t += PANEL)
            turn_any(key + (start + t) * stride + head * size, stride, std::min<long>(PANEL, length - t), size,
                     keys + t * size, PANEL);
        for (long part = 0; part < parts; ++part)
            for (long t = 0; t < length; ++t)
                std::memcpy(values + (part * length + t) * PANEL, value + (start + t) * stride + head * size + part * PANEL,
                            4 * std::min<long>(PANEL, size - part * PANEL));
        for (long g = 0; g < group; ++g)
            for (long row = 0; row < length; row += GROUP_ROWS) {
                long rows = std::min(GROUP_ROWS, length - row), column = (head * group + g) * size;
                for (long i = 0; i < rows; ++i)
                    std::memcpy(queries + i * size, query + (start + row + i) * stride + column, 4 * size);
                std::fill_n(scores, GROUP_ROWS * width, 0.0f);
                for (long t = 0; t < panels; ++t)
                    add_products(queries, rows, size, size, keys + t * PANEL * size, scores + t * GROUP_ROWS * PANEL);
                float factors[GROUP_ROWS];
                for (long i = 0; i < rows; ++i)
                    factors[i] = weights_of(scores + i * PANEL, GROUP_ROWS * PANEL, length, of.scale);
                for (long part = 0; part < parts; ++part) {
                    std::fill_n(sums, GROUP_ROWS * PANEL, 0.0f);
                    for (long t = 0; t < length; t += PANEL)
                        add_products(scores + t * GROUP_ROWS, rows, std::min<long>(PANEL, length - t), PANEL,
                                     values + (part * length + t) * PANEL, sums);
                    for (long i = 0; i < rows; ++i) {
                        float* to = out + (start + row + i) * wide + column + part * PANEL;
                        for (long at = 0; at < std::min<long>(PANEL, size - part * PANEL); ++at)
                            to[at] = sums[i * PANEL + at] * factors[i];
                    }
                }
            }
    }
}

}  // namespace
