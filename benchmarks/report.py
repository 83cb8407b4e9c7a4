"""Prints the figures: the machine, one row for each task, and the memory that loading takes."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.machine import limit_seconds
from benchmarks.probes import median
from benchmarks.tasks import Size, Task

Records = dict[str, list[dict[str, Any]]]
console = Console(highlight=False, width=140)


def heading(machine: dict[str, Any]) -> None:
    """What the figures depend on."""
    console.print(
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, {machine['vectors']}; load "
        f"{machine['load']} at the start\n"
        f"Python {machine['python']}, torch {machine['torch']}, transformers {machine['transformers']}, warmstart "
        f"{machine['warmstart']}\n"
        f"fp32 matrix products {machine['gflops']:.0f} GFLOP/s, memory {machine['gigabytes']:.0f} GB/s",
        soft_wrap=True,
    )


def progress(task: Task, records: Records) -> None:
    """One line as soon as a task is done."""
    console.print(f"  {task.name}: " + ", ".join(f"{name} {seconds(records, name):.2f} s" for name in records))


def table(tasks: list[Task], results: dict[str, Records], size: Size, machine: dict[str, Any]) -> None:
    """Seconds (medians), our share of the reference's, the target, and how near the limit we are."""
    out = Table(title=f"seconds, medians; batch {size.batch} x {size.source} + {size.target}, {size.layers} layers")
    for name in (
        "",
        "runs",
        "warmstart",
        "transformers",
        "ratio",
        "CPU ratio",
        "target",
        "limit",
        "of it",
        "others",
        "same",
    ):
        out.add_column(name, justify="left" if not name else "right")
    for task in tasks:
        records = results[task.name]
        ours, theirs = seconds(records, "warmstart"), seconds(records, "transformers")
        limit = limit_seconds(task.work, task.pair, size, machine)
        if "torch" in records:
            limit = seconds(records, "torch")
        out.add_row(
            task.name,
            str(len(records["warmstart"])),
            f"{ours:.3f}",
            f"{theirs:.3f}",
            f"{ours / theirs:.2f}",
            f"{seconds(records, 'warmstart', 'cpu_seconds') / seconds(records, 'transformers', 'cpu_seconds'):.2f}",
            "" if task.target is None else f"{task.target:.2f}",
            "" if limit is None else f"{limit:.2f}",
            "" if limit is None else f"{limit / ours:.0%}",
            f"{median([record['others'] for found in records.values() for record in found]):.0%}",
            agreement(records),
        )
    console.print(out)
    console.print(
        "ratio: ours over theirs. CPU ratio: the same of CPU seconds. limit: operations over the rate of matrix "
        "products, for import that of torch alone; of it: how near we are. others: the share of the machine that other "
        "programs had. same: whether loss, tokens or weights agree.",
        soft_wrap=True,
    )


def memory(tasks: list[Task], results: dict[str, Records]) -> None:
    """What loading takes, where it was measured."""
    names = {
        "weights_mb": "weights",
        "anonymous_mb": "own memory after loading",
        "peak_mb": "peak resident while loading",
        "anonymous_touched_mb": "own memory after reading all",
        "resident_touched_mb": "resident after reading all",
        "touch_seconds": "seconds to read all",
    }
    loads = [task for task in tasks if task.work == "load"]
    if not loads:
        return
    out = Table(title="loading: megabytes above those before it")
    for name in ("", "", *names.values()):
        out.add_column(name, justify="right")
    for task in loads:
        for contender, found in results[task.name].items():
            values = {name: median([record[name] for record in found]) for name in names}
            row = [f"{value:.3f}" if name == "touch_seconds" else f"{value:.0f}" for name, value in values.items()]
            out.add_row(task.pair, contender, *row)
    console.print(out)


def ending(took: float) -> None:
    """How long it all took."""
    console.print(f"took {took / 60:.1f} minutes")


def seconds(records: Records, contender: str, measure: str = "seconds") -> float:
    """The median of a contender's runs."""
    return median([record[measure] for record in records[contender]])


def agreement(records: Records) -> str:
    """Whether the contenders computed the same; empty where there is nothing to compare."""
    ours, theirs = (records[name][0].get("check") for name in ("warmstart", "transformers"))
    if ours is None or theirs is None:
        return ""
    return "yes" if abs(ours - theirs) <= 2e-4 * max(1.0, abs(theirs)) else f"{ours} / {theirs}"
