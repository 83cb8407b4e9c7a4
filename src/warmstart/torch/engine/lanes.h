// Numbers side by side in a vector register: loads of float and bfloat16, sums across lanes, e to a power.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define INLINE __attribute__((always_inline)) inline
#define UNROLL _Pragma("GCC unroll 8")  // else sums in an array of registers might lie in memory

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif

// AMD's processors: they alone have SSE4A. With AVX-512 they read ahead well in several streams by themselves, and multiply
// bfloat16 by pairs as fast as float32 one by one; Intel's take twice as long for that, and like to be asked to read.
#if defined(__SSE4A__) && defined(__AVX512F__)
constexpr bool AMD_512 = true;
#else
constexpr bool AMD_512 = false;
#endif

typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef int32_t Integers __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

struct Brain {  // bfloat16: the upper half of a float
    uint16_t bits;
};

inline Vector load(const float* x) { return *reinterpret_cast<const Vector*>(x); }
inline Vector load(const Brain* x) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
    return (Vector)_mm256_slli_epi32(wide, 16);
#else
    Words wide = __builtin_convertvector(*reinterpret_cast<const Halves*>(x), Words) << 16;
    return reinterpret_cast<Vector&>(wide);
#endif
}
inline float number(float x) { return x; }
inline float number(Brain x) {
    uint32_t wide = static_cast<uint32_t>(x.bits) << 16;
    float result;
    std::memcpy(&result, &wide, 4);
    return result;
}
inline void put(float* to, float x) { *to = x; }
inline void put(Brain* to, float x) {  // rounded to nearest, ties to even; not a number stays so
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    to->bits = x != x ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
inline void store(float* to, Vector x) { *reinterpret_cast<Vector*>(to) = x; }
inline void store(Brain* to, Vector x) {  // rounded as by `put`; the instruction takes what is below 2^-126 for 0
#if defined(__AVX512BF16__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh((__m512)x));
#else
    Words bits = reinterpret_cast<Words&>(x);
    Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    rounded = x != x ? Words{} + 0x7fc0u : rounded;
    *reinterpret_cast<Halves*>(to) = __builtin_convertvector(rounded, Halves);
#endif
}

// What `make` gives of each vector of `count` numbers at most: the last one filled with `fill` and cut.
template <typename From, typename Make>
inline void each(const From* x, long count, float fill, Make make) {
    long at = 0;
    for (; at + LANES <= count; at += LANES) make(at, load(x + at), LANES);
    if (at == count) return;
    Vector rest = Vector{} + fill;
    for (long i = at; i < count; ++i) rest[i - at] = number(x[i]);
    make(at, rest, static_cast<int>(count - at));
}

template <typename To>
inline void store(To* to, Vector x, int count) {
    if (count == LANES) return store(to, x);
    for (int i = 0; i < count; ++i) put(to + i, x[i]);
}

inline float sum(Vector x) {  // by halves: one after another, each addition would wait for the last
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps(reinterpret_cast<__m512&>(x));
#elif defined(__AVX2__)
    __m256 all = reinterpret_cast<__m256&>(x);
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
#else
    float lanes[LANES];
    std::memcpy(lanes, &x, sizeof lanes);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    return lanes[0];
#endif
}

inline Vector larger(Vector a, Vector b) {
#if defined(__AVX512F__)
    return (Vector)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return a > b ? a : b;
#endif
}
inline float largest(Vector x) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)x);
#else
    float most = x[0];
    for (int lane = 1; lane < LANES; ++lane) most = std::max(most, x[lane]);
    return most;
#endif
}

inline Integers rounded(Vector x) {  // to the nearest, ties to even
#if defined(__AVX512F__)
    return (Integers)_mm512_cvtps_epi32((__m512)x);
#elif defined(__AVX2__)
    return (Integers)_mm256_cvtps_epi32((__m256)x);
#else
    Integers whole;
    for (int lane = 0; lane < LANES; ++lane) whole[lane] = static_cast<int32_t>(std::nearbyint(x[lane]));
    return whole;
#endif
}

