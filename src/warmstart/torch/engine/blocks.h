// What products with few rows are made of, by the processor: blocks of up to 4 rows times some OUTPUTS, whose sums stay
// in registers, and rows as they take them.
//
// Shapes: r rows, k inputs, n outputs; a `stride` is the distance from row to row. NEAR: bytes of inputs that stay in the
// first cache while weights pass. FEW: so many rows are multiplied with rows as they are, of float, bfloat16, int8.
#pragma once

#include "lanes.h"

namespace {

struct Matrix {  // (n, k), a bias or null; int8 weights have a scale and the sum of their row for each output
    const void* data;
    const float* bias;
    int64_t outputs;
    const float* scales;
    const int32_t* sums;
};

struct Rows {  // inputs of a product; where they are int8, a scale for each
    const void* data;
    const float* scales;
    long stride;
};

// A block's step reads of the inputs (r, stride) and the weights (OUTPUTS, k), STEP inputs at a time, up to PIECE before
// the sums are put down. `added` adds up across lanes; `finish` puts that of up to OUTPUTS outputs to y, or adds it, where
// these are not the first inputs.
// What is behind the last whole step: `rest` inputs. Blocks that do not mask loads have the weights filled up with 0, and
// the inputs, unless they are (FILLED).
template <typename Block, int ROWS>
__attribute__((always_inline)) inline void last_step(const typename Block::Input* x, long stride,
                                                     const typename Block::Weight* w, long k, long rest,
                                                     typename Block::Sum (&sums)[ROWS][Block::OUTPUTS]) {
    if constexpr (Block::MASKS) {
        Block::template step<ROWS>(x, stride, w, k, rest, sums);
    } else {
        typename Block::Input inputs[ROWS][Block::STEP] = {};
        typename Block::Weight weights[Block::OUTPUTS][Block::STEP] = {};
        long count = Block::FILLED ? Block::STEP : rest;
        for (int i = 0; i < ROWS; ++i) std::memcpy(inputs[i], x + i * stride, count * sizeof(inputs[0][0]));
        for (int j = 0; j < Block::OUTPUTS; ++j) std::memcpy(weights[j], w + j * k, rest * sizeof(weights[0][0]));
        Block::template step<ROWS>(inputs[0], Block::STEP, weights[0], Block::STEP, Block::STEP, sums);
    }
}

#if defined(__AVX512F__) && defined(__AVX512BW__)

constexpr long NEAR = 30 << 10;
constexpr long FEW[] = {20, 28, 20};
typedef __m512i IntegerSum;
#define ALONE inline

// The sums of 16 vectors, in their order. `Add` is the addition of a lane's type.
template <typename V, typename Add>
inline V sums_of_16(const V* v, Add add) {
    auto low = [](V a, V b) { return (V)_mm512_unpacklo_epi32((__m512i)a, (__m512i)b); };
    auto high = [](V a, V b) { return (V)_mm512_unpackhi_epi32((__m512i)a, (__m512i)b); };
    auto low2 = [](V a, V b) { return (V)_mm512_unpacklo_epi64((__m512i)a, (__m512i)b); };
    auto high2 = [](V a, V b) { return (V)_mm512_unpackhi_epi64((__m512i)a, (__m512i)b); };
    auto even = [](V a, V b) { return (V)_mm512_shuffle_i32x4((__m512i)a, (__m512i)b, 0x88); };
    auto odd = [](V a, V b) { return (V)_mm512_shuffle_i32x4((__m512i)a, (__m512i)b, 0xdd); };
    V fours[4];
    for (int i = 0; i < 4; ++i) {
        const V* of = v + 4 * i;
        V one = add(low(of[0], of[1]), high(of[0], of[1])), two = add(low(of[2], of[3]), high(of[2], of[3]));
        fours[i] = add(low2(one, two), high2(one, two));
    }
    V one = add(even(fours[0], fours[1]), odd(fours[0], fours[1]));
    V two = add(even(fours[2], fours[3]), odd(fours[2], fours[3]));
    return add(even(one, two), odd(one, two));
}

inline __mmask16 first(long count) { return count >= 16 ? 0xffff : (1u << count) - 1; }

struct FloatBlock {
    typedef float Weight;
    typedef float Input;
    typedef __m512 Sum;
    static constexpr int OUTPUTS = 4;
    static constexpr bool MASKS = true;
    static constexpr long STEP = 16, PIECE = 768;
    template <int ROWS>
    static inline void step(const float* x, long stride, const float* w, long k, long rest, Sum (&sums)[ROWS][OUTPUTS]) {
        __m512 weights[OUTPUTS];
        for (int j = 0; j < OUTPUTS; ++j) {
            weights[j] = rest >= STEP ? _mm512_loadu_ps(w + j * k) : _mm512_maskz_loadu_ps(first(rest), w + j * k);
        }
        for (int i = 0; i < ROWS; ++i) {
            __m512 input = rest >= STEP ? _mm512_loadu_ps(x + i * stride)
                                        : _mm512_maskz_loadu_ps(first(rest), x + i * stride);
            for (int j = 0; j < OUTPUTS; ++j) sums[i][j] = _mm512_fmadd_ps(input, weights[j], sums[i][j]);
        }
    }
};

struct BrainBlock {  // inputs are float: of each 32, the 16 at even places first, then those at odd places
    typedef Brain Weight;
    typedef float Input;
    typedef __m512 Sum;
    static constexpr int OUTPUTS = 4;
    static constexpr bool MASKS = true;
    static constexpr long STEP = 32, PIECE = 768;
    template <int ROWS>
    static inline void step(const float* x, long stride, const Brain* w, long k, long rest, Sum (&sums)[ROWS][OUTPUTS]) {
        __m512 even[OUTPUTS], odd[OUTPUTS];
        for (int j = 0; j < OUTPUTS; ++j) {
            __m512i both = rest >= STEP ? _mm512_loadu_si512(w + j * k)
                                        : _mm512_maskz_loadu_epi16((1u << rest) - 1, w + j * k);
            even[j] = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
            odd[j] = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(0xffff0000)));
        }
        for (int i = 0; i < ROWS; ++i) {
            __m512 low = _mm512_loadu_ps(x + i * stride), high = _mm512_loadu_ps(x + i * stride + 16);
            for (int j = 0; j < OUTPUTS; ++j) {
                sums[i][j] = _mm512_fmadd_ps(low, even[j], sums[i][j]);
                sums[i][j] = _mm512_fmadd_ps(high, odd[j], sums[i][j]);
            }
        }
    }
};

