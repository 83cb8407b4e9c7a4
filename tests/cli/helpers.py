"""A way to run a command line and see all it said; reading and changing the files of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from safetensors import safe_open
from typer.testing import CliRunner


class Ran(NamedTuple):
    """What a command line gave."""

    code: int
    out: str
    err: str
    error: BaseException | None


def command(*words: object, stdin: str | bytes | None = None) -> Ran:
    """Run a command line in this process."""
    from warmstart.cli.app import app

    result = CliRunner().invoke(app, [str(word) for word in words], input=stdin)
    error = None if isinstance(result.exception, SystemExit) else result.exception
    return Ran(result.exit_code, result.stdout, result.stderr, error)


def change_json(path: Path, **fields: object) -> None:
    """Replace fields of a JSON file; None takes one out."""
    values = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))


def tensors(folder: Path) -> dict[str, object]:
    """The weights of a folder by name."""
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}
    return found
