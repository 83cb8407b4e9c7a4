"""What changes the scores of the next token before it is chosen: a processor, and how several are applied.

A processor is a pure function of the scores (r, v), the rows' tokens (r, n), and how many of them there are so far,
`at`. Tokens from `at` on are not looked at, so `ids` may be the whole buffer or only its filled part.

Shapes: r rows, n length, s source length, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from warmstart.decoding.arrays import Array, Arrays, Position

NEVER = float("-inf")
"""The score of a token that must not come."""


class Processor(NamedTuple):
    """One change of the scores, made while ``first <= at < last``.

    One that `reads` something gets it as a fourth argument: "source", the source's ids (r, s), -1 where there is
    padding; or "chosen", what the groups of beams before this one have just chosen (r, any number).
    """

    name: str
    apply: Callable[..., Array]
    first: int = 0
    last: float = float("inf")
    reads: str = ""


def process(
    xp: Arrays,
    processors: Iterable[Processor],
    scores: Array,
    ids: Array,
    at: Position,
    source: Array | None = None,
    chosen: Array | None = None,
) -> Array:
    """Apply the processors in order; those that cannot act at this position cost nothing where `at` is a Python int."""
    context = {"": (), "source": (source,), "chosen": (chosen,)}
    for processor in processors:
        more = context[processor.reads]
        if isinstance(at, int):
            if processor.first <= at < processor.last:
                scores = processor.apply(scores, ids, at, *more)
        elif processor.first <= 0 and processor.last == float("inf"):
            scores = processor.apply(scores, ids, at, *more)
        else:
            last = min(processor.last, 2**31 - 1)
            acts = (at >= processor.first) & (at < int(last))
            scores = xp.where(acts, processor.apply(scores, ids, at, *more), scores)
    return scores


def acting(processors: Iterable[Processor], youngest: int, oldest: int) -> list[Processor]:
    """The processors that act on some of the rows, which hold from `youngest` to `oldest` tokens; those that act on all
    of them without a limit, so that `process` need not ask row by row.
    """
    found = [own for own in processors if own.first <= oldest and youngest < own.last]
    return [only(own) if own.first <= youngest and oldest < own.last else own for own in found]


def only(processor: Processor, first: int = 0, last: float = float("inf")) -> Processor:
    """The same processor, acting while ``first <= at < last``."""
    return processor._replace(first=first, last=last)


def tail(xp: Arrays, ids: Array, at: Position, count: int) -> Array:
    """The last `count` tokens before `at`, (r, count); what they are where there are fewer is not defined."""
    if count == 0:
        return ids[:, :0]
    index = xp.arange(count)[None, :] + (at - count)
    index = xp.where(index < 0, 0, index)
    return xp.take(ids, index + xp.full((ids.shape[0], 1), 0))


def members(xp: Arrays, tokens: Iterable[int], vocabulary: int, name: str) -> Array:
    """Booleans (1, v): which tokens of the vocabulary are among these."""
    tokens = [int(token) for token in tokens]
    check_ids(tokens, vocabulary, name)
    if not tokens:
        return xp.full((1, vocabulary), False)
    return xp.mark(xp.array([tokens]), xp.full((1, len(tokens)), True), vocabulary)


def check_ids(tokens: Iterable[int], vocabulary: int, name: str) -> None:
    """Refuse ids that the vocabulary does not have."""
    outside = [token for token in tokens if not 0 <= token < vocabulary]
    if outside:
        raise ValueError(
            f"{name} has token ids outside the vocabulary: {outside[:8]}; they go from 0 to {vocabulary - 1}"
        )
