"""Pairs of texts from files: JSON lines, CSV, TSV, Parquet, two parallel text files, or a `datasets` name.

Rows are read as they come, so that a file may be larger than memory; every error names its file and line.
"""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

_ROWS_AT_ONCE = 1000  # of a Parquet file
LINES_OF_JSON = (".jsonl", ".ndjson", ".json")
TABLES = {".csv": ",", ".tsv": "\t"}
TABULAR = (*LINES_OF_JSON, *TABLES, ".parquet")  # endings of files that hold both sides


class Pair(NamedTuple):
    """A source and its target; `row` counts the rows of the data from 0, bad ones included."""

    row: int
    source: str
    target: str


@dataclass(frozen=True)
class Data:
    """Where pairs come from, and how a row becomes one.

    `place` is a file, whose ending says its form (.jsonl .ndjson .json .csv .tsv .parquet), a folder that `datasets`
    saved, or a name for `datasets`. With `targets`, both are text files and line i of one belongs to line i of the
    other. `split` is that of `datasets`. `prefix` is put before each source.
    """

    place: str
    targets: str | None = None
    source_column: str = "source"
    target_column: str = "target"
    prefix: str = ""
    split: str = "train"

    def __post_init__(self) -> None:
        if self.source_column == self.target_column and self.targets is None:
            raise ValueError(f"source and target are both the column {self.source_column!r}; name two columns")
        if self.targets is not None and (ending := Path(self.place).suffix.lower()) in TABULAR:
            raise ValueError(
                f"{self.place} ({ending}) holds sources and targets; {self.targets}, a file of targets, goes with a "
                "text file of sources"
            )

    @property
    def is_file(self) -> bool:
        """Whether it is read here, not by `datasets`."""
        return self.targets is not None or Path(self.place).suffix.lower() in TABULAR

    @property
    def files(self) -> list[Path]:
        """The files that are read; none for what `datasets` reads."""
        return [Path(name) for name in (self.place, self.targets) if name is not None] if self.is_file else []


class BadRow(ValueError):
    """A row that is no pair; the message names its file and line."""


def read_pairs(data: Data, on_bad: Callable[[str], None] | None = None) -> Iterator[Pair]:
    r"""The pairs of some data, in order; texts may be empty.

    With `on_bad`, a row that is no pair is left out and its message is given to that function.

    Raises:
        ValueError: a row is no pair (named by file and line), a column is not there, or there is no row at all.
        FileNotFoundError: there is no such file, or `datasets` finds no such name.
        ImportError: the package that reads this form is missing.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp(), "pairs.tsv")
    >>> _ = file.write_text("source\ttarget\na long text\tshort\n")
    >>> list(read_pairs(Data(str(file))))
    [Pair(row=0, source='a long text', target='short')]
    """
    count = 0
    for row, item in enumerate(_rows(data)):
        count += 1
        if isinstance(item, BadRow):
            if on_bad is None:
                raise item
            on_bad(str(item))
            continue
        yield Pair(row, data.prefix + item[0] if item[0].strip() else "", item[1])
    if not count:
        raise ValueError(f"{data.place} holds no pairs: it is empty")


def _rows(data: Data) -> Iterator[tuple[str, str] | BadRow]:
    for path in data.files:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is {'a folder' if path.is_dir() else 'not there'}; give a file of pairs")
    if data.targets is not None:
        return _parallel(data.place, data.targets)
    suffix = Path(data.place).suffix.lower()
    if suffix in LINES_OF_JSON:
        return _json_lines(data)
    if suffix in TABLES:
        return _table(data, TABLES[suffix])
    return _parquet(data) if suffix == ".parquet" else _datasets(data)


def _lines(file: BinaryIO, name: str) -> Iterator[tuple[int, str | BadRow]]:
    """Lines by number, from 1; one that is not UTF-8 is a bad row."""
    for number, line in enumerate(file, 1):
        try:
            text = line.decode("utf-8").rstrip("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            yield (
                number,
                BadRow(
                    f"{name}, line {number}: byte {error.start + 1} is 0x{line[error.start]:02x}, which is not UTF-8; "
                    "convert the file first, for example with iconv -t utf-8"
                ),
            )
            continue
        yield number, text.removeprefix("\ufeff") if number == 1 else text


def _json_lines(data: Data) -> Iterator[tuple[str, str] | BadRow]:
    with open(data.place, "rb") as file:
        for number, line in _lines(file, data.place):
            if isinstance(line, BadRow):
                yield line
            elif line.strip():
                yield _from_json(line, data, f"{data.place}, line {number}")


def _from_json(line: str, data: Data, place: str) -> tuple[str, str] | BadRow:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        hint = "; an array is not read: give an object on each line" if line.lstrip().startswith("[") else ""
        return BadRow(f"{place}: not JSON ({error}){hint}")
    if not isinstance(fields, dict):
        return BadRow(f"{place}: a JSON {type(fields).__name__} where an object is expected, one to a line")
    return _from_fields(fields, data, place)


