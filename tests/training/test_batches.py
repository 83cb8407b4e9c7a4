"""Batches by token budget: every row once, within the budget, little padding, decided by seed and epoch alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_models import END
from training.conftest import made, write_json_lines
from warmstart.training.batches import collate, padding_share, plan, split
from warmstart.training.examples import Limits, load_examples
from warmstart.training.pairs import Data

LENGTHS = st.lists(st.tuples(st.integers(1, 50), st.integers(1, 20)), min_size=1, max_size=200)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 400), st.integers(0, 3), st.integers(0, 3))
def test_every_row_comes_once_and_fits_the_budget(lengths, budget, seed, epoch):
    source, target = (np.array(side) for side in zip(*lengths, strict=True))
    batches = plan(source, target, budget, seed, epoch)
    assert sorted(row for batch in batches for row in batch) == list(range(len(source)))
    for batch in batches:
        places = len(batch) * (source[batch].max() + target[batch].max())
        assert places <= budget or len(batch) == 1
    again = plan(source, target, budget, seed, epoch)
    assert all(np.array_equal(one, other) for one, other in zip(batches, again, strict=True))


def test_epochs_differ_and_little_is_padding():
    draw = np.random.default_rng(0)
    source, target = draw.integers(5, 400, 5000), draw.integers(5, 60, 5000)
    first, second = (plan(source, target, 4000, 0, epoch) for epoch in (0, 1))
    assert not any(np.array_equal(one, other) for one, other in zip(first, second, strict=False))
    unsorted = np.array_split(draw.permutation(5000), len(first))
    assert padding_share(first, source, target) < 0.1 < 0.3 < padding_share(unsorted, source, target)


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 9))
def test_parts_hold_all_rows(lengths, parts):
    source = np.array(lengths)
    rows = split(np.arange(len(source)), parts, source)
    assert len(rows) == parts and sorted(np.concatenate(rows)) == list(range(len(source)))
    sizes = [len(part) for part in rows]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("pad", [0, 3])
def test_collate(pad, reads, writes, tmp_path):
    data = Data(write_json_lines(tmp_path / "p.jsonl", [("w0 w1 w2", "w3"), *made(3), ("w5", "w6 w7")]))
    batch = collate(load_examples(data, reads, writes, END, Limits(12, 6)), np.array([4, 0]), pad)
    assert torch.equal(batch["input_ids"], torch.tensor([[1, 10, 2, pad, pad], [1, 5, 6, 7, 2]]))
    assert torch.equal(batch["attention_mask"], torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]))
    assert torch.equal(batch["labels"], torch.tensor([[11, 12, END], [8, END, -100]]))
