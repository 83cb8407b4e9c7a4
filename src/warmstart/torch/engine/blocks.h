// What products with few rows are made of: blocks of up to 4 rows times OUTPUTS outputs, whose sums stay in registers, and
// rows as these take them.
//
// Shapes: r rows, k inputs, n outputs; a `stride` is the distance from row to row.
//
// A block's `step` reads of the inputs (r, stride) and the weights (OUTPUTS, k), STEP inputs at a time, up to PIECE
// before the sums are put down. `added` adds up across lanes; `finish` puts that of some outputs to y, or adds it,
// where these are not the first inputs. NEAR: bytes of inputs that stay in a cache which is fast enough while weights
// pass. APART: the outputs of a block do not lie beside each other. UNASKED: for so few rows no weights are asked for,
// as they come faster by the processor's own reading ahead. FEW: so many rows are multiplied with rows as they are, of
// float, bfloat16, int8. ALONE: how a block's function is declared; with 16 registers, inlined, it had sums in memory.
#pragma once

#if defined(__AVX512F__) && defined(__AVX512BW__)
#include "wide_blocks.h"
#else
#include "narrow_blocks.h"
#endif

namespace {

// What is behind the last whole step: `rest` inputs. Blocks that do not mask loads have the weights filled up with 0, and
// the inputs, unless they are (FILLED).
template <typename Block, int ROWS>
INLINE void last_step(const typename Block::Input* x, long stride, const typename Block::Weight* w, long k, long rest,
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

#if WARMSTART_INT8 == 2
struct Int8Block {
    typedef int8_t Weight;
    typedef Small Input;
    typedef IntegerSum Sum;
    static constexpr int OUTPUTS = LANES == 16 ? 4 : 2;
    static constexpr long STEP = 64, PIECE = 1 << 20;  // whole rows: scales come last
    static constexpr long NEAR = LANES == 16 ? 30 << 10 : 24 << 10, UNASKED = 0;
    static constexpr bool MASKS = false, FILLED = true, APART = LANES == 8;
    template <int ROWS>
    static INLINE void step(const Small* x, long stride, const int8_t* w, long k, long,
                            Sum (&sums)[ROWS][OUTPUTS]) {
        UNROLL
        for (int at = 0; at < STEP; at += 2 * LANES) {
            Shorts weights[OUTPUTS];
            UNROLL
            for (int j = 0; j < OUTPUTS; ++j) weights[j] = load(w + j * k + at);
            UNROLL
            for (int i = 0; i < ROWS; ++i) {
                Shorts input = load(x + i * stride + at);
                hold(input);  // else it is loaded once for each output
                UNROLL
                for (int j = 0; j < OUTPUTS; ++j) {
                    sums[i][j] = (Sum)((Integers)sums[i][j] + sums_of_pairs(input, weights[j]));
                    hold(sums[i][j]);
                }
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

#if defined(WARMSTART_PAIRS)
// A row of floats (k,) as PairBlock takes it (stride,); its scale is 1.
inline float round_row(const float* from, long k, long stride, Brain* to) {
    each(from, k, 0.0f, [&](long at, Vector numbers, int count) { store(to + at, numbers, count); });
    std::fill(to + k, to + stride, Brain{});
    return 1.0f;
}
#endif

#if defined(WARMSTART_INT8)
// A row of floats (k,) as Int8Block takes it (stride,), 0 behind its end; gives its scale.
inline float quantise(const float* from, long k, long stride, Small* to) {
    typedef Small Some __attribute__((vector_size(LANES * sizeof(Small)), aligned(1), may_alias));
    Vector most = {};
    long whole = k / LANES * LANES;
    for (long at = 0; at < whole; at += LANES) most = larger(most, larger(load(from + at), -load(from + at)));
    float top = largest(most);
    for (long at = whole; at < k; ++at) top = std::max(top, std::fabs(from[at]));
    float factor = top > 0 ? 127.0f / top : 0.0f;
    for (long at = 0; at < whole; at += LANES)
        *reinterpret_cast<Some*>(to + at) = __builtin_convertvector(rounded(load(from + at) * factor) + ABOVE, Some);
    for (long at = whole; at < k; ++at)
        to[at] = static_cast<Small>(static_cast<int32_t>(std::nearbyint(from[at] * factor)) + ABOVE);
    std::fill(to + k, to + stride, Small{});
    return top / 127.0f;
}
#endif

}  // namespace
