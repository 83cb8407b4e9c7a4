"""The demo: a warm start from beginning to end, on the docstrings of the Python packages of this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from warmstart.demo.report import Result

MINUTES = 4.5


def run(
    output: str | Path,
    *,
    minutes: float = MINUTES,
    steps: int | None = None,
    seed: int = 0,
    console: Console | None = None,
    **options: Any,
) -> Result:
    """Run the demo and leave the models and a report in the folder `output`.

    It takes about `minutes` in all; a slow machine does fewer steps in them, and its model is weaker. `steps` ends each
    training after so many steps, which makes a run repeatable. `console` is where progress is shown; None shows none.
    `options` are other fields of `warmstart.demo.story.Settings`.

    Raises:
        ValueError: `minutes` or `steps` is not above 0.
        FileExistsError: `output` is a file, or a folder with other things than an earlier demo in it.
        ImportError: torch or rouge-score is not installed.
        FileNotFoundError: this Python's packages have too few docstrings to learn from.
    """
    # Read when torch is loaded. Without it a thread spins while it waits for the others: where cores are shared with
    # other programs, or a container has a quota of them, a step takes ten times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        import rouge_score  # noqa: F401
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        raise ImportError(
            f'the demo needs {error.name}, which is not installed: pip install "warmstart[train]"', name=error.name
        ) from error
    from warmstart.demo.story import Settings, tell

    return tell(Settings(Path(output), minutes, steps, seed, **options), console)
