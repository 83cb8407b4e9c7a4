"""Pairs as token ids: tokenized once, kept in files, looked at before training.

Shapes: n pairs, s tokens of all sources, t tokens of all targets.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from warmstart.training.pairs import Data, Pair, read_pairs

_VERSION = 1  # of the files; another one is another cache
_PAIRS_AT_ONCE = 1000
_COLUMNS = {
    "source_ids": np.int32,
    "target_ids": np.int32,
    "source_ends": np.int64,
    "target_ends": np.int64,
    "rows": np.int64,
    "source_hashes": np.uint64,
    "pair_hashes": np.uint64,
}
_BAD_SHOWN = 5


@dataclass(frozen=True)
class Limits:
    """How many tokens of a text are kept, with what stands around it."""

    source: int
    target: int


@dataclass
class Counts:
    """What became of the rows of some data."""

    rows: int = 0
    pairs: int = 0
    bad: int = 0
    empty_sources: int = 0
    empty_targets: int = 0
    cut_sources: int = 0
    cut_targets: int = 0
    first_bad: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Examples:
    """Tokenized pairs; `index` (n) says which of the stored ones are meant.

    Sources stand with their frame ([CLS] text [SEP]); labels are the target's ids and the end id, without a start.
    Columns of other names than the usual hold what the tokenizer gives of each source token beside its id.
    """

    columns: dict[str, np.ndarray]
    index: np.ndarray
    counts: Counts

    def __len__(self) -> int:
        return len(self.index)

    def source(self, place: int) -> np.ndarray:
        """The ids of a source."""
        return self._ids("source", place)

    def labels(self, place: int) -> np.ndarray:
        """The labels of a target."""
        return self._ids("target", place)

    def beside(self, place: int) -> dict[str, np.ndarray]:
        """By name, what each token of a source has beside its id (RoCBert's shape and pronunciation)."""
        return {name: self._ids("source", place, name) for name in self.columns if name not in _COLUMNS}

    def _ids(self, side: str, place: int, column: str | None = None) -> np.ndarray:
        stored, ends = int(self.index[place]), self.columns[f"{side}_ends"]
        return self.columns[column or f"{side}_ids"][ends[stored - 1] if stored else 0 : ends[stored]]

    def lengths(self, side: str) -> np.ndarray:
        """Tokens of each "source" or "target" (n)."""
        return np.diff(self.columns[f"{side}_ends"], prepend=0)[self.index]

    def column(self, name: str) -> np.ndarray:
        """The `rows` that the pairs come from, their `source_hashes` or `pair_hashes` (n)."""
        return self.columns[name][self.index]

    def select(self, index: np.ndarray) -> Examples:
        """Some of the pairs, by their places here."""
        return replace(self, index=self.index[index])

    def held_out(self, share: float) -> tuple[Examples, Examples]:
        """Split off about a share for validation, by a hash of the source: a source is never on both sides.

        Of so few pairs that the share is none, it is one source's.
        """
        places = self.column("source_hashes") % np.uint64(10**6)
        chosen = places < np.uint64(round(share * 10**6))
        if share and len(places) and not chosen.any():
            chosen = places == places.min()
        return self.select(np.flatnonzero(~chosen)), self.select(np.flatnonzero(chosen))


def load_examples(
    data: Data,
    source_tokenizer: Any,
    target_tokenizer: Any,
    end: int,
    limits: Limits,
    *,
    skip_bad: bool = False,
    cache: str | Path | None = None,
) -> Examples:
    """The tokenized pairs of some data: from the cache folder if they are there, else tokenized and kept there.

    `end` is the id that ends a target. Pairs without a source or a target are counted and left out. With `skip_bad`,
    rows that are no pair are counted and left out too. Without `cache` they are held in memory.

    Raises:
        ValueError: a row is no pair, a limit leaves no room for text, or no pair is left.
        OSError: the data or the cache cannot be read or written.
    """
    asked = Asked(data, source_tokenizer, target_tokenizer, end, limits, skip_bad)
    _check_limits(asked)
    if cache is None:
        with tempfile.TemporaryDirectory(prefix="warmstart-") as temporary:
            _write(Path(temporary, "pairs"), asked)
            examples = _opened(Path(temporary, "pairs"), asked.kinds(), in_memory=True)
    else:
        folder = Path(cache, _key(asked))
        if not (folder / "counts.json").is_file():
            _write(folder, asked)
        examples = _opened(folder, asked.kinds())
    _check_counts(data, examples.counts)
    return examples


def read_examples(asked: Asked, first: int, counts: Counts) -> Iterator[Examples]:
    """Tokenized pairs from a row on, about a thousand at a time, with no copy on disk; `counts` is filled on the way.

    Raises:
        ValueError: a row is no pair, or a limit leaves no room for text.
    """
    _check_limits(asked)
    for part in _tokenized(asked, counts, first):
        columns = {name: np.asarray(part[name], kind) for name, kind in asked.kinds().items()}
        for side in ("source", "target"):
            columns[f"{side}_ends"] = columns[f"{side}_ends"] - (
                columns[f"{side}_ends"][-1] - len(columns[f"{side}_ids"])
            )
        yield Examples(columns, np.arange(len(columns["rows"])), counts)


def joined(parts: Sequence[Examples]) -> Examples:
    """Examples one after another, in memory."""
    columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns}
    for side in ("source", "target"):
        before = np.cumsum([0, *(len(part.columns[f"{side}_ids"]) for part in parts)])
        columns[f"{side}_ends"] = np.concatenate(
            [part.columns[f"{side}_ends"] + start for part, start in zip(parts, before, strict=False)]
        )
    return Examples(columns, np.arange(len(columns["rows"])), parts[0].counts)


