"""Measures and prints: `python -m benchmarks [NAME ...]`; `--help` lists the names.

Each contender has a process of its own, and they alternate (A B A B), so that what else the machine does falls on all
of them alike.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.checkpoints import make
from benchmarks.tasks import SIZES, TASKS, Task

# Quiet, offline; a contender's own progress bars would be measured too.
SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}


def main() -> None:
    """Read the command line, measure, print the table."""
    arguments = parse()
    chosen = [task for task in TASKS if not arguments.names or task.name.startswith(tuple(arguments.names))]
    environment = {**os.environ, **SETTINGS, "OMP_NUM_THREADS": str(arguments.threads)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # or modules would be compiled anew in every process
    start = time.perf_counter()
    machine = run(["benchmarks.machine"], environment)
    report.heading(machine)
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    with tempfile.TemporaryDirectory(prefix="warmstart-benchmarks-", dir=arguments.folder) as place:
        folders = {
            pair: str(make(pair, SIZES[arguments.size], Path(place)))
            for pair in {task.pair for task in chosen if task.pair is not None}
        }
        for task in chosen:
            results[task.name] = measure(task, folders, arguments, environment)
            report.progress(task, results[task.name])
    report.table(chosen, results, SIZES[arguments.size], machine)
    report.memory(chosen, results)
    report.ending(time.perf_counter() - start)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")


def parse() -> argparse.Namespace:
    """The command line."""
    names = "\n".join(f"  {task.name:28} {task.says}" for task in TASKS)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Speed and memory of warmstart beside transformers.",
        epilog=f"what is measured:\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="measure only what starts with this; all if left out")
    parser.add_argument("--runs", type=int, help="processes for each contender, in place of each task's own number")
    parser.add_argument("--size", choices=SIZES, default="base", help="the models' size (base)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each contender (all cores)")
    parser.add_argument("--folder", help="where to write the checkpoints, about 2 GB (the temporary folder)")
    parser.add_argument("--json", type=Path, help="also write every single figure to this file")
    arguments = parser.parse_args()
    known = [name for name in arguments.names if not any(task.name.startswith(name) for task in TASKS)]
    if known:
        parser.error(f"nothing is called {known[0]!r}; the names are\n{names}")
    if arguments.runs is not None and arguments.runs < 1:
        parser.error("--runs must be at least 1")
    return arguments


def measure(
    task: Task, folders: dict[str, str], arguments: argparse.Namespace, environment: dict[str, str]
) -> dict[str, list[dict[str, Any]]]:
    """The figures of every process: contender -> one record for each run."""
    records: dict[str, list[dict[str, Any]]] = {contender: [] for contender in task.contenders}
    given = {"work": task.work, "pair": task.pair, "size": arguments.size, **dict(task.options)}
    given["folder"] = folders.get(task.pair or "")
    if task.work == "import_class":  # once before, so that all byte code is written and in the page cache
        for contender in task.contenders:
            run(["benchmarks.work", json.dumps({**given, "library": contender})], environment)
    for _ in range(arguments.runs or task.runs):
        for contender in task.contenders:
            argument = json.dumps({**given, "library": contender})
            records[contender].append(run(["benchmarks.work", argument], environment))
    return records


def run(module_and_arguments: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Run a module of this package in a process of its own; its last line is its answer."""
    command = [sys.executable, "-m", *module_and_arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
