"""Whether a step leaves a token to choose.

A loop in Python raises at once; a compiled one carries the first trouble, and the error comes after it.

Shapes: r rows, v vocabulary, b sources.
"""

from __future__ import annotations

from collections.abc import Sequence

from warmstart.decoding.arrays import Array, Arrays, Position
from warmstart.decoding.beams import LOW
from warmstart.decoding.scores import NEVER

FORBIDDEN, UNDEFINED = 1, 2
"""The kinds of trouble: all tokens of a row are forbidden, or some of its scores are no numbers; 0 is none."""


def no_trouble(xp: Arrays) -> Array:
    """What a loop begins with, (1, 3): the kind of the first trouble, its row, and how many tokens that held."""
    return xp.full((1, 3), 0)


def watch(
    xp: Arrays, trouble: Array, scores: Array, at: Position, going: Array, may_die: bool = False
) -> tuple[Array, Array]:
    """The trouble so far (1, 3), with that of a step's scores (r, v), and which rows are stuck (r,).

    Rows that are not `going` (r,) do not count. With `may_die` a row may have no token left, as a beam among others.
    """
    # What is no number makes the sum none, which alone is not equal to itself; XLA's maximum may pass over it.
    total = xp.sum(xp.where(scores == NEVER, 0.0, scores), 1)
    is_undefined = total != total
    stuck = going & (is_undefined if may_die else is_undefined | ~(xp.max(scores, 1) > NEVER))
    marks: Array = xp.to_float(stuck)
    row = xp.argmax(marks[None])[:, None]
    kinds = xp.where(is_undefined, UNDEFINED, xp.full((scores.shape[0],), FORBIDDEN))
    here = xp.concat([xp.take(kinds[None], row), row, xp.full((1, 1), 0) + at], 1)
    return xp.where(xp.any(stuck) & (trouble[:, :1] == 0), here, trouble), stuck


def check_choice(kind: int, row: int, at: int) -> None:
    """Raise the error of a trouble, if there is one.

    Raises:
        ValueError: all tokens are forbidden in a row, or the model's logits are no numbers.
    """
    if kind == UNDEFINED:
        raise ValueError(
            f"the scores of row {row} at position {at} are no numbers (NaN): the model's weights or inputs hold "
            "infinite or undefined values; remove_invalid_values=True goes on without them"
        )
    if kind == FORBIDDEN:
        raise ValueError(
            f"all tokens are forbidden in row {row} at position {at}: the settings that forbid or force tokens "
            "(bad_words_ids, suppress_tokens, no_repeat_ngram_size, min_length, sequence_bias, "
            "prefix_allowed_tokens_fn, logits_processor ...) leave none to choose"
        )


def check_found(best: Sequence[float], new: int, length_penalty: float) -> None:
    """Refuse a search with beams that has found nothing for a source; `best` (b,) are scores, `new` the longest length.

    Raises:
        ValueError: names the source.
    """
    least = LOW / 2 / max(1.0, float(max(new, 1)) ** length_penalty)
    for source, score in enumerate(best):
        if not score > least:
            raise ValueError(
                f"no sequence is possible for source {source}: the settings that forbid or force tokens leave none, or "
                "the model's logits are no numbers"
            )