def texts(data: Data, rows: Iterable[int]) -> list[Pair]:
    """The pairs of some rows, as text, in the order of the rows asked for."""
    wanted = list(rows)
    missing = set(wanted)
    found = {}
    for pair in read_pairs(data, on_bad=lambda message: None):
        if pair.row in missing:
            found[pair.row] = pair
            missing.discard(pair.row)
            if not missing:
                break
    return [found[row] for row in wanted]


def default_cache() -> Path:
    """Where tokenized data is kept: `$XDG_CACHE_HOME/warmstart/pairs`, in `~/.cache` if that is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "warmstart", "pairs")


class Asked(NamedTuple):
    """All that the token ids depend on."""

    data: Data
    source_tokenizer: Any
    target_tokenizer: Any
    end: int
    limits: Limits
    skip_bad: bool

    def kinds(self) -> dict[str, Any]:
        """The columns and their types: the usual, and what the tokenizer gives of a source token beside its id."""
        return _COLUMNS | dict.fromkeys(self.source_tokenizer.ids_beside, np.int32)


def _check_limits(asked: Asked) -> None:
    """Refuse limits that leave no room for text."""
    frame, prefix = asked.source_tokenizer.num_special_tokens_to_add(), 0
    if asked.data.prefix:
        prefix = len(asked.source_tokenizer(asked.data.prefix, add_special_tokens=False, verbose=False)["input_ids"])
    if asked.limits.source <= frame + prefix:
        raise ValueError(
            f"a source of {asked.limits.source} tokens holds {frame} tokens around the text and {prefix} of the "
            "prefix, and none of the text; raise the limit"
        )
    if asked.limits.target < 2:
        raise ValueError(f"a target of {asked.limits.target} tokens holds its end and no text; raise the limit")


def _check_counts(data: Data, counts: Counts) -> None:
    if counts.pairs:
        return
    if counts.bad == counts.rows:
        raise ValueError(f"{data.place}: none of {counts.rows:,} rows is a pair; the first: {counts.first_bad[0]}")
    column = "target" if counts.empty_targets >= counts.empty_sources else "source"
    raise ValueError(
        f"{data.place}: no pair is left of {counts.rows:,} rows: {counts.empty_targets:,} targets and "
        f"{counts.empty_sources:,} sources are empty; is {getattr(data, column + '_column')!r} the {column}'s column?"
    )


def _key(asked: Asked) -> str:
    """A name that changes with whatever the token ids depend on."""
    data = asked.data
    files = [(str(path.resolve()), _stamp(path)) for path in data.files or [Path(data.place)] if path.exists()]
    said = [_VERSION, asdict(data), files, asked.end, asdict(asked.limits), asked.skip_bad]
    said += [_settings(tokenizer) for tokenizer in (asked.source_tokenizer, asked.target_tokenizer)]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:24]


def _stamp(path: Path) -> list[int]:
    """Size and time of a file, the latest of a folder."""
    paths = [path, *path.rglob("*")] if path.is_dir() else [path]
    return [sum(part.stat().st_size for part in paths), max(part.stat().st_mtime_ns for part in paths)]


def _settings(tokenizer: Any) -> list[Any]:
    said = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    for name, content in tokenizer._kept_files.items():  # some of what it does stands in files of its own
        said[name] = hashlib.sha256(content).hexdigest()
    return [hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest(), tokenizer.truncation_side]


def _write(folder: Path, asked: Asked) -> None:
    """Tokenize into a folder that is there when it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
    counts = Counts()
    try:
        kinds = asked.kinds()
        handles = {name: (stage / name).open("wb") for name in kinds}
        try:
            for part in _tokenized(asked, counts):
                for name, kind in kinds.items():
                    handles[name].write(np.asarray(part[name], kind).tobytes())
        finally:
            for handle in handles.values():
                handle.close()
        (stage / "counts.json").write_text(json.dumps(asdict(counts)))
        if not (folder / "counts.json").is_file():
            os.rename(stage, folder)
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, f"tokenized data cannot be kept in {folder.parent}: {error.strerror}") from error
        raise
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _opened(folder: Path, kinds: dict[str, Any], in_memory: bool = False) -> Examples:
    """The arrays of a folder, read now or from the disk as they are needed."""
    counts = Counts(**json.loads((folder / "counts.json").read_text()))
    columns: dict[str, np.ndarray] = {}
    for name, kind in kinds.items():
        is_empty = (folder / name).stat().st_size == 0  # nothing can be mapped
        columns[name] = (
            np.fromfile(folder / name, kind) if in_memory or is_empty else np.memmap(folder / name, kind, "r")
        )
    return Examples(columns, np.arange(counts.pairs), counts)


