// Attention of new tokens over what rows hold, and over their sources.
//
// Shapes: r rows, t new tokens of a row, m key-value heads, g query heads for each, d head size, c capacity (tokens that
// a cache slot holds).
#pragma once

#include <omp.h>

#include "few.h"

namespace {

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
struct BlockOf;
template <>
struct BlockOf<float> {
    typedef FloatBlock type;
};
template <>
struct BlockOf<Brain> {
    typedef BrainBlock type;
};

// Vectors of a value that so many queries weigh together: their sums stay in registers.
constexpr int value_parts(int queries) { return LANES == 16 ? 4 : queries == 1 ? 8 : queries == 2 ? 4 : 2; }

// The sums of values (length, value_parts * LANES) by the weights of QUERIES queries (each `width` from the next). Meanwhile
// it asks for as much at `next`, if it is not null.
template <typename T, int QUERIES>
inline void weigh(const float* weights, long width, long length, const T* values, long size, float* const* to,
                  const T* next) {
    constexpr int PARTS = value_parts(QUERIES);
    constexpr int LINE = 64 / sizeof(T);
    Vector sums[QUERIES][PARTS];
    UNROLL
    for (int q = 0; q < QUERIES; ++q)
        UNROLL
        for (int part = 0; part < PARTS; ++part) sums[q][part] = Vector{};
    for (long t = 0; t < length; ++t) {
        Vector value[PARTS];
        UNROLL
        for (int part = 0; part < PARTS; ++part) value[part] = load(values + t * size + LANES * part);
        if (next)
            for (int line = 0; line < PARTS * LANES; line += LINE) __builtin_prefetch(next + t * size + line, 0, 2);
        UNROLL
        for (int q = 0; q < QUERIES; ++q) {
            float weight = weights[q * width + t];
            UNROLL
            for (int part = 0; part < PARTS; ++part) sums[q][part] += weight * value[part];
        }
    }
    UNROLL
    for (int q = 0; q < QUERIES; ++q)
        UNROLL
        for (int part = 0; part < PARTS; ++part) *reinterpret_cast<Vector*>(to[q] + LANES * part) = sums[q][part];
}

// The sums of values (length, size) by the weights of all queries (each `width` from the next), where values are not asked
// for: tokens come in as many streams as keys do, some at a time, which stay in the first cache for all queries.
template <typename T>
void weigh_streams(const Query* queries, long count, const float* weights, long width, long length, const T* values,
                   long size) {
    constexpr long STREAMS = BlockOf<T>::type::OUTPUTS, PARTS = value_parts(1), SOME = 16;
    long apart = length / STREAMS;
    for (long q = 0; q < count; ++q) std::fill_n(queries[q].to, size, 0.0f);
    auto add = [&](long begin, long end, auto streams) {
        for (long from = 0; from < size; from += PARTS * LANES)
            for (long q = 0; q < count; ++q) {
                float* to = queries[q].to + from;
                Vector sums[PARTS];
                UNROLL
                for (int part = 0; part < PARTS; ++part) sums[part] = load(to + part * LANES);
                for (long t = begin; t < end; ++t)
                    for (long stream = 0; stream < decltype(streams)::value; ++stream) {
                        long at = stream * apart + t;
                        UNROLL
                        for (int part = 0; part < PARTS; ++part)
                            sums[part] += weights[q * width + at] * load(values + at * size + from + part * LANES);
                    }
                UNROLL
                for (int part = 0; part < PARTS; ++part) *reinterpret_cast<Vector*>(to + part * LANES) = sums[part];
            }
    };
    for (long begin = 0; begin < apart; begin += SOME) add(begin, std::min(apart, begin + SOME), Constant<STREAMS>{});
    add(STREAMS * apart, length, Constant<1>{});
}

// All queries of one key-value head over keys and values (length, size) that they all see; sizes of 64 and 128. Values
// are asked for while keys are read, and the keys at `next`, if it is not null, while values are; unless they are of a
// type whose weights come faster to few rows when they are not asked for (UNASKED).
template <typename T>
void attend_all(const Query* queries, long count, const T* keys, const T* values, long size, float scale, const T* next) {
    typedef typename BlockOf<T>::type Block;
    static thread_local std::vector<float> kept;
    long length = queries[0].end, width = (length + LANES - 1) / LANES * LANES;
    kept.resize(count * (width + size));
    float *scores = kept.data(), *inputs = scores + count * width;
    for (long q = 0; q < count; ++q) {
        if (std::is_same_v<T, Brain>)
            part(queries[q].from, size, size, inputs + q * size);
        else
            std::memcpy(inputs + q * size, queries[q].from, 4 * size);
    }
    constexpr bool ASKS = Block::UNASKED == 0;
    few<Block>({inputs, nullptr, size}, count, size, {keys, nullptr, length, nullptr, nullptr}, 0, length, scores, width,
               values, ASKS);
    for (long q = 0; q < count; ++q) {
        float* row = scores + q * width;
        for (long t = length; t < width; ++t) row[t] = row[0];
        Vector most = load(row);
        for (long t = LANES; t < width; t += LANES) most = larger(most, load(row + t));
        Vector top = Vector{} + largest(most) * scale, total = Vector{};
        for (long t = length; t < width; ++t) row[t] = -1e30f;
        for (long t = 0; t < width; t += LANES) {
            Vector weight = power_of_e(load(row + t) * scale - top);
            *reinterpret_cast<Vector*>(row + t) = weight;
            total += weight;
        }
        float inverse = 1.0f / sum(total);
        for (long t = 0; t < width; ++t) row[t] *= inverse;
    }
    if constexpr (!ASKS) return weigh_streams<T>(queries, count, scores, width, length, values, size);
    for (long q = 0; q < count; q += 4)
        of_height(std::min<long>(4, count - q), [&](auto height) {
            constexpr int QUERIES = decltype(height)::value;
            for (long from = 0; from < size; from += value_parts(QUERIES) * LANES) {
                float* to[QUERIES];
                for (long i = 0; i < QUERIES; ++i) to[i] = queries[q + i].to + from;
                weigh<T, QUERIES>(scores + q * width, width, length, values + from, size, to,
                                  next && q == 0 ? next + from : nullptr);
            }
        });
}

template <typename T>
void attend_any(const Query* queries, long count, const void* keys, const void* values, const int64_t* offsets,
                long size, float scale, const void* next = nullptr) {
    const T *k = static_cast<const T*>(keys), *v = static_cast<const T*>(values);
    if (!offsets && (size == 64 || size == 128) && scale > 0)
        return attend_all<T>(queries, count, k, v, size, scale, static_cast<const T*>(next));
    if (size == 64)
        attend_head<T, 64>(queries, count, k, v, offsets, size, scale);
    else if (size == 128)
        attend_head<T, 128>(queries, count, k, v, offsets, size, scale);
    else
        attend_head<T, 0>(queries, count, k, v, offsets, size, scale);
}

struct Heads {
    int64_t heads, group, size, window;
    float scale;
};

// What is remembered. keys and values of each layer (slots, m, c, d); table (r, c): in which slot each token of a row's
// past lies; slots (r,): where its new ones go; before (r,): tokens held; first (r,): the first that is seen; starts
// (r + 1,): where the new tokens of each row begin among all of them, n; where rows stay turned, those of each source.
// Sources' keys and values (m, s, d) for each layer and source, and their lengths s. Types: 0 float, 1 bfloat16.
struct Held {
    int64_t rows, capacity, type, sources;
    void *const *keys, *const *values;
    const int32_t *table, *slots, *before, *first;
    const int64_t* starts;
    const void *const *source_keys, *const *source_values;
    const int64_t* lengths;
};

// Attention of the new tokens of each row over what the row holds and themselves; their keys and values are stored first.
// query (n, m * g * d), key and value (n, m * d), each with its stride; out (n, m * g * d).
void attend_own(const float* query, const float* key, const float* value, long query_stride, long key_stride,
                long value_stride, const Heads& of, int64_t layer, const Held& held, float* out) {
    long rows = held.rows, heads = of.heads, group = of.group, size = of.size;
    long capacity = held.capacity, window = of.window;
    float scale = of.scale;
    void *keys = held.keys[layer], *values = held.values[layer];
    const int32_t *table = held.table, *slots = held.slots, *before = held.before, *first = held.first;
    int64_t kind = held.type;
#pragma omp for schedule(dynamic, 4)
    for (long task = 0; task < rows * heads; ++task) {
        static thread_local std::vector<int64_t> offsets;
        static thread_local std::vector<Query> queries;
        long row = task / heads, head = task % heads, start = held.starts[row], tokens = held.starts[row + 1] - start;
        long end = before[row] + tokens;
        if (!tokens) continue;
        offsets.resize(end);
        for (long t = 0; t < end; ++t) {
            int64_t slot = t < before[row] ? table[row * capacity + t] : slots[row];
            offsets[t] = ((slot * heads + head) * capacity + t) * size;
        }
        for (long j = 0; j < tokens; ++j) {
            const float *k = key + (start + j) * key_stride + head * size,
                        *v = value + (start + j) * value_stride + head * size;
            int64_t at = offsets[before[row] + j];
            for (long i = 0; i < size; ++i) {
                if (kind == 0) {
                    static_cast<float*>(keys)[at + i] = k[i], static_cast<float*>(values)[at + i] = v[i];
                } else {
                    put(static_cast<Brain*>(keys) + at + i, k[i]), put(static_cast<Brain*>(values) + at + i, v[i]);
                }
            }
        }
        // No processor guesses pieces as short as these: values are asked for before keys are read, and the next head's keys.
        long bytes = kind == 0 ? 4 : 2, further = head + 1 < heads ? capacity * size * bytes : 0;
        for (long t = window > 0 ? std::max<long>(first[row], before[row] - window) : first[row]; t < before[row]; ++t)
            for (long at = 0; at < size * bytes; at += 64) {
                __builtin_prefetch(static_cast<const char*>(values) + offsets[t] * bytes + at);
                __builtin_prefetch(static_cast<const char*>(keys) + offsets[t] * bytes + further + at);
            }
        queries.clear();
        for (long j = 0; j < tokens; ++j) {
            long position = before[row] + j, from = std::min<long>(first[row], position);
            if (window > 0) from = std::max<long>(from, position - window + 1);
            for (long g = 0; g < group; ++g) {
                long column = (head * group + g) * size, line = start + j;
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

// Attention of the lines of each source's rows, of which each source has as many, over the source.
void attend_source(const float* query, long query_stride, const Heads& of, int64_t layer, const Held& held, float* out) {
    long sources = held.sources, heads = of.heads, group = of.group, size = of.size;
    long rows = held.rows / sources;
    float scale = of.scale;
    long threads = omp_get_num_threads();
    int64_t kind = held.type, bytes = kind == 0 ? 4 : 2;
    auto place = [&](const void* const* of_layers, long task) {
        long source = task / heads;
        return static_cast<const char*>(of_layers[layer * sources + source]) +
               task % heads * held.lengths[source] * size * bytes;
    };
#pragma omp for schedule(dynamic, 1)
    for (long task = 0; task < sources * heads; ++task) {
        static thread_local std::vector<Query> queries;
        long source = task / heads, head = task % heads, length = held.lengths[source];
        queries.clear();
        for (long line = held.starts[source * rows]; line < held.starts[(source + 1) * rows]; ++line)
            for (long g = 0; g < group; ++g) {
                long column = (head * group + g) * size;
                queries.push_back(
                    {query + line * query_stride + column, out + line * heads * group * size + column, 0, length});
            }
        if (queries.empty()) continue;
        const char *k = place(held.source_keys, task), *v = place(held.source_values, task);
        long following = task + threads;  // this thread's, most likely
        const char* next = following < sources * heads ? place(held.source_keys, following) : nullptr;
        if (kind == 0)
            attend_any<float>(queries.data(), queries.size(), k, v, nullptr, size, scale, next);
        else
            attend_any<Brain>(queries.data(), queries.size(), k, v, nullptr, size, scale, next);
    }
}

}  // namespace
