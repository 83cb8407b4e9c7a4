// Products with few rows: each row of inputs with rows of weights as they are, bound by the rate of memory.
//
// Shapes: r rows, k inputs, n outputs; a `stride` is the distance from row to row.
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

#if defined(__AVX512F__) && defined(__AVX512BW__)
#define WARMSTART_WIDE 1

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

constexpr int OUTPUTS = 4;  // of a block, beside up to 4 rows: 16 sums, added up together
constexpr long NEAR = 30 << 10;  // bytes of inputs that stay in the first cache while weights pass
constexpr long FEW[] = {20, 28, 20};  // of float, bfloat16, int8: so many rows are multiplied with rows as they are

inline __mmask16 first(long count) { return count >= 16 ? 0xffff : (1u << count) - 1; }

// What a block reads of the inputs (r, stride) and the weights (OUTPUTS, k), STEP inputs at a time, up to PIECE before the
// sums are put down.
struct FloatBlock {
    typedef float Weight;
    typedef float Input;
    typedef __m512 Sum;
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

#if defined(__AVX512VNNI__)
#define WARMSTART_INT8 1
struct Int8Block {  // inputs are bytes without sign: 128 more than what they stand for, 0 behind a row's end
    typedef int8_t Weight;
    typedef uint8_t Input;
    typedef __m512i Sum;
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

inline __m512 added(const __m512* sums) {
    return sums_of_16(sums, [](__m512 a, __m512 b) { return _mm512_add_ps(a, b); });
}
inline __m512i added(const __m512i* sums) {
    return sums_of_16(sums, [](__m512i a, __m512i b) { return _mm512_add_epi32(a, b); });
}

// The sums of a block, 4 rows of up to 4 outputs (`lanes`), to y; `is_first` where these are the first inputs.
inline void finish(__m512 sums, int rows, const Rows&, long, const Matrix& matrix, long output, __mmask8 lanes, float* y,
                   long stride, bool is_first) {
    __m128 parts[4] = {_mm512_extractf32x4_ps(sums, 0), _mm512_extractf32x4_ps(sums, 1),
                       _mm512_extractf32x4_ps(sums, 2), _mm512_extractf32x4_ps(sums, 3)};
    __m128 bias = matrix.bias ? _mm_maskz_loadu_ps(lanes, matrix.bias + output) : _mm_setzero_ps();
    for (int i = 0; i < rows; ++i) {
        __m128 start = is_first ? bias : _mm_maskz_loadu_ps(lanes, y + i * stride);
        _mm_mask_storeu_ps(y + i * stride, lanes, _mm_add_ps(parts[i], start));
    }
}
inline void finish(__m512i sums, int rows, const Rows& x, long row, const Matrix& matrix, long output, __mmask8 lanes,
                   float* y, long stride, bool) {
    __m128i parts[4] = {_mm512_extracti32x4_epi32(sums, 0), _mm512_extracti32x4_epi32(sums, 1),
                        _mm512_extracti32x4_epi32(sums, 2), _mm512_extracti32x4_epi32(sums, 3)};
    __m128 bias = matrix.bias ? _mm_maskz_loadu_ps(lanes, matrix.bias + output) : _mm_setzero_ps();
    __m128 scale = _mm_maskz_loadu_ps(lanes, matrix.scales + output);
    __m128i shift = _mm_slli_epi32(_mm_maskz_loadu_epi32(lanes, matrix.sums + output), 7);
    for (int i = 0; i < rows; ++i) {
        __m128 value = _mm_cvtepi32_ps(_mm_sub_epi32(parts[i], shift));
        value = _mm_fmadd_ps(value, _mm_mul_ps(scale, _mm_set1_ps(x.scales[row + i])), bias);
        _mm_mask_storeu_ps(y + i * stride, lanes, value);
    }
}

// The function for so many rows, 1 to 4.
template <typename Function>
inline void of_height(long rows, Function function) {
    if (rows == 4) return function(Constant<4>{});
    if (rows == 3) return function(Constant<3>{});
    if (rows == 2) return function(Constant<2>{});
    function(Constant<1>{});
}

// Up to 4 rows from `row` on times OUTPUTS outputs, inputs `from` to `to`. Meanwhile it asks for as many inputs of other
// weights: of ASKED rows from `next` on, each `pitch` from the last.
template <typename Block, int ROWS, int ASKED>
inline void block(const Rows& x, long row, long k, const Matrix& matrix, long output, long from, long to, float* y,
                  long stride, const typename Block::Weight* next, long pitch) {
    typedef typename Block::Sum Sum;
    const auto* inputs = static_cast<const typename Block::Input*>(x.data) + row * x.stride;
    const auto* weights = static_cast<const typename Block::Weight*>(matrix.data) + output * k;
    Sum sums[ROWS][OUTPUTS], all[16];
    for (int i = 0; i < ROWS; ++i)
        for (int j = 0; j < OUTPUTS; ++j) sums[i][j] = Sum{};
    long at = from;
    for (; at + Block::STEP <= to; at += Block::STEP) {
        for (int i = 0; i < ASKED; ++i) __builtin_prefetch(next + i * pitch + at - from, 0, 2);
        Block::template step<ROWS>(inputs + at, x.stride, weights + at, k, Block::STEP, sums);
    }
    if (at < to) Block::template step<ROWS>(inputs + at, x.stride, weights + at, k, to - at, sums);
    for (int i = 0; i < 4; ++i)
        for (int j = 0; j < OUTPUTS; ++j) all[i * OUTPUTS + j] = i < ROWS ? sums[i < ROWS ? i : 0][j] : Sum{};
    finish(added(all), ROWS, x, row, matrix, output, 0xf, y, stride, from == 0);
}

// One row and one output: what does not fill a block.
template <typename Block>
inline void single(const Rows& x, long row, long k, const Matrix& matrix, long output, float* y) {
    typename Block::Sum sums[1][OUTPUTS] = {}, all[16] = {};
    const auto* inputs = static_cast<const typename Block::Input*>(x.data) + row * x.stride;
    const auto* weights = static_cast<const typename Block::Weight*>(matrix.data) + output * k;
    for (long at = 0; at < k; at += Block::STEP)
        Block::template step<1>(inputs + at, x.stride, weights + at, 0, std::min(Block::STEP, k - at), sums);
    all[0] = sums[0][0];
    finish(added(all), 1, x, row, matrix, output, 1, y, 0, true);
}

// Rows that are multiplied together, and how many of their inputs: what stays in the first cache. Where scales do not come
// last, the sums of pieces can be added, and more rows have shorter pieces; but to put sums down costs, so that pieces are
// not shorter than half of LEAST.
struct Group {
    long rows, piece;
    template <typename Block>
    static Group of(long rows, long k) {
        constexpr long USUAL = 8, LEAST = 640;
        long bytes = sizeof(typename Block::Input), room = NEAR / bytes;
        if (Block::PIECE > room) return {std::max(USUAL, room / k / 4 * 4), k};
        if (room / rows < LEAST) return {USUAL, Block::PIECE};
        long most = std::min(Block::PIECE, room / rows), pieces = (k + most - 1) / most;
        return {rows, ((k + pieces - 1) / pieces + 31) / 32 * 32};
    }
};

// Outputs `from` to `to` of all rows. A group of rows and a piece of its inputs stay in the first cache while the
// weights pass; for the next group they are in the second. Meanwhile the rows ask, each 4 for their part, for as many
// other weights: those that follow and, behind the last, `next`; or, `far` or with several groups, of which the first would
// wait, as many from `next` on as pass here.
template <typename Block>
void few(const Rows& x, long rows, long k, const Matrix& matrix, long from, long to, float* y, long stride,
         const void* next, bool far) {
    typedef typename Block::Weight Weight;
    const Weight *here = static_cast<const Weight*>(matrix.data) + from * k, *after = static_cast<const Weight*>(next);
    Group together = Group::of<Block>(rows, k);
    far = far || rows > together.rows;
    long whole = from + (to - from) / OUTPUTS * OUTPUTS, piece = together.piece, blocks = (rows + 3) / 4;
    long parts = blocks >= 4 ? 4 : blocks >= 2 ? 2 : 1;
    for (long start = 0; start < k; start += piece) {
        long end = std::min(k, start + piece), pitch = far ? end - start : k, share = OUTPUTS * pitch / parts;
        for (long group = 0; group < rows; group += together.rows)
            for (long output = from; output < whole; output += OUTPUTS) {
                const Weight* ahead = after;
                if (far)
                    ahead += start * (whole - from) + (output - from) * pitch;
                else if (output + OUTPUTS < whole)
                    ahead = here + (output + OUTPUTS - from) * k + start;
                else if (end < k)
                    ahead = here + end;
                for (long row = group; row < std::min(rows, group + together.rows); row += 4) {
                    float* out = y + row * stride + output;
                    const Weight* asked = ahead + row / 4 * share;
                    auto with = [&](auto height, auto count) {
                        block<Block, decltype(height)::value, decltype(count)::value>(
                            x, row, k, matrix, output, start, end, out, stride, asked, pitch);
                    };
                    of_height(std::min<long>(4, rows - row), [&](auto height) {
                        if (row / 4 >= parts) return with(height, Constant<0>{});
                        if (parts == 4) return with(height, Constant<1>{});
                        if (parts == 2) return with(height, Constant<2>{});
                        with(height, Constant<4>{});
                    });
                }
            }
    }
    for (long output = whole; output < to; ++output)
        for (long row = 0; row < rows; ++row) single<Block>(x, row, k, matrix, output, y + row * stride + output);
}

// Outputs of a strip: as many weights whatever k is, so that those of the next one are asked for in time.
inline long strip_width(long k) { return k <= 1024 ? 48 : k <= 1536 ? 32 : 16; }

// A row of floats (k,) as BrainBlock wants it (stride,).
inline void part(const float* from, long k, long stride, float* to) {
    for (long at = 0; at < stride; at += 32) {
        float numbers[32] = {};
        std::memcpy(numbers, from + at, 4 * std::min<long>(32, k - at));
        for (int i = 0; i < 16; ++i) to[at + i] = numbers[2 * i], to[at + 16 + i] = numbers[2 * i + 1];
    }
}

// A row of floats (k,) as bytes (stride,) for Int8Block; gives its scale.
inline float quantise(const float* from, long k, long stride, uint8_t* to) {
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

#else  // registers of 8 lanes

constexpr long FEW[] = {10, 10, 10};

inline long strip_width(long) { return 48; }

template <typename T, int ROWS, int OUTPUTS>
inline void dots(const float* x, long k, const T* weight, const float* bias, float* y, long stride) {
    Vector sums[ROWS][OUTPUTS];
    for (int i = 0; i < ROWS; ++i)
        for (int j = 0; j < OUTPUTS; ++j) sums[i][j] = Vector{};
    long at = 0;
    for (; at + LANES <= k; at += LANES) {
        Vector w[OUTPUTS];
        for (int j = 0; j < OUTPUTS; ++j) {
            w[j] = load(weight + j * k + at);
            __builtin_prefetch(weight + (j + OUTPUTS) * k + at);
        }
        for (int i = 0; i < ROWS; ++i) {
            Vector xs = load(x + i * k + at);
            for (int j = 0; j < OUTPUTS; ++j) sums[i][j] += xs * w[j];
        }
    }
    for (int i = 0; i < ROWS; ++i)
        for (int j = 0; j < OUTPUTS; ++j) {
            float total = sum(sums[i][j]);
            for (long rest = at; rest < k; ++rest) total += x[i * k + rest] * number(weight[j * k + rest]);
            y[i * stride + j] = total + (bias ? bias[j] : 0.0f);
        }
}

template <typename T, int OUTPUTS>
void few_of(const float* x, long rows, long k, const T* weight, const float* bias, float* y, long stride) {
    long row = 0;
    for (; row + 4 <= rows; row += 4) dots<T, 4, OUTPUTS>(x + row * k, k, weight, bias, y + row * stride, stride);
    x += row * k, y += row * stride;
    if (rows - row == 3) dots<T, 3, OUTPUTS>(x, k, weight, bias, y, stride);
    if (rows - row == 2) dots<T, 2, OUTPUTS>(x, k, weight, bias, y, stride);
    if (rows - row == 1) dots<T, 1, OUTPUTS>(x, k, weight, bias, y, stride);
}

struct FloatBlock {
    typedef float Weight;
};
struct BrainBlock {
    typedef Brain Weight;
};

template <typename Block>
void few(const Rows& inputs, long rows, long k, const Matrix& matrix, long from, long to, float* y, long stride,
         const void*, bool) {
    typedef typename Block::Weight T;
    const float* x = static_cast<const float*>(inputs.data);
    const T* weight = static_cast<const T*>(matrix.data) + from * k;
    const float* bias = matrix.bias ? matrix.bias + from : nullptr;
    long output = from;
    for (; output + 3 <= to; output += 3, weight += 3 * k, bias = bias ? bias + 3 : nullptr)
        few_of<T, 3>(x, rows, k, weight, bias, y + output, stride);
    for (; output < to; ++output, weight += k, bias = bias ? bias + 1 : nullptr)
        few_of<T, 1>(x, rows, k, weight, bias, y + output, stride);
}

#endif

}  // namespace
