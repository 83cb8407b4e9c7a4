"""Shares the weights of a checkpoint out over safetensors files, and says which older files they replace."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from warmstart.folder import Content

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
# The folder of the target's tokenizer inside a pair's, where it is not the source's.
TARGET_TOKENIZER = "decoder_tokenizer"

# An earlier save's weights: a folder holds one set, and one of each variant ("fp16") beside it.
OLD_WEIGHTS = (
    r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?",
    r"pytorch_model(-\d+-of-\d+)?\.bin(\.index\.json)?",
    r"flax_model(-\d+-of-\d+)?\.msgpack(\.index\.json)?",
)


def old_weights(variant: str | None) -> tuple[str, ...]:
    """Patterns of the files of an earlier save that this one replaces: those of the same variant."""
    if not variant:
        return OLD_WEIGHTS
    name = re.escape(check_variant(variant))
    return (
        rf"(model|pytorch_model)\.{name}(-\d+-of-\d+)?\.(safetensors|bin)",
        rf"(model\.safetensors|pytorch_model\.bin)\.index\.{name}\.json",
    )


def check_variant(variant: str) -> str:
    """A variant's name, which becomes part of file names.

    Raises:
        ValueError: it is not one word.
    """
    if not re.fullmatch(r"[\w-]+", str(variant)):
        raise ValueError(f"variant={variant!r} is not a word that can stand in a file name, such as 'fp16'")
    return str(variant)


def index_name(weights: str, variant: str | None = None) -> str:
    """The file that says which shard holds what, beside `model.safetensors` and its like.

    >>> index_name("model.safetensors"), index_name("model.safetensors", "fp16")
    ('model.safetensors.index.json', 'model.safetensors.index.fp16.json')
    """
    return f"{weights}.index.{variant}.json" if variant else f"{weights}.index.json"


def split_shards(sizes: Mapping[str, int], max_shard_size: int | str) -> list[list[str]]:
    """Share names out, in order, over shards of at most `max_shard_size` bytes (a number, or text such as "5GB").

    >>> split_shards({"a": 3, "b": 3, "c": 1}, 4)
    [['a'], ['b', 'c']]
    """
    limit, used = size_in_bytes(max_shard_size), 0
    shards: list[list[str]] = []
    for name, size in sizes.items():
        if not shards or used + size > limit:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


def size_in_bytes(size: int | str) -> int:
    """A size such as 100, "200MB" or "5GB" in bytes.

    >>> size_in_bytes("200MB")
    200000000
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?B?)\s*", str(size).upper())
    if not found or found[2] not in _UNITS or float(found[1]) <= 0:
        raise ValueError(f"max_shard_size {size!r} is not a size; give a number of bytes or text such as '5GB'")
    return int(float(found[1]) * _UNITS[found[2]])


def shard_names(count: int, suffix: str = "safetensors", variant: str | None = None) -> list[str]:
    """File names of so many shards; one shard has the plain name.

    >>> shard_names(1), shard_names(2)[1], shard_names(1, "bin", "fp16")
    (['model.safetensors'], 'model-00002-of-00002.safetensors', ['pytorch_model.fp16.bin'])
    """
    stem = {"safetensors": "model", "msgpack": "flax_model"}.get(suffix, "pytorch_model")
    stem += f".{variant}" if variant else ""
    if count == 1:
        return [f"{stem}.{suffix}"]
    return [f"{stem}-{number:05d}-of-{count:05d}.{suffix}" for number in range(1, count + 1)]


def weight_files(
    sizes: Mapping[str, int],
    save: Callable[[list[str], Path], None],
    max_shard_size: int | str,
    suffix: str = "safetensors",
    variant: str | None = None,
) -> dict[str, Content]:
    """The files of a checkpoint's weights: shards, each written by `save(names, path)`, and the index of several."""
    shards = split_shards(sizes, max_shard_size)
    filenames = shard_names(len(shards), suffix, variant)

    def write(names: list[str]) -> Callable[[Path], None]:
        return lambda path: _told(lambda: save(names, path), path)

    files: dict[str, Content] = {filename: write(names) for filename, names in zip(filenames, shards, strict=True)}
    if len(shards) > 1:
        weight_map = {name: filename for filename, names in zip(filenames, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        name = index_name(shard_names(1, suffix)[0], variant)
        files[name] = (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()
    return files


def _told(write: Callable[[], None], path: Path) -> None:
    """Run `write`; where it could not write, say so with an OSError, whatever the library behind it raises."""
    try:
        write()
    except OSError:
        raise
    except Exception as error:  # safetensors and torch have no class of their own for it
        if found := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(found[1]), os.strerror(int(found[1]))) from error
        if "inline_container" in str(error):  # torch's writer, which does not pass on the reason
            raise OSError(f"torch could not write all of {path.name}; is there room for it?") from error
        raise
