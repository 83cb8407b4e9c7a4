// Products with many rows: strips of weights are turned into panels that stay in the first cache; bound by arithmetic.
#pragma once

#include "few.h"

namespace {

#if defined(__AVX512F__)
constexpr int TILE_ROWS = 12;  // 24 of 32 registers hold sums
#else
constexpr int TILE_ROWS = 6;  // 12 of 16
#endif
constexpr int PANEL = 2 * LANES;   // outputs of a tile
constexpr long DEPTH = 128;        // inputs of a panel (of int8 four at a time): it stays in the first cache
constexpr long BLOCK_ROWS = 240;   // with them, the rows that stay in the second cache
constexpr long STRIP = 8 * PANEL;  // outputs of one task

#if defined(__AVX2__)
inline __m256 load8(const float* x) { return _mm256_loadu_ps(x); }
inline __m256 load8(const Brain* x) {
    __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}
template <typename T>
inline void turn8(const T* weight, long k, float* panel) {  // 8 outputs x 8 inputs
    __m256 a[8], b[8];
    for (int i = 0; i < 8; ++i) a[i] = load8(weight + i * k);
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
        _mm256_storeu_ps(panel + i * PANEL, _mm256_permute2f128_ps(a[i], a[i + 4], 0x20));
        _mm256_storeu_ps(panel + (i + 4) * PANEL, _mm256_permute2f128_ps(a[i], a[i + 4], 0x31));
    }
}
#endif

template <bool ASKS = true, typename T>
void turn(const T* weight, long k, long depth, long outputs, float* panel) {  // (outputs, depth) -> (depth, PANEL)
    long done = 0;
#if defined(__AVX2__)
    if (outputs == PANEL)
        for (; done + 8 <= depth; done += 8)
            for (long j = 0; j < PANEL; j += 8) {
                turn8(weight + j * k + done, k, panel + done * PANEL + j);
                for (int i = 0; ASKS && i < 8; ++i) __builtin_prefetch(weight + (PANEL + j + i) * k + done, 0, 2);
            }
#endif
    for (long at = done; at < depth; ++at)
        for (long j = 0; j < PANEL; ++j) panel[at * PANEL + j] = j < outputs ? number(weight[j * k + at]) : 0.0f;
}

struct Edge {  // where a tile's sums go
    float* y;
    long stride, outputs;
    bool first, last;
    const float* bias;
};

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

// A tile of up to TILE_ROWS rows, to where its edge says.
inline void tile_of(long rows, const float* x, long width, long depth, const float* panel, const Edge& edge) {
    alignas(64) float sums[TILE_ROWS * PANEL];
    sums_of<TILE_ROWS>(rows, x, width, depth, panel, sums);
    for (long i = 0; i < rows; ++i) {
        const float *from = sums + i * PANEL, *start = edge.first ? edge.bias : edge.y + i * edge.stride;
        float* to = edge.y + i * edge.stride;
        if (edge.outputs == PANEL) {
            for (int part = 0; part < PANEL; part += LANES)
                *reinterpret_cast<Vector*>(to + part) = start ? load(from + part) + load(start + part) : load(from + part);
        } else {
            for (long j = 0; j < edge.outputs; ++j) to[j] = from[j] + (start ? start[j] : 0.0f);
        }
    }
}

constexpr long WIDTH = DEPTH + LANES;  // rows apart in the cache's sets

inline float* near_rows() {
    static thread_local std::unique_ptr<float[]> held(new float[BLOCK_ROWS * WIDTH]);
    return held.get();
}

template <typename T>
void many(const float* x, long rows, long k, const Matrix& matrix, long strip, long end, float* y, long stride) {
    const T* weight = static_cast<const T*>(matrix.data) + strip * k;
    long tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;  // of like height: a low one costs as much as a high one
    alignas(64) float panel[DEPTH * PANEL];
    float* near = near_rows();
    for (long from = 0; from < k; from += DEPTH) {
        long depth = std::min(DEPTH, k - from);
        for (long row = 0; row < rows; ++row) std::memcpy(near + row * WIDTH, x + row * k + from, 4 * depth);
        for (long output = strip; output < end; output += PANEL) {
            long count = std::min<long>(PANEL, end - output);
            turn(weight + (output - strip) * k + from, k, depth, count, panel);
            const float* bias = matrix.bias ? matrix.bias + output : nullptr;
            for (long t = 0, row = 0; t < tiles; ++t) {
                long height = rows / tiles + (t < rows % tiles);
                Edge edge{y + row * stride + output, stride, count, from == 0, from + depth == k, bias};
                tile_of(height, near + row * WIDTH, WIDTH, depth, panel, edge);
                row += height;
            }
        }
    }
}

#if defined(WARMSTART_INT8)

// Weights that will be needed, for tiles to ask for with each of their inputs: 8 lines of the cache of each row, rows
// `pitch` bytes apart. Turning a panel is short: if it were to wait for memory, memory would wait while tiles multiply.
struct Ahead {
    const char* from;
    long pitch;
    void ask(long at) const { __builtin_prefetch(from + at / 8 * pitch + at % 8 * 64, 0, 2); }
};

