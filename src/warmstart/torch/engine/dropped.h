// Dropout whose noise is a function of a seed and a place, so that it can be made again, and attention's weights with it.
#pragma once

#include "lanes.h"

namespace {

struct Noise {  // two words of the seed, what share of 2^32 is dropped, and what the rest is multiplied by
    uint32_t first, second, threshold;
    float scale;
};

// The hash "triple32" (Wellons 2018), the seed's second word added on the way.
inline Words noise_of(Words place, const Noise& noise) {
    Words x = place ^ noise.first;
    x = (x ^ (x >> 17)) * 0xed5ad4bbu;
    x = ((x ^ (x >> 11)) + noise.second) * 0xac4c1b51u;
    x = (x ^ (x >> 15)) * 0x31848babu;
    return x ^ (x >> 14);
}

inline Words places(long first) {
    Words place;
    for (int lane = 0; lane < LANES; ++lane) place[lane] = static_cast<uint32_t>(first + lane);
    return place;
}

inline Vector kept(Vector x, Words place, const Noise& noise) {
    return noise_of(place, noise) >= noise.threshold ? x * noise.scale : Vector{};
}

template <typename Type>
void drop(const Type* x, long count, const Noise& noise, Type* out) {
    constexpr long BLOCK = 8192;
#pragma omp parallel for schedule(static) if (count > 2 * BLOCK)
    for (long start = 0; start < count; start += BLOCK) {
        Words place = places(start);
        each(x + start, std::min(BLOCK, count - start), 0.0f, [&](long at, Vector y, int lanes) {
            store(out + start + at, kept(y, place, noise), lanes);
            place += LANES;
        });
    }
}

// Scores (width,) of one query in place to weights: the softmax of `scale` times them. With dropout they go to
// `dropped`, which may be the same place.
inline void weigh(float* x, long width, long place, float scale, const Noise& noise, float* dropped) {
    constexpr float LOWEST = -3.4e38f;
    Vector most = Vector{} + LOWEST, total = {};
    each(x, width, LOWEST, [&](long, Vector y, int) { most = y > most ? y : most; });
    float highest = LOWEST;
    for (int lane = 0; lane < LANES; ++lane) highest = std::max(highest, most[lane]);
    each(x, width, LOWEST, [&](long at, Vector y, int lanes) {
        Vector below = (y - highest) * scale, power = power_of_e(below);
        power = below > -87.0f ? power : Vector{};  // a number that is all but 0 would be slow to multiply
        total += power;
        store(x + at, power, lanes);
    });
    float share = 1.0f / sum(total);
    Words where = places(place);
    each(x, width, 0.0f, [&](long at, Vector y, int lanes) {
        y = y * share;
        store(x + at, y, lanes);
        store(dropped + at, kept(y, where, noise), lanes);
        where += LANES;
    });
}

// The gradient of weights with dropout (width,) in place to that of the scores they were made of.
inline void slope(float* x, const float* weights, long width, long place, float scale, const Noise& noise) {
    Vector total = {};
    Words where = places(place);
    each(x, width, 0.0f, [&](long at, Vector y, int lanes) {
        y = kept(y, where, noise);
        store(x + at, y, lanes);
        Vector weight = {};
        if (lanes == LANES) weight = load(weights + at);
        else for (int i = 0; i < lanes; ++i) weight[i] = weights[at + i];
        total += y * weight;
        where += LANES;
    });
    float mean = sum(total);
    for (long i = 0; i < width; ++i) x[i] = (x[i] - mean) * weights[i] * scale;
}

}  // namespace