#if WARMSTART_INT8 == 4
struct Int8Block {  // inputs are bytes without sign: 128 more than what they stand for, 0 behind a row's end
    typedef int8_t Weight;
    typedef uint8_t Input;
    typedef __m512i Sum;
    static constexpr int OUTPUTS = 4;
    static constexpr bool MASKS = true;
    static constexpr long STEP = 64, PIECE = 1 << 20;  // whole rows: scales come last
    template <int ROWS>
    static inline void step(const uint8_t* x, long stride, const int8_t* w, long k, long rest,
                            Sum (&sums)[ROWS][OUTPUTS]) {
        __m512i weights[OUTPUTS];
        for (int j = 0; j < OUTPUTS; ++j) {
            weights[j] = rest >= STEP ? _mm512_loadu_si512(w + j * k)
                                      : _mm512_maskz_loadu_epi8((1ull << rest) - 1, w + j * k);
        }
        for (int i = 0; i < ROWS; ++i) {
            __m512i input = _mm512_loadu_si512(x + i * stride);
            for (int j = 0; j < OUTPUTS; ++j) sums[i][j] = _mm512_dpbusd_epi32(sums[i][j], input, weights[j]);
        }
    }
};
#endif

template <int ROWS>
inline __m512 added(const __m512* sums) {
    return sums_of_16(sums, [](__m512 a, __m512 b) { return _mm512_add_ps(a, b); });
}
template <int ROWS>
inline __m512i added(const __m512i* sums) {
    return sums_of_16(sums, [](__m512i a, __m512i b) { return _mm512_add_epi32(a, b); });
}