// The same over int8, four inputs in each number of a panel; sums stay whole numbers in y until the last.
template <int ROWS>
__attribute__((noinline)) void tile8(const int32_t* x, long width, long depth, const int32_t* panel, int32_t* sums,
                                     Ahead ahead) {
    __m512i low[ROWS], high[ROWS];
#pragma GCC unroll 12
    for (int i = 0; i < ROWS; ++i) low[i] = high[i] = _mm512_setzero_si512();
#pragma GCC unroll 2
    for (long at = 0; at < depth; ++at) {
        __m512i a = _mm512_loadu_si512(panel + at * PANEL), b = _mm512_loadu_si512(panel + at * PANEL + 16);
        ahead.ask(at);
#pragma GCC unroll 12
        for (int i = 0; i < ROWS; ++i) {
            __m512i value = _mm512_set1_epi32(x[i * width + at]);
            low[i] = _mm512_dpbusd_epi32(low[i], value, a);
            high[i] = _mm512_dpbusd_epi32(high[i], value, b);
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < ROWS; ++i) {
        _mm512_store_si512(sums + i * PANEL, low[i]);
        _mm512_store_si512(sums + i * PANEL + 16, high[i]);
    }
}

template <int ROWS>
void sums8_of(long rows, const int32_t* x, long width, long depth, const int32_t* panel, int32_t* sums, Ahead ahead) {
    if constexpr (ROWS > 0) {
        if (rows == ROWS)
            tile8<ROWS>(x, width, depth, panel, sums, ahead);
        else
            sums8_of<ROWS - 1>(rows, x, width, depth, panel, sums, ahead);
    }
}

inline void tile8_of(long rows, const int32_t* x, long width, long depth, const int32_t* panel, const Edge& edge,
                     const Matrix& matrix, long output, const float* scales, const Ahead& ahead) {
    alignas(64) int32_t sums[TILE_ROWS * PANEL];
    sums8_of<TILE_ROWS>(rows, x, width, depth, panel, sums, ahead);
    for (int half = 0; half < PANEL; half += 16) {
        __mmask16 mask = edge.outputs > half ? first(edge.outputs - half) : 0;
        __m512 scale = _mm512_maskz_loadu_ps(mask, matrix.scales + output + half);
        __m512 bias = matrix.bias ? _mm512_maskz_loadu_ps(mask, matrix.bias + output + half) : _mm512_setzero_ps();
        __m512i shift = _mm512_slli_epi32(_mm512_maskz_loadu_epi32(mask, matrix.sums + output + half), 7);
        for (long i = 0; i < rows; ++i) {
            float* to = edge.y + i * edge.stride + half;
            __m512i total = _mm512_load_si512(sums + i * PANEL + half);
            if (!edge.first) total = _mm512_add_epi32(total, _mm512_maskz_loadu_epi32(mask, to));
            if (!edge.last) {
                _mm512_mask_storeu_epi32(to, mask, total);
                continue;
            }
            __m512 value = _mm512_cvtepi32_ps(_mm512_sub_epi32(total, shift));
            value = _mm512_fmadd_ps(value, _mm512_mul_ps(scale, _mm512_set1_ps(scales[i])), bias);
            _mm512_mask_storeu_ps(to, mask, value);
        }
    }
}

inline void many_int8(const Rows& x, long first_row, long rows, long k, const Matrix& matrix, long strip, long end,
                      float* y, long stride, const void* next) {
    const float* weight = reinterpret_cast<const float*>(static_cast<const int8_t*>(matrix.data)) + strip * (k / 4);
    long tiles = (rows + TILE_ROWS - 1) / TILE_ROWS, words = k / 4;
    alignas(64) int32_t panel[DEPTH * PANEL];
    auto* near = reinterpret_cast<int32_t*>(near_rows());
    for (long from = 0; from < words; from += DEPTH) {
        long depth = std::min(DEPTH, words - from);
        for (long row = 0; row < rows; ++row)
            std::memcpy(near + row * WIDTH,
                        static_cast<const uint8_t*>(x.data) + (first_row + row) * x.stride + 4 * from, 4 * depth);
        for (long output = strip; output < end; output += PANEL) {
            long count = std::min<long>(PANEL, end - output);
            const float* following = output + PANEL < end   ? weight + (output + PANEL - strip) * words + from
                                     : from + depth < words ? weight + from + depth
                                                            : static_cast<const float*>(next);
            // moved as floats are, bit by bit
            turn<false>(weight + (output - strip) * words + from, words, depth, count, reinterpret_cast<float*>(panel));
            for (long t = 0, row = 0; t < tiles; ++t) {
                long height = rows / tiles + (t < rows % tiles);
                Edge edge{y + row * stride + output, stride, count, from == 0, from + depth == words, nullptr};
                // the first two ask for a panel, others for what is near
                Ahead ahead = t < 2 ? Ahead{reinterpret_cast<const char*>(following + t * (PANEL / 2) * words), 4 * words}
                                    : Ahead{reinterpret_cast<const char*>(panel), 0};
                tile8_of(height, near + row * WIDTH, WIDTH, depth, panel, edge, matrix, output,
                         x.scales + first_row + row, ahead);
                row += height;
            }
        }
    }
}

#endif

}  // namespace
