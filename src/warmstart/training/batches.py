"""Batches by token budget: rows of like length together, in an order that seed and epoch alone decide.

Shapes: n pairs, b batch, s source length, t target length.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from warmstart.inputs import IGNORED
from warmstart.training.examples import Examples

_BATCHES_IN_BUCKET = 50  # about so many batches are drawn from rows that were sorted together
_BANDS = (
    16  # of source lengths; within one, rows are sorted by target: 6 % of padding where exact order by source has 9
)


def plan(source: np.ndarray, target: np.ndarray, budget: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Places of the rows of each batch of an epoch, from the lengths (n) of sources and targets.

    Every row comes once. A batch padded to its longest source and target holds at most `budget` tokens, both sides
    together; a row that is longer is a batch of its own. Rows are shuffled, sorted within a bucket by bands of source
    length and, up and down in turn, by target length, cut into batches, and the batches shuffled.

    >>> batches = plan(np.array([3, 9, 3, 9]), np.array([1, 1, 1, 1]), budget=20, seed=0, epoch=0)
    >>> sorted(sorted(batch.tolist()) for batch in batches)
    [[0, 2], [1, 3]]
    """
    draw = np.random.default_rng([seed, epoch])
    order = draw.permutation(len(source))
    mean = max(1.0, float((source + target).mean())) if len(source) else 1.0
    bucket = max(1, round(_BATCHES_IN_BUCKET * budget / mean))
    batches: list[np.ndarray] = []
    for start in range(0, len(order), bucket):
        rows = order[start : start + bucket]
        band = source[rows] // max(1, int(source.max()) // _BANDS)
        rows = rows[np.lexsort((np.where(band % 2, -target[rows], target[rows]), band))]
        batches += _cut(rows, source, target, budget)
    return [batches[place] for place in draw.permutation(len(batches))]


def _cut(rows: np.ndarray, source: np.ndarray, target: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Rows in their order, as many at a time as the budget holds."""
    first = longest_source = longest_target = 0
    for place, (s, t) in enumerate(zip(source[rows].tolist(), target[rows].tolist(), strict=True)):
        longer = max(longest_source, s), max(longest_target, t)
        if place > first and (place - first + 1) * sum(longer) > budget:
            yield rows[first:place]
            first, longer = place, (s, t)
        longest_source, longest_target = longer
    if first < len(rows):
        yield rows[first:]


def padding_share(batches: Sequence[np.ndarray], source: np.ndarray, target: np.ndarray) -> float:
    """Which share of the places in some batches is padding."""
    places = sum(len(rows) * (int(source[rows].max()) + int(target[rows].max())) for rows in batches)
    return 1 - sum(int((source[rows] + target[rows]).sum()) for rows in batches) / places


class Order:
    """The batches of all steps, epoch after epoch."""

    def __init__(self, examples: Examples, budget: int, seed: int):
        self.examples, self.budget, self.seed = examples, budget, seed
        self.source, self.target = examples.lengths("source"), examples.lengths("target")
        self._counts: list[int] = []  # batches of each epoch so far
        self._planned: tuple[int, list[np.ndarray]] = (-1, [])

    def batches(self, epoch: int) -> list[np.ndarray]:
        """The rows of each batch of an epoch, counted from 0."""
        if self._planned[0] != epoch:
            self._planned = epoch, plan(self.source, self.target, self.budget, self.seed, epoch)
        return self._planned[1]

    def steps(self, epochs: int) -> int:
        """How many batches so many epochs have."""
        while len(self._counts) < epochs:
            self._counts.append(len(self.batches(len(self._counts))))
        return sum(self._counts[:epochs])

    def padding(self) -> float:
        """Which share of the first epoch's batches is padding."""
        return padding_share(self.batches(0), self.source, self.target)

    def batch(self, step: int) -> tuple[Examples, np.ndarray]:
        """The pairs, and which of them are the rows of a step; steps are counted from 0."""
        return self.examples, self.rows(step)

    def said(self) -> list[int]:
        """What tells these pairs from others."""
        hashes = self.examples.column("pair_hashes")
        return [len(hashes), int(np.bitwise_xor.reduce(hashes)), int(self.source.sum()), int(self.target.sum())]

    def rows(self, step: int) -> np.ndarray:
        """The rows of a step's batch."""
        epoch = 0
        while step >= self.steps(epoch + 1):
            epoch += 1
        return self.batches(epoch)[step - self.steps(epoch)]


def collate(examples: Examples, rows: np.ndarray, pad: int) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` (b, s), and `labels` (b, t) with -100 where a target has ended.

    What tokens have beside their ids goes along (b, s), by name, with 0 behind.
    """
    sources, targets = ([part(int(row)) for row in rows] for part in (examples.source, examples.labels))
    ids = np.full((len(rows), max(map(len, sources))), pad, np.int64)
    mask = np.zeros_like(ids)
    labels = np.full((len(rows), max(map(len, targets))), IGNORED, np.int64)
    for row, (source, target) in enumerate(zip(sources, targets, strict=True)):
        ids[row, : len(source)], mask[row, : len(source)], labels[row, : len(target)] = source, 1, target
    arrays = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    for row, place in enumerate(rows):
        for name, values in examples.beside(int(place)).items():
            arrays.setdefault(name, np.zeros_like(ids))[row, : len(values)] = values
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def source_of(model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the encoder of a pair reads of a batch, where the model is: ids, mask, and ids of its other tables."""
    names = ("input_ids", "attention_mask", *model.encoder.spec.beside_names)
    return {name: batch[name].to(model.device) for name in names if name in batch}


def split(rows: np.ndarray, parts: int, source: np.ndarray) -> list[np.ndarray]:
    """The rows of a batch in so many parts of about the same size, neighbours in length together; some may be empty.

    >>> [part.tolist() for part in split(np.array([0, 1, 2]), 2, np.array([5, 9, 5]))]
    [[0, 2], [1]]
    """
    return np.array_split(rows[np.argsort(source[rows], kind="stable")], parts)
