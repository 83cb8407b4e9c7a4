// Rows that stay turned, as an encoder's do from its first layer to its last: what is done to them.
//
// Shapes: r rows, filled up to whole units, in blocks; k, h, n numbers of a row. The numbers of a block lie one behind the
// other, each (its rows,). Each function here is run by all threads of a team.
#pragma once

#include "products.h"

namespace {

struct Norm {  // layer norm, or of root mean squares; no weight: none
    const float *weight, *bias;
    float epsilon;
    int64_t is_rms;
};

// Turned numbers (h,) of each row to rows x (r, h).
void turn_back(const float* numbers, long rows, long h, float* x) {
    Blocks blocks(rows);
#pragma omp for schedule(static)
    for (long unit = 0; unit < blocks.units; ++unit) {
        long block = blocks.of(unit), place = blocks.place(block), row = unit * LANES;
        const float* from = numbers + (place * h + unit - place) * LANES;
        turn_any(from, blocks.width(block), h, std::min<long>(LANES, rows - row), x + row * h, h);
    }
}

#if defined(WARMSTART_PAIRS)
// Numbers of a part, `x`, as products of bfloat16 take them: words to panels.
void pair_up(const float* x, const Part& part, long k, int32_t* panels) {
#pragma omp for schedule(dynamic, 1)
    for (long block = part.begin; block < part.end; ++block) {
        long width = part.blocks.width(block), before = (part.blocks.place(block) - part.place()) * LANES;
        const float* from = x + before * k;
        int32_t* to = panels + before * (k / 2);
        for (long i = 0; i < k; i += 2, from += 2 * width, to += width)
            for (long at = 0; at < width; at += LANES)
                *reinterpret_cast<Integers*>(to + at) = pairs(load(from + at), load(from + width + at));
    }
}
#endif

#if defined(WARMSTART_INT8)
// Numbers of a part, `x`, as int8 products take them: words to panels, a scale for each row.
void narrow(const float* x, const Part& part, long k, float* scales, int32_t* panels) {
    constexpr int EACH = WARMSTART_INT8, BITS = 32 / EACH;
    constexpr int32_t MASK = (1 << BITS) - 1;
#pragma omp for schedule(dynamic, 1)
    for (long block = part.begin; block < part.end; ++block) {
        long width = part.blocks.width(block), before = (part.blocks.place(block) - part.place()) * LANES;
        const float* from = x + before * k;
        int32_t* to = panels + before * (k / EACH);
        of_units(width / LANES, [&](auto count) {
            constexpr int UNITS = decltype(count)::value;
            Vector factors[UNITS] = {};
            for (long i = 0; i < k; ++i)
                for (int j = 0; j < UNITS; ++j) {
                    Vector numbers = load(from + i * width + j * LANES);
                    factors[j] = larger(factors[j], larger(numbers, -numbers));
                }
            for (int j = 0; j < UNITS; ++j) {
                Vector most = factors[j];
                *reinterpret_cast<Vector*>(scales + before + j * LANES) = most / 127.0f;
                factors[j] = most > 0.0f ? 127.0f / most : Vector{};
            }
            for (long i = 0; i < k; i += EACH)
                for (int j = 0; j < UNITS; ++j) {
                    Integers word = {};
                    for (int part = 0; part < EACH; ++part) {
                        Vector numbers = load(from + (i + part) * width + j * LANES);
                        word |= ((rounded(numbers * factors[j]) + ABOVE) & MASK) << (BITS * part);
                    }
                    *reinterpret_cast<Integers*>(to + i / EACH * width + j * LANES) = word;
                }
        });
    }
}
#endif

// y (r, all n) = the activation of x (r, k) times each matrix, all of them turned.
void linear_turned(const float* x, const Blocks& blocks, long k, const Layers& layers, float* y,
                   [[maybe_unused]] char* scratch) {
    long most = together(words_of(k, layers.type)), all = blocks.units * LANES;
    for (long begin = 0; begin < blocks.count; begin += most) {
        Part part = {blocks, begin, std::min(begin + most, blocks.count)};
        Rows inputs = {x + part.place() * LANES * k, nullptr, k};
        [[maybe_unused]] auto* scales = reinterpret_cast<float*>(scratch);
        [[maybe_unused]] auto* panels = reinterpret_cast<int32_t*>(scratch + whole_lines(4 * part.rows()));
#if defined(WARMSTART_PAIRS)
        if (layers.type == 1) {
            pair_up(x + part.place() * LANES * k, part, k, panels);
            inputs = {panels, scales, k / 2};
        }
#endif
#if defined(WARMSTART_INT8)
        if (layers.type == 2) {
            narrow(x + part.place() * LANES * k, part, k, scales, panels);
            inputs = {panels, scales, k / WARMSTART_INT8};
        }
#endif
        multiply(inputs, &part, all, k, layers, y, true);
    }
}

// out (r, n) = the activation of the first n numbers of x (r, 2 * n), times the others.
void gate_turned(const float* x, const Blocks& blocks, long n, int64_t activation, float* out) {
#pragma omp for schedule(dynamic, 1)
    for (long block = 0; block < blocks.count; ++block) {
        long count = n * blocks.width(block), place = blocks.place(block) * LANES * n;
        const float* from = x + 2 * place;
        float* to = out + place;
        std::memcpy(to, from, 4 * count);
        activate(to, 1, count, count, activation);
        for (long i = 0; i < count; ++i) to[i] *= from[count + i];
    }
}

// total (r, h) = x + y (y may be null, then total may be too), out = its norm.
void add_norm_turned(const float* x, const float* y, const Blocks& blocks, long h, const Norm& norm, float* total,
                     float* out) {
#pragma omp for schedule(dynamic, 1)
    for (long block = 0; block < blocks.count; ++block)
        of_units(blocks.width(block) / LANES, [&](auto count) {
            constexpr int UNITS = decltype(count)::value;
            constexpr long WIDTH = UNITS * LANES;
            long place = blocks.place(block) * LANES * h;
            const float* from = x + place;
            float* to = out + place;
            Vector mean[UNITS] = {}, factor[UNITS] = {};
            for (long i = 0; i < h; ++i)
                for (int j = 0; j < UNITS; ++j) {
                    long at = i * WIDTH + j * LANES;
                    Vector numbers = load(from + at);
                    if (y) *reinterpret_cast<Vector*>(total + place + at) = numbers = numbers + load(y + place + at);
                    mean[j] += numbers;
                }
            if (!norm.weight) return;
            if (y) from = total + place;
            for (int j = 0; j < UNITS; ++j) mean[j] = norm.is_rms ? Vector{} : mean[j] / static_cast<float>(h);
            for (long i = 0; i < h; ++i)
                for (int j = 0; j < UNITS; ++j) {
                    Vector apart = load(from + i * WIDTH + j * LANES) - mean[j];
                    factor[j] += apart * apart;
                }
            for (int j = 0; j < UNITS; ++j)
                for (int lane = 0; lane < LANES; ++lane)
                    factor[j][lane] = 1.0f / std::sqrt(factor[j][lane] / static_cast<float>(h) + norm.epsilon);
            for (long i = 0; i < h; ++i)
                for (int j = 0; j < UNITS; ++j) {
                    Vector numbers = (load(from + i * WIDTH + j * LANES) - mean[j]) * factor[j] * norm.weight[i];
                    *reinterpret_cast<Vector*>(to + i * WIDTH + j * LANES) = numbers + (norm.bias ? norm.bias[i] : 0.0f);
                }
        });
}

}  // namespace
