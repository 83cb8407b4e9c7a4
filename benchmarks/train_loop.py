"""`python -m benchmarks.train_loop`: what the training loop costs beside bare forward, backward and step.

The loop and a bare step take turns on the same batches, each with a model of its own: 4 + 4 layers of 256, 2,000 tokens
a batch, lengths as XSum's. Both clip their gradients. Medians of CPU seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.train import VOCABULARY, _Enough, _examples, _NoTokenizers, make_pairs, model_of

TOKENS = 2000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_loop", description=__doc__)
    parser.add_argument("--steps", type=int, default=24, help="steps that count, after two that do not (24)")
    parser.add_argument("--size", default="small")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(arguments.threads)
    loop, bare = measure(arguments.size, arguments.steps)
    print(f"a step of the loop {1000 * loop:.1f} ms, a bare one {1000 * bare:.1f} ms of CPU: ratio {loop / bare:.4f}")


def measure(size: str, steps: int) -> tuple[float, float]:
    """CPU seconds of a step of the loop and of a bare one: medians."""
    from warmstart.training.loop import train
    from warmstart.training.recipe import Recipe
    from warmstart.training.run import Run

    examples = _examples(make_pairs("xsum", 400, VOCABULARY[size]))
    model = model_of("warmstart", size, 0.1)
    turns = _Turns(copy.deepcopy(model), examples, steps + 2)
    with tempfile.TemporaryDirectory() as folder:
        # It is left before the last step, whose checkpoint is not what is measured.
        run = Run(
            Path(folder, "out"), steps=steps + 3, batch_tokens=TOKENS, log_every=1, evaluate_every=10**6, cpu=True
        )
        recipe = Recipe(cross_attention_first=0.0)
        with contextlib.suppress(_Enough):
            train(model, _NoTokenizers(), examples, None, [], run, recipe, watch=turns.take)
    return statistics.median(turns.loop[2:]), statistics.median(turns.bare[2:])


class _Turns:
    """After each step of the loop, the same step without it."""

    def __init__(self, model: Any, examples: Any, most: int):
        import torch

        from warmstart.training.batches import Order, collate
        from warmstart.training.loss import PairLoss

        self.loss, self.optimizer = PairLoss(model.train(), 0.1), torch.optim.AdamW(model.parameters(), fused=True)
        self.batch = lambda step: collate(examples, Order(examples, TOKENS, 0).rows(step), 0)
        self.most = most
        self.loop: list[float] = []
        self.bare: list[float] = []
        self.start = time.process_time()

    def take(self, event: dict[str, Any]) -> None:
        """A line of the log was written."""
        if "loss" in event:
            import torch

            self.loop.append(time.process_time() - self.start)
            batch = self.batch(event["step"] - 1)
            count = int((batch["labels"] >= 0).sum())
            start = time.process_time()
            self.loss(**batch, count=count).backward()
            torch.nn.utils.clip_grad_norm_(self.loss.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.bare.append(time.process_time() - start)
            if len(self.bare) == self.most:
                raise _Enough
        self.start = time.process_time()


if __name__ == "__main__":
    main()
