"""The demo's training loop: steps of AdamW until a budget of seconds or steps is spent."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

WARM_UP = 0.06  # share of the budget in which the learning rate rises; after that it falls to 0, both in straight lines
LONGEST_GRADIENT = 1.0
SMOOTHING = 0.95  # of the loss that is shown
TRIED_EVERY = 40  # steps
TRIED_FOR = 3  # steps


@dataclass(frozen=True)
class Budget:
    """What a training may take: seconds of wall time, steps, or whichever ends first."""

    seconds: float = float("inf")
    steps: float = float("inf")

    def spent(self, seconds: float, steps: int) -> float:
        """The share of the budget that is spent, from 0 to 1.

        >>> Budget(seconds=10, steps=8).spent(seconds=2.5, steps=4)
        0.5
        """
        return min(1.0, max(seconds / self.seconds, steps / self.steps))


@dataclass(frozen=True)
class Trained:
    """What a training took, and the smoothed loss (nats per token) at its end."""

    steps: int
    seconds: float
    loss: float


# Called after each step: what was done so far, the share of the budget that is spent, seconds left.
Watch = Callable[[Trained, float, float], None]


def train(
    model: nn.Module,
    loss_of_next_batch: Callable[[], Tensor],
    groups: list[dict[str, Any]],
    budget: Budget,
    watch: Watch = lambda trained, spent, left: None,
) -> Trained:
    """Train a model until its budget is spent, one step at least.

    `groups` are AdamW's parameter groups with their highest learning rates `lr`; the rate follows the share of the
    budget that is spent, so that it comes down to 0 on a fast machine and on a slow one.
    """
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    highest = [group["lr"] for group in optimizer.param_groups]
    model.train()
    threads = Threads(torch.get_num_threads())
    start, seconds, steps, spent, shown = time.perf_counter(), 0.0, 0, 0.0, float("nan")
    while spent < 1.0:
        torch.set_num_threads(threads.of_next_step())
        for group, rate in zip(optimizer.param_groups, highest, strict=True):
            group["lr"] = rate * rate_factor(spent)
        loss = loss_of_next_batch()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), LONGEST_GRADIENT)
        optimizer.step()
        steps += 1
        shown = loss.item() if steps == 1 else SMOOTHING * shown + (1 - SMOOTHING) * loss.item()
        before, seconds = seconds, time.perf_counter() - start
        threads.took(seconds - before)
        spent = budget.spent(seconds, steps)
        trained = Trained(steps, seconds, shown)
        watch(trained, spent, seconds / spent - seconds)
    torch.set_num_threads(threads.most)
    model.eval()
    return trained


class Threads:
    """All threads or one, whichever takes less time per step just now, tried again and again.

    Steps as small as these gain a third from a second core that is free. Where another program uses it, each of the
    hundreds of operators of a step waits for the thread that does not get to run, and a step takes ten times as long.

    >>> threads = Threads(most=2)
    >>> for _ in range(2 * TRIED_FOR):
    ...     threads.took(0.3 if threads.of_next_step() == 2 else 0.1)
    >>> threads.of_next_step()
    1
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._start()

    def _start(self) -> None:
        self._one: list[float] = []  # seconds of the steps that were tried
        self._all: list[float] = []
        self._chosen: int | None = None  # what won
        self._left = TRIED_EVERY

    def of_next_step(self) -> int:
        """How many threads the next step is to use."""
        if self._chosen is not None:
            return self._chosen
        return 1 if len(self._one) < TRIED_FOR else self.most

    def took(self, seconds: float) -> None:
        """What the step took."""
        self._left -= 1
        if self._chosen is not None:
            if self._left <= 0:
                self._start()
            return
        if len(self._one) < TRIED_FOR:
            self._one.append(seconds)
            return
        self._all.append(seconds)
        one = statistics.median(self._one)
        if seconds > 2 * one:  # one such step is enough, and dear
            self._chosen, self._left = 1, 4 * TRIED_EVERY
        elif len(self._all) == TRIED_FOR:
            self._chosen = 1 if one < statistics.median(self._all) else self.most


def rate_factor(spent: float) -> float:
    """The learning rate as a share of its highest: up in a straight line, then down to nearly 0.

    >>> rate_factor(0.03), rate_factor(0.06), round(rate_factor(1.0), 2)
    (0.5, 1.0, 0.02)
    """
    return max(0.02, min(spent / WARM_UP, (1 - spent) / (1 - WARM_UP)))
