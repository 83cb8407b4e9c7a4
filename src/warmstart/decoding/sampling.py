"""One sequence per row, token by token: the likeliest token each time (greedy search), or one drawn at random.

Shapes: r rows, n length, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from warmstart.decoding.arrays import Array, Arrays, Position, write
from warmstart.decoding.stopping import Stop

Choose = Callable[[Array], Array]
"""Scores (r, v) -> the token of each row (r,)."""


class Rows(NamedTuple):
    """The state: how many tokens the rows hold (one number, or a column (r, 1)), the tokens (r, n), and which rows have
    ended (r,).
    """

    at: Position
    ids: Array
    done: Array


def start(xp: Arrays, prompt: Array, length: int, pad: int) -> Rows:
    """Rows that hold the prompt (r, p), with room for `length` tokens in all."""
    rows, at = prompt.shape
    return Rows(at, xp.concat([prompt, xp.full((rows, length - at), pad)], 1), xp.full((rows,), False))


def step(xp: Arrays, state: Rows, scores: Array, choose: Choose, stop: Stop, pad: int) -> Rows:
    """Add a token to each row by its scores (r, v); rows that have ended get `pad`."""
    new = xp.where(state.done, pad, choose(scores))
    ids = write(xp, state.ids, state.at, new)
    return Rows(state.at + 1, ids, state.done | stop(ids, new, state.at + 1))