// LANES rows of LANES numbers, moved bit by bit: to[j][i] = from[i][j].
inline void turn_square(const float* from, long stride, float* to, long pitch) {
#if defined(__AVX512F__)
    __m512 a[16], b[16];
    for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_ps(from + i * stride);
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; ++j) {
            a[i + 2 * j] = _mm512_shuffle_ps(b[i + j], b[i + j + 2], 0x44);
            a[i + 2 * j + 1] = _mm512_shuffle_ps(b[i + j], b[i + j + 2], 0xee);
        }
    for (int j = 0; j < 4; ++j) {  // in a[i + j], each fourth column from j on, of rows i to i + 3
        __m512 even = _mm512_shuffle_f32x4(a[j], a[4 + j], 0x88), odd = _mm512_shuffle_f32x4(a[j], a[4 + j], 0xdd);
        __m512 even2 = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0x88);
        __m512 odd2 = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0xdd);
        _mm512_storeu_ps(to + j * pitch, _mm512_shuffle_f32x4(even, even2, 0x88));
        _mm512_storeu_ps(to + (j + 4) * pitch, _mm512_shuffle_f32x4(odd, odd2, 0x88));
        _mm512_storeu_ps(to + (j + 8) * pitch, _mm512_shuffle_f32x4(even, even2, 0xdd));
        _mm512_storeu_ps(to + (j + 12) * pitch, _mm512_shuffle_f32x4(odd, odd2, 0xdd));
    }
#elif defined(__AVX2__)
    __m256 a[8], b[8];
    for (int i = 0; i < 8; ++i) a[i] = _mm256_loadu_ps(from + i * stride);
    for (int i = 0; i < 8; i += 2) {
        b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; ++j) {
            a[i + 2 * j] = _mm256_shuffle_ps(b[i + j], b[i + j + 2], 0x44);
            a[i + 2 * j + 1] = _mm256_shuffle_ps(b[i + j], b[i + j + 2], 0xee);
        }
    for (int i = 0; i < 4; ++i) {
        _mm256_storeu_ps(to + i * pitch, _mm256_permute2f128_ps(a[i], a[i + 4], 0x20));
        _mm256_storeu_ps(to + (i + 4) * pitch, _mm256_permute2f128_ps(a[i], a[i + 4], 0x31));
    }
#else
    for (int i = 0; i < LANES; ++i)
        for (int j = 0; j < LANES; ++j) to[j * pitch + i] = from[i * stride + j];
#endif
}

// The same with other numbers of rows and columns.
inline void turn_any(const float* from, long stride, long rows, long columns, float* to, long pitch) {
    for (long i = 0; i < rows; i += LANES)
        for (long j = 0; j < columns; j += LANES) {
            if (i + LANES <= rows && j + LANES <= columns) {
                turn_square(from + i * stride + j, stride, to + j * pitch + i, pitch);
                continue;
            }
            for (long row = i; row < std::min(rows, i + LANES); ++row)
                for (long column = j; column < std::min(columns, j + LANES); ++column)
                    to[column * pitch + row] = from[row * stride + column];
        }
}

// The compiler is to have this in a register here: it neither reads it again later nor adds up in another order.
template <typename V>
inline void hold([[maybe_unused]] V& x) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    __asm__("" : "+x"(x));
#endif
}

// Weights and inputs of 8 bits are multiplied by fours (VNNI), inputs as bytes without sign, 128 more than what they stand
// for; or by pairs, as numbers of 16 bits. A word, 32 bits, holds that many.
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define WARMSTART_INT8 4
typedef uint8_t Small;
constexpr int32_t ABOVE = 128;
#elif defined(__AVX2__) && (!defined(__AVX512F__) || defined(__AVX512BW__))
#define WARMSTART_INT8 2
typedef int16_t Small;
constexpr int32_t ABOVE = 0;
typedef int16_t Shorts __attribute__((vector_size(4 * LANES), aligned(2), may_alias));
inline Shorts load(const int16_t* x) { return *reinterpret_cast<const Shorts*>(x); }
inline Shorts load(const int8_t* x) {
#if defined(__AVX512F__)
    return (Shorts)_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
#else
    return (Shorts)_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
#endif
}
inline Integers sums_of_pairs(Shorts a, Shorts b) {  // of their products
#if defined(__AVX512F__)
    return (Integers)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#else
    return (Integers)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#endif
}
#endif

// bfloat16 by pairs: inputs are rounded to it.
#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__SSE4A__)
#define WARMSTART_PAIRS
inline Vector add_pairs(Vector sum, Integers a, Integers b) {  // of words of two numbers each, the sum of their products
    return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
inline Integers pairs(Vector low, Vector high) {  // words of two numbers, rounded to nearest, ties to even
    auto half = [](Vector x) { return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)x)); };
    return (Integers)_mm512_or_si512(half(low), _mm512_slli_epi32(half(high), 16));
}
#endif

