"""Forward passes of warmstart and transformers by turns in one process: `python -m benchmarks.together`.

`python -m benchmarks forward` gives each library processes of its own, some seconds apart. Where a machine's speed
drifts by more than the libraries differ, this tells them apart: what drifts falls on neighbouring calls alike.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import make
from benchmarks.probes import median
from benchmarks.tasks import LIBRARIES, SIZES
from benchmarks.work import _library, batch


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.together", description=__doc__)
    parser.add_argument("--pairs", nargs="+", default=["bert2bert", "bert2gpt2"])
    parser.add_argument("--calls", type=int, default=15, help="of each library (15)")
    parser.add_argument("--size", choices=SIZES, default="base")
    given = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    print("| forward | warmstart | transformers | ratio of medians | median of the pairs' ratios |")
    print("| --- " * 5 + "|")
    with tempfile.TemporaryDirectory(prefix="warmstart-together-") as place:
        for pair in given.pairs:
            folder = make(pair, SIZES[given.size], Path(place))
            ours, theirs = compare(str(folder), pair, given)
            ratio = median([one / other for one, other in zip(ours, theirs, strict=True)])
            ours_middle, theirs_middle = median(ours), median(theirs)
            print(
                f"| {pair} | {ours_middle:.3f} s | {theirs_middle:.3f} s | {ours_middle / theirs_middle:.2f} "
                f"| {ratio:.2f} |",
                flush=True,
            )


def compare(folder: str, pair: str, given: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Seconds of each call of either library; the losses are the same."""
    import torch

    models = [_library(name).EncoderDecoderModel.from_pretrained(folder).eval() for name in LIBRARIES]
    inputs = batch(SIZES[given.size], pair)
    times: list[list[float]] = [[], []]
    with torch.no_grad():
        losses = [float(model(**inputs).loss) for model in models]
        assert abs(losses[0] - losses[1]) < 1e-4, losses
        for call in range(given.calls):
            for which in (0, 1) if call % 2 else (1, 0):
                times[which].append(_seconds(models[which], inputs))
    return times[0], times[1]


def _seconds(model: Any, inputs: dict[str, Any]) -> float:
    start = time.perf_counter()
    model(**inputs)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
