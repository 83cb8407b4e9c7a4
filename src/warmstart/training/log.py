"""The log of a training: `metrics.jsonl`, a JSON object to a line, in the order of the steps."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

NAME = "metrics.jsonl"
Event = dict[str, Any]  # a line; `step` is in each


class Log:
    """The log while a training runs; it begins with the lines up to the step that the training goes on from."""

    def __init__(self, output: str | Path, step: int):
        folder = Path(output)
        folder.mkdir(parents=True, exist_ok=True)
        kept = [event for event in read_log(folder) if event["step"] <= step and "averaged" not in event]
        part = folder / f".{NAME}.part"
        part.write_text("".join(json.dumps(event) + "\n" for event in kept if step), encoding="utf-8")
        part.replace(folder / NAME)
        self._file = (folder / NAME).open("a", encoding="utf-8")

    def write(self, event: Event) -> None:
        """Add a line, at once."""
        self._file.write(json.dumps(event) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_log(output: str | Path) -> list[Event]:
    """The lines of a training's log; one that a kill cut off is left out."""
    path = Path(output, NAME)
    events = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError):
            events.append(json.loads(line))
    return events
