"""What an output must hold, and how far a sequence has come with it.

Hokamp and Liu 2017, "Lexically Constrained Decoding for Sequence Generation Using Grid Beam Search"; the banks are
those of Post and Vilar 2018.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


class DisjunctiveConstraint:
    """One of several token sequences must come.

    Raises:
        ValueError: a sequence is empty or holds what is no token id, or one begins with another.

    >>> DisjunctiveConstraint([[4, 5], [6]]).alternatives
    ((4, 5), (6,))
    """

    def __init__(self, nested_token_ids: Sequence[Sequence[int]]):
        if not isinstance(nested_token_ids, (list, tuple)) or not nested_token_ids:
            raise ValueError(f"nested_token_ids={nested_token_ids!r}: it must be a list of lists of token ids")
        self.alternatives = tuple(_checked(words) for words in nested_token_ids)
        for words in self.alternatives:
            for other in self.alternatives:
                if words is not other and other[: len(words)] == words:
                    raise ValueError(
                        f"the alternative {list(other)} begins with the alternative {list(words)}, which would always "
                        "be complete before it; leave one of them out"
                    )

    @property
    def length(self) -> int:
        """How many tokens the longest alternative has."""
        return max(len(words) for words in self.alternatives)

    def next_tokens(self, held: tuple[int, ...]) -> list[int]:
        """The tokens that go on from `held`, the beginning of an alternative; none if it is complete."""
        found = {words[len(held)]: None for words in self.alternatives if _goes_on(words, held)}
        return list(found)


class PhrasalConstraint(DisjunctiveConstraint):
    """A token sequence must come.

    >>> PhrasalConstraint([4, 5]).next_tokens((4,))
    [5]
    """

    def __init__(self, token_ids: Sequence[int]):
        super().__init__([token_ids])


def _checked(words: Any) -> tuple[int, ...]:
    good = isinstance(words, (list, tuple)) and len(words) > 0
    if not good or not all(isinstance(x, int) and not isinstance(x, bool) and x >= 0 for x in words):
        raise ValueError(f"{words!r} is not a list of token ids, each a whole number, 0 or more")
    return tuple(words)


def _goes_on(words: tuple[int, ...], held: tuple[int, ...]) -> bool:
    return len(words) > len(held) and words[: len(held)] == held


def constraints_of(constraints: Iterable[Any] | None, force_words_ids: Iterable[Any] | None) -> list[Any]:
    """The constraints given, and those that words (lists of ids, or lists of alternatives) stand for."""
    found = list(constraints or ())
    for words in force_words_ids or ():
        nested = isinstance(words[0], (list, tuple))
        found.append(DisjunctiveConstraint(words) if nested else PhrasalConstraint(words))
    return found


class Progress:
    """How far one sequence has come: which constraints are complete, and the one it is in the middle of."""

    def __init__(self, constraints: Sequence[DisjunctiveConstraint]):
        self.longest = max(constraint.length for constraint in constraints)
        self.pending = list(constraints)
        self.complete = 0
        self.current: DisjunctiveConstraint | None = None
        self.held: tuple[int, ...] = ()

    @property
    def completed(self) -> bool:
        """Whether all constraints are met."""
        return not self.pending and self.current is None

    @property
    def bank(self) -> int:
        """A number that grows with what is met."""
        part = 0
        if self.current is not None:
            part = self.longest - (self.current.length - len(self.held))
        return self.complete * self.longest + part

    def next_tokens(self) -> list[int]:
        """The tokens that bring the sequence further."""
        if self.current is not None:
            return self.current.next_tokens(self.held)
        return [token for constraint in self.pending for token in constraint.next_tokens(())]

    def add(self, token: int) -> None:
        """Take one token in; one that breaks off what was begun puts its constraint back, and begins nothing."""
        if self.completed:
            return
        if self.current is None:
            begun = [index for index, constraint in enumerate(self.pending) if token in constraint.next_tokens(())]
            if not begun:
                return
            self.current = self.pending[begun[0]]
            self.pending = self.pending[: begun[0]] + self.pending[begun[0] + 1 :]
        elif token not in self.current.next_tokens(self.held):
            self.pending = [*self.pending, self.current]
            self.current, self.held = None, ()
            return
        self.held = (*self.held, token)
        if not self.current.next_tokens(self.held):
            self.complete += 1
            self.current, self.held = None, ()

    def after(self, token: int) -> Progress:
        """A copy that has taken a token in."""
        copy = Progress.__new__(Progress)
        copy.__dict__.update(self.__dict__)
        copy.add(token)
        return copy


def progress(constraints: Sequence[DisjunctiveConstraint], tokens: Iterable[int]) -> Progress:
    """How far a sequence has come."""
    state = Progress(constraints)
    for token in tokens:
        state.add(token)
    return state
