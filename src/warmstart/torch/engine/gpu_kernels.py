"""The kernels of a decoder's step on a GPU, in Triton: products, norms, and attention over what rows hold.

A line is one new token of one row. Sums are float32; what is stored has the type of the tensor it goes to. Parts that
a model lacks are None.

Where a GPU can (PDL, programmatic dependent launch), a kernel starts while the one before it still runs: what no kernel
of the step writes, or the one before the last wrote, is asked for first; then it waits.

Shapes: b sources, k rows for each, t new tokens of a row, r = b * k * t lines, n numbers, c room for tokens, s source
tokens, m key-value heads, g query heads for each, d head size.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def wait(PDL: tl.constexpr):
    """Wait for the kernel before, and let the next one start."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def activated(x, NAME: tl.constexpr):
    """The activation of that name: see `native.ACTIVATIONS`."""
    if NAME == "relu":
        x = tl.maximum(x, 0.0)
    if NAME == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    if NAME == "gelu_new":  # 1 + tanh(u) is 2 * sigmoid(2 * u)
        x = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    if NAME == "silu":
        x = x * tl.sigmoid(x)
    if NAME == "quick_gelu":
        x = x * tl.sigmoid(1.702 * x)
    return x


@triton.jit
def statistics(x, inside, size, epsilon, KIND: tl.constexpr):
    """What a norm takes from the numbers of a row, and what it multiplies them by."""
    mean = 0.0
    if KIND == "mean":
        mean = tl.sum(tl.where(inside, x, 0.0), 0) / size
    centred = tl.where(inside, x - mean, 0.0)
    return mean, tl.rsqrt(tl.sum(centred * centred, 0) / size + epsilon)


@triton.jit
def scaled(x, mean, scale, weight, bias, column, inside, KIND: tl.constexpr):
    """The norm of some numbers of a row, by its statistics."""
    by = tl.load(weight + column, inside, 0.0).to(tl.float32)
    if KIND == "root mean square from one":
        by += 1.0
    x = (x - mean) * scale * by
    if bias is not None:
        x += tl.load(bias + column, inside, 0.0).to(tl.float32)
    return x


@triton.jit
def matrix_of(block, first, second, third, outputs, more, most, MATRICES: tl.constexpr, BLOCK: tl.constexpr):
    """Of matrices side by side, with so many outputs: the one that a block lies in, its place there, how many outputs
    that matrix has, and how many stand before it.
    """
    start = 0
    if MATRICES > 1:
        ahead = tl.cdiv(outputs, BLOCK)
        if block >= ahead:
            first = second
            block -= ahead
            start = outputs
            outputs = more
            if MATRICES > 2:
                ahead = tl.cdiv(more, BLOCK)
                if block >= ahead:
                    first = third
                    block -= ahead
                    start += more
                    outputs = most
    return first, block, outputs, start


