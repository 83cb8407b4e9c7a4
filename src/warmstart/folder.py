"""Writes a folder whole or not at all: everything beside first, then moved into place."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

Content = bytes | Callable[[Path], None]  # the bytes of a file, or what writes it to a path

_STAGED, _READY = ".warmstart-saving-", ".warmstart-saved-"
_JOURNAL = ".removes.json"  # in a stage: the names of the files that go when its own take their places
_PATIENCE = 60.0  # seconds that a save waits for another one into the same folder
_STALE = 86400.0  # seconds after which a stage is taken for dead where the file system has no locks

logger = logging.getLogger(__name__)


def write_folder(folder: str | os.PathLike[str], files: Mapping[str, Content], replaces: Iterable[str] = ()) -> None:
    """Write files into a folder, made if need be; an error or a kill half-way leaves the folder as it was.

    The files are written to a hidden folder inside, flushed to disk, and marked ready by one rename; only then do they
    take their places. A kill between these moves is made good by `finish_saves`, which `hub.find_file` calls first.
    One save at a time: a second one waits for the first. `replaces` are patterns of files from an earlier save that
    must go with this one (shards, an index, "subfolder/name"); all else in the folder stays.

    Raises:
        NotADirectoryError: the folder is a file.
        ValueError: a file's name leads out of the folder.
        OSError: the disk is full, or the folder cannot be written; nothing was changed.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; give a folder to save into")
    new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
    ready: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _held(folder, _PATIENCE) as is_held:
            finish_saves(folder, wait=False)
            _clean(folder, is_held)
            _check_places(folder, files)
            ready = _stage(folder, files, replaces)
            _move(ready, folder)
    except BaseException as error:
        if ready is not None:  # decided: the next reader finishes what is left to do
            raise
        for path in new_folders:
            with contextlib.suppress(OSError):  # the folder may hold what another save put there
                path.rmdir()
        if isinstance(error, OSError):
            reason = f"nothing was saved to {folder}, it is as it was: {error.strerror or error}"
            raise OSError(error.errno, reason) if error.errno else OSError(reason) from error
        raise


def check_can_write(folder: str | os.PathLike[str]) -> None:
    """Refuse a folder that cannot be made or written, before work begins whose result is to stand there.

    Raises:
        NotADirectoryError: the folder, or one that it would be in, is a file.
        PermissionError: this user may not write there.

    >>> check_can_write("/dev/null/models")
    Traceback (most recent call last):
    ...
    NotADirectoryError: the folder '/dev/null/models' cannot be made: '/dev/null' is a file; give another
    """
    folder = Path(folder).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"the folder '{folder}' cannot be made: '{there}' is a file; give another")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"the folder '{folder}' cannot be written: '{there}' may not be changed; give another")


def finish_saves(folder: str | os.PathLike[str], wait: bool = True) -> None:
    """Finish the saves into a folder that were killed, or are at work, after their files were complete.

    Raises:
        OSError: the files cannot be moved into place; the message says where they are.
    """
    folder = Path(folder)
    if not _names(folder, _READY):
        return
    with _held(folder, _PATIENCE) if wait else contextlib.nullcontext():
        for name in _names(folder, _READY):
            _move(folder / name, folder)


def _stage(folder: Path, files: Mapping[str, Content], replaces: Iterable[str]) -> Path:
    """Write the files to a hidden folder and mark that ready; gives its path."""
    stage = Path(tempfile.mkdtemp(prefix=_STAGED, dir=folder))
    try:
        patterns = [re.compile(pattern) for pattern in replaces]
        names = [name for name in _files_in(folder) if name not in files]
        gone = [name for name in names if any(pattern.fullmatch(name) for pattern in patterns)]
        _write(stage / _JOURNAL, json.dumps(gone).encode())
        mode = (stage / _JOURNAL).stat().st_mode & 0o777  # what the umask gives to a new file
        for name, content in files.items():
            _write(stage / name, content)
            (stage / name).chmod(mode)
        for path in stage.rglob("*"):
            if path.is_dir():
                _flush_folder(path)
        _flush_folder(stage)
        ready = stage.with_name(stage.name.replace(_STAGED, _READY))
        os.rename(stage, ready)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise
    _flush_folder(folder)
    return ready


