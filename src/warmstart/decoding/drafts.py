"""Drafts: tokens that are likely to come, so that a model may check several of them in one pass.

What is accepted leaves the outcome as it is: with greedy search the same tokens, with sampling the same distribution.

Shapes: r rows, s source length, n length, d drafted tokens, v vocabulary.
"""

from __future__ import annotations

from warmstart.decoding.arrays import Array, Arrays, Position


def look_up(xp: Arrays, source: Array | None, ids: Array, at: Position, size: int, count: int) -> tuple[Array, Array]:
    """What followed the last tokens of each row where they stood before: `count` tokens (r, d), and which of them
    are there.

    Looked for are the last `size` tokens, then fewer; first in the source's ids (r, s), -1 where there is padding, and
    there at the first place; then at the first place among the row's own tokens (r, n). Saxena 2023, "Prompt Lookup
    Decoding", looks among the row's own alone.
    """
    rows, length = ids.shape
    own = xp.where(xp.arange(length)[None, :] < at, ids, -1)
    parts = [own] if source is None else [source, xp.full((rows, 1), -1), own]
    text = xp.concat([*parts, xp.full((rows, count), -1)], 1)
    places = text.shape[1] - count
    rank = xp.full((rows, places), 0)
    for held in range(1, size + 1):
        # a match at a place ends just before it: a longer match beats a shorter one, then the earlier place
        match = (text[:, :places] >= 0) & (at >= held) & (xp.arange(places)[None, :] >= held)
        for back in range(1, held + 1):
            index = xp.full((rows, 1), 0) + (at - back)
            last = xp.take(ids, xp.where(index < 0, 0, index))
            before = xp.concat([xp.full((rows, back), -1), text[:, : places - back]], 1)
            match = match & (before == last)
        rank = xp.where(match, held * (places + 1) + places - xp.arange(places)[None, :], rank)
    place = xp.argmax(rank)[:, None]
    draft = xp.take(text, place + xp.arange(count)[None, :])
    there = (draft >= 0) & (xp.max(rank, 1, keepdims=True) > 0)
    there = xp.cumsum(xp.to_float(~there)) == 0
    return xp.where(there, draft, 0), there


def accept(xp: Arrays, target: Array, drafted: Array, tokens: Array, uniform: Array) -> tuple[Array, Array]:
    """Whether each row's drafted token (r,) is accepted, and the distribution (r, v) to draw from where it is not.

    `target` and `drafted` (r, v) are the probabilities of the model and of the draft, `uniform` (r,) numbers from 0 to
    1. Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding", section 2.3.
    """
    column = tokens[:, None]
    wanted, proposed = xp.take(target, column)[:, 0], xp.take(drafted, column)[:, 0]
    rest = target - drafted
    rest = xp.where(rest > 0, rest, 0.0)
    total = xp.sum(rest, 1, keepdims=True)
    # equal distributions leave nothing over; then nothing is refused but by rounding
    rest = xp.where(total > 0, rest / xp.where(total > 0, total, 1.0), target)
    return uniform * proposed < wanted, rest