def _tokenized(asked: Asked, counts: Counts, first: int = 0) -> Iterator[dict[str, Any]]:
    """Columns of some pairs at a time, from a row on; `counts` is filled on the way."""

    def bad(message: str) -> None:
        counts.bad += 1
        counts.rows += 1
        if len(counts.first_bad) < _BAD_SHOWN:
            counts.first_bad.append(message)

    ends = {"source": 0, "target": 0}
    pairs = (pair for pair in read_pairs(asked.data, bad if asked.skip_bad else None) if pair.row >= first)
    while part := list(islice(pairs, _PAIRS_AT_ONCE)):
        counts.rows += len(part)
        counts.empty_sources += sum(not pair.source.strip() for pair in part)
        counts.empty_targets += sum(not pair.target.strip() for pair in part)
        part = [pair for pair in part if pair.source.strip() and pair.target.strip()]
        if not part:
            continue
        read = _batch(asked.source_tokenizer, [pair.source for pair in part], asked.limits.source, True)
        counts.cut_sources += _cut(read)
        written = _batch(asked.target_tokenizer, [pair.target for pair in part], asked.limits.target - 1, False)
        counts.cut_targets += _cut(written)
        sources, targets = read["input_ids"], written["input_ids"]
        counts.pairs += len(part)
        yield {
            "source_ids": np.concatenate(sources),
            "target_ids": np.concatenate([[*ids, asked.end] for ids in targets]),
            "source_ends": _ends(ends, "source", [len(ids) for ids in sources]),
            "target_ends": _ends(ends, "target", [len(ids) + 1 for ids in targets]),
            "rows": [pair.row for pair in part],
            "source_hashes": [_hash(pair.source) for pair in part],
            "pair_hashes": [_hash(f"{pair.source.strip()}\0{pair.target.strip()}") for pair in part],
            **{name: np.concatenate(read[name]) for name in asked.source_tokenizer.ids_beside},
        }


def _batch(tokenizer: Any, written: list[str], limit: int, framed: bool) -> Any:
    """Texts as a tokenizer gives them, no longer than a limit."""
    return tokenizer(
        **{"text" if framed else "text_target": written},  # Marian writes in other pieces than it reads
        add_special_tokens=framed,
        truncation=True,
        max_length=limit,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )


def _cut(batch: Any) -> int:
    """How many texts of a batch were cut."""
    return sum(bool(encoding.overflowing) for encoding in batch.encodings)


def _ends(ends: dict[str, int], side: str, lengths: list[int]) -> np.ndarray:
    """Where each text ends in the column of all ids."""
    places = ends[side] + np.cumsum(lengths)
    ends[side] = int(places[-1])
    return places


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.strip().encode(), digest_size=8).digest(), "little")


def report(training: Examples, validation: Examples | None = None, counts: Counts | None = None) -> dict[str, Any]:
    """What is in the data: how many pairs, how long they are, what was cut or left out, what stands twice.

    `counts` are those of a validation file of its own.
    """
    hashes = training.column("pair_hashes")
    said: dict[str, Any] = {
        "pairs": len(training),
        "source_tokens": _quantiles(training.lengths("source")),
        "target_tokens": _quantiles(training.lengths("target")),
        "counts": asdict(training.counts),
        "duplicates": len(hashes) - len(np.unique(hashes)),
    }
    if validation is not None:
        both = np.isin(validation.column("pair_hashes"), hashes)
        sources = np.isin(validation.column("source_hashes"), training.column("source_hashes"))
        said["validation"] = {
            "pairs": len(validation),
            "source_tokens": _quantiles(validation.lengths("source")),
            "target_tokens": _quantiles(validation.lengths("target")),
            "in_training": int(both.sum()),
            "sources_in_training": int(sources.sum()),
        }
        if counts is not None:
            said["validation"]["counts"] = asdict(counts)
    return said


def _quantiles(lengths: np.ndarray) -> dict[str, int]:
    """Shortest, median, 95 % and longest."""
    if not len(lengths):
        return {}
    names = ("shortest", "median", "95%", "longest")
    return {name: int(x) for name, x in zip(names, np.percentile(lengths, [0, 50, 95, 100]), strict=True)}
