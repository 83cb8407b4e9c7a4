"""The training loop: steps whose result depends on the seed and their number alone, however they are computed.

A step's batch is cut into parts, for accumulation and over processes; the losses of the parts are divided by the labels
of the whole batch, so that 1 x 8 = 4 x 2 = 8 x 1. Shapes: b batch, s source length, t target length.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from warmstart.torch.loss import IGNORED
from warmstart.training import lora, measure, sharding, state
from warmstart.training.batches import Order, collate, split
from warmstart.training.checks import check_batch
from warmstart.training.examples import Examples
from warmstart.training.extras import needs
from warmstart.training.log import Event, Log, read_log
from warmstart.training.loss import PairLoss
from warmstart.training.pairs import Pair
from warmstart.training.recipe import Recipe, drop_gradients, parameter_groups, set_trained
from warmstart.training.report import attention_maps, write_report
from warmstart.training.run import FREE, PRECISIONS, Run, check_output
from warmstart.training.stopping import Interrupted, asked_to_stop, memory_named
from warmstart.training.stream import Stream
from warmstart.training.tensorboard import Board

_SAMPLES_KEPT = 5  # of the texts written at an evaluation


@dataclass(frozen=True)
class Result:
    """What a training came to: steps done, seconds in this process, the last evaluation and the best one."""

    steps: int
    seconds: float
    last: Event
    best: tuple[float, int] | None


def train(
    model: Any,
    tokenizers: tuple[Any, Any],
    training: Examples | Stream,
    validation: Examples | None,
    references: Sequence[Pair],
    run: Run,
    recipe: Recipe,
    *,
    resume: bool = False,
    watch: Callable[[Event], None] = lambda event: None,
) -> Result:
    """Train a pair; the best model stands in the folder `run.output` at the end, checkpoints below it on the way.

    `references` are the pairs, as text, of the first validation examples: text is written for those. With `resume` the
    training goes on from its last checkpoint, if there is one, as if it had not been interrupted. `watch` is told each
    line of the log.

    Raises:
        FileExistsError: the folder holds something else.
        ValueError: a check fails, the loss is not a number, a batch does not fit in memory, or a checkpoint is of
            another training.
        Interrupted: it was asked to stop; a checkpoint of the last step was written.
        OSError: the disk is full; the last checkpoint is in place.
    """
    check_output(run.output, resume)
    loop = _Loop(model, tokenizers, training, validation, references, run, recipe, watch)
    try:
        return loop.go(resume)
    finally:
        loop.close()


def batches_of(training: Examples | Stream, run: Run) -> tuple[Order | Stream, int]:
    """The batches of all steps, and how many steps there are.

    Raises:
        ValueError: `steps` is not said of a stream.
    """
    if isinstance(training, Stream):
        if run.steps is None:
            raise ValueError("how long a stream is is not known before it has been read; give the number of steps")
        return training, run.steps
    order = Order(training, run.batch_tokens, run.seed)
    return order, order.steps(run.epochs) if run.steps is None else run.steps


class _Loop:
    """What a training is made of while it runs."""

    def __init__(
        self,
        model: Any,
        tokenizers: tuple[Any, Any],
        training: Examples | Stream,
        validation: Examples | None,
        references: Sequence[Pair],
        run: Run,
        recipe: Recipe,
        watch: Callable[[Event], None],
    ):
        with needs("accelerate", "training"):
            from accelerate import Accelerator
        self.accelerator = Accelerator(mixed_precision=PRECISIONS[run.precision], cpu=run.cpu)
        self.model, self.tokenizers, self.run, self.recipe, self.watch = model, tokenizers, run, recipe, watch
        self.training, self.validation, self.references = training, validation, references
        pad = model.config.encoder.pad_token_id
        self.pad = 0 if pad is None else pad
        self.batches, self.steps = batches_of(training, run)
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
        self.is_sharded = run.shard and self.accelerator.num_processes > 1
        self.wrapped: Any = None
        if self.is_sharded:
            if recipe.lora:
                raise ValueError("shard: adapters (lora) are not trained in shards; leave one of the two out")
            self.wrapped = sharding.shard(PairLoss(model, recipe.label_smoothing))
        optimizer = torch.optim.AdamW(parameter_groups(model, recipe), fused=not self.is_sharded)
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)
        self.trained: set[str] = set()
        self.state = state.State()
        self.summed = torch.zeros((), dtype=torch.float64, device=self.accelerator.device)  # losses since the last line
        self.log: Log | None = None
        self.board: Board | None = None

    # A step -----------------------------------------------------------------------------------------------------

    def _parts(self, examples: Examples, rows: np.ndarray) -> Iterator[dict[str, Tensor]]:
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

    def step(self, step: int) -> None:
        """One step of the optimizer."""
        self._begin(step)
        examples, rows = self.batches.batch(step)
        count = sum(len(examples.labels(int(row))) for row in rows)
        parts = list(self._parts(examples, rows))
        total = torch.zeros((), dtype=torch.float64, device=self.accelerator.device)
        self.model.train()
        for number, batch in enumerate(parts):
            is_last = number == len(parts) - 1
            with self._exchange(is_last):
                with self.accelerator.autocast():
                    loss = self.wrapped(**batch, count=count)
                self.accelerator.backward(loss * self.accelerator.num_processes)  # gradients are averaged over them
            total += loss.detach().double() * count
        if self.is_sharded:
            drop_gradients(self.model, self.trained)
        if self.recipe.clip:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self._note(total, count)
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
    def _plain(self) -> Iterator[Any]:
        """The model as one process has it: to measure, to generate, to save."""
        if self.is_sharded:
            yield sharding.gathered(self.model)
        else:
            with lora.merged(self.model) as model:
                yield model

    def _note(self, total: Tensor, count: int) -> None:
        """Add to what is summed for the log; on a CPU, where looking costs nothing, stop before a step is spoilt."""
        if self.accelerator.device.type == "cpu":
            self._check_number(float(total), self.state.step + 1)
        self.summed = self.summed + total
        self.state.counted += count

    def _check_number(self, value: float, step: int) -> None:
        if not np.isfinite(value):
            found = state.checkpoints(self.run.output)
            where = f"the last good checkpoint is {found[-1]}" if found else "there is no checkpoint yet"
            raise ValueError(
                f"the loss or a weight is {value} at step {step}; {where}. Lower the learning rates, raise the "
                "warm-ups, or use fp32 or bf16"
            )

    # The whole --------------------------------------------------------------------------------------------------

    def go(self, resume: bool) -> Result:
        """All steps that are left, and the end."""
        started, last = time.perf_counter(), {}
        optimizer_state = self._resume() if resume else None
        if self.accelerator.is_main_process:  # it was the sum over all processes
            self.summed += self.state.losses
        if self.accelerator.is_main_process:
            Path(self.run.output, state.FOLDER).mkdir(parents=True, exist_ok=True)  # first: it says what the folder is
            self.log = Log(self.run.output, self.state.step)
            if self.run.tensorboard:
                self.board = Board(self.run.output, self.state.step)
        if optimizer_state is None:
            self._check()
        else:
            self.optimizer.load_state_dict(optimizer_state["optimizer"])
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(optimizer_state["scaler"])
        every = self.run.evaluate_every or max(1, self.steps // 10)
        with asked_to_stop() as wanted:
            while self.state.step < self.steps and not self._has_patience_ended():
                with memory_named(self.run.batch_tokens, self.run.accumulate):
                    self.step(self.state.step)
                self.state.step += 1
                done = self.state.step
                if done % self.run.log_every == 0 or done == self.steps:
                    self._log_step(started)
                is_time = done % every == 0 or done == self.steps
                if is_time:
                    last = self._evaluate()
                if is_time or wanted() or (self.run.save_every and done % self.run.save_every == 0):
                    self.save()
                if wanted() and done < self.steps:
                    raise Interrupted(done, self.run.output)
        self._end()
        best = self.state.best[0] if self.state.best else None
        return Result(self.state.step, time.perf_counter() - started, last, best)

    def _has_patience_ended(self) -> bool:
        return self.run.patience is not None and self.state.without_gain >= self.run.patience

    def _check(self) -> None:
        """The first batch is checked in every run."""
        batch, looked = next(self._parts(*self.batches.batch(0))), self.model
        if self.is_sharded:
            looked = sharding.gathered(self.model)
        set_trained(looked, self.recipe.trained_parts(self.steps, self.steps))
        if bool((batch["labels"] != IGNORED).any()):
            self._log({"step": 0, "checks": check_batch(looked, batch)})
        if self.validation is not None and (count := min(self.run.samples, len(self.references), _SAMPLES_KEPT)):
            some = self.validation.select(np.arange(count))
            with self.accelerator.autocast(), self._plain() as model:
                texts = measure.written(model, some, self.tokenizers[1], self.run.batch_tokens)
            self._log({"step": 0, "samples": texts})

    def _evaluate(self) -> Event:
        """Measure the model, and keep it if it is the best so far; the last one where there is no validation."""
        event: Event = {"step": self.state.step}
        if self.validation is None:
            self._keep_model()
            if self.accelerator.is_main_process:
                write_report(self.run.output, read_log(self.run.output), self.batches.examples, [], [])
            return event
        with self.accelerator.autocast(), self._plain() as model:
            event["validation_loss"] = measure.held_out_loss(model, self.validation, self.run.batch_tokens)
            if count := min(self.run.samples, len(self.references)):
                some = self.validation.select(np.arange(count))
                texts = measure.written(model, some, self.tokenizers[1], self.run.batch_tokens)
                wanted = [pair.target for pair in self.references[:count]]
                event |= measure.scores(measure.parts(texts, wanted))
                event["samples"] = texts[:_SAMPLES_KEPT]
            maps = attention_maps(model, self.validation, self.tokenizers) if count else []
        self._check_number(event["validation_loss"], self.state.step)
        value = event["validation_loss"] if self.run.best == "loss" else -event[self.run.best]
        is_best = not self.state.best or value < self.state.best[0][0]
        self.state.best = sorted([*self.state.best, (value, self.state.step)])[: self.run.average]
        self.state.without_gain = 0 if is_best else self.state.without_gain + 1
        if is_best:
            self._keep_model()
        self._log(event)
        if self.accelerator.is_main_process:
            write_report(self.run.output, read_log(self.run.output), self.batches.examples, self.references, maps)
        return event

    def _end(self) -> None:
        """Put the average of the best checkpoints in the best one's place, if it is better."""
        if self.run.average < 2 or len(self.state.best) < 2 or self.validation is None:
            return
        folders = [Path(self.run.output, state.FOLDER, f"step-{step}") for _, step in self.state.best]
        lora.fold(self.model)
        held = [state.weights(folder, type(self.model)) for folder in folders]
        mean = {name: torch.stack([one[name].double() for one in held]).mean(0) for name in held[0]}
        with self._plain() as model:
            model.load_state_dict({name: value.to(held[0][name].dtype) for name, value in mean.items()})
            loss = measure.held_out_loss(model, self.validation, self.run.batch_tokens)
        if self.is_sharded:
            sharding.fill(self.model, model)
        best = min(event["validation_loss"] for event in read_log(self.run.output) if "validation_loss" in event)
        self._log({"step": self.state.step, "averaged": [step for _, step in self.state.best], "averaged_loss": loss})
        if loss < best:
            self._keep_model()

    # Files ------------------------------------------------------------------------------------------------------

    def _settings(self) -> dict[str, Any]:
        """What must be the same for a training to go on as it would have."""
        run = {name: value for name, value in asdict(self.run).items() if name not in FREE}
        data = self.batches.said()
        said: dict[str, Any] = json.loads(json.dumps({**run, **asdict(self.recipe), "steps": self.steps, "data": data}))
        return said

    def _resume(self) -> dict[str, Any] | None:
        found = state.checkpoints(self.run.output)
        if not found:
            return None
        before, now = state.read_settings(found[-1]), self._settings()
        if differ := [name for name in now if before.get(name) != now[name]]:
            said = ", ".join(f"{name} was {before.get(name)} and is {now[name]}" for name in differ)
            raise ValueError(f"{found[-1]} was made with other settings: {said}; give the same, or another folder")
        if self.is_sharded:
            plain = sharding.gathered(self.model)
            self.state, optimizer = state.load(found[-1], plain)
            sharding.fill(self.model, plain)
            parameters = [x for group in self.optimizer.param_groups for x in group["params"]]
            optimizer["optimizer"] = sharding.scattered_state(optimizer["optimizer"], parameters)
        else:
            self.state, optimizer = state.load(found[-1], self.model)
        if isinstance(self.batches, Stream) and self.state.place is not None:
            self.batches.seek(self.state.place)
        return optimizer

    def save(self) -> None:
        """Write a checkpoint of this step, then delete those that are no longer wanted."""
        total = self.accelerator.reduce(self.summed.clone()) if self.accelerator.num_processes > 1 else self.summed
        self._check_number(float(total), self.state.step)
        self._check_weights()
        self.state.losses = float(total)
        if isinstance(self.batches, Stream):
            self.state.place = self.batches.place
        saved: dict[str, Any] = {"optimizer": sharding.gathered_state(self.optimizer.state_dict())}
        model = sharding.gathered(self.model) if self.is_sharded else self.model
        if self.accelerator.is_main_process:
            if self.accelerator.scaler is not None:
                saved["scaler"] = self.accelerator.scaler.state_dict()
            state.save(self.run.output, model, self.tokenizers, saved, self.state, self._settings())
            averaged = {step for _, step in self.state.best} if self.run.average > 1 else set()
            state.forget(self.run.output, {self.state.step} | averaged)
        self.accelerator.wait_for_everyone()

    def _check_weights(self) -> None:
        """A step may spoil the weights after its loss was well: such weights are not saved."""
        sums = torch.stack([sharding.whole(parameter.detach().sum()) for parameter in self.model.parameters()])
        self._check_number(float(sums.sum()), self.state.step)

    def _keep_model(self) -> None:
        self._check_weights()
        reads, writes = self.tokenizers
        with self._plain() as model:
            if self.accelerator.is_main_process:
                model.save_pretrained(self.run.output, encoder_tokenizer=reads, decoder_tokenizer=writes)

    def _log(self, event: Event) -> None:
        if self.log is not None:
            self.log.write(event)
            if self.board is not None:
                self.board.write(event)
            self.watch(event)

    def _log_step(self, started: float) -> None:
        total = self.accelerator.reduce(self.summed.clone()) if self.accelerator.num_processes > 1 else self.summed
        self._check_number(float(total), self.state.step)
        rates = {part: self.recipe.rate(part, self.state.step - 1, self.steps) for part in sorted(self.trained)}
        event = {"step": self.state.step, "loss": float(total) / self.state.counted, "rates": rates}
        self._log(event | {"target_tokens": self.state.counted, "seconds": round(time.perf_counter() - started, 3)})
        self.summed, self.state.counted = torch.zeros_like(self.summed), 0

    def close(self) -> None:
        """Close the log, and let another training in this process choose its own precision."""
        from accelerate.state import AcceleratorState

        for file in (self.log, self.board):
            if file is not None:
                file.close()
        lora.fold(self.model)
        for stack in self.model.stacks():
            for layer in stack.layers:
                layer._compiled_call_impl = None
        self.accelerator.free_memory()
        self.model.gradient_checkpointing_disable()
        self.model.requires_grad_(True)
        self.model.eval()
        AcceleratorState._reset_state()
