"""`warmstart demo`: the main job, shown on real text that every machine with Python has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from warmstart.cli.rendering import console
from warmstart.demo import MINUTES, run


def demo(
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where models and report are left.")
    ] = Path("demo-out"),
    minutes: Annotated[float, typer.Option(metavar="X", help="How long it may take, about.")] = MINUTES,
    steps: Annotated[
        int | None, typer.Option(metavar="N", help="End each training after N steps: a run that can be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the random numbers.")] = 0,
) -> None:
    """Show the main job on this machine's own docstrings, in a few minutes.

    Pre-trains a small BERT and a small GPT-2, joins them, fine-tunes the pair
    to summarise functions, and measures it beside the same model from random
    weights. Nothing is downloaded.
    """
    run(output, minutes=minutes, steps=steps, seed=seed, console=console())
