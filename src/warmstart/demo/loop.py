"""The demo's training loop: steps of AdamW until a budget of seconds or steps is spent."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

WARM_UP = 0.06  # share of the budget in which the learning rate rises; after that it falls to 0, both in straight lines
LONGEST_GRADIENT = 1.0
SMOOTHING = 0.95  # of the loss that is shown


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
    start, steps, spent, shown = time.perf_counter(), 0, 0.0, float("nan")
    while spent < 1.0:
        for group, rate in zip(optimizer.param_groups, highest, strict=True):
            group["lr"] = rate * rate_factor(spent)
        loss = loss_of_next_batch()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), LONGEST_GRADIENT)
        optimizer.step()
        steps += 1
        shown = loss.item() if steps == 1 else SMOOTHING * shown + (1 - SMOOTHING) * loss.item()
        seconds = time.perf_counter() - start
        spent = budget.spent(seconds, steps)
        trained = Trained(steps, seconds, shown)
        watch(trained, spent, seconds / spent - seconds)
    model.eval()
    return trained


def rate_factor(spent: float) -> float:
    """The learning rate as a share of its highest: up in a straight line, then down to nearly 0.

    >>> rate_factor(0.03), rate_factor(0.06), round(rate_factor(1.0), 2)
    (0.5, 1.0, 0.02)
    """
    return max(0.02, min(spent / WARM_UP, (1 - spent) / (1 - WARM_UP)))