inline void finish(__m512 sums, int rows, const Rows&, long, const Matrix& matrix, long output, int count, float* y,
                   long stride, bool is_first) {
    __mmask8 lanes = (1 << count) - 1;
    __m128 parts[4] = {_mm512_extractf32x4_ps(sums, 0), _mm512_extractf32x4_ps(sums, 1),
                       _mm512_extractf32x4_ps(sums, 2), _mm512_extractf32x4_ps(sums, 3)};
    __m128 bias = matrix.bias ? _mm_maskz_loadu_ps(lanes, matrix.bias + output) : _mm_setzero_ps();
    for (int i = 0; i < rows; ++i) {
        __m128 start = is_first ? bias : _mm_maskz_loadu_ps(lanes, y + i * stride);
        _mm_mask_storeu_ps(y + i * stride, lanes, _mm_add_ps(parts[i], start));
    }
}
#if defined(WARMSTART_INT8)
inline void finish(__m512i sums, int rows, const Rows& x, long row, const Matrix& matrix, long output, int count,
                   float* y, long stride, bool) {
    __mmask8 lanes = (1 << count) - 1;
    __m128i parts[4] = {_mm512_extracti32x4_epi32(sums, 0), _mm512_extracti32x4_epi32(sums, 1),
                        _mm512_extracti32x4_epi32(sums, 2), _mm512_extracti32x4_epi32(sums, 3)};
    __m128 bias = matrix.bias ? _mm_maskz_loadu_ps(lanes, matrix.bias + output) : _mm_setzero_ps();
    __m128 scale = _mm_maskz_loadu_ps(lanes, matrix.scales + output);
    __m128i shift = _mm_setzero_si128();  // what is too much: ABOVE times the sum of the weights
    if (WARMSTART_INT8 == 4) shift = _mm_slli_epi32(_mm_maskz_loadu_epi32(lanes, matrix.sums + output), 7);
    for (int i = 0; i < rows; ++i) {
        __m128 value = _mm_cvtepi32_ps(_mm_sub_epi32(parts[i], shift));
        value = _mm_fmadd_ps(value, _mm_mul_ps(scale, _mm_set1_ps(x.scales[row + i])), bias);
        _mm_mask_storeu_ps(y + i * stride, lanes, value);
    }
}
#endif

#else  // registers of 8 lanes

constexpr long NEAR = 24 << 10;
constexpr long FEW[] = {8, 12, 20};
typedef Integers IntegerSum;
#define ALONE __attribute__((noinline))

struct FloatBlock {
    typedef float Weight;
    typedef float Input;
    typedef Vector Sum;
    static constexpr int OUTPUTS = 3;
    static constexpr long STEP = 16, PIECE = 3072;
    static constexpr bool MASKS = false, FILLED = false;
    template <int ROWS>
    __attribute__((always_inline)) static inline void step(const float* x, long stride, const float* w, long k, long, Sum (&sums)[ROWS][OUTPUTS]) {
#pragma GCC unroll 8
        for (int at = 0; at < STEP; at += LANES) {
            Vector weights[OUTPUTS];
#pragma GCC unroll 8
            for (int j = 0; j < OUTPUTS; ++j) weights[j] = load(w + j * k + at);
#pragma GCC unroll 8
            for (int i = 0; i < ROWS; ++i) {
                Vector input = load(x + i * stride + at);
#pragma GCC unroll 8
                for (int j = 0; j < OUTPUTS; ++j) sums[i][j] += input * weights[j];
            }
        }
    }
};