@triton.jit
def embed(
    ids, before, first, token, position, kind, to, size, offset, top, scale,
    NEW: tl.constexpr, COLUMNS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Ids (r,) to vectors (r, size), before any norm; positions are counted from each row's first token."""
    line = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    inside = column < size
    row = line // NEW
    wait(PDL)
    at = tl.minimum(tl.load(before + row) + line % NEW, top)
    x = tl.load(token + tl.load(ids + line) * size + column, inside, 0.0).to(tl.float32) * scale
    if kind is not None:
        x += tl.load(kind + column, inside, 0.0).to(tl.float32)
    if position is not None:
        place = tl.maximum(at - tl.load(first + row), 0) + offset
        x += tl.load(position + place * size + column, inside, 0.0).to(tl.float32)
    tl.store(to + line * size + column, x, inside)


@triton.jit
def add_norm(
    x, y, weight, bias, total, to, size, epsilon,
    KIND: tl.constexpr, BEFORE: tl.constexpr, COLUMNS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The norm of the sum of x and y (r, size), and to `total` that sum, or its norm where norms stand after sums."""
    line = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    inside, lies = column < size, line * size + column
    wait(PDL)
    sums = tl.load(x + lies, inside, 0.0).to(tl.float32)
    if y is not None:
        sums += tl.load(y + lies, inside, 0.0).to(tl.float32)
    numbers = sums
    if weight is not None:
        mean, scale = statistics(sums, inside, size, epsilon, KIND)
        numbers = scaled(sums, mean, scale, weight, bias, column, inside, KIND)
    tl.store(total + lies, sums if BEFORE else numbers, inside)
    tl.store(to + lies, numbers.to(to.dtype.element_ty), inside)


@triton.jit
def gate(x, to, size, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """The activation of the left half of (r, 2 * size), times the right."""
    line = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < size
    wait(PDL)
    left = tl.load(x + line * 2 * size + column, inside, 0.0).to(tl.float32)
    right = tl.load(x + line * 2 * size + size + column, inside, 0.0).to(tl.float32)
    tl.store(to + line * size + column, (activated(left, ACTIVATION) * right).to(to.dtype.element_ty), inside)


@triton.jit
def product_of_few(
    x, norm_weight, norm_bias, epsilon, first, second, third, first_bias, second_bias, third_bias, outputs, more, most,
    other, other_weight, other_bias, other_epsilon, to, total,
    INPUTS: tl.constexpr, KIND: tl.constexpr, MATRICES: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr,
    CHUNK: tl.constexpr, COLUMNS: tl.constexpr, OTHER_COLUMNS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The product of the norm of x (r, INPUTS) with matrices side by side (total, INPUTS), activated, plus the norm of
    `other` (r, total), to (r, total).

    A programme computes some outputs of one line: so weights are asked for by as many programmes as can be, and norms
    cost no pass of their own.
    """
    block, line = tl.program_id(0), tl.program_id(1).to(tl.int64)
    here = block
    weight, block, own, start = matrix_of(here, first, second, third, outputs, more, most, MATRICES, BLOCK)
    row = block * BLOCK + tl.arange(0, BLOCK)
    is_row = row < own
    column = tl.arange(0, CHUNK)
    inside = column < INPUTS
    lies = row.to(tl.int64)[:, None] * INPUTS + column[None, :]
    weights = tl.load(weight + lies, is_row[:, None] & inside[None, :], 0.0)
    added = tl.zeros([BLOCK], tl.float32)
    if first_bias is not None:
        bias, _, _, _ = matrix_of(here, first_bias, second_bias, third_bias, outputs, more, most, MATRICES, BLOCK)
        added = tl.load(bias + row, is_row, 0.0).to(tl.float32)
    wait(PDL)
    part = tl.load(x + line * INPUTS + column, inside, 0.0).to(tl.float32)
    mine = tl.zeros([BLOCK], tl.float32)
    if other is not None:
        mine = tl.load(other + line * total + start + row, is_row, 0.0)
        if other_weight is not None:
            beside = tl.arange(0, OTHER_COLUMNS)
            whole = tl.load(other + line * total + beside, beside < total, 0.0)
            mean, scale = statistics(whole, beside < total, total, other_epsilon, KIND)
            mine = scaled(mine, mean, scale, other_weight, other_bias, start + row, is_row, KIND)
    mean, scale = 0.0, 1.0
    if norm_weight is not None:
        if CHUNK >= INPUTS:
            mean, scale = statistics(part, inside, INPUTS, epsilon, KIND)
        else:
            beside = tl.arange(0, COLUMNS)
            whole = tl.load(x + line * INPUTS + beside, beside < INPUTS, 0.0).to(tl.float32)
            mean, scale = statistics(whole, beside < INPUTS, INPUTS, epsilon, KIND)
        part = scaled(part, mean, scale, norm_weight, norm_bias, column, inside, KIND)
    sums = tl.sum(weights.to(tl.float32) * part[None, :], 1)
    for begin in tl.static_range(CHUNK, INPUTS, CHUNK):
        column = begin + tl.arange(0, CHUNK)
        inside = column < INPUTS
        lies = row.to(tl.int64)[:, None] * INPUTS + column[None, :]
        weights = tl.load(weight + lies, is_row[:, None] & inside[None, :], 0.0)
        part = tl.load(x + line * INPUTS + column, inside, 0.0).to(tl.float32)
        if norm_weight is not None:
            part = scaled(part, mean, scale, norm_weight, norm_bias, column, inside, KIND)
        sums += tl.sum(weights.to(tl.float32) * part[None, :], 1)
    sums = activated(sums + added, ACTIVATION) + mine
    tl.store(to + line * total + start + row, sums.to(to.dtype.element_ty), is_row)


@triton.jit
def product_of_many(
    x, first, second, third, first_bias, second_bias, third_bias, outputs, more, most, to, total, lines, inputs,
    MATRICES: tl.constexpr, ACTIVATION: tl.constexpr, LINES: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """The product of x (r, inputs) with matrices side by side (total, inputs), activated, to (r, total): in tiles."""
    block = tl.program_id(0)
    here = block
    weight, block, own, start = matrix_of(here, first, second, third, outputs, more, most, MATRICES, BLOCK)
    line = tl.program_id(1) * LINES + tl.arange(0, LINES)
    row = block * BLOCK + tl.arange(0, BLOCK)
    is_line, is_row = line < lines, row < own
    wait(PDL)
    at_line, at_row = line.to(tl.int64)[:, None] * inputs, row.to(tl.int64)[None, :] * inputs
    sums = tl.zeros([LINES, BLOCK], tl.float32)
    for begin in range(0, inputs, CHUNK):
        column = begin + tl.arange(0, CHUNK)
        inside = column < inputs
        part = tl.load(x + at_line + column[None, :], is_line[:, None] & inside[None, :], 0.0)
        weights = tl.load(weight + at_row + column[:, None], is_row[None, :] & inside[:, None], 0.0)
        sums = tl.dot(part, weights, sums)
    if first_bias is not None:
        bias, _, _, _ = matrix_of(here, first_bias, second_bias, third_bias, outputs, more, most, MATRICES, BLOCK)
        sums += tl.load(bias + row, is_row, 0.0).to(tl.float32)[None, :]
    sums = activated(sums, ACTIVATION)
    lies = line.to(tl.int64)[:, None] * total + start + row[None, :]
    tl.store(to + lies, sums.to(to.dtype.element_ty), is_line[:, None] & is_row[None, :])


@triton.jit
def turned(
    x, cosine, sine, weight, bias, epsilon, column, HEAD: tl.constexpr, TURNED: tl.constexpr, KIND: tl.constexpr
):
    """One head (d,) at a pointer: normed, where it has a norm, and turned by its position's cosine and sine."""
    inside = column < HEAD
    head = tl.load(x + column, inside, 0.0).to(tl.float32)
    mean, scale = 0.0, 1.0
    if weight is not None:
        mean, scale = statistics(head, inside, HEAD, epsilon, KIND)
        head = scaled(head, mean, scale, weight, bias, column, inside, KIND)
    if TURNED > 0:  # number i turns with number i + TURNED / 2
        is_left, turns = column < TURNED // 2, column < TURNED
        across = tl.where(is_left, column + TURNED // 2, column - TURNED // 2)
        opposite = tl.load(x + across, turns, 0.0).to(tl.float32)
        if weight is not None:
            opposite = scaled(opposite, mean, scale, weight, bias, across, turns, KIND)
        by = tl.load(sine + column, turns, 0.0).to(tl.float32)
        head = head * tl.load(cosine + column, turns, 1.0).to(tl.float32) + tl.where(is_left, -opposite, opposite) * by
    return head


@triton.jit
def softly(scores, values, most, sums, out):
    """Some more values (s, d) into an average (d,) by the exponentials of scores (s,), of which -inf counts nothing."""
    higher = tl.maximum(most, tl.max(scores, 0))
    shares, shrink = tl.exp(scores - higher), tl.exp(most - higher)
    return higher, sums * shrink + tl.sum(shares, 0), out * shrink + tl.sum(shares[:, None] * values, 0)


@triton.jit
def held_block(keys, values, table, start, stop, EACH: tl.constexpr, HEAD: tl.constexpr, column, BLOCK: tl.constexpr):
    """Some keys and values (BLOCK, d) that a row holds, of one head's pages (c, k, d), and which of them there are."""
    place = start + tl.arange(0, BLOCK)
    seen = place < stop
    slot = tl.load(table + place, seen, 0)
    lies = (place * EACH + slot)[:, None] * HEAD + column[None, :]
    mask = seen[:, None] & (column < HEAD)[None, :]
    return tl.load(keys + lies, mask, 0.0).to(tl.float32), tl.load(values + lies, mask, 0.0).to(tl.float32), seen


@triton.jit
def attend_own(
    x, keys, values, table, before, first, cosine, sine,
    query_weight, query_bias, key_weight, key_bias, epsilon, to, heads, room, top, scale,
    NEW: tl.constexpr, EACH: tl.constexpr, GROUP: tl.constexpr, HEAD: tl.constexpr, SIZE: tl.constexpr,
    TURNED: tl.constexpr, KIND: tl.constexpr, WINDOW: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Queries, keys and values side by side (r, (g + 2) * m * d) to what each line's heads give (r, g * m * d); the new
    keys and values go where the row's next tokens lie in (b, m, c, k, d).

    A programme computes one query head of one line; that of a group's first head puts the line's key and value down.
    """
    line, query = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, new, head = line // NEW, line % NEW, query // GROUP
    column = tl.arange(0, SIZE)
    inside = column < HEAD
    held, start = tl.load(before + row), tl.load(first + row)
    at, stop = tl.minimum(held + new, top), tl.minimum(held, top)
    if WINDOW > 0:
        start = tl.maximum(start, at - WINDOW + 1)
    pages = ((row // EACH) * heads + head) * room * EACH * HEAD
    keys += pages
    values += pages
    table += row * room
    old_keys, old_values, seen = held_block(keys, values, table, start, stop, EACH, HEAD, column, BLOCK)
    wait(PDL)
    width = (GROUP + 2) * heads * HEAD
    own = turned(
        x + line * width + query * HEAD, cosine + line * TURNED, sine + line * TURNED, query_weight, query_bias,
        epsilon, column, HEAD, TURNED, KIND,
    ) * scale  # fmt: skip
    scores = tl.where(seen, tl.sum(own[None, :] * old_keys, 1), -float("inf"))
    most = tl.full([], -1e30, tl.float32)  # finite: nothing may have been seen yet
    sums, out = tl.zeros([], tl.float32), tl.zeros([SIZE], tl.float32)
    most, sums, out = softly(scores, old_values, most, sums, out)
    for begin in range(start + BLOCK, stop, BLOCK):
        old_keys, old_values, seen = held_block(keys, values, table, begin, stop, EACH, HEAD, column, BLOCK)
        scores = tl.where(seen, tl.sum(own[None, :] * old_keys, 1), -float("inf"))
        most, sums, out = softly(scores, old_values, most, sums, out)
    for other in range(new + 1):  # the new tokens up to this one: others may not have put theirs down yet
        beside = row * NEW + other
        key = turned(
            x + beside * width + (GROUP * heads + head) * HEAD, cosine + beside * TURNED, sine + beside * TURNED,
            key_weight, key_bias, epsilon, column, HEAD, TURNED, KIND,
        ).to(keys.dtype.element_ty)  # fmt: skip
        value = tl.load(x + beside * width + ((GROUP + 1) * heads + head) * HEAD + column, inside, 0.0)
        value = value.to(values.dtype.element_ty)
        if (other == new) & (query % GROUP == 0):
            place = (at * EACH + row % EACH) * HEAD + column
            tl.store(keys + place, key, inside)
            tl.store(values + place, value, inside)
        score = tl.sum(own * key.to(tl.float32), 0)
        if WINDOW > 0:
            score = tl.where(new - other < WINDOW, score, -float("inf"))
        higher = tl.maximum(most, score)
        shrink, share = tl.exp(most - higher), tl.exp(score - higher)
        most, sums, out = higher, sums * shrink + share, out * shrink + share * value.to(tl.float32)
    tl.store(to + (line * heads * GROUP + query) * HEAD + column, (out / sums).to(to.dtype.element_ty), inside)


@triton.jit
def source_block(keys, values, bias, start, end, HEAD: tl.constexpr, column, BLOCK: tl.constexpr):
    """Some keys and values (BLOCK, d) of a source, from one head's (s, d), and the bias on their scores."""
    place = start + tl.arange(0, BLOCK)
    lies = place[:, None] * HEAD + column[None, :]
    mask = (place < end)[:, None] & (column < HEAD)[None, :]
    added = tl.load(bias + place, place < end, -float("inf")).to(tl.float32)
    return tl.load(keys + lies, mask, 0.0), tl.load(values + lies, mask, 0.0), added


@triton.jit
def softly_by_rows(queries, keys, values, added, scale, most, sums, out, QUERIES: tl.constexpr):
    """As `softly`, for some queries (QUERIES, d) at once."""
    if QUERIES == 1:
        scores = tl.sum(queries.to(tl.float32) * keys.to(tl.float32), 1)[None, :]
    else:
        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee")
    scores = scores * scale + added[None, :]
    higher = tl.maximum(most, tl.max(scores, 1))
    shares, shrink = tl.exp(scores - higher[:, None]), tl.exp(most - higher)
    if QUERIES == 1:
        more = tl.sum(tl.trans(shares) * values.to(tl.float32), 0)[None, :]
    else:
        more = tl.dot(shares.to(values.dtype), values, input_precision="ieee")
    return higher, sums * shrink + tl.sum(shares, 1), out * shrink[:, None] + more


@triton.jit
def attend_source(
    x, keys, values, bias, ends, weight, norm_bias, epsilon, to, heads, room, scale,
    LINES: tl.constexpr, GROUP: tl.constexpr, HEAD: tl.constexpr, SIZE: tl.constexpr, KIND: tl.constexpr,
    QUERIES: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Queries (r, g * m * d) over their source's keys and values (b, m, s, d), as far as it `ends` (b,), with a bias
    (b, s) on scores. The queries of all lines of a source read each key once.
    """
    source, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = tl.arange(0, SIZE)
    inside = column < HEAD
    end, pages = tl.load(ends + source), (source * heads + head) * room * HEAD
    keys += pages
    values += pages
    bias += source * room
    some_keys, some_values, added = source_block(keys, values, bias, 0, end, HEAD, column, BLOCK)
    wait(PDL)
    number = tl.program_id(2) * QUERIES + tl.arange(0, QUERIES)
    lies = (source * LINES + number // GROUP) * heads * GROUP + head * GROUP + number % GROUP
    lies = lies[:, None] * HEAD + column[None, :]
    mine = (number < LINES * GROUP)[:, None] & inside[None, :]
    queries = tl.load(x + lies, mine, 0.0)
    if weight is not None:
        numbers = queries.to(tl.float32)
        if KIND == "mean":
            numbers = tl.where(inside[None, :], numbers - (tl.sum(numbers, 1) / HEAD)[:, None], 0.0)
        scales = tl.rsqrt(tl.sum(numbers * numbers, 1) / HEAD + epsilon)[:, None]
        queries = scaled(numbers, 0.0, scales, weight, norm_bias, column[None, :], inside[None, :], KIND)
        queries = queries.to(x.dtype.element_ty)
    most = tl.full([QUERIES], -float("inf"), tl.float32)
    sums, out = tl.zeros([QUERIES], tl.float32), tl.zeros([QUERIES, SIZE], tl.float32)
    most, sums, out = softly_by_rows(queries, some_keys, some_values, added, scale, most, sums, out, QUERIES)
    for start in range(BLOCK, end, BLOCK):
        some_keys, some_values, added = source_block(keys, values, bias, start, end, HEAD, column, BLOCK)
        most, sums, out = softly_by_rows(queries, some_keys, some_values, added, scale, most, sums, out, QUERIES)
    tl.store(to + lies, (out / sums[:, None]).to(to.dtype.element_ty), mine)
