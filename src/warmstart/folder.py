"""Writes a folder whole or not at all: everything beside first, then moved into place."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

Content = bytes | Callable[[Path], None]  # the bytes of a file, or what writes it to a path

_STAGED, _READY = ".warmstart-saving-", ".warmstart-saved-"
_REMOVED = ".removed.json"


def write_folder(folder: str | os.PathLike[str], files: Mapping[str, Content], replaces: Iterable[str] = ()) -> None:
    """Write files into a folder, made if need be; an error or a kill half-way leaves the folder as it was.

    The files are written to a hidden folder inside, flushed to disk, and marked ready by one rename; only then do they
    take their places. A kill between these moves is made good by `finish_saves`, which every reader here calls first.
    `replaces` are patterns of files from an earlier save that must go with this one (shards, an index).

    Raises:
        NotADirectoryError: the folder is a file.
        OSError: the disk is full, or the folder cannot be written; nothing was changed.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; give a folder to save into")
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    finish_saves(folder, clean=True)
    stage = Path(tempfile.mkdtemp(prefix=f"{_STAGED}{os.getpid()}-", dir=folder))
    try:
        for name, content in files.items():
            _write(stage / name, content)
        gone = [name for name in os.listdir(folder) if name not in files and _matches(name, replaces)]
        _write(stage / _REMOVED, json.dumps(gone).encode())
        ready = stage.with_name(stage.name.replace(_STAGED, _READY))
        os.rename(stage, ready)
    except BaseException as error:
        shutil.rmtree(stage, ignore_errors=True)
        if is_new:
            _remove_if_empty(folder)
        if isinstance(error, OSError):
            raise OSError(
                error.errno, f"nothing was saved to {folder}, it is as it was: {error.strerror or error}"
            ) from error
        raise
    _move(ready, folder)


def finish_saves(folder: str | os.PathLike[str], clean: bool = False) -> None:
    """Finish a save that was killed after its files were complete; with `clean`, drop those that never were."""
    folder = Path(folder)
    try:
        names = [name for name in os.listdir(folder) if name.startswith((_STAGED, _READY))]
    except OSError:
        return
    for name in names:
        if name.startswith(_READY):
            _move(folder / name, folder)
        elif clean and not _alive(int(name.removeprefix(_STAGED).split("-")[0])):
            shutil.rmtree(folder / name, ignore_errors=True)


def _write(path: Path, content: Content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if callable(content):
        content(path)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        return
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _move(ready: Path, folder: Path) -> None:
    """Move complete files into place; another process may be doing the same."""
    try:
        gone = json.loads((ready / _REMOVED).read_bytes())
        for path in sorted(path for path in ready.rglob("*") if path.is_file() and path.name != _REMOVED):
            target = folder / path.relative_to(ready)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
        for name in gone:
            (folder / name).unlink(missing_ok=True)
    except FileNotFoundError:
        if ready.exists():
            raise
    shutil.rmtree(ready, ignore_errors=True)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        pass
