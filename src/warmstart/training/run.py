"""What a run is told beside its recipe: how long it is, how it computes, when it is looked at, where it writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from warmstart.folder import check_can_write
from warmstart.training import measure, state

PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
# What may differ when a training goes on: it changes how a step is computed, or when something is written.
FREE = (
    "output",
    "accumulate",
    "gradient_checkpointing",
    "cpu",
    "save_every",
    "patience",
    "tensorboard",
    "compile",
    "shard",
)
# The least that each number may be.
LEAST = {
    "steps": 1,
    "epochs": 1,
    "batch_tokens": 1,
    "accumulate": 1,
    "seed": 0,
    "evaluate_every": 1,
    "save_every": 1,
    "patience": 1,
    "samples": 0,
    "average": 1,
    "log_every": 1,
}


@dataclass(frozen=True)
class Run:
    """How long a training is, how large its steps are, and when it is looked at.

    `steps`, or `epochs` if that is None. A step's batch holds up to `batch_tokens` tokens, padding and both sides
    counted, and is computed in `accumulate` parts. Every `evaluate_every` steps (a tenth of all if None) the model is
    evaluated and a checkpoint written; `save_every` asks for more of those. `best` names what is compared: "loss" or
    one of `measure.METRICS`. After `patience` evaluations without a better one the training ends. Text is written for
    `samples` validation pairs. `average` best checkpoints are averaged at the end, if that is better than the best one.
    `tensorboard` writes the log for TensorBoard too; `compile` compiles each layer (`torch.compile`).
    With `shard`, several processes hold the model in shards (FSDP2).
    """

    output: str | Path
    steps: int | None = None
    epochs: int = 3
    batch_tokens: int = 8192
    accumulate: int = 1
    precision: str = "fp32"
    gradient_checkpointing: bool = False
    cpu: bool = False
    seed: int = 0
    evaluate_every: int | None = None
    save_every: int | None = None
    patience: int | None = None
    best: str = "loss"
    samples: int = 200
    average: int = 1
    log_every: int = 10
    tensorboard: bool = False
    compile: bool = False
    shard: bool = False

    @property
    def on_processor(self) -> bool:
        """Whether it computes on processors: as asked, or because nothing faster is here.

        Accelerate is told which: several processes on processors find each other only then.
        """
        return self.cpu or not torch.accelerator.is_available()

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision {self.precision!r} is not known; use one of {', '.join(PRECISIONS)}")
        if self.best not in ("loss", *measure.METRICS):
            raise ValueError(f"best {self.best!r} is not known; use loss or one of {', '.join(measure.METRICS)}")
        for name, least in LEAST.items():
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"{name} {value}: give a whole number, {least} or more")
        if self.precision == "fp16" and (self.cpu or not torch.cuda.is_available()):
            raise ValueError("precision 'fp16' needs a GPU, and none is used here; bf16 computes on processors too")
        if self.best != "loss" and not self.samples:
            raise ValueError(f"best={self.best!r} is found on texts, and samples=0 writes none")


def check_output(output: str | Path, resume: bool) -> None:
    """Refuse a folder that holds something, unless a training in it is to go on.

    Raises:
        FileExistsError: the message says what to do.
        NotADirectoryError, PermissionError: the folder cannot be made or written.
    """
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; give a folder to train into")
    check_can_write(folder)
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if (folder / state.FOLDER).is_dir():
        if not resume:
            raise FileExistsError(f"{folder} holds a training; go on with it (resume), or give another folder")
    else:
        raise FileExistsError(f"{folder} is not empty and holds no training; give another folder")