def _from_fields(fields: dict[str, Any], data: Data, place: str) -> tuple[str, str] | BadRow:
    """The two texts of a row."""
    texts = []
    for column in (data.source_column, data.target_column):
        if column not in fields:
            return BadRow(f"{place}: {_no_column(column, fields)}")
        text = fields[column]
        if not isinstance(text, str):
            held = "nothing (null)" if text is None else f"{str(text)[:40]!r}, a {type(text).__name__}"
            return BadRow(f"{place}: the column {column!r} holds {held}, no text")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return BadRow(f"{place}: the column {column!r} has half of a surrogate pair at {error.start}")
        texts.append(text)
    return texts[0], texts[1]


def _no_column(column: str, there: Iterable[str]) -> str:
    names = [str(name) for name in there]
    near = difflib.get_close_matches(column, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"there is no column {column!r} (there is {', '.join(names) or 'none'}){hint}"


def _check_columns(data: Data, there: Sequence[str]) -> None:
    for column in (data.source_column, data.target_column):
        if column not in there:
            raise ValueError(f"{data.place}: {_no_column(column, there)}")


def _table(data: Data, delimiter: str) -> Iterator[tuple[str, str] | BadRow]:
    """The rows of a CSV or TSV file, its first one the names of the columns."""
    broken: list[BadRow] = []  # lines that are not UTF-8; each stands for its row

    def lines(file: BinaryIO) -> Iterator[str]:
        for _, line in _lines(file, data.place):
            if isinstance(line, BadRow):
                broken.append(line)
            else:
                yield line + "\n"

    with open(data.place, "rb") as file:
        rows = csv.reader(lines(file), delimiter=delimiter, strict=True)
        header = next(rows, None)
        if header is None:
            yield from broken
            return
        _check_columns(data, header)
        while True:
            try:
                fields = next(rows, None)
            except csv.Error as error:
                place = f"{data.place}, line {rows.line_num + len(broken)}"
                yield BadRow(f"{place}: {error}; JSON lines take any text")
                continue
            while broken:
                yield broken.pop(0)
            if fields is None:
                return
            place = f"{data.place}, line {rows.line_num}"
            if fields and len(fields) != len(header):
                yield BadRow(f"{place}: {len(fields)} fields, and the header names {len(header)} columns")
            elif fields:
                yield _from_fields(dict(zip(header, fields, strict=True)), data, place)


def _parallel(source: str, target: str) -> Iterator[tuple[str, str] | BadRow]:
    """Line by line from two text files of the same length."""
    with open(source, "rb") as sources, open(target, "rb") as targets:
        for (_, text), (_, other) in zip_longest(_lines(sources, source), _lines(targets, target), fillvalue=(0, None)):
            if text is None or other is None:
                counts = [_count_lines(name) for name in (source, target)]
                raise ValueError(
                    f"{source} has {counts[0]:,} lines and {target} has {counts[1]:,}: line by line they do not belong "
                    "together"
                )
            bad = next((line for line in (text, other) if isinstance(line, BadRow)), None)
            yield bad if bad is not None else (str(text), str(other))


def _count_lines(name: str) -> int:
    with open(name, "rb") as file:
        return sum(1 for _ in file)


def _parquet(data: Data) -> Iterator[tuple[str, str] | BadRow]:
    from warmstart.training.extras import needs

    with needs("pyarrow", "Parquet files"):
        import pyarrow as arrow
        from pyarrow import parquet
    try:
        file = parquet.ParquetFile(data.place)
        names = [data.source_column, data.target_column]
        _check_columns(data, file.schema_arrow.names)
        row = 0
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=names):
            for fields in batch.to_pylist():
                row += 1
                yield _from_fields(fields, data, f"{data.place}, row {row}")
    except arrow.ArrowException as error:
        raise ValueError(
            f"{data.place} is not a Parquet file that can be read: {str(error).splitlines()[0]}"
        ) from error


def _datasets(data: Data) -> Iterator[tuple[str, str] | BadRow]:
    """What `datasets` saved in a folder, or finds under a name; streamed, not downloaded as a whole."""
    path = Path(data.place)
    if path.is_file():
        known = ", ".join(TABULAR)
        raise ValueError(f"{data.place}: its ending says nothing; rename it ({known}), or give two text files")
    from warmstart.training.extras import needs

    with needs("datasets", "data that is no file of pairs"):
        import datasets
    try:
        if any(path.glob("*/dataset_info.json")) or (path / "dataset_info.json").is_file():
            loaded = datasets.load_from_disk(data.place)
            loaded = loaded[data.split] if isinstance(loaded, dict) else loaded
        else:
            loaded = datasets.load_dataset(data.place, split=data.split, streaming=True)
        first = next(iter(loaded), None)
    except KeyError as error:
        raise ValueError(f"{data.place} has no split {data.split!r}; it has {', '.join(loaded)}") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise FileNotFoundError(
            f"{data.place} is no file here, and datasets cannot load it: {str(error).splitlines()[0]}"
        ) from error
    if first is not None:
        _check_columns(data, list(first))
    for row, fields in enumerate(loaded, 1):
        yield _from_fields(fields, data, f"{data.place}, {data.split}, row {row}")