def _files_in(folder: Path) -> Iterator[str]:
    """The files in a folder and in its own subfolders; a link to a folder leads to what is not its own."""
    for path in folder.iterdir():
        if not path.is_dir():
            yield path.name
        elif not path.name.startswith(".") and not path.is_symlink():
            with contextlib.suppress(PermissionError):
                yield from (f"{path.name}/{inner.name}" for inner in path.iterdir() if not inner.is_dir())


def _write(path: Path, content: Content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if callable(content):
        content(path)
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        return
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _move(ready: Path, folder: Path) -> None:
    """Move complete files into place; another process may be doing the same, and may have been killed at any point."""
    try:
        try:
            gone = json.loads((ready / _JOURNAL).read_bytes())
        except FileNotFoundError:  # all was moved, and the rest is being deleted
            gone = []
        places = {path: path.relative_to(ready).as_posix() for path in sorted(ready.rglob("*")) if not path.is_dir()}
        places.pop(ready / _JOURNAL, None)
        _check_places(folder, [*places.values(), *gone])
        for path, name in places.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                os.replace(path, folder / name)
        for name in gone:
            (folder / name).unlink(missing_ok=True)
        for path in {(folder / name).parent for name in places.values()}:
            _flush_folder(path)
    except (OSError, ValueError, TypeError) as error:
        raise OSError(
            getattr(error, "errno", None) or errno.EIO,
            f"a save into {folder} is complete but cannot be moved into place ({error}): its files are in {ready}; "
            "make room for them and try again, or delete that folder to do without them",
        ) from error
    shutil.rmtree(ready, ignore_errors=True)


def _check_places(folder: Path, names: Iterable[str]) -> None:
    """Refuse names that lead out of the folder, by their spelling or by a link, and those that a folder has taken.

    They may come out of a folder that somebody else packed: a hidden folder in it can be made to look like a save.
    """
    home = os.path.realpath(folder)
    for name in names:
        path = PurePosixPath(name)
        parent = os.path.realpath(folder / path.parent)
        is_plain = bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\\" not in name
        if not is_plain or os.path.commonpath([home, parent]) != home:
            raise ValueError(f"the file {name!r} would lie outside of its folder {str(folder)!r}; give it a plain name")
        if (folder / name).is_dir():
            raise IsADirectoryError(errno.EISDIR, f"{folder / name} is a folder; move it out of the way")


def _clean(folder: Path, is_held: bool) -> None:
    """Delete what saves left that were killed before their files were complete."""
    for name in _names(folder, _STAGED):
        with contextlib.suppress(OSError):
            if is_held or time.time() - (folder / name).stat().st_mtime > _STALE:
                shutil.rmtree(folder / name, ignore_errors=True)


def _names(folder: Path, prefix: str) -> list[str]:
    """The hidden folders of saves; never a link, which could lead to anything."""
    try:
        names = sorted(name for name in os.listdir(folder) if name.startswith(prefix))
    except OSError:
        return []
    return [name for name in names if (folder / name).is_dir() and not (folder / name).is_symlink()]


@contextlib.contextmanager
def _held(folder: Path, patience: float) -> Iterator[bool]:
    """Keep other saves out of a folder. The lock ends with its process; not every file system has it: False then.

    Whoever waits longer than `patience` goes on without: a process that was forked during a save may outlive it.
    """
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield False
        return
    try:
        is_held, end = False, time.monotonic() + patience
        while not is_held:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_held = True
            except BlockingIOError:
                if time.monotonic() > end:
                    logger.warning("%s has been locked for %.0f s by another save; going on without", folder, patience)
                    break
                time.sleep(0.005)
            except OSError:  # no locks here
                break
        yield is_held
    finally:
        os.close(handle)


def _flush_folder(folder: Path) -> None:
    """Have the names in a folder on disk, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
