// What is done source by source to rows that stay turned: attention of all tokens of a source over each other, keys one
// after the other over queries side by side; and the keys and values of a source, put where it keeps them.
//
// Shapes: r rows as `panels.h` has them, of b sources, m key-value heads, g query heads for each, d head size.
#pragma once

#include "attention.h"
#include "dropped.h"
#include "panels.h"

namespace {

inline long whole(long count, long of) { return (count + of - 1) / of * of; }

// Numbers, in place, as the words that products of a type take: a float each, or pairs in bfloat16. They are those of rows,
// side by side, or a panel's (depth, width).
template <typename T>
inline const typename Way<T>::Word* row_words(float* numbers, [[maybe_unused]] long count) {
    if constexpr (Way<T>::EACH == 2)
        for (long at = 0; at < count; at += LANES) store(reinterpret_cast<Brain*>(numbers) + at, load(numbers + at));
    return reinterpret_cast<typename Way<T>::Word*>(numbers);
}
template <typename T>
inline const typename Way<T>::Word* panel_words(float* numbers, [[maybe_unused]] long depth, [[maybe_unused]] long width) {
#if defined(WARMSTART_PAIRS)
    if constexpr (Way<T>::EACH == 2)
        for (long i = 0; i < depth; i += 2)
            for (long at = 0; at < width; at += LANES)
                *reinterpret_cast<Integers*>(numbers + i / 2 * width + at) =
                    pairs(load(numbers + i * width + at), load(numbers + (i + 1) * width + at));
#endif
    return reinterpret_cast<typename Way<T>::Word*>(numbers);
}

// Sums (outputs, UNITS * LANES) of weights (outputs, `pitch`), which must be there for whole tiles, times a panel (depth,
// UNITS * LANES); pitch and depth in words.
template <typename T, int UNITS>
inline void multiply_panel(const typename Way<T>::Word* weights, long pitch, long outputs, long depth,
                           const typename Way<T>::Word* panel, float* sums) {
    constexpr long HEIGHT = tile_height<T>(UNITS), DEPTH = tile_depth(UNITS), WIDTH = UNITS * LANES;
    std::fill_n(sums, outputs * WIDTH, 0.0f);
    for (long start = 0; start < depth; start += DEPTH)
        for (long output = 0; output < outputs; output += HEIGHT)
            turned_tile<T, UNITS, true>(weights + output * pitch + start, pitch, std::min(DEPTH, depth - start),
                                        panel + start * WIDTH, sums + output * WIDTH, std::min(HEIGHT, outputs - output), 1,
                                        reinterpret_cast<const char*>(panel), 0);
}

// Scores (count, UNITS * LANES) as weights, whose sums over the keys times `factors` are 1.
template <int UNITS>
inline void weigh_keys(float* scores, long count, float scale, Vector* factors) {
    Vector most[UNITS], total[UNITS];
    for (int j = 0; j < UNITS; ++j) most[j] = load(scores + j * LANES), total[j] = Vector{};
    for (long key = 1; key < count; ++key)
        for (int j = 0; j < UNITS; ++j) most[j] = larger(most[j], load(scores + (key * UNITS + j) * LANES));
    for (int j = 0; j < UNITS; ++j) most[j] *= scale;
    for (long key = 0; key < count; ++key)
        for (int j = 0; j < UNITS; ++j) {
            float* at = scores + (key * UNITS + j) * LANES;
            Vector weight = power_of_e(load(at) * scale - most[j]);
            *reinterpret_cast<Vector*>(at) = weight;
            total[j] += weight;
        }
    for (int j = 0; j < UNITS; ++j) factors[j] = 1.0f / total[j];
}

// Some of the rows that stay turned, `width` numbers each: the function is told of each run of them in one block where it
// begins among them, how many there are, where their number `column` lies, and how far it is to the next number.
template <typename Function>
inline void for_runs(float* numbers, long width, const Blocks& blocks, long column, long row, long count,
                     Function function) {
    for (long done = 0; done < count;) {
        long block = blocks.of((row + done) / LANES), place = blocks.place(block) * LANES, pitch = blocks.width(block);
        long here = std::min(count - done, place + pitch - row - done);
        function(done, here, numbers + place * width + column * pitch + row + done - place, pitch);
        done += here;
    }
}

inline void copy_lanes(const float* from, long count, float* to) {
    if (count == LANES) *reinterpret_cast<Vector*>(to) = load(from);
    else std::memcpy(to, from, 4 * count);
}

// What a thread needs for one head of one source: its keys and values as they come, (d, pitch), and what becomes of them.
struct WithinRoom {
    float *keys, *values, *rows, *queries, *scores, *sums;
    long pitch;
    WithinRoom(long tokens, long size) : pitch(whole(tokens, LANES) + LANES) {
        static thread_local std::vector<float> held;
        long counts[] = {size * pitch, (size + tile_height<float>(1)) * pitch, (pitch + tile_height<float>(1)) * size,
                         size * MOST * LANES, (tokens + 1) * MOST * LANES, size * MOST * LANES};
        constexpr long LINE = 16;  // numbers: vectors begin where a line of the cache does
        long all = LINE;
        for (long count : counts) all += whole(count, LINE);
        if (static_cast<long>(held.size()) < all) held.resize(all);
        float* at = held.data() + (LINE - reinterpret_cast<uintptr_t>(held.data()) / 4 % LINE) % LINE;
        float** parts[] = {&keys, &values, &rows, &queries, &scores, &sums};
        for (long i = 0; i < 6; ++i) *parts[i] = at, at += whole(counts[i], LINE);
    }
};

// qkv (r, (m * g + 2 * m) * d), queries, keys and values of sources whose tokens begin at starts (b + 1,); out
// (r, m * g * d); all of them turned. A scale is above 0. Products are those of a type, whose words d must fill.
template <typename T>
void attend_within(float* qkv, const Blocks& blocks, const Heads& of, long sources, const int64_t* starts, float* out) {
    long heads = of.heads, group = of.group, size = of.size, wide = heads * group * size, all = wide + 2 * heads * size;
#pragma omp for schedule(dynamic, 1)
    for (long task = 0; task < sources * heads; ++task) {
        long source = task / heads, head = task % heads, start = starts[source], tokens = starts[source + 1] - start;
        WithinRoom room(tokens, size);
        for (long t = 0; t < tokens; t += LANES) {
            long here = std::min<long>(LANES, tokens - t), column = wide + head * size;
            for (auto [to, from] : {std::pair(room.keys, column), std::pair(room.values, column + heads * size)})
                for_runs(qkv, all, blocks, from, start + t, here, [&](long at, long count, const float* run, long pitch) {
                    for (long i = 0; i < size; ++i) copy_lanes(run + i * pitch, count, to + i * room.pitch + t + at);
                });
        }
        constexpr long EACH = Way<T>::EACH;
        long end = whole(tokens, EACH);
        turn_any(room.keys, room.pitch, size, whole(tokens, LANES), room.rows, size);
        for (long i = 0; end > tokens && i < size; ++i) room.values[i * room.pitch + tokens] = 0.0f;
        const auto* rows = row_words<T>(room.rows, whole(tokens, LANES) * size);
        const auto* values = row_words<T>(room.values, size * room.pitch);
        Blocks own(tokens);
        for (long turn = 0; turn < group * own.count; ++turn) {
            long column = (head * group + turn / own.count) * size, block = turn % own.count;
            long first = own.place(block) * LANES, width = own.width(block);
            auto each = [&](float* numbers, long of_each, auto function) {
                for (long t = 0; t < std::min(width, tokens - first); t += LANES)
                    for_runs(numbers, of_each, blocks, column, start + first + t, std::min<long>(LANES, tokens - first - t),
                             [&](long at, long count, float* run, long pitch) {
                                 for (long i = 0; i < size; ++i) function(run + i * pitch, i * width + t + at, count);
                             });
            };
            each(qkv, all, [&](const float* run, long at, long count) { copy_lanes(run, count, room.queries + at); });
            of_units(width / LANES, [&](auto units) {
                constexpr int UNITS = decltype(units)::value;
                Vector factors[UNITS];
                multiply_panel<T, UNITS>(rows, size / EACH, tokens, size / EACH, panel_words<T>(room.queries, size, width),
                                         room.scores);
                weigh_keys<UNITS>(room.scores, tokens, of.scale, factors);
                if (end > tokens) std::fill_n(room.scores + tokens * width, width, 0.0f);
                multiply_panel<T, UNITS>(values, room.pitch / EACH, size, end / EACH,
                                         panel_words<T>(room.scores, end, width), room.sums);
                for (long i = 0; i < size; ++i)
                    for (int j = 0; j < UNITS; ++j)
                        *reinterpret_cast<Vector*>(room.sums + (i * UNITS + j) * LANES) *= factors[j];
            });
            each(out, wide, [&](float* run, long at, long count) { copy_lanes(room.sums + at, count, run); });
        }
    }
}

// Keys and values side by side, x (r, 2 * m * d), of sources to where each keeps those of a layer: (m, its tokens, d).
template <typename To>
void keep_as(float* x, const Blocks& blocks, const Heads& of, int64_t layer, const Held& held) {
    long heads = of.heads, size = of.size, kinds = 2 * heads;
#pragma omp for schedule(static)
    for (long task = 0; task < held.sources * kinds; ++task) {
        static thread_local std::vector<float> lines;
        lines.resize(2 * LANES * size);
        float *near = lines.data(), *rows = near + LANES * size;
        long source = task / kinds, head = task % kinds, start = held.starts[source];
        long tokens = held.starts[source + 1] - start;
        const void* const* places = (head < heads ? held.source_keys : held.source_values) + layer * held.sources;
        To* to = static_cast<To*>(const_cast<void*>(places[source])) + head % heads * tokens * size;
        for (long t = 0; t < tokens; t += LANES) {
            long here = std::min<long>(LANES, tokens - t);
            for_runs(x, kinds * size, blocks, head * size, start + t, here,
                     [&](long at, long count, const float* run, long pitch) {
                         for (long i = 0; i < size; ++i) copy_lanes(run + i * pitch, count, near + i * LANES + at);
                     });
            turn_any(near, LANES, size, LANES, rows, size);
            each(rows, here * size, 0.0f,
                 [&](long at, Vector numbers, int count) { store(to + t * size + at, numbers, count); });
        }
    }
}
void keep(float* x, const Blocks& blocks, const Heads& of, int64_t layer, const Held& held) {
    held.type == 0 ? keep_as<float>(x, blocks, of, layer, held) : keep_as<Brain>(x, blocks, of, layer, held);
}

}  // namespace
