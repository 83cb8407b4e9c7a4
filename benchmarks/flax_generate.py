"""Flax `generate` beside that of `transformers` 4, in one process: `python -m benchmarks.flax_generate [--size tiny]`.

Both read one folder of random weights, a bert2gpt2, and generate as many tokens; none ends a text. The
reference is wrapped in `jax.jit`, as its users are told to; ours compiles itself. Calls alternate, so that other
programs disturb both alike. It prints a row of the table in docs/benchmarks.md for each setting. The last line is JSON:
for each setting the seconds of the first call (tracing, compiling and running), the median seconds of the others,
tokens per second, and whether the tokens are the same.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.checkpoints import make
from benchmarks.report import generation_row
from benchmarks.tasks import SIZES, Size

Call = Callable[[], Any]


def main() -> None:
    """Measure the settings that are asked for, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--runs", type=int, default=2, help="calls of each after the first")
    arguments = parser.parse_args()
    size = SIZES[arguments.size]
    with tempfile.TemporaryDirectory() as place:
        folder = make("bert2gpt2", size, Path(place))
        ours, theirs = _models(folder)
        figures = {f"{beams} beams": _compare(ours, theirs, size, beams, arguments.runs) for beams in arguments.beams}
    print(json.dumps({"load": round(os.getloadavg()[0], 1), "size": arguments.size, **figures}))


def _models(folder: Path) -> tuple[Any, Any]:
    import transformers

    import warmstart

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transformers.FlaxEncoderDecoderModel.from_pretrained(folder, from_pt=True)
    return warmstart.FlaxEncoderDecoderModel.from_pretrained(folder), theirs


def _compare(ours: Any, theirs: Any, size: Size, beams: int, runs: int) -> dict[str, Any]:
    import jax

    draw = np.random.default_rng(0)
    ids = draw.integers(5, size.vocabulary["bert"], (size.batch, size.source))
    mask = np.ones_like(ids)
    settings = {"max_length": size.target + 1, "min_length": size.target + 1, "num_beams": beams, "do_sample": False}
    # Without it the reference gives its encoder the positions as token types, and every number is a NaN.
    types = np.zeros_like(ids)
    reference = jax.jit(
        lambda params: (
            theirs.generate(ids, attention_mask=mask, position_ids=types, params=params, **settings).sequences
        )
    )
    calls: dict[str, Call] = {
        "ours": lambda: ours.generate(ids, attention_mask=mask, **settings).sequences,
        "theirs": lambda: reference(theirs.params),
    }
    first = {name: _timed(call)[0] for name, call in calls.items()}
    later: dict[str, list[float]] = {name: [] for name in calls}
    tokens: dict[str, Any] = {}
    for _ in range(runs):
        for name, call in calls.items():
            seconds, tokens[name] = _timed(call)
            later[name].append(seconds)
    median = {name: statistics.median(times) for name, times in later.items()}
    same = np.array_equal(tokens["ours"], tokens["theirs"])
    figures: dict[str, Any] = {"same tokens": same, "ratio": round(median["theirs"] / median["ours"], 2)}
    for name in calls:
        figures[name] = {
            "first": round(first[name], 2),
            "later": round(median[name], 3),
            "tokens per second": round(size.batch * size.target / median[name], 1),
        }
    print(generation_row(beams, size.batch * size.target, figures["ours"], figures["theirs"]), flush=True)
    return figures


def _timed(call: Call) -> tuple[float, Any]:
    start = time.perf_counter()
    tokens = np.asarray(call())
    return time.perf_counter() - start, tokens


if __name__ == "__main__":
    main()