struct BrainBlock {  // inputs are float: of each 2 * LANES, those at even places first, then those at odd places
    typedef Brain Weight;
    typedef float Input;
    typedef Vector Sum;
    static constexpr int OUTPUTS = 2;
    static constexpr long STEP = 32, PIECE = 3072;
    static constexpr bool MASKS = false, FILLED = true;
    template <int ROWS>
    __attribute__((always_inline)) static inline void step(const float* x, long stride, const Brain* w, long k, long, Sum (&sums)[ROWS][OUTPUTS]) {
#pragma GCC unroll 8
        for (int at = 0; at < STEP; at += 2 * LANES)
#pragma GCC unroll 8
            for (int odd = 0; odd < 2; ++odd) {
                Vector weights[OUTPUTS];
#pragma GCC unroll 8
                for (int j = 0; j < OUTPUTS; ++j) {
                    Words both = (Words)load(reinterpret_cast<const float*>(w + j * k + at));
                    weights[j] = (Vector)(odd ? both & 0xffff0000u : both << 16);
                }
#pragma GCC unroll 8
                for (int i = 0; i < ROWS; ++i) {
                    Vector input = load(x + i * stride + at + odd * LANES);
#pragma GCC unroll 8
                    for (int j = 0; j < OUTPUTS; ++j) sums[i][j] += input * weights[j];
                }
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
template <int ROWS>
inline Added<float, ROWS> added(const Vector* sums) {
    Added<float, ROWS> all;
    for (int i = 0; i < ROWS; ++i) sums_of_4(sums + 4 * i, all.numbers[i]);
    return all;
}
template <int ROWS>
inline void finish(const Added<float, ROWS>& sums, int rows, const Rows&, long, const Matrix& matrix, long output,
                   int count, float* y, long stride, bool is_first) {
    for (int j = 0; j < count; ++j) {
        float bias = matrix.bias ? matrix.bias[output + j] : 0.0f;
        for (int i = 0; i < rows; ++i) y[i * stride + j] = sums.numbers[i][j] + (is_first ? bias : y[i * stride + j]);
    }
}

#if defined(WARMSTART_INT8)
template <int ROWS>
inline Added<int32_t, ROWS> added(const Integers* sums) {
    Added<int32_t, ROWS> all;
    for (int i = 0; i < ROWS; ++i) sums_of_4(sums + 4 * i, all.numbers[i]);
    return all;
}
template <int ROWS>
inline void finish(const Added<int32_t, ROWS>& sums, int rows, const Rows& x, long row, const Matrix& matrix,
                   long output, int count, float* y, long stride, bool) {
    for (int j = 0; j < count; ++j) {
        float bias = matrix.bias ? matrix.bias[output + j] : 0.0f, scale = matrix.scales[output + j];
        for (int i = 0; i < rows; ++i)
            y[i * stride + j] = static_cast<float>(sums.numbers[i][j]) * (scale * x.scales[row + i]) + bias;
    }
}
#endif

#endif

#if WARMSTART_INT8 == 2
struct Int8Block {
    typedef int8_t Weight;
    typedef Small Input;
    typedef IntegerSum Sum;
    static constexpr int OUTPUTS = LANES == 16 ? 4 : 2;
    static constexpr long STEP = 64, PIECE = 1 << 20;  // whole rows: scales come last
    static constexpr bool MASKS = false, FILLED = true;
    template <int ROWS>
    __attribute__((always_inline)) static inline void step(const Small* x, long stride, const int8_t* w, long k, long,
                            Sum (&sums)[ROWS][OUTPUTS]) {
#pragma GCC unroll 8
        for (int at = 0; at < STEP; at += 2 * LANES) {
            Shorts weights[OUTPUTS];
#pragma GCC unroll 8
            for (int j = 0; j < OUTPUTS; ++j) weights[j] = load(w + j * k + at);
#pragma GCC unroll 8
            for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 8
                for (int j = 0; j < OUTPUTS; ++j) {
                    sums[i][j] = (Sum)((Integers)sums[i][j] + sums_of_pairs(load(x + i * stride + at), weights[j]));
                    hold(sums[i][j]);
                }
        }
    }
};
#endif

// A row of floats (k,) as BrainBlock wants it (stride,).
inline void part(const float* from, long k, long stride, float* to) {
    for (long at = 0; at < stride; at += 2 * LANES) {
        float numbers[2 * LANES] = {};
        if (at < k) std::memcpy(numbers, from + at, 4 * std::min<long>(2 * LANES, k - at));
        for (int i = 0; i < LANES; ++i) to[at + i] = numbers[2 * i], to[at + LANES + i] = numbers[2 * i + 1];
    }
}

#if WARMSTART_INT8 == 4
// A row of floats (k,) as Int8Block takes it (stride,); gives its scale.
inline float quantise(const float* from, long k, long stride, Small* to) {
    __m512 most = _mm512_setzero_ps();
    for (long at = 0; at < k; at += 16)
        most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_maskz_loadu_ps(first(k - at), from + at)));
    float largest = _mm512_reduce_max_ps(most);
    __m512 factor = _mm512_set1_ps(largest > 0 ? 127.0f / largest : 0.0f);
    for (long at = 0; at < stride; at += 16) {
        __mmask16 mask = at < k ? first(k - at) : 0;
        __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(mask, from + at), factor));
        whole = _mm512_maskz_add_epi32(mask, whole, _mm512_set1_epi32(128));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + at), _mm512_cvtepi32_epi8(whole));
    }
    return largest / 127.0f;
}
#elif WARMSTART_INT8 == 2
// A row of floats (k,) as Int8Block takes it (stride,); gives its scale.
inline float quantise(const float* from, long k, long stride, Small* to) {
    Vector most = {};
    float largest = 0;
    long at = 0;
    for (; at + LANES <= k; at += LANES) most = larger(most, larger(load(from + at), -load(from + at)));
    for (; at < k; ++at) largest = std::max(largest, std::fabs(from[at]));
    for (int lane = 0; lane < LANES; ++lane) largest = std::max(largest, most[lane]);
    float factor = largest > 0 ? 127.0f / largest : 0.0f;
    typedef Small Some __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
    for (at = 0; at + LANES <= k; at += LANES)
        *reinterpret_cast<Some*>(to + at) = __builtin_convertvector(rounded(load(from + at) * factor), Some);
    for (; at < k; ++at) to[at] = static_cast<Small>(std::nearbyint(from[at] * factor));
    std::fill(to + at, to + stride, Small{});
    return largest / 127.0f;
}
#endif

}  // namespace
