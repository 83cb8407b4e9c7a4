"""The training loop: steps whose result depends on the seed and their number alone; what is measured, kept and written.

How a step is computed stands in `stepper`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from warmstart.inputs import IGNORED
from warmstart.training import lora, measure, sharding, state
from warmstart.training.batches import Order
from warmstart.training.checks import check_batch
from warmstart.training.examples import Examples
from warmstart.training.log import Event, Log, read_log
from warmstart.training.pairs import Pair
from warmstart.training.recipe import Recipe, set_trained
from warmstart.training.report import attention_maps, write_report
from warmstart.training.run import FREE, Run, check_output
from warmstart.training.stepper import Stepper
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
        self.tokenizers, self.run, self.recipe, self.watch = tokenizers, run, recipe, watch
        self.training, self.validation, self.references = training, validation, references
        self.batches, self.steps = batches_of(training, run)
        self.stepper = Stepper(model, run, recipe, self.steps)
        _set_longest(model.generation_config, self.batches.examples)
        self.state = state.State()
        self.summed = self.stepper.zero()  # losses since the last line
        self.log: Log | None = None
        self.board: Board | None = None

    def step(self) -> None:
        """One step; on a CPU, where looking costs nothing, a loss that is no number stops it before the weights."""
        total, count = self.stepper.step(self.state.step, *self.batches.batch(self.state.step))
        if total.device.type == "cpu":
            self._check_number(float(total), self.state.step + 1)
        self.stepper.finish()
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

    def go(self, resume: bool) -> Result:
        """All steps that are left, and the end."""
        started, last = time.perf_counter(), {}
        is_resumed = resume and self._resume()
        if self.stepper.is_main:
            self.summed += self.state.losses  # it was the sum over all processes
            Path(self.run.output, state.FOLDER).mkdir(parents=True, exist_ok=True)  # first: it says what the folder is
            self.log = Log(self.run.output, self.state.step)
            if self.run.tensorboard:
                self.board = Board(self.run.output, self.state.step)
        if not is_resumed:
            self._check()
        every = self.run.evaluate_every or max(1, self.steps // 10)
        with asked_to_stop() as wanted:
            while self.state.step < self.steps and not self._has_patience_ended():
                with memory_named(self.run.batch_tokens, self.run.accumulate):
                    self.step()
                self.state.step += 1
                done = self.state.step
                if done % self.run.log_every == 0 or done == self.steps:
                    self._log_step(started)
                is_time, is_end = done % every == 0 or done == self.steps, self._is_end_wanted(wanted())
                if is_time:
                    last = self._evaluate()
                if is_time or is_end or (self.run.save_every and done % self.run.save_every == 0):
                    self.save()
                if is_end and done < self.steps:
                    raise Interrupted(done, self.run.output)
        self._end()
        best = self.state.best[0] if self.state.best else None
        return Result(self.state.step, time.perf_counter() - started, last, best)

    def _is_end_wanted(self, came: bool) -> bool:
        """Whether a process was asked to stop: all of them end after the same step.

        Several on GPUs ask each other only where the log waits for them anyway.
        """
        if not self.stepper.is_together:
            return came
        if self.summed.device.type != "cpu" and self.state.step % self.run.log_every:
            return False
        return float(self.stepper.over_processes(torch.full_like(self.summed, float(came)))) > 0

    def _has_patience_ended(self) -> bool:
        return self.run.patience is not None and self.state.without_gain >= self.run.patience

    def _check(self) -> None:
        """The first batch is checked in every run."""
        batch, looked = next(self.stepper.parts(*self.batches.batch(0))), self.stepper.whole()
        set_trained(looked, self.recipe.trained_parts(self.steps, self.steps))
        if bool((batch["labels"] != IGNORED).any()):
            self._log({"step": 0, "checks": check_batch(looked, batch)})
        if self.validation is not None and (count := min(self.run.samples, len(self.references), _SAMPLES_KEPT)):
            some = self.validation.select(np.arange(count))
            with self.stepper.accelerator.autocast(), self.stepper.plain() as model:
                texts = measure.written(model, some, self.tokenizers[1], self.run.batch_tokens)
            self._log({"step": 0, "samples": texts})

    def _evaluate(self) -> Event:
        """Measure the model, and keep it if it is the best so far; the last one where there is no validation."""
        event: Event = {"step": self.state.step}
        if self.validation is None:
            self._keep_model()
            if self.stepper.is_main:
                write_report(self.run.output, read_log(self.run.output), self.batches.examples, [], [])
            return event
        with self.stepper.accelerator.autocast(), self.stepper.plain() as model:
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
        if self.stepper.is_main:
            write_report(self.run.output, read_log(self.run.output), self.batches.examples, self.references, maps)
        return event

    def _end(self) -> None:
        """Put the average of the best checkpoints in the best one's place, if it is better."""
        if self.run.average < 2 or len(self.state.best) < 2 or self.validation is None:
            return
        folders = [Path(self.run.output, state.FOLDER, f"step-{step}") for _, step in self.state.best]
        own = self.stepper.model
        lora.fold(own)
        held = [state.weights(folder, type(own)) for folder in folders]
        mean = {name: torch.stack([one[name].double() for one in held]).mean(0) for name in held[0]}
        with self.stepper.plain() as model:
            model.load_state_dict({name: value.to(held[0][name].dtype) for name, value in mean.items()})
            loss = measure.held_out_loss(model, self.validation, self.run.batch_tokens)
        if self.stepper.is_sharded:
            sharding.fill(own, model)
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

    def _resume(self) -> bool:
        """Go on from the last checkpoint, if there is one; gives whether."""
        found = state.checkpoints(self.run.output)
        if not found:
            return False
        before, now = state.read_settings(found[-1]), self._settings()
        if differ := [name for name in now if before.get(name) != now[name]]:
            said = ", ".join(
                "the pairs are others" if name == "data" else f"{name} was {before.get(name)} and is {now[name]}"
                for name in differ
            )
            raise ValueError(f"{found[-1]} was made with other settings: {said}; give the same, or another folder")
        model = self.stepper.whole()
        self.state, saved = state.load(found[-1], model)
        self.stepper.restore(model, saved)
        if isinstance(self.batches, Stream) and self.state.place is not None:
            self.batches.seek(self.state.place)
        return True

    def save(self) -> None:
        """Write a checkpoint of this step, then delete those that are no longer wanted."""
        total = self.stepper.over_processes(self.summed)
        self._check_number(float(total), self.state.step)
        self._check_weights()
        self.state.losses = float(total)
        if isinstance(self.batches, Stream):
            self.state.place = self.batches.place
        saved, model = self.stepper.state(), self.stepper.whole()
        if self.stepper.is_main:
            state.save(self.run.output, model, self.tokenizers, saved, self.state, self._settings())
            averaged = {step for _, step in self.state.best} if self.run.average > 1 else set()
            state.forget(self.run.output, {self.state.step} | averaged)
        self.stepper.accelerator.wait_for_everyone()

    def _check_weights(self) -> None:
        """A step may spoil the weights after its loss was well: such weights are not saved."""
        self._check_number(self.stepper.weights_sum(), self.state.step)

    def _keep_model(self) -> None:
        self._check_weights()
        reads, writes = self.tokenizers
        with self.stepper.plain() as model:
            if self.stepper.is_main:
                model.save_pretrained(self.run.output, encoder_tokenizer=reads, decoder_tokenizer=writes)

    def _log(self, event: Event) -> None:
        if self.log is not None:
            self.log.write(event)
            if self.board is not None:
                self.board.write(event)
            self.watch(event)

    def _log_step(self, started: float) -> None:
        total = self.stepper.over_processes(self.summed)
        self._check_number(float(total), self.state.step)
        rates = {part: self.recipe.rate(part, self.state.step - 1, self.steps) for part in sorted(self.stepper.trained)}
        event = {"step": self.state.step, "loss": float(total) / self.state.counted, "rates": rates}
        self._log(event | {"target_tokens": self.state.counted, "seconds": round(time.perf_counter() - started, 3)})
        self.summed, self.state.counted = torch.zeros_like(self.summed), 0

    def close(self) -> None:
        """Close the log, and leave a plain model."""
        for file in (self.log, self.board):
            if file is not None:
                file.close()
        self.stepper.close()


def _set_longest(settings: Any, examples: Examples) -> None:
    """Let a model write as much as the longest target has, unless its settings say how much."""
    if settings.max_new_tokens is None and settings.max_length == settings.DEFAULTS["max_length"]:
        settings.max_new_tokens = max(int(examples.lengths("target").max()), settings.min_length)