// Weights as words.
inline void widen(const float* from, long count, float* to) { std::memcpy(to, from, 4 * count); }
inline void widen(const Brain* from, long count, float* to) {
    long at = 0;
    for (; at + LANES <= count; at += LANES) *reinterpret_cast<Vector*>(to + at) = load(from + at);
    for (; at < count; ++at) to[at] = number(from[at]);
}
#if defined(WARMSTART_PAIRS)
inline void widen(const Brain* from, long count, int32_t* to) { std::memcpy(to, from, 2 * count); }
#endif
#if defined(WARMSTART_INT8)
inline void widen(const int8_t* from, long count, int32_t* to) {
#if WARMSTART_INT8 == 4
    std::memcpy(to, from, count);
#else
    auto* numbers = reinterpret_cast<Small*>(to);
    long at = 0;
    for (; at + 2 * LANES <= count; at += 2 * LANES) *reinterpret_cast<Shorts*>(numbers + at) = load(from + at);
    for (; at < count; ++at) {
        Small number = from[at];
        std::memcpy(numbers + at, &number, sizeof number);
    }
#endif
}
#endif

template <int N>
using Constant = std::integral_constant<int, N>;

// e to the power of x <= 0: 2^n times a polynomial, the coefficients of Cephes' expf (Moshier 1992).
inline Vector power_of_e(Vector x) {
    x = larger(x, Vector{} - 87.0f);
    Vector scaled = x * 1.44269504f - 0.5f;
    Integers whole = __builtin_convertvector(scaled, Integers);  // towards zero: the nearest, for x <= 0
    Vector count = __builtin_convertvector(whole, Vector);
    Vector rest = x - count * 0.693359375f + count * 2.12194440e-4f;
    Vector y = Vector{} + 1.9875691500e-4f;
    y = y * rest + 1.3981999507e-3f;
    y = y * rest + 8.3334519073e-3f;
    y = y * rest + 4.1665795894e-2f;
    y = y * rest + 1.6666665459e-1f;
    y = y * rest + 5.0000001201e-1f;
    y = y * rest * rest + rest + 1.0f;
    Integers bits = (whole + 127) << 23;
    return y * reinterpret_cast<Vector&>(bits);
}

// Activations, by the numbers that `native.py` gives them.
enum Activation : int64_t { LINEAR, RELU, GELU, GELU_TANH, SILU, QUICK_GELU };

inline Vector sigmoid(Vector x) {
    Vector size = x > 0.0f ? x : -x, power = power_of_e(-size), small = power / (power + 1.0f);
    return x > 0.0f ? 1.0f - small : small;
}

// The error function within 1.5e-7: formula 7.1.26 of Abramowitz and Stegun (1964).
inline Vector error_function(Vector x) {
    Vector size = x > 0.0f ? x : -x, t = 1.0f / (size * 0.3275911f + 1.0f);
    Vector y = t * 1.061405429f - 1.453152027f;
    y = y * t + 1.421413741f;
    y = y * t - 0.284496736f;
    y = (y * t + 0.254829592f) * t * power_of_e(-size * size);
    return x > 0.0f ? 1.0f - y : y - 1.0f;
}

inline Vector activated(Vector x, int64_t which) {
    switch (which) {
        case RELU: return x > 0.0f ? x : Vector{};
        case GELU: return x * 0.5f * (error_function(x * 0.70710678f) + 1.0f);
        case GELU_TANH: return x * sigmoid((x + x * x * x * 0.044715f) * 1.59576912f);
        case SILU: return x * sigmoid(x);
        case QUICK_GELU: return x * sigmoid(x * 1.702f);
        default: return x;
    }
}

// An activation over the numbers of some rows, in place.
inline void activate(float* y, long rows, long count, long stride, int64_t which) {
    if (which == LINEAR) return;
    for (long row = 0; row < rows; ++row, y += stride) {
        long at = 0;
        for (; at + LANES <= count; at += LANES) *reinterpret_cast<Vector*>(y + at) = activated(load(y + at), which);
        if (at < count) {
            float rest[LANES] = {};
            std::memcpy(rest, y + at, 4 * (count - at));
            Vector result = activated(load(rest), which);
            std::memcpy(y + at, &result, 4 * (count - at));
        }
    }
}

}  // namespace
