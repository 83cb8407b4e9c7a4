"""Pairs that are read and tokenized as the steps ask for them: for data larger than memory, with no copy on disk.

Some thousands of pairs at a time are shuffled and cut into batches. What a step trains on follows from the seed and its
number, and a training goes on from the row at which its last ones began.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import numpy as np

from warmstart.training.batches import padding_share, plan
from warmstart.training.examples import Asked, Counts, Examples, joined, read_examples

AT_ONCE = 10_000  # pairs that are shuffled together

Place = tuple[int, int, int]  # the step, the epoch and the row at which some pairs begin


class Stream:
    """The batches of all steps, from the data's first row on, and again from there when it ends."""

    def __init__(self, asked: Asked, budget: int, seed: int, at_once: int = AT_ONCE):
        self.asked, self.budget, self.seed, self.at_once = asked, budget, seed, at_once
        self.counts = Counts()
        self.place: Place = (0, 0, 0)  # where the pairs held now begin
        self._after: Place = (0, 0, 0)
        self._reading: Iterator[Examples] | None = None
        self._held: Examples | None = None
        self._batches: list[np.ndarray] = []

    def batch(self, step: int) -> tuple[Examples, np.ndarray]:
        """Pairs, and which of them are the rows of a step; steps come in their order.

        Raises:
            ValueError: a row is no pair, no row is one, or the step has gone by.
        """
        if step < self.place[0]:
            raise ValueError(f"step {step} has gone by: the stream stands at step {self.place[0]}")
        while self._held is None or step >= self.place[0] + len(self._batches):
            self._held = self._read()
        return self._held, self._batches[step - self.place[0]]

    @property
    def examples(self) -> Examples:
        """The pairs held now; at first, those that the training begins with."""
        return self.batch(self.place[0])[0] if self._held is None else self._held

    def padding(self) -> float:
        """Which share of the batches of these pairs is padding."""
        examples = self.examples
        return padding_share(self._batches, examples.lengths("source"), examples.lengths("target"))

    def seek(self, place: Place) -> None:
        """Go on from a place that another stream of the same data had."""
        self.place = self._after = place
        self._reading = self._held = None

    def said(self) -> list[object]:
        """What must be the same for a training to go on with it."""
        return [asdict(self.asked.data), asdict(self.asked.limits), self.asked.skip_bad, self.at_once]

    def _read(self) -> Examples:
        """The next pairs, in batches."""
        step, epoch, row = self._after
        if self._reading is None:
            self._reading = read_examples(self.asked, row, self.counts)
        parts: list[Examples] = []
        while sum(map(len, parts)) < self.at_once and (part := next(self._reading, None)) is not None:
            parts.append(part)
        if not parts:
            if row == 0:
                raise ValueError(f"{self.asked.data.place}: no pair is left of {self.counts.rows:,} rows")
            self._after, self._reading = (step, epoch + 1, 0), None
            return self._read()
        examples = joined(parts)
        lengths = examples.lengths("source"), examples.lengths("target")
        self._batches = plan(*lengths, self.budget, self.seed, step)
        self.place = self._after
        self._after = (step + len(self._batches), epoch, int(examples.column("rows")[-1]) + 1)
        return examples
