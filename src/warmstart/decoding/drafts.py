"""Drafts: tokens that are likely to come, so that a model may check several of them in one pass.

What is accepted leaves the outcome as it is: with greedy search the same tokens, with sampling the same distribution.

Shapes: r rows, v vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from warmstart.decoding.arrays import Array, Arrays

# A pass takes as long as so many tokens in it: its weights are read once (11 to 16 with one thread, measured).
LINES = 16
_FADE = 0.96  # of a doubt at each pass that leaves a row alone: from twice the bound to it in 17 passes
_LEAST = 1 / 16


class Text:
    """Tokens, and what followed each run of up to `size` of them where it stood first."""

    def __init__(self, size: int, tokens: Iterable[int] = ()) -> None:
        self.size = size
        self.tokens: list[int] = []
        self.after: dict[tuple[int, ...], int] = {}
        self.extend(tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """More tokens at the end."""
        for token in tokens:
            place = len(self.tokens)
            for held in range(1, min(self.size, place) + 1):
                self.after.setdefault(tuple(self.tokens[-held:]), place)
            self.tokens.append(token)


class Copying:
    """A row that may copy: from its source, if there is one, and from what it has written.

    Drafts are what followed the row's last tokens where they stood before. Saxena 2023, "Prompt Lookup Decoding", looks
    among the row's own tokens alone, and drafts whenever it finds something; here a row that drafts in vain doubts.
    """

    def __init__(self, source: Text | None, size: int) -> None:
        self.own = Text(size)
        self.texts = [self.own] if source is None else [source, self.own]
        self.doubt = 1.0  # -log2 of the chance that one more token is right: doubts of several add up

    def draft(self, count: int, patience: float) -> list[int]:
        """Up to `count` tokens, as many as are worth a check: those whose doubts sum to the `patience` at most. Where
        several of the last tokens stood together before, each counts: the sum may be so many times as large.
        """
        if self.doubt > self.own.size * patience:
            self.doubt *= _FADE
            return []
        tokens, held = self.look_up(count)
        return tokens[: int(held * patience / self.doubt)]

    def look_up(self, count: int) -> tuple[list[int], int]:
        """What followed the last tokens, and how many of them were found: as many as possible, up to the size. Of
        places with as many the first, and the source's before the row's own.
        """
        own = self.own.tokens
        for held in range(min(self.own.size, len(own)), 0, -1):
            last = tuple(own[-held:])
            for text in self.texts:
                if (place := text.after.get(last)) is not None:
                    return text.tokens[place : place + count], held
        return [], 0

    def learn(self, tried: int, right: int) -> None:
        """So many tokens of a draft were tried, and so many right. If all were, little doubt is left; if some were, it
        becomes the mean with what this draft tells; if none was, it doubles and more.
        """
        if not tried:
            return
        if right == tried:
            self.doubt = max(self.doubt / 4, _LEAST)
        else:
            self.doubt = (self.doubt + 1 / right) / 2 if right else 2 * self.doubt + 1 / 4


def patience(rows: int) -> float:
    """The doubt at which a draft of one token just pays, with so many rows at work.

    A pass over n tokens takes about as long as `LINES` + n. What a row drafts saves it passes, its part of which is
    (`LINES` + rows) / rows, and costs 1 for each token: one pays while the chance that it and those before it are right
    is above rows / (`LINES` + rows).
    """
    return math.log2(1 + LINES / rows)


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
