"""Rows of token ids as batches of equal length.

Shapes: b batch, t longest row of the batch.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

ROWS_SORTED_TOGETHER = 32  # batches; within so many, rows of like length come together and little is padding


def endless_batches(lengths: Sequence[int], size: int, seed: int) -> Iterator[list[int]]:
    """Indices of rows, `size` at a time, for ever: each epoch in a new order, rows of like length together.

    >>> next(endless_batches([3, 3, 9, 9], size=2, seed=0)) in ([0, 1], [1, 0], [2, 3], [3, 2])
    True
    """
    shuffler = random.Random(seed)
    order = list(range(len(lengths)))
    while True:
        shuffler.shuffle(order)
        for start in range(0, len(order), size * ROWS_SORTED_TOGETHER):
            window = sorted(order[start : start + size * ROWS_SORTED_TOGETHER], key=lambda row: lengths[row])
            groups = [window[first : first + size] for first in range(0, len(window), size)]
            shuffler.shuffle(groups)
            yield from groups


def padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Rows of ids as one tensor (b, t), the shorter ones filled up with `value`.

    >>> padded([[5, 6], [7]], 0).tolist()
    [[5, 6], [7, 0]]
    """
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])
