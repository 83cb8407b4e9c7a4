"""Where a step goes: `python -m benchmarks.decode.steps --batch 8 --beams 4`, in milliseconds for each operation.

The compiled kernels run a decoder's step as one call; here its operations are called one by one, which costs a little
more: a product cannot ask for the next one's weights. Medians over the steps.
"""

from __future__ import annotations

import argparse
import ctypes
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any
from unittest import mock

from rich.console import Console
from rich.table import Table

from benchmarks import probes
from benchmarks.checkpoints import make
from benchmarks.decode.contenders import load
from benchmarks.tasks import SIZES

TYPES = {"float32": "fp32", "bfloat16": "bf16", "int8": "int8"}
NAMES = ("product", "gate", "norm", "attention over what was written", "attention over sources", "within")


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode.steps", description=__doc__)
    parser.add_argument("--size", choices=[*SIZES], default="base")
    parser.add_argument("--batch", type=int, default=8, help="sources (8)")
    parser.add_argument("--beams", type=int, default=4, help="beams (4)")
    parser.add_argument("--new", type=int, default=32, help="tokens to write (32)")
    parser.add_argument("--types", nargs="+", choices=[*TYPES], default=[*TYPES])
    given = parser.parse_args()
    size, console = SIZES[given.size], Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="warmstart-steps-") as place:
        folder = str(make("bert2bert", size, Path(place)))
        for dtype in given.types:
            found = measure(load(f"warmstart {TYPES[dtype]}", folder, size), size, given)
            out = Table(title=f"{dtype}, {given.batch} sources, {given.beams} beams")
            for heading in ("", "ms", "GFLOP/s"):
                out.add_column(heading, justify="right")
            for name, (seconds, operations) in found.items():
                out.add_row(name, f"{1e3 * seconds:.2f}", f"{operations / seconds / 1e9:.0f}" if operations else "")
            out.add_row("all", f"{1e3 * sum(seconds for seconds, _ in found.values()):.2f}", "")
            console.print(out)


def measure(model: Any, size: Any, given: argparse.Namespace) -> dict[str, tuple[float, int]]:
    """For each operation its seconds in a step, the median, and its operations."""
    import torch

    from warmstart.torch.engine import native, program

    rows = given.batch * given.beams
    times: dict[str, list[float]] = defaultdict(list)
    operations: dict[str, int] = {}
    whole = native.library().warmstart_run  # type: ignore[union-attr]

    def one_by_one(ops: Any, count: int, here: int, held: Any, arena: int) -> None:
        if here != rows:  # an encoder's
            return whole(ops, count, here, held, arena)
        seconds: Counter[str] = Counter()
        counted: Counter[str] = Counter()
        where = "head: " if not any(op.kind > 2 for op in ops) else ""
        for op in ops:
            name = where + NAMES[op.kind] + (f" {op.inputs} x {op.outputs}" if op.kind == 0 else "")
            start = time.perf_counter()
            whole(ctypes.byref(op), 1, here, held, arena)
            seconds[name] += time.perf_counter() - start
            counted[name] += 2 * rows * op.inputs * op.outputs if op.kind == 0 else 0
        for name, took in seconds.items():
            times[name].append(took)
        operations.update(counted)

    ids = torch.randint(
        5, size.vocabulary["bert"], (given.batch, size.source), generator=torch.Generator().manual_seed(0)
    )
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "num_beams": given.beams, "do_sample": False}
    library = mock.Mock(wraps=native.library(), warmstart_run=one_by_one)
    run = program.Program.run
    with torch.no_grad(), mock.patch.object(program.Program, "run", lambda self, _, *more: run(self, library, *more)):
        model.generate(**inputs, max_new_tokens=given.new, min_new_tokens=given.new)
    return {name: (probes.median(each), operations[name]) for name, each in times.items()}


if __name__ == "__main__":
    main()
