"""How a training ends before its time: a signal, too little memory."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

_SAME = 1.0  # seconds


class Interrupted(KeyboardInterrupt):
    """A training was asked to stop, and has saved where it was."""

    def __init__(self, step: int, output: str | Path):
        super().__init__(f"stopped after step {step:,}; {output} holds a checkpoint of it, from which it can go on")


@contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Whether SIGINT (Ctrl-C) or SIGTERM came: the step is then finished first. A later one ends the process at once.

    Within a second it is the same one: a launcher hands on to its processes what the terminal has told them already.
    Signals go to the main thread; elsewhere none is waited for.
    """
    came: list[float] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def note(number: int, frame: Any) -> None:
        came.append(time.monotonic())
        if came[-1] - came[0] > _SAME:
            for one in signals:
                signal.signal(one, before[one])
            signal.raise_signal(number)

    for number in signals:
        signal.signal(number, note)
    try:
        yield lambda: bool(came)
    finally:
        for number in signals:
            signal.signal(number, before[number])


@contextmanager
def memory_named(batch_tokens: int, accumulate: int) -> Iterator[None]:
    """Turn an error of missing memory into one that says what to change.

    Raises:
        ValueError: a batch does not fit.
    """
    try:
        yield
    except RuntimeError as error:  # a CPU's is no OutOfMemoryError
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        raise ValueError(
            f"a batch of {batch_tokens:,} tokens in {accumulate} parts does not fit in memory; compute it in more "
            f"parts (accumulate {2 * accumulate}), which gives the same result, or with gradient checkpointing"
        ) from error
