// Blocks in the registers of AVX-512: see `blocks.h`.
#pragma once

#include "rows.h"

namespace {

constexpr long FEW[] = {AMD_512 ? 10 : 20, AMD_512 ? 12 : 28, AMD_512 ? 12 : 20};
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
    static constexpr bool MASKS = true, APART = false;
    static constexpr long STEP = 16, PIECE = 768, NEAR = 30 << 10, UNASKED = 0;
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
    static constexpr bool MASKS = true, APART = false;
    static constexpr long STEP = 32, PIECE = 768, NEAR = 30 << 10, UNASKED = 0;
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

#if defined(WARMSTART_PAIRS)
inline __m512 add_words(__m512 sum, __m512i inputs, __m512i weights) {
    return (__m512)add_pairs((Vector)sum, (Integers)inputs, (Integers)weights);
}
#endif
#if WARMSTART_INT8 == 4
inline __m512i add_words(__m512i sum, __m512i inputs, __m512i weights) {
    return _mm512_dpbusd_epi32(sum, inputs, weights);
}
#endif

// Inputs and weights of fewer bits than a float, words of some at a time; inputs are 0 behind a row's end.
template <typename W, typename I, typename S, long LONGEST>
struct WordBlock {
    typedef W Weight;
    typedef I Input;
    typedef S Sum;
    static constexpr int OUTPUTS = 4;
    static constexpr bool MASKS = true, APART = false;
    static constexpr long STEP = 64 / sizeof(W), PIECE = LONGEST, NEAR = 30 << 10, UNASKED = 0;
    template <int ROWS>
    static inline void step(const I* x, long stride, const W* w, long k, long rest, Sum (&sums)[ROWS][OUTPUTS]) {
        __m512i weights[OUTPUTS];
        for (int j = 0; j < OUTPUTS; ++j) {
            weights[j] = rest >= STEP ? _mm512_loadu_si512(w + j * k)
                                      : _mm512_maskz_loadu_epi8((1ull << rest * sizeof(W)) - 1, w + j * k);
        }
        for (int i = 0; i < ROWS; ++i) {
            __m512i input = _mm512_loadu_si512(x + i * stride);
            for (int j = 0; j < OUTPUTS; ++j) sums[i][j] = add_words(sums[i][j], input, weights[j]);
        }
    }
};
#if defined(WARMSTART_PAIRS)  // inputs are rounded to bfloat16
typedef WordBlock<Brain, Brain, __m512, 1536> PairBlock;
#endif
#if WARMSTART_INT8 == 4  // inputs are 128 more than what they stand for; whole rows: scales come last
typedef WordBlock<int8_t, uint8_t, __m512i, 1 << 20> Int8Block;
#endif

template <int ROWS>
inline __m512 added(const __m512* sums) {
    return sums_of_16(sums, [](__m512 a, __m512 b) { return _mm512_add_ps(a, b); });
}
template <int ROWS>
inline __m512i added(const __m512i* sums) {
    return sums_of_16(sums, [](__m512i a, __m512i b) { return _mm512_add_epi32(a, b); });
}

inline void finish(__m512 sums, int rows, const Rows&, long, const Matrix& matrix, Outputs outputs, float* y, long stride,
                   bool is_first) {
    __mmask8 lanes = (1 << outputs.count) - 1;
    __m128 parts[4] = {_mm512_extractf32x4_ps(sums, 0), _mm512_extractf32x4_ps(sums, 1),
                       _mm512_extractf32x4_ps(sums, 2), _mm512_extractf32x4_ps(sums, 3)};
    __m128 bias = matrix.bias ? _mm_maskz_loadu_ps(lanes, matrix.bias + outputs.from) : _mm_setzero_ps();
    for (int i = 0; i < rows; ++i) {
        __m128 start = is_first ? bias : _mm_maskz_loadu_ps(lanes, y + i * stride);
        _mm_mask_storeu_ps(y + i * stride, lanes, _mm_add_ps(parts[i], start));
    }
}
#if defined(WARMSTART_INT8)
inline void finish(__m512i sums, int rows, const Rows& x, long row, const Matrix& matrix, Outputs outputs, float* y,
                   long stride, bool) {
    __mmask8 lanes = (1 << outputs.count) - 1;
    __m128i parts[4] = {_mm512_extracti32x4_epi32(sums, 0), _mm512_extracti32x4_epi32(sums, 1),
                        _mm512_extracti32x4_epi32(sums, 2), _mm512_extracti32x4_epi32(sums, 3)};
    __m128 bias = matrix.bias ? _mm_maskz_loadu_ps(lanes, matrix.bias + outputs.from) : _mm_setzero_ps();
    __m128 scale = _mm_maskz_loadu_ps(lanes, matrix.scales + outputs.from);
    __m128i shift = _mm_setzero_si128();  // what is too much: ABOVE times the sum of the weights
    if (WARMSTART_INT8 == 4) shift = _mm_slli_epi32(_mm_maskz_loadu_epi32(lanes, matrix.sums + outputs.from), 7);
    for (int i = 0; i < rows; ++i) {
        __m128 value = _mm_cvtepi32_ps(_mm_sub_epi32(parts[i], shift));
        value = _mm_fmadd_ps(value, _mm_mul_ps(scale, _mm_set1_ps(x.scales[row + i])), bias);
        _mm_mask_storeu_ps(y + i * stride, lanes, value);
    }
}
#endif

}  // namespace
