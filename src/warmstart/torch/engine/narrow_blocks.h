// Blocks in registers of 8 lanes: see `blocks.h`.
#pragma once

#include "rows.h"

namespace {

constexpr long FEW[] = {4, 12, 20};
typedef Integers IntegerSum;
#define ALONE __attribute__((noinline))

// To so many sums: an input, loaded once, times a weight for each. GCC would load it for each of them, while the processor
// takes no more loads than products; and with twelve sums the sixteenth register must be the input's.
#if defined(__AVX2__) && defined(__FMA__)
INLINE void add_products(Vector (&sums)[3], const float* input, const Vector (&weights)[3]) {
    __asm__("vmovups %3, %%ymm15\n\t"
            "vfmadd231ps %4, %%ymm15, %0\n\t"
            "vfmadd231ps %5, %%ymm15, %1\n\t"
            "vfmadd231ps %6, %%ymm15, %2"
            : "+&x"(sums[0]), "+&x"(sums[1]), "+&x"(sums[2])
            : "m"(*reinterpret_cast<const Vector*>(input)), "x"(weights[0]), "x"(weights[1]), "x"(weights[2])
            : "xmm15");
}
INLINE void add_products(Vector (&sums)[2], const float* input, const Vector (&weights)[2]) {
    __asm__("vmovups %2, %%ymm15\n\t"
            "vfmadd231ps %3, %%ymm15, %0\n\t"
            "vfmadd231ps %4, %%ymm15, %1"
            : "+&x"(sums[0]), "+&x"(sums[1])
            : "m"(*reinterpret_cast<const Vector*>(input)), "x"(weights[0]), "x"(weights[1])
            : "xmm15");
}
#else
template <int COUNT>
INLINE void add_products(Vector (&sums)[COUNT], const float* input, const Vector (&weights)[COUNT]) {
    UNROLL
    for (int j = 0; j < COUNT; ++j) sums[j] += load(input) * weights[j];
}
#endif

struct FloatBlock {
    typedef float Weight;
    typedef float Input;
    typedef Vector Sum;
    static constexpr int OUTPUTS = 3;
    static constexpr long STEP = 16, PIECE = 3072, NEAR = 96 << 10, UNASKED = 4;
    static constexpr bool MASKS = false, FILLED = false, APART = true;
    template <int ROWS>
    static INLINE void step(const float* x, long stride, const float* w, long k, long, Sum (&sums)[ROWS][OUTPUTS]) {
        UNROLL
        for (int at = 0; at < STEP; at += LANES) {
            Vector weights[OUTPUTS];
            UNROLL
            for (int j = 0; j < OUTPUTS; ++j) weights[j] = load(w + j * k + at);
            UNROLL
            for (int i = 0; i < ROWS; ++i) add_products(sums[i], x + i * stride + at, weights);
        }
    }
};

struct BrainBlock {  // inputs are float: of each 2 * LANES, those at even places first, then those at odd places
    typedef Brain Weight;
    typedef float Input;
    typedef Vector Sum;
    static constexpr int OUTPUTS = 2;
    static constexpr long STEP = 32, PIECE = 3072, NEAR = 96 << 10, UNASKED = 0;
    static constexpr bool MASKS = false, FILLED = true, APART = true;
    template <int ROWS>
    static INLINE void step(const float* x, long stride, const Brain* w, long k, long, Sum (&sums)[ROWS][OUTPUTS]) {
        UNROLL
        for (int at = 0; at < STEP; at += 2 * LANES)
            UNROLL
            for (int odd = 0; odd < 2; ++odd) {
                Vector weights[OUTPUTS];
                UNROLL
                for (int j = 0; j < OUTPUTS; ++j) {
                    Words both = (Words)load(reinterpret_cast<const float*>(w + j * k + at));
                    weights[j] = (Vector)(odd ? both & 0xffff0000u : both << 16);
                }
                UNROLL
                for (int i = 0; i < ROWS; ++i) add_products(sums[i], x + i * stride + at + odd * LANES, weights);
            }
    }
};

// Sums across lanes, of 4 vectors each.
#if defined(__AVX2__) && !defined(__AVX512F__)
inline void sums_of_4(const Vector* v, float* to) {
    __m256 low = _mm256_hadd_ps((__m256)v[0], (__m256)v[1]), high = _mm256_hadd_ps((__m256)v[2], (__m256)v[3]);
    __m256 both = _mm256_hadd_ps(low, high);
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1)));
}
inline void sums_of_4(const Integers* v, int32_t* to) {
    __m256i low = _mm256_hadd_epi32((__m256i)v[0], (__m256i)v[1]), high = _mm256_hadd_epi32((__m256i)v[2], (__m256i)v[3]);
    __m256i both = _mm256_hadd_epi32(low, high);
    __m128i all = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), all);
}
#else
inline void sums_of_4(const Vector* v, float* to) {
    for (int i = 0; i < 4; ++i) to[i] = sum(v[i]);
}
#endif

template <typename T, int ROWS>
struct Added {
    T numbers[ROWS][4];
};
template <int ROWS, typename V>
inline auto added(const V* sums) {
    Added<std::decay_t<decltype(sums[0][0])>, ROWS> all;
    for (int i = 0; i < ROWS; ++i) sums_of_4(sums + 4 * i, all.numbers[i]);
    return all;
}
template <int ROWS>
inline void finish(const Added<float, ROWS>& sums, int rows, const Rows&, long, const Matrix& matrix, Outputs outputs,
                   float* y, long stride, bool is_first) {
    for (int j = 0; j < outputs.count; ++j) {
        float bias = matrix.bias ? matrix.bias[outputs.from + j * outputs.spread] : 0.0f, *to = y + j * outputs.spread;
        for (int i = 0; i < rows; ++i) to[i * stride] = sums.numbers[i][j] + (is_first ? bias : to[i * stride]);
    }
}
template <int ROWS>
inline void finish(const Added<int32_t, ROWS>& sums, int rows, const Rows& x, long row, const Matrix& matrix,
                   Outputs outputs, float* y, long stride, bool) {
    for (int j = 0; j < outputs.count; ++j) {
        long output = outputs.from + j * outputs.spread;
        float bias = matrix.bias ? matrix.bias[output] : 0.0f, scale = matrix.scales[output], *to = y + j * outputs.spread;
        for (int i = 0; i < rows; ++i)
            to[i * stride] = static_cast<float>(sums.numbers[i][j]) * (scale * x.scales[row + i]) + bias;
    }
}

}  // namespace
