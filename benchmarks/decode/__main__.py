"""Tokens per second of all contenders, the machine's limits beside them, peak memory: `python -m benchmarks.decode`.

Each contender has a process of its own; they alternate, and medians are printed. `--documents N` measures instead N
documents of very different lengths; `--cpu` counts CPU seconds of one thread, for a machine that others use too. Where
CUDA is, the table is another: see `device`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.__main__ import SETTINGS, run
from benchmarks.checkpoints import make
from benchmarks.decode import device, documents
from benchmarks.decode.contenders import BYTES, CELLS, CONTENDERS, is_installed
from benchmarks.probes import median
from benchmarks.tasks import SIZES, Size

console = Console(highlight=False, width=150)
Results = dict[str, list[dict[str, Any]]]


def main() -> None:
    """Read the command line, measure, print."""
    given = parse()
    if given.gpu:
        device.compare(given, run, SETTINGS)
        return
    environment = {**os.environ, **SETTINGS, "OMP_NUM_THREADS": str(given.threads)}
    size = SIZES[given.size]
    names = [name for name in given.contenders or CONTENDERS if is_installed(name)]
    if given.documents:  # the translator of the same sizes has other weights: its texts would have other lengths
        names = [name for name in names if not name.startswith("ctranslate2")]
    machine = run(["benchmarks.machine"], environment)
    console.print(
        f"{machine['processor']} ({machine['vectors']}), {given.threads} threads; load {machine['load']} at the start; "
        f"torch {machine['torch']}, transformers {machine['transformers']}\n"
        f"products {machine['gflops']:.0f} GFLOP/s in fp32, {machine['gflops_bf16']:.0f} in bf16, "
        f"{machine['gflops_int8']:.0f} in int8; memory {machine['gigabytes']:.1f} GB/s"
    )
    results: Results = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="warmstart-decode-", dir=given.folder) as place:
        folder = make("bert2bert", size, Path(place))
        folder = documents.make_ending(folder, Path(place), size) if given.documents else folder
        task = {"folder": str(folder), "size": given.size, "documents": given.documents, "cells": given.cells}
        for _ in range(given.runs):
            for name in names:
                argument = json.dumps(task | {"contender": name})
                results[name].append(run(["benchmarks.decode.work", argument], environment))
                console.print(f"  {name}: {shown(results[name][-1])}")
    if given.documents:
        console.print(*documents.table(results, size, machine, given), sep="\n")
    else:
        table(results, size, machine, given)
    if given.json is not None:
        given.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode", description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="processes for each contender (3)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each contender (all cores)")
    parser.add_argument("--size", choices=SIZES, default="base", help="the model's size (base)")
    parser.add_argument("--contenders", nargs="*", choices=CONTENDERS, help="only these")
    parser.add_argument("--cells", nargs="*", choices=CELLS, default=list(CELLS), help="only these columns")
    parser.add_argument("--documents", type=int, default=0, metavar="N", help="N documents of different lengths")
    parser.add_argument("--cpu", action="store_true", help="CPU seconds of one thread, not seconds")
    parser.add_argument("--gpu", action=argparse.BooleanOptionalAction, help="the table for GPUs (where CUDA is)")
    parser.add_argument("--dtype", choices=device.TYPES, default="bfloat16", help="the type of that table (bfloat16)")
    parser.add_argument("--folder", help="where to write the checkpoint, about 1 GB (the temporary folder)")
    parser.add_argument("--json", type=Path, help="also write every single figure to this file")
    given = parser.parse_args()
    if given.runs < 1:
        parser.error("--runs must be at least 1")
    given.threads = 1 if given.cpu else given.threads
    if given.gpu is None:
        import torch

        given.gpu = torch.cuda.is_available()
    return given


def seconds(records: list[dict[str, Any]], cell: str, cpu: bool) -> float:
    """The median time of a cell."""
    return median([record[cell]["cpu_seconds" if cpu else "seconds"] for record in records])


def shown(record: dict[str, Any]) -> str:
    """One process's figures as a line."""
    return ", ".join(
        f"{cell} {figures['seconds']:.2f} s, {figures['peak_mb']:.0f} MB" for cell, figures in record.items()
    )


def limit(cell: str, dtype: str, size: Size, machine: dict[str, Any]) -> float:
    """Tokens per second that nothing can pass: bytes over the rate of memory, operations over that of products.

    A step reads each weight and each kept key and value once; products run at the best rate that torch reaches here in
    their type.
    """
    batch, beams = CELLS[cell]
    h, layers = size.hidden, size.layers
    weight_bytes, kept_bytes = BYTES[dtype]
    rate = machine[{"float32": "gflops", "bfloat16": "gflops_bf16", "int8": "gflops_int8"}[dtype]] * 1e9
    weights = layers * 14 * h * h + h * size.vocabulary["bert"] + h * h
    source = batch * size.source * layers * 2 * (12 * h * h + 2 * h * size.source + 2 * h * h)
    kept = layers * 2 * h * (batch * size.source + batch * beams * size.target / 2)
    step = max(
        (weights * weight_bytes + kept * kept_bytes) / (machine["gigabytes"] * 1e9),
        2 * batch * beams * (weights + layers * 2 * h * (size.source + size.target / 2)) / rate,
    )
    return batch * size.target / (source / rate + size.target * step)


def table(results: Results, size: Size, machine: dict[str, Any], given: argparse.Namespace) -> None:
    """One row for each contender; then the limits, and our ratios."""
    out = Table(title=f"new tokens per second (of {'one CPU' if given.cpu else 'the clock'}); peak MB")
    out.add_column("")
    for cell in given.cells:
        out.add_column(cell, justify="right")
    out.add_column("loading", justify="right")
    speed = {
        name: {cell: CELLS[cell][0] * size.target / seconds(records, cell, given.cpu) for cell in given.cells}
        for name, records in results.items()
    }
    for name, records in results.items():
        peaks = {cell: median([record[cell]["peak_mb"] for record in records]) for cell in given.cells}
        dtype = CONTENDERS[name][1]
        out.add_row(
            name,
            *(
                f"{speed[name][cell]:.0f} ({speed[name][cell] / limit(cell, dtype, size, machine):.0%}) "
                f"{peaks[cell]:.0f} MB"
                for cell in given.cells
            ),
            f"{median([next(iter(record.values()))['loading_mb'] for record in records]):.0f} MB",
        )
    for dtype in BYTES:
        out.add_row(f"limit {dtype}", *(f"{limit(cell, dtype, size, machine):.0f}" for cell in given.cells))
    peers = [name for name in results if not name.startswith("warmstart")]
    for name in results:
        same = [peer for peer in peers if peer.split()[-1] == name.split()[-1]]
        if name in peers or not same:
            continue
        for title, others in ((f"{name} / best of its type", same), (f"{name} / best of all", peers)):
            best = {cell: max(speed[peer][cell] for peer in others) for cell in given.cells}
            out.add_row(title, *(f"{speed[name][cell] / best[cell]:.2f}" for cell in given.cells))
    console.print(out)
    console.print("in brackets the share of the limit; the limit of a type counts its bytes and operations alone")


if __name__ == "__main__":
    sys.exit(main())
