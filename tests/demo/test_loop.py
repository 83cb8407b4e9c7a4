"""Batches and the training loop of the demo."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from torch import nn

from warmstart.demo.batches import endless_batches, padded
from warmstart.demo.loop import TRIED_EVERY, TRIED_FOR, Budget, Threads, rate_factor, train


def test_an_epoch_has_every_row_once_and_the_next_is_in_another_order():
    lengths = [3 + row % 17 for row in range(100)]
    batches = list(islice(endless_batches(lengths, 7, seed=0), 30))
    first, second = batches[:15], batches[15:]
    for epoch in (first, second):
        assert sorted(row for batch in epoch for row in batch) == list(range(100))
    assert first != second
    assert batches == list(islice(endless_batches(lengths, 7, seed=0), 30))


def test_rows_of_like_length_come_together():
    lengths = [5 + 7 * row % 50 for row in range(2000)]
    batches = list(islice(endless_batches(lengths, 20, seed=0), 100))
    padding = sum(
        max(lengths[row] for row in batch) * len(batch) - sum(lengths[row] for row in batch) for batch in batches
    )
    assert padding < 0.05 * sum(lengths)


def test_padding_fills_up_to_the_longest():
    assert padded([[1, 2, 3], [4], []], -100).tolist() == [[1, 2, 3], [4, -100, -100], [-100, -100, -100]]


@pytest.fixture
def line():
    """A model that has to learn one number, and its loss."""
    model = nn.Linear(1, 1, bias=False)
    return model, lambda: (model(torch.ones(1, 1)) - 3).square().sum()


def test_training_ends_at_its_steps_and_tells_of_each(line):
    model, loss = line
    told = []
    trained = train(
        model, loss, [{"params": model.parameters(), "lr": 0.1}], Budget(steps=200), lambda *news: told.append(news)
    )
    assert trained.steps == 200 == len(told)
    assert abs(model.weight.item() - 3) < 0.1
    assert trained.loss < 0.1
    assert [news[0].steps for news in told[:3]] == [1, 2, 3]
    assert told[-1][1] == 1.0 and told[-1][2] == 0.0
    assert not model.training


def test_training_ends_at_its_seconds_and_takes_one_step_at_least(line, monkeypatch):
    model, loss = line
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("warmstart.demo.loop.time.perf_counter", lambda: float(next(clock)))
    groups = [{"params": model.parameters(), "lr": 0.1}]
    assert train(model, loss, groups, Budget(seconds=45)).steps == 5
    assert train(model, loss, groups, Budget(seconds=0.1)).steps == 1


def test_threads_follow_what_other_programs_leave():
    threads = Threads(most=4)

    def steps(count, seconds):
        used = []
        for _ in range(count):
            used.append(threads.of_next_step())
            threads.took(seconds[used[-1]])
        return used

    free, busy = {1: 3.0, 4: 1.0}, {1: 3.0, 4: 30.0}
    assert threads.of_next_step() == 1
    steps(2 * TRIED_FOR, free)
    assert threads.of_next_step() == 4
    steps(TRIED_EVERY - 2 * TRIED_FOR, free)
    assert threads.of_next_step() == 1  # tried again
    steps(TRIED_FOR + 1, busy)  # one step of many threads shows it
    assert threads.of_next_step() == 1
    assert set(steps(4 * TRIED_EVERY + TRIED_FOR, busy)) == {1}
    assert threads.of_next_step() == 4


def test_training_leaves_the_number_of_threads_as_it_was(line):
    model, loss = line
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        train(model, loss, [{"params": model.parameters(), "lr": 0.1}], Budget(steps=4))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_rate_rises_falls_and_stays_above_nothing():
    rates = [rate_factor(spent / 100) for spent in range(101)]
    top = rates.index(max(rates))
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert min(rates) > 0 and max(rates) == pytest.approx(1.0)


def test_groups_keep_their_own_rates(line, monkeypatch):
    slow, fast = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    model = nn.ParameterList([slow, fast])
    groups = [{"params": [slow], "lr": 0.001}, {"params": [fast], "lr": 0.1}]
    train(model, lambda: (slow - 9).square().sum() + (fast - 9).square().sum(), groups, Budget(steps=5))
    assert 10 * slow.item() < fast.item()
