"""When a sequence has ended: an end token, the length, or a rule of the caller's.

Shapes: r rows, n length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from warmstart.decoding.arrays import Array, Arrays, Position, is_column

Stop = Callable[[Array, Array, Position], Array]
"""(ids (r, n), the newest token of each row (r,), how many tokens the rows hold) -> ended (r,) booleans."""


def stopping(xp: Arrays, eos: Sequence[int], max_length: int, rules: Sequence[Stop] = ()) -> Stop:
    """Rows end with a token of `eos`, when they hold `max_length` tokens, or when a rule says so."""
    ends = xp.array([list(eos)]) if eos else None

    def stop(ids: Array, new: Array, at: Position) -> Array:
        ended = xp.full(tuple(new.shape), False)
        if ends is not None:
            ended = xp.any(new[:, None] == ends, axis=1)
        ended = ended | ((at[:, 0] if is_column(at) else at) >= max_length)
        for rule in rules:
            ended = ended | rule(ids, new, at)
        return ended

    return stop
