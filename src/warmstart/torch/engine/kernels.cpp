// The engine's kernels for processors: matrix products with few or many rows, attention of new tokens, norms.
//
// Plain C functions over row-major arrays, called through ctypes; torch's OpenMP runs them. Weights are read where they
// lie, (n, k) as in nn.Linear, so that nothing is packed beforehand and a changed weight is seen at once.
//
// Shapes: r rows, k inputs, n outputs, t new tokens of a row, m key-value heads, g query heads for each, d head size,
// c capacity (tokens that a cache slot holds).

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
constexpr int TILE_ROWS = 12;  // 24 of 32 registers hold sums
#else
constexpr int LANES = 8;
constexpr int TILE_ROWS = 6;  // 12 of 16
#endif
constexpr int PANEL = 2 * LANES;   // outputs of a tile
constexpr long DEPTH = 256;        // inputs of a panel: it stays in the first cache
constexpr long BLOCK_ROWS = 240;   // with them, the rows that stay in the second cache
constexpr long STRIP = 8 * PANEL;  // outputs of one task
constexpr long FEW = 10;           // up to so many rows, rows are multiplied with rows as they are

typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));

struct Brain {  // bfloat16: the upper half of a float
    uint16_t bits;
};

inline Vector load(const float* x) { return *reinterpret_cast<const Vector*>(x); }
inline Vector load(const Brain* x) {
    Words wide = __builtin_convertvector(*reinterpret_cast<const Halves*>(x), Words) << 16;
    return reinterpret_cast<Vector&>(wide);
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
inline float sum(Vector x) {  // by halves: one after another, each addition would wait for the last
#if defined(__AVX2__) && !defined(__AVX512F__)
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

struct Matrix {  // (n, k), a bias or null
    const void* data;
    const float* bias;
    int64_t outputs;
};

// Few rows ------------------------------------------------------------------------------------------------------------

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
void few(const float* x, long rows, long k, const T* weight, const float* bias, float* y, long stride) {
    long row = 0;
    for (; row + 4 <= rows; row += 4) dots<T, 4, OUTPUTS>(x + row * k, k, weight, bias, y + row * stride, stride);
    x += row * k, y += row * stride;
    if (rows - row == 3) dots<T, 3, OUTPUTS>(x, k, weight, bias, y, stride);
    if (rows - row == 2) dots<T, 2, OUTPUTS>(x, k, weight, bias, y, stride);
    if (rows - row == 1) dots<T, 1, OUTPUTS>(x, k, weight, bias, y, stride);
}

// Many rows -----------------------------------------------------------------------------------------------------------

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

template <typename T>
void turn(const T* weight, long k, long depth, long outputs, float* panel) {  // (outputs, depth) -> (depth, PANEL)
    long done = 0;
#if defined(__AVX2__)
    if (outputs == PANEL)
        for (; done + 8 <= depth; done += 8)
            for (long j = 0; j < PANEL; j += 8) {
                turn8(weight + j * k + done, k, panel + done * PANEL + j);
                for (int i = 0; i < 8; ++i) __builtin_prefetch(weight + (PANEL + j + i) * k + done, 0, 2);
            }
#endif
    for (long at = done; at < depth; ++at)
        for (long j = 0; j < PANEL; ++j) panel[at * PANEL + j] = j < outputs ? number(weight[j * k + at]) : 0.0f;
}

template <int ROWS>
inline void tile(const float* x, long width, long depth, const float* panel, float* y, long stride, bool first,
                 const float* bias, long outputs) {
    Vector low[ROWS], high[ROWS];
    for (int i = 0; i < ROWS; ++i) low[i] = high[i] = Vector{};
#pragma GCC unroll 4
    for (long at = 0; at < depth; ++at) {
        Vector a = load(panel + at * PANEL), b = load(panel + at * PANEL + LANES);
        for (int i = 0; i < ROWS; ++i) {
            float value = x[i * width + at];
            low[i] += value * a;
            high[i] += value * b;
        }
    }
    for (int i = 0; i < ROWS; ++i) {
        float* to = y + i * stride;
        if (outputs == PANEL) {
            Vector start[2];
            for (int j = 0; j < 2; ++j) start[j] = !first ? load(to + j * LANES) : bias ? load(bias + j * LANES) : Vector{};
            *reinterpret_cast<Vector*>(to) = low[i] + start[0];
            *reinterpret_cast<Vector*>(to + LANES) = high[i] + start[1];
        } else {
            for (long j = 0; j < outputs; ++j) {
                float value = j < LANES ? low[i][j] : high[i][j - LANES];
                to[j] = value + (!first ? to[j] : bias ? bias[j] : 0.0f);
            }
        }
    }
}

template <int ROWS>
void tile_of(long rows, const float* x, long width, long depth, const float* panel, float* y, long stride, bool first,
               const float* bias, long outputs) {
    if constexpr (ROWS > 0) {
        if (rows == ROWS)
            tile<ROWS>(x, width, depth, panel, y, stride, first, bias, outputs);
        else
            tile_of<ROWS - 1>(rows, x, width, depth, panel, y, stride, first, bias, outputs);
    }
}

template <typename T>
void many(const float* x, long rows, long k, const T* weight, const float* bias, long outputs, float* y, long stride) {
    constexpr long WIDTH = DEPTH + LANES;  // rows apart in the cache's sets
    long tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;  // of like height: a low one costs as much as a high one
    alignas(64) float panel[DEPTH * PANEL];
    alignas(64) static thread_local float near[BLOCK_ROWS * WIDTH];
    for (long from = 0; from < k; from += DEPTH) {
        long depth = std::min(DEPTH, k - from);
        for (long row = 0; row < rows; ++row) std::memcpy(near + row * WIDTH, x + row * k + from, 4 * depth);
        for (long output = 0; output < outputs; output += PANEL) {
            long count = std::min<long>(PANEL, outputs - output);
            turn(weight + output * k + from, k, depth, count, panel);
            const float* b = bias ? bias + output : nullptr;
            for (long t = 0, row = 0; t < tiles; ++t) {
                long height = rows / tiles + (t < rows % tiles);
                tile_of<TILE_ROWS>(height, near + row * WIDTH, WIDTH, depth, panel, y + row * stride + output, stride,
                                   from == 0, b, count);
                row += height;
            }
        }
    }
}

template <typename T>
void product(const float* x, long rows, long k, const Matrix& matrix, long from, long to, float* y, long stride) {
    const T* weight = static_cast<const T*>(matrix.data) + from * k;
    const float* bias = matrix.bias ? matrix.bias + from : nullptr;
    if (rows > FEW) {
        many(x, rows, k, weight, bias, to - from, y + from, stride);
        return;
    }
    long output = from;
    for (; output + 3 <= to; output += 3, weight += 3 * k, bias = bias ? bias + 3 : nullptr)
        few<T, 3>(x, rows, k, weight, bias, y + output, stride);
    for (; output < to; ++output, weight += k, bias = bias ? bias + 1 : nullptr)
        few<T, 1>(x, rows, k, weight, bias, y + output, stride);
}

// Attention -----------------------------------------------------------------------------------------------------------

// e to the power of x <= 0: 2^n times a polynomial, the coefficients of Cephes' expf (Moshier 1992).
inline Vector power_of_e(Vector x) {
    x = x > -87.0f ? x : Vector{} - 87.0f;
    Vector scaled = x * 1.44269504f - 0.5f;
    typedef int32_t Integers __attribute__((vector_size(4 * LANES)));
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

struct Query {  // one query of a head: what it is, which tokens it sees, where its result goes
    const float* from;
    float* to;
    long first, end;
};

template <typename T, int SIZE>
inline float dot(const float* query, const T* key, long size) {
    long d = SIZE ? SIZE : size, at = 0;
    Vector total[2] = {Vector{}, Vector{}};
    for (; at + 2 * LANES <= d; at += 2 * LANES) {
        total[0] += load(query + at) * load(key + at);
        total[1] += load(query + at + LANES) * load(key + at + LANES);
    }
    float result = sum(total[0] + total[1]);
    for (; at < d; ++at) result += query[at] * number(key[at]);
    return result;
}

// All queries of one key-value head over its tokens; token t lies at offsets[t], or at t * size.
template <typename T, int SIZE>
void attend_head(const Query* queries, long count, const T* keys, const T* values, const int64_t* offsets, long size,
                 float scale) {
    static thread_local std::vector<float> scores;
    long d = SIZE ? SIZE : size, first = queries[0].first, end = 0;
    for (long q = 0; q < count; ++q) first = std::min(first, queries[q].first), end = std::max(end, queries[q].end);
    long length = end - first, width = (length + LANES - 1) / LANES * LANES;
    if (static_cast<long>(scores.size()) < count * width) scores.resize(count * width);
    constexpr long CHUNK = 64;  // keys that stay in the first cache for all queries
    for (long from = first; from < end; from += CHUNK) {
        long to = std::min(end, from + CHUNK);
        for (long q = 0; q < count; ++q)
            for (long t = std::max(from, queries[q].first); t < std::min(to, queries[q].end); ++t)
                scores[q * width + t - first] =
                    scale * dot<T, SIZE>(queries[q].from, keys + (offsets ? offsets[t] : t * d), d);
    }
    for (long q = 0; q < count; ++q) {
        float* row = scores.data() + q * width;
        long low = queries[q].first - first, high = queries[q].end - first;
        float most = row[low];
        for (long t = low; t < high; ++t) most = std::max(most, row[t]);
        for (long t = 0; t < width; ++t) row[t] = t >= low && t < high ? row[t] - most : -100.0f;
        Vector total = Vector{};
        for (long t = 0; t < width; t += LANES) {
            Vector weight = power_of_e(load(row + t));
            *reinterpret_cast<Vector*>(row + t) = weight;
            total += weight;
        }
        float inverse = 1.0f / sum(total);
        for (long t = 0; t < width; ++t) row[t] *= inverse;
        for (long at = 0; at < d; ++at) queries[q].to[at] = 0;
    }
    for (long from = first; from < end; from += CHUNK) {
        long to = std::min(end, from + CHUNK);
        for (long q = 0; q < count; ++q) {
            const float* row = scores.data() + q * width - first;
            long low = std::max(from, queries[q].first), high = std::min(to, queries[q].end), at = 0;
            if constexpr (SIZE > 0) {
                constexpr int PARTS = SIZE / LANES;
                Vector out[PARTS];
                for (int part = 0; part < PARTS; ++part) out[part] = load(queries[q].to + part * LANES);
                for (long t = low; t < high; ++t) {
                    const T* value = values + (offsets ? offsets[t] : t * d);
                    for (int part = 0; part < PARTS; ++part) out[part] += row[t] * load(value + part * LANES);
                }
                for (int part = 0; part < PARTS; ++part)
                    *reinterpret_cast<Vector*>(queries[q].to + part * LANES) = out[part];
                at = SIZE;
            }
            for (long t = low; t < high && at < d; ++t) {
                const T* value = values + (offsets ? offsets[t] : t * d);
                for (long i = at; i < d; ++i) queries[q].to[i] += row[t] * number(value[i]);
            }
        }
    }
}

template <typename T>
void attend_any(const Query* queries, long count, const void* keys, const void* values, const int64_t* offsets,
                long size, float scale) {
    const T *k = static_cast<const T*>(keys), *v = static_cast<const T*>(values);
    if (size == 64)
        attend_head<T, 64>(queries, count, k, v, offsets, size, scale);
    else if (size == 128)
        attend_head<T, 128>(queries, count, k, v, offsets, size, scale);
    else
        attend_head<T, 0>(queries, count, k, v, offsets, size, scale);
}

}  // namespace

extern "C" {

// y (r, all n) = x (r, k) times each matrix, side by side. `kind`: 0 float, 1 bfloat16.
void warmstart_linear(const float* x, int64_t rows, int64_t k, const Matrix* matrices, int64_t count, int64_t kind,
                      float* y) {
    long stride = 0;
    for (long i = 0; i < count; ++i) stride += matrices[i].outputs;
    bool is_many = rows > FEW;
    long width = is_many ? STRIP : 96, height = BLOCK_ROWS;
    long blocks = is_many ? (rows + height - 1) / height : 1;
    struct Task {
        long matrix, from, column;
    };
    std::vector<Task> tasks;
    for (long i = 0, column = 0; i < count; column += matrices[i++].outputs)
        for (long from = 0; from < matrices[i].outputs; from += width) tasks.push_back({i, from, column});
    long strips = static_cast<long>(tasks.size());
#pragma omp parallel for schedule(dynamic, 1)
    for (long index = 0; index < strips * blocks; ++index) {
        const Task& task = tasks[index % strips];
        const Matrix& matrix = matrices[task.matrix];
        long row = blocks > 1 ? index / strips * height : 0;
        long count_here = blocks > 1 ? std::min(height, rows - row) : rows;
        long to = std::min<long>(task.from + width, matrix.outputs);
        float* out = y + row * stride + task.column;
        if (kind == 0)
            product<float>(x + row * k, count_here, k, matrix, task.from, to, out, stride);
        else
            product<Brain>(x + row * k, count_here, k, matrix, task.from, to, out, stride);
    }
}

// out (r, k) = each row of x over its largest number, which goes to scales (r,): what int8 products take.
void warmstart_even(const float* x, int64_t rows, int64_t k, float* scales, float* out) {
#pragma omp parallel for schedule(static) if (rows * k > 16384)
    for (long row = 0; row < rows; ++row) {
        const float* from = x + row * k;
        float most = 0;
#pragma omp simd reduction(max : most)
        for (long i = 0; i < k; ++i) most = std::max(most, std::fabs(from[i]));
        float inverse = most > 0 ? 1.0f / most : 0.0f;
        for (long i = 0; i < k; ++i) out[row * k + i] = from[i] * inverse;
        scales[row] = most;
    }
}

// y (r, n) in place: each row times its scale, plus the bias (n,) or null.
void warmstart_uneven(float* y, int64_t rows, int64_t n, const float* scales, const float* bias) {
#pragma omp parallel for schedule(static) if (rows * n > 16384)
    for (long row = 0; row < rows; ++row)
        for (long i = 0; i < n; ++i) y[row * n + i] = y[row * n + i] * scales[row] + (bias ? bias[i] : 0.0f);
}

// Attention of t new tokens of each row over what the row holds and themselves; their keys and values are stored first.
//
// query (r * t, m * g * d), key and value (r * t, m * d), each with its stride; out (r * t, m * g * d).
// keys, values (slots, m, c, d); table (r, c): in which slot each token of a row's past lies; slots (r,): where its new
// ones go. before (r,): tokens held; first (r,): the first that is seen; window: how far back a token sees, 0 all.
void warmstart_attend_own(const float* query, const float* key, const float* value, int64_t query_stride,
                          int64_t key_stride, int64_t value_stride, int64_t rows, int64_t tokens, int64_t heads, int64_t group, int64_t size,
                          int64_t capacity, float scale, int64_t window, int64_t kind, void* keys, void* values,
                          const int32_t* table, const int32_t* slots, const int32_t* before, const int32_t* first,
                          float* out) {
#pragma omp parallel for schedule(dynamic, 4)
    for (long task = 0; task < rows * heads; ++task) {
        static thread_local std::vector<int64_t> offsets;
        static thread_local std::vector<Query> queries;
        long row = task / heads, head = task % heads, end = before[row] + tokens;
        offsets.resize(end);
        for (long t = 0; t < end; ++t) {
            int64_t slot = t < before[row] ? table[row * capacity + t] : slots[row];
            offsets[t] = ((slot * heads + head) * capacity + t) * size;
        }
        for (long j = 0; j < tokens; ++j) {
            const float *k = key + (row * tokens + j) * key_stride + head * size,
                        *v = value + (row * tokens + j) * value_stride + head * size;
            int64_t at = offsets[before[row] + j];
            for (long i = 0; i < size; ++i) {
                if (kind == 0) {
                    static_cast<float*>(keys)[at + i] = k[i], static_cast<float*>(values)[at + i] = v[i];
                } else {
                    put(static_cast<Brain*>(keys) + at + i, k[i]), put(static_cast<Brain*>(values) + at + i, v[i]);
                }
            }
        }
        queries.clear();
        for (long j = 0; j < tokens; ++j) {
            long position = before[row] + j, from = std::min<long>(first[row], position);
            if (window > 0) from = std::max<long>(from, position - window + 1);
            for (long g = 0; g < group; ++g) {
                long column = (head * group + g) * size, line = row * tokens + j;
                queries.push_back({query + line * query_stride + column, out + line * heads * group * size + column,
                                   from, position + 1});
            }
        }
        if (kind == 0)
            attend_any<float>(queries.data(), queries.size(), keys, values, offsets.data(), size, scale);
        else
            attend_any<Brain>(queries.data(), queries.size(), keys, values, offsets.data(), size, scale);
    }
}

// Attention of each source's lines over the source. Lines starts[b] to starts[b + 1] of query (lines, m * g * d) are
// source b's; its keys and values (m, s, d) lie at keys[b] and values[b], its length s is lengths[b].
void warmstart_attend_source(const float* query, int64_t query_stride, int64_t sources, const int64_t* starts,
                             int64_t heads, int64_t group, int64_t size, float scale, int64_t kind,
                             const void* const* keys, const void* const* values, const int64_t* lengths, float* out) {
    int64_t bytes = kind == 0 ? 4 : 2;
#pragma omp parallel for schedule(dynamic, 1)
    for (long task = 0; task < sources * heads; ++task) {
        static thread_local std::vector<Query> queries;
        long source = task / heads, head = task % heads, length = lengths[source];
        queries.clear();
        for (long line = starts[source]; line < starts[source + 1]; ++line)
            for (long g = 0; g < group; ++g) {
                long column = (head * group + g) * size;
                queries.push_back(
                    {query + line * query_stride + column, out + line * heads * group * size + column, 0, length});
            }
        if (queries.empty()) continue;
        const char *k = static_cast<const char*>(keys[source]) + head * length * size * bytes,
                   *v = static_cast<const char*>(values[source]) + head * length * size * bytes;
        if (kind == 0)
            attend_any<float>(queries.data(), queries.size(), k, v, nullptr, size, scale);
        else
            attend_any<Brain>(queries.data(), queries.size(), k, v, nullptr, size, scale);
    }
}

// total (r, h) = x + y (y may be null, then total may be too), out = its norm: layer norm, or root mean square.
void warmstart_norm(const float* x, const float* y, int64_t rows, int64_t h, const float* weight, const float* bias,
                    float epsilon, int64_t is_rms, float* total, float* out) {
#pragma omp parallel for schedule(static) if (rows * h > 16384)
    for (long row = 0; row < rows; ++row) {
        const float* from = x + row * h;
        float* to = out + row * h;
        if (y) {
            float* sums = total + row * h;
            for (long i = 0; i < h; ++i) sums[i] = from[i] + y[row * h + i];
            from = sums;
        }
        float mean = 0, square = 0;
        if (!is_rms) {
#pragma omp simd reduction(+ : mean)
            for (long i = 0; i < h; ++i) mean += from[i];
            mean /= static_cast<float>(h);
        }
#pragma omp simd reduction(+ : square)
        for (long i = 0; i < h; ++i) square += (from[i] - mean) * (from[i] - mean);
        float factor = 1.0f / std::sqrt(square / static_cast<float>(h) + epsilon);
        for (long i = 0; i < h; ++i) to[i] = (from[i] - mean) * factor * weight[i] + (bias ? bias[i] : 0.0f);
    }
}

}  // extern "C"
