"""Prints the figures: the machine, one row for each task, and the memory that loading and training take."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.machine import limit_seconds
from benchmarks.probes import median
from benchmarks.tasks import Size, Task

Records = dict[str, list[dict[str, Any]]]
console = Console(highlight=False, width=130)

LEGEND = """\
ratio       our seconds over theirs (medians); range: the least and the greatest of the pairs
CPU         the same of CPU seconds, which other programs disturb less
limit       seconds below which nothing can be with the same arithmetic: operations over the rate of fp32 matrix
            products (generate: and bytes of weights over the rate of memory); import: that of torch alone
of it       the limit over our seconds
others      the share of the cores that other programs had meanwhile
same        whether both gave the same loss, tokens or weights"""

# The figures of memory, where a task has them, and their headings: megabytes above those before the task.
MEMORY = {
    "weights_mb": "weights",
    "own_mb": "own",
    "peak_mb": "peak resident",
    "own_read_mb": "own, all read",
    "resident_read_mb": "resident, all read",
}


def heading(machine: dict[str, Any]) -> None:
    """What the figures depend on."""
    console.print(
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, {machine['vectors']}; load "
        f"{machine['load']} at the start\n"
        f"Python {machine['python']}, torch {machine['torch']}, transformers {machine['transformers']}, warmstart "
        f"{machine['warmstart']}\n"
        f"fp32 matrix products {machine['gflops']:.0f} GFLOP/s, memory {machine['gigabytes']:.0f} GB/s",
    )


def progress(task: Task, records: Records) -> None:
    """One line as soon as a task is done."""
    console.print(f"  {task.name}: " + ", ".join(f"{name} {seconds(records, name):.2f} s" for name in records))


def table(tasks: list[Task], results: dict[str, Records], size: Size, machine: dict[str, Any]) -> None:
    """Seconds, our share of the reference's, the target, and how near the limit we are."""
    out = Table(title=f"seconds (medians); batch {size.batch} x {size.source} + {size.target}, {size.layers} layers")
    out.add_column("")
    for name in ("pairs", "ours", "theirs", "ratio", "range", "CPU", "target", "limit", "of it", "others", "same"):
        out.add_column(name, justify="right")
    for task in tasks:
        out.add_row(*row(task, results[task.name], size, machine))
    console.print(out)
    console.print(LEGEND)


def row(task: Task, records: Records, size: Size, machine: dict[str, Any]) -> list[str]:
    """One line of the table, as text."""
    ours, theirs = seconds(records, "warmstart"), seconds(records, "transformers")
    cpu = [seconds(records, name, "cpu_seconds") for name in ("warmstart", "transformers")]
    pairs = [a["seconds"] / b["seconds"] for a, b in zip(records["warmstart"], records["transformers"], strict=True)]
    limit = limit_seconds(task.work, task.pair, size, machine)
    if "torch" in records:
        limit = seconds(records, "torch")
    return [
        task.name,
        str(len(pairs)),
        f"{ours:.3f}",
        f"{theirs:.3f}",
        f"{ours / theirs:.2f}",
        f"{min(pairs):.2f}-{max(pairs):.2f}",
        f"{cpu[0] / cpu[1]:.2f}",
        "" if task.target is None else f"{task.target:.2f}",
        "" if limit is None else f"{limit:.2f}",
        "" if limit is None else f"{limit / ours:.0%}",
        f"{median([record['others'] for found in records.values() for record in found]):.0%}",
        agreement(records),
    ]


def memory(tasks: list[Task], results: dict[str, Records]) -> None:
    """What loading and training take, where it was measured."""
    out = Table(title="megabytes above those before; own: memory that no other process shares (anonymous)")
    out.add_column("")
    out.add_column("")
    for title in MEMORY.values():
        out.add_column(title, justify="right")
    for task in tasks:
        for contender, found in results[task.name].items():
            if any(name in found[0] for name in MEMORY):
                values = [median([record[name] for record in found]) if name in found[0] else None for name in MEMORY]
                out.add_row(task.name, contender, *("" if value is None else f"{value:.0f}" for value in values))
    if out.row_count:
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
    return "yes" if abs(ours - theirs) <= 1e-4 * max(1.0, abs(theirs)) else f"{ours} / {theirs}"


def generation_row(beams: int, tokens: int, ours: dict[str, float], theirs: dict[str, float]) -> str:
    """A row of the tables of docs/benchmarks.md on `generate`: "first" and "later" are seconds of a call."""
    name = "greedy" if beams == 1 else f"{beams} beams"
    speeds = " | ".join(f"{x['later']:.1f} s, {tokens / x['later']:.0f} tokens/s" for x in (ours, theirs))
    ratio = theirs["later"] / ours["later"]
    return f"| {name} | {speeds} | {ratio:.2f} | {ours['first']:.1f} s against {theirs['first']:.1f} s |"
