// Products with few rows: each row of inputs with rows of weights as they are, bound by the rate of memory.
//
// Shapes: r rows, k inputs, n outputs; a `stride` is the distance from row to row.
#pragma once

#include "blocks.h"

namespace {

// The function for so many rows, 1 to 4.
template <typename Function>
inline void of_height(long rows, Function function) {
    if (rows == 4) return function(Constant<4>{});
    if (rows == 3) return function(Constant<3>{});
    if (rows == 2) return function(Constant<2>{});
    function(Constant<1>{});
}

// Up to 4 rows from `row` on times Block::OUTPUTS outputs, each `spread` from the last, inputs `from` to `to`. Meanwhile it
// asks for as many inputs of other weights: of ASKED rows from `next` on, each `pitch` from the last.
template <typename Block, int ROWS, int ASKED>
ALONE void block(const Rows& x, long row, long k, const Matrix& matrix, long output, long spread, long from, long to,
                 float* y, long stride, const typename Block::Weight* next, long pitch) {
    typedef typename Block::Sum Sum;
    const auto* inputs = static_cast<const typename Block::Input*>(x.data) + row * x.stride;
    const auto* weights = static_cast<const typename Block::Weight*>(matrix.data) + output * k;
    long apart = spread * k;
    Sum sums[ROWS][Block::OUTPUTS], all[16];
    UNROLL
    for (int i = 0; i < ROWS; ++i)
        UNROLL
        for (int j = 0; j < Block::OUTPUTS; ++j) sums[i][j] = Sum{};
    long at = from;
    for (; at + Block::STEP <= to; at += Block::STEP) {
        for (int i = 0; i < ASKED; ++i) __builtin_prefetch(next + i * pitch + at - from, 0, 2);
        Block::template step<ROWS>(inputs + at, x.stride, weights + at, apart, Block::STEP, sums);
    }
    if (at < to) last_step<Block, ROWS>(inputs + at, x.stride, weights + at, apart, to - at, sums);
    UNROLL
    for (int i = 0; i < 4; ++i)
        UNROLL
        for (int j = 0; j < 4; ++j)
            all[i * 4 + j] = i < ROWS && j < Block::OUTPUTS ? sums[i % ROWS][j % Block::OUTPUTS] : Sum{};
    finish(added<ROWS>(all), ROWS, x, row, matrix, {output, Block::OUTPUTS, spread}, y, stride, from == 0);
}

// One row and one output: what does not fill a block.
template <typename Block>
inline void single(const Rows& x, long row, long k, const Matrix& matrix, long output, float* y) {
    typename Block::Sum sums[1][Block::OUTPUTS] = {}, all[16] = {};
    const auto* inputs = static_cast<const typename Block::Input*>(x.data) + row * x.stride;
    const auto* weights = static_cast<const typename Block::Weight*>(matrix.data) + output * k;
    long at = 0;
    for (; at + Block::STEP <= k; at += Block::STEP)
        Block::template step<1>(inputs + at, x.stride, weights + at, 0, Block::STEP, sums);
    if (at < k) last_step<Block, 1>(inputs + at, x.stride, weights + at, 0, k - at, sums);
    all[0] = sums[0][0];
    finish(added<1>(all), 1, x, row, matrix, {output, 1, 1}, y, 0, true);
}

// Rows that are multiplied together, and how many of their inputs: what stays near (NEAR). Where scales do not come
// last, the sums of pieces can be added, and more rows have shorter pieces; but to put sums down costs, so that pieces
// are not shorter than half of LEAST.
struct Group {
    long rows, piece;
    template <typename Block>
    static Group of(long rows, long k) {
        constexpr long USUAL = 8, LEAST = 640;
        long bytes = sizeof(typename Block::Input), room = Block::NEAR / bytes;
        if (Block::PIECE > room) return {std::max(USUAL, room / k / 4 * 4), k};
        if (room / rows < LEAST) return {USUAL, Block::PIECE};
        long most = std::min(Block::PIECE, room / rows), pieces = (k + most - 1) / most;
        return {rows, ((k + pieces - 1) / pieces + 31) / 32 * 32};
    }
};

// Outputs `from` to `to` of all rows. A group of rows and a piece of its inputs stay near while the weights pass; for
// the next group these are in the second cache. Where a block's outputs lie APART, each has a part of the strip: so
// many streams, which go on from row to row, come faster than rows beside each other, each of which ends soon.
// Meanwhile the rows ask, each 4 for their part, for as many other weights: those that follow and, behind the last,
// `next`; or, `far` or with several groups, of which the first would wait, as many from `next` on as pass here.
template <typename Block>
void few(const Rows& x, long rows, long k, const Matrix& matrix, long from, long to, float* y, long stride,
         const void* next, bool far) {
    typedef typename Block::Weight Weight;
    const Weight *here = static_cast<const Weight*>(matrix.data) + from * k, *after = static_cast<const Weight*>(next);
    Group together = Group::of<Block>(rows, k);
    far = far || rows > together.rows;
    long count = (to - from) / Block::OUTPUTS, whole = from + count * Block::OUTPUTS;
    long spread = Block::APART ? count : 1, move = Block::APART ? 1 : Block::OUTPUTS;
    long piece = together.piece, blocks = (rows + 3) / 4;
    long parts = blocks >= Block::OUTPUTS ? Block::OUTPUTS : blocks >= 2 ? 2 : 1;
    if (rows <= Block::UNASKED && !far) parts = 0;
    for (long start = 0; start < k; start += piece) {
        long end = std::min(k, start + piece), pitch = far ? end - start : spread * k;
        for (long group = 0; group < rows; group += together.rows)
            for (long n = 0; n < count; ++n) {
                const Weight* ahead = after;
                if (far)
                    ahead += start * (whole - from) + n * Block::OUTPUTS * pitch;
                else if (n + 1 < count)
                    ahead = here + (n + 1) * move * k + start;
                else if (end < k)
                    ahead = here + end;
                long output = from + n * move;
                for (long row = group; row < std::min(rows, group + together.rows); row += 4) {
                    float* out = y + row * stride + output;
                    long place = row / 4, asks = parts ? place * Block::OUTPUTS / parts : 0;
                    const Weight* asked = ahead + asks * pitch;
                    auto with = [&](auto height, auto count) {
                        block<Block, decltype(height)::value, decltype(count)::value>(
                            x, row, k, matrix, output, spread, start, end, out, stride, asked, pitch);
                    };
                    of_height(std::min<long>(4, rows - row), [&](auto height) {
                        if (place >= parts) return with(height, Constant<0>{});
                        long count = (place + 1) * Block::OUTPUTS / parts - asks;
                        if (count == 1) return with(height, Constant<1>{});
                        if (count == 2) return with(height, Constant<2>{});
                        with(height, Constant<Block::OUTPUTS>{});
                    });
                }
            }
    }
    for (long output = whole; output < to; ++output)
        for (long row = 0; row < rows; ++row) single<Block>(x, row, k, matrix, output, y + row * stride + output);
}

// Outputs of a strip: as many weights whatever k is, so that those of the next one are asked for in time.
inline long strip_width(long k) { return k <= 1024 ? 48 : k <= 1536 ? 32 : LANES == 16 ? 16 : 18; }

}  // namespace
