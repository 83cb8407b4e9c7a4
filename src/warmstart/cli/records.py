"""Texts in, texts out: lines of text or of JSON, read as they come, with every error at its file and line."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from errno import EPIPE
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO

STANDARD = "-"  # standard input or output
_JSON_NAMES = (".jsonl", ".ndjson", ".json")


class Format(str, Enum):
    """What lines hold."""

    auto = "auto"
    text = "text"
    jsonl = "jsonl"


class Record(NamedTuple):
    """One line: its text, and of JSON lines the object that it stands in."""

    text: str
    fields: dict[str, Any] | None
    size: int  # bytes that were read for it


@contextmanager
def opened(name: str) -> Iterator[BinaryIO]:
    """A file to read bytes from; "-" is standard input."""
    if name == STANDARD:
        yield _standard(sys.stdin, "input")
        return
    with open(name, "rb") as file:
        yield file


def length(file: BinaryIO) -> int | None:
    """Bytes in a file; None for a pipe or a terminal."""
    try:
        status = os.fstat(file.fileno())
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def read_records(file: BinaryIO, name: str, form: Format, field: str) -> Iterator[Record]:
    """The records of a file, one to a line; an empty line is one with an empty text.

    Whether lines are JSON is told by the name of the file, or by the first line that is not empty.

    Raises:
        ValueError: a line is not UTF-8, or in JSON lines is no object with a text under `field`; names file and line.
    """
    place = "standard input" if name == STANDARD else name
    if form is Format.auto and name.endswith(_JSON_NAMES):
        form = Format.jsonl
    for number, line in enumerate(file, 1):
        text = _decoded(line.rstrip(b"\n").removesuffix(b"\r"), f"{place}, line {number}")
        if number == 1:
            text = text.removeprefix("\ufeff")
        if form is Format.auto and text.strip():
            form = Format.jsonl if _is_object(text) else Format.text
        if form is Format.jsonl and text.strip():
            fields = _parsed(text, field, f"{place}, line {number}")
            yield Record(fields[field], fields, len(line))
        else:
            yield Record(text, None, len(line))


def windows(records: Iterable[Record], size: int) -> Iterator[list[Record]]:
    """The records, so many at a time."""
    window: list[Record] = []
    for record in records:
        window.append(record)
        if len(window) == size:
            yield window
            window = []
    if window:
        yield window


def written(record: Record, outputs: list[str], field: str) -> bytes:
    """The lines that answer a record: its object with the outputs under `field`, or each output as a line."""
    if record.fields is None:
        return "".join(" ".join(output.splitlines()) + "\n" for output in outputs).encode()
    answered = record.fields | {field: outputs[0] if len(outputs) == 1 else outputs}
    try:
        return (json.dumps(answered, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # another field holds half of a surrogate pair, which only an escape can write
        return (json.dumps(answered) + "\n").encode()


@contextmanager
def whole_file(name: str) -> Iterator[Callable[[bytes], None]]:
    """A function that writes bytes; the file is there when all is written, and as it was if that fails.

    "-", and what is no ordinary file (a pipe, a device), is written as it goes.

    Raises:
        OSError: the file cannot be written; named as it was given.
    """
    path = Path(os.path.realpath(name))
    if name == STANDARD:
        yield partial(_write, _standard(sys.stdout, "output"), "standard output")
        return
    if path.is_dir() or not path.parent.is_dir():
        reason = "it is a folder; give the name of a file" if path.is_dir() else f"there is no folder {path.parent}"
        raise FileNotFoundError(f"{name} cannot be written: {reason}")
    is_stream = path.exists() and not path.is_file()
    part = path if is_stream else path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with _named(name):
            file = part.open("wb")
        with file:
            yield partial(_write, file, name)
        if not is_stream:
            if path.exists():
                part.chmod(stat.S_IMODE(path.stat().st_mode))
            os.replace(part, path)
    finally:
        if not is_stream:
            part.unlink(missing_ok=True)


def _standard(stream: TextIO | None, name: str) -> BinaryIO:
    if stream is None:
        raise OSError(f"standard {name} is closed; name a file")
    return stream.buffer


def _write(file: BinaryIO, name: str, data: bytes) -> None:
    with _named(name):
        file.write(data)
        file.flush()


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Let an error of the system speak of the file by the name that the user gave."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.errno == EPIPE:
            raise
        raise OSError(error.errno, os.strerror(error.errno), name) from error


def _decoded(line: bytes, place: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{place}: byte {error.start + 1} is 0x{line[error.start]:02x}, which is not UTF-8; convert it "
            "first, for example with iconv -t utf-8"
        ) from error


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _parsed(text: str, field: str, place: str) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: not JSON ({error}); --format text reads lines as they are") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{place}: a JSON {type(fields).__name__} where an object is expected, one to a line")
    if field not in fields:
        there = ", ".join(fields) or "nothing"
        raise ValueError(f"{place}: there is no field {field!r}; there is {there}: name one with --input-field")
    if not isinstance(fields[field], str):
        raise ValueError(f"{place}: the field {field!r} is {json.dumps(fields[field])[:40]}, not a text")
    try:
        fields[field].encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{place}: the field {field!r} has half of a surrogate pair at {error.start}") from error
    return fields
