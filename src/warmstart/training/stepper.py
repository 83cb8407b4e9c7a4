"""How a step is computed: its batch in parts, for accumulation and over processes, in a precision, in shards or not.

The losses of the parts are divided by the labels of the whole batch, so that 1 x 8 = 4 x 2 = 8 x 1.
Shapes: b batch, s source length, t target length.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from warmstart.inputs import IGNORED
from warmstart.training import lora, sharding
from warmstart.training.allocation import keep_memory
from warmstart.training.batches import collate, split
from warmstart.training.examples import Examples
from warmstart.training.extras import needs
from warmstart.training.loss import PairLoss
from warmstart.training.recipe import Recipe, drop_gradients, parameter_groups, set_trained
from warmstart.training.run import PRECISIONS, Run


class Stepper:
    """A model with its optimizer, on the devices and processes that a run has; `steps` are those of the whole run."""

    def __init__(self, model: Any, run: Run, recipe: Recipe, steps: int):
        if run.shard and recipe.lora:
            raise ValueError(
                "shard with lora: what shards save, gradients and moments of all weights, adapters do not have; leave "
                "one of the two out"
            )
        with needs("accelerate", "training"):
            from accelerate import Accelerator
        self.accelerator = Accelerator(mixed_precision=PRECISIONS[run.precision], cpu=run.on_processor)
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if started != self.accelerator.num_processes:
            raise ValueError(
                f"{started} processes were started, but {self.accelerator.num_processes} would train together here: "
                "each would train for itself and write over the others; start them with accelerate launch or torchrun, "
                "and on processors with cpu"
            )
        if self.accelerator.device.type == "cpu":
            keep_memory(True)
        self.model, self.run, self.recipe, self.steps = model, run, recipe, steps
        pad = model.config.encoder.pad_token_id
        self.pad = 0 if pad is None else pad
        # Weights as they come from a file may lie turned; DDP would lay gradients out so, and fused AdamW misread them.
        model.to(self.accelerator.device).train()
        if run.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        if recipe.lora:
            lora.add(model, recipe.lora)
        if run.compile:
            for stack in model.stacks():
                for layer in stack.layers:
                    layer.compile(dynamic=True)
        self.is_sharded = run.shard and self.is_together
        self.wrapped: Any = sharding.shard(PairLoss(model, recipe.label_smoothing)) if self.is_sharded else None
        optimizer = torch.optim.AdamW(parameter_groups(model, recipe), fused=not self.is_sharded)
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)
        self.trained: set[str] = set()

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes."""
        return bool(self.accelerator.is_main_process)

    @property
    def is_together(self) -> bool:
        """Whether several processes train."""
        return bool(self.accelerator.num_processes > 1)

    def zero(self) -> Tensor:
        """A sum of losses to begin with."""
        return torch.zeros((), dtype=torch.float64, device=self.accelerator.device)

    def over_processes(self, total: Tensor) -> Tensor:
        """The sum of what all processes have."""
        return self.accelerator.reduce(total.clone()) if self.is_together else total

    def parts(self, examples: Examples, rows: np.ndarray) -> Iterator[dict[str, Tensor]]:
        """The parts of a batch that this process computes, where it computes; each process has as many."""
        processes, own = self.accelerator.num_processes, self.accelerator.process_index
        for part in split(rows, self.run.accumulate * processes, examples.lengths("source"))[own::processes]:
            if len(part) or processes > 1:  # one that is empty takes part in what processes do together
                batch = collate(examples, part if len(part) else rows[:1], self.pad)
                if not len(part):
                    batch["labels"][:] = IGNORED
                yield {name: value.to(self.accelerator.device, non_blocking=True) for name, value in batch.items()}

    def _begin(self, step: int) -> None:
        """Set random numbers, rates, and which parts are trained, from the number of the step."""
        place = [self.run.seed, step, self.accelerator.process_index]
        torch.manual_seed(int.from_bytes(hashlib.blake2b(json.dumps(place).encode(), digest_size=7).digest(), "little"))
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(group["part"], step, self.steps)
        parts = self.recipe.trained_parts(step, self.steps)
        if parts != self.trained:
            self.trained = parts
            if self.is_sharded:  # there, what gets a gradient is settled once
                return
            set_trained(self.model, parts)
            # Wrapped again: what processes exchange is what is trained.
            loss = PairLoss(self.model, self.recipe.label_smoothing)
            self.wrapped = self.accelerator.prepare_model(loss)

    def step(self, step: int, examples: Examples, rows: np.ndarray) -> tuple[Tensor, int]:
        """The gradients of a batch and their length clipped; `finish` changes the weights.

        Gives this process's share of the summed loss, and how many labels the whole batch has.
        """
        self._begin(step)
        count = sum(len(examples.labels(int(row))) for row in rows)
        parts, total = list(self.parts(examples, rows)), self.zero()
        self.model.train()
        for number, batch in enumerate(parts):
            with self._exchange(is_last=number == len(parts) - 1):
                with self.accelerator.autocast():
                    loss = self.wrapped(**batch, count=count)
                self.accelerator.backward(loss * self.accelerator.num_processes)  # gradients are averaged over them
            total += loss.detach().double() * count
        if self.is_sharded:
            drop_gradients(self.model, self.trained)
        if self.recipe.clip:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        return total, count

    def finish(self) -> None:
        """Change the weights by the gradients, and let these go."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _exchange(self, is_last: bool) -> contextlib.AbstractContextManager[Any]:
        """Processes add up their gradients with the last part of a step."""
        if self.is_sharded:
            self.wrapped.set_requires_gradient_sync(is_last)
        elif not is_last:
            return self.accelerator.no_sync(self.wrapped)
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def plain(self) -> Iterator[Any]:
        """The model as one process has it: to measure, to generate, to save."""
        if self.is_sharded:
            yield sharding.gathered(self.model)
        else:
            with lora.merged(self.model) as model:
                yield model

    def whole(self) -> Any:
        """The model with all its weights, as it is checked and saved: with its adapters, in no shards."""
        return sharding.gathered(self.model) if self.is_sharded else self.model

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds beside the model."""
        saved: dict[str, Any] = {"optimizer": sharding.gathered_state(self.optimizer.state_dict())}
        if self.accelerator.scaler is not None:
            saved["scaler"] = self.accelerator.scaler.state_dict()
        return saved

    def restore(self, model: Any, saved: dict[str, Any]) -> None:
        """Go on with what a checkpoint held: the weights of a `whole` model, and a `state`."""
        optimizer = saved["optimizer"]
        if self.is_sharded:
            sharding.fill(self.model, model)
            parameters = [x for group in self.optimizer.param_groups for x in group["params"]]
            optimizer = sharding.scattered_state(optimizer, parameters)
        self.optimizer.load_state_dict(optimizer)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(saved["scaler"])

    def weights_sum(self) -> float:
        """The sum of all weights: a number only if each of them is."""
        sums = torch.stack([sharding.whole(parameter.detach().sum()) for parameter in self.model.parameters()])
        return float(sums.sum())

    def close(self) -> None:
        """Leave a plain model in eval mode, and let another training in this process choose its own precision."""
        from accelerate.state import AcceleratorState

        lora.fold(self.model)
        for stack in self.model.stacks():
            for layer in stack.layers:
                layer._compiled_call_impl = None
        self.accelerator.free_memory()
        keep_memory(False)
        self.model.gradient_checkpointing_disable()
        self.model.requires_grad_(True)
        self.model.eval()
        AcceleratorState._reset_state()
