"""The array functions that decoding is written in; each framework supplies an object that has them.

Beside these, arrays have the operators ``+ - * / // % ** < <= > >= == != & | ~``, ``.shape`` and basic indexing with
slices and None. Integers are token ids or positions, floats are 32-bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

Array = Any
"""An array of the framework at hand."""

Position = Any
"""How many tokens each row holds: a Python int, an integer scalar of the framework, or where rows differ in age a
column (rows, 1) of integers."""


class Arrays(Protocol):
    """What a framework supplies. An `axis` of None reduces to a scalar; functions without one act on the last axis."""

    def array(self, values: Sequence[Any]) -> Array:
        """Booleans, integers or floats from nested Python lists that hold at least one."""

    def full(self, shape: tuple[int, ...], value: bool | int | float) -> Array:
        """An array of one value; its type is that of the value."""

    def arange(self, stop: int) -> Array:
        """Integers 0 to stop - 1."""

    def reshape(self, x: Array, shape: tuple[int, ...]) -> Array: ...

    def concat(self, parts: Sequence[Array], axis: int) -> Array: ...

    def where(self, condition: Array, yes: Array | float, no: Array | float) -> Array:
        """Elementwise choice, with broadcasting; one of `yes` and `no` at least is an array."""

    def to_float(self, x: Array | int) -> Array | float:
        """Integers or booleans as floats; a Python int gives a Python float."""

    def any(self, x: Array, axis: int | None = None, keepdims: bool = False) -> Array: ...

    def all(self, x: Array, axis: int | None = None, keepdims: bool = False) -> Array: ...

    def sum(self, x: Array, axis: int | None = None, keepdims: bool = False) -> Array:
        """Sum; of booleans, their count."""

    def max(self, x: Array, axis: int | None = None, keepdims: bool = False) -> Array: ...

    def min(self, x: Array, axis: int | None = None, keepdims: bool = False) -> Array: ...

    def argmax(self, x: Array) -> Array: ...

    def top_k(self, x: Array, k: int) -> tuple[Array, Array]:
        """The k largest, largest first, and where they stand."""

    def sort(self, x: Array) -> Array:
        """Ascending."""

    def cumsum(self, x: Array) -> Array: ...

    def softmax(self, x: Array) -> Array: ...

    def log_softmax(self, x: Array) -> Array: ...

    def take(self, x: Array, index: Array) -> Array:
        """(b, n, ...) and (b, m) give (b, m, ...): for each b, the items at its own indices."""

    def mark(self, tokens: Array, valid: Array, size: int) -> Array:
        """(b, m) tokens and (b, m) booleans give booleans (b, size): true at the tokens that are valid, else false."""


def write(xp: Arrays, x: Array, at: Position, values: Array) -> Array:
    """Return `x` (b, ..., length) with `values` (b, ...) at position `at` of the last axis; a column is (b, 1)."""
    if is_column(at) and len(x.shape) > 2:
        at = xp.reshape(at, (at.shape[0], *(1 for _ in x.shape[1:])))
    return xp.where(xp.arange(x.shape[-1]) == at, values[..., None], x)


def is_column(at: Position) -> bool:
    """Whether each row has a position of its own."""
    return not isinstance(at, int) and len(at.shape) == 2


def repeat(xp: Arrays, at: Position, times: int) -> Position:
    """A position for each of b rows as one for each of b * times, those of a row one after another."""
    if not is_column(at):
        return at
    rows = at.shape[0]
    return xp.reshape(at + xp.full((rows, times), 0), (rows * times, 1))
