"""The tensors of a checkpoint by name, shape and type, read from the heads of its files alone."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from warmstart.checkpoint.flax_files import FLAX_FILE, name_from_flax
from warmstart.checkpoint.readers import Weights, open_weights
from warmstart.hub import find_file, read_json

_LONG = {"F": "float", "BF": "bfloat", "I": "int", "U": "uint"}


class Tensor(NamedTuple):
    """What a file says of a tensor."""

    shape: tuple[int, ...]
    dtype: str  # as torch and numpy call it: float32, bfloat16 ...
    file: str

    @property
    def numbers(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


def read_headers(place: str, hub: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """Name -> what is known of the tensor, for a folder or a hub id; nothing is downloaded but heads.

    None where weights of a hub repository could not be looked into that way.

    Raises:
        FileNotFoundError: a folder has no weights.
        OSError: a file is truncated or corrupt.
        ValueError: an index points outside its folder, or does not fit its shards.
    """
    if os.path.isdir(place):
        return _tensors(open_weights(place, framework="np"))
    try:  # what was downloaded before
        return _tensors(open_weights(place, framework="np", **{**hub, "local_files_only": True}))
    except OSError:
        return None if hub.get("local_files_only") else _tensors_on_hub(place, hub)


def _tensors(weights: Weights) -> dict[str, Tensor]:
    place = Path(weights.place)
    file_of = dict.fromkeys(weights.files, place.name)
    if place.suffix == ".json":
        named = read_json(place)["weight_map"]
        file_of = {name_from_flax(name) if place.name.startswith(FLAX_FILE) else name: x for name, x in named.items()}
    types: dict[str, str] = {}
    for name in sorted(set(file_of.values())):
        if name.endswith(".safetensors"):
            types.update(_types(place.parent / name))
    for name in weights.files.keys() - types.keys():
        types[name] = weights.files[name].types[name]  # type: ignore[attr-defined]
    return {name: Tensor(shape, types[name], file_of[name]) for name, shape in weights.shapes.items()}


def _types(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {name: _long(fields["dtype"]) for name, fields in header.items() if name != "__metadata__"}


def _long(dtype: str) -> str:
    """The usual name of a type, from the one in safetensors.

    >>> _long("F32"), _long("BF16"), _long("I64"), _long("BOOL")
    ('float32', 'bfloat16', 'int64', 'bool')
    """
    return re.sub(r"[A-Z]+(?=\d)", lambda short: _LONG.get(short[0], short[0]), dtype).replace("BOOL", "bool")


def _tensors_on_hub(place: str, hub: Mapping[str, Any]) -> dict[str, Tensor] | None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, NotASafetensorsRepoError, SafetensorsParsingError

    try:
        found = HfApi().get_safetensors_metadata(place, revision=hub.get("revision"))
    except (NotASafetensorsRepoError, SafetensorsParsingError, HfHubHTTPError):
        return None
    return {
        name: Tensor(tuple(tensor.shape), _long(str(tensor.dtype)), filename)
        for filename, file in found.files_metadata.items()
        for name, tensor in file.tensors.items()
    }


def file_sizes(place: str, hub: Mapping[str, Any]) -> dict[str, int]:
    """File name -> bytes, of a folder and the folders in it, or of a hub repository; {} where the hub does not tell."""
    folder = Path(place)
    if not folder.is_dir():
        return _sizes_on_hub(place, hub)
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    inside = {path.relative_to(folder): path.stat().st_size for path in files}
    return {
        name.as_posix(): size for name, size in inside.items() if not any(part.startswith(".") for part in name.parts)
    }


def _sizes_on_hub(place: str, hub: Mapping[str, Any]) -> dict[str, int]:
    if hub.get("local_files_only"):
        path = find_file(place, "config.json", **hub)  # where the others of this revision lie
        return file_sizes(str(path.parent), hub) if path is not None else {}
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        info = HfApi().model_info(place, revision=hub.get("revision"), files_metadata=True)
    except (HfHubHTTPError, OSError):
        return {}
    return {file.rfilename: file.size or 0 for file in info.siblings or ()}
