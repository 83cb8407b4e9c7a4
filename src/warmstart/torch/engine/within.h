// Attention of all tokens of a source over each other, as an encoder has it: tiles of queries over panels of keys.
//
// Shapes: n tokens of b sources, one source behind the other, m key-value heads, g query heads for each, d head size.
#pragma once

#include "attention.h"
#include "many.h"

namespace {

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
            turn(key + (start + t) * stride + head * size, stride, size, std::min<long>(PANEL, length - t), keys + t * size);
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
                    tile_of(height, from, stride, size, keys + t * size,
                                       {scores + t, width, PANEL, true, true, nullptr});
                for (long i = 0; i < height; ++i) weights_of(scores + i * width, length, of.scale);
                for (long part = 0; part < parts; ++part)
                    tile_of(height, scores, width, length, values + part * length * PANEL,
                                       {out + (start + row) * wide + column + part * PANEL, wide,
                                        std::min<long>(PANEL, size - part * PANEL), true, true, nullptr});
            }
    }
}

}  // namespace
