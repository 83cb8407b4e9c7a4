"""Opens the weights of a folder or a hub id: safetensors or `.bin`, whole or sharded, memory-mapped, nothing executed."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from warmstart.hub import find_file, inside, read_json

# What may hold the weights, best first.
WHOLE = ("model.safetensors", "pytorch_model.bin")
OTHER_FRAMEWORKS = ("tf_model.h5", "flax_model.msgpack", "model.ckpt.index")


class WeightFile(Protocol):
    """One open file of named tensors."""

    shapes: dict[str, tuple[int, ...]]

    def read(self, name: str) -> Any:
        """The tensor of that name."""


@dataclass
class Weights:
    """The tensors of a checkpoint: their shapes at once, their values when read.

    `place` names the checkpoint in messages. Tensors of safetensors and of zipped `.bin` files are views of the mapped
    file: they take no memory until they are touched, and share the page cache.
    """

    place: str
    files: dict[str, WeightFile] = field(default_factory=dict)  # tensor name -> its file

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor."""
        return {name: file.shapes[name] for name, file in self.files.items()}

    def read(self, name: str) -> Any:
        """The tensor of that name."""
        return self.files[name].read(name)


class SafetensorsFile:
    """A `.safetensors` file; the library checks that header and offsets fit the file."""

    def __init__(self, path: Path, framework: str):
        from safetensors import SafetensorError, safe_open

        try:
            self._file = safe_open(str(path), framework=framework)
            self.shapes = {name: tuple(self._file.get_slice(name).get_shape()) for name in self._file.keys()}
        except (SafetensorError, ValueError, OverflowError) as error:
            raise OSError(
                f"{path} is not a sound safetensors file ({error}); it is truncated, corrupt or made to harm: "
                "download or save it again"
            ) from error

    def read(self, name: str) -> Any:
        return self._file.get_tensor(name)


class PickledFile:
    """A `pytorch_model.bin`, read by torch with `weights_only=True`: pickled code is refused, never run."""

    def __init__(self, path: Path):
        self._tensors = _unpickle(path)
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def read(self, name: str) -> Any:
        return self._tensors[name]


def open_weights(
    name_or_path: str | Path,
    *,
    framework: str = "pt",
    use_safetensors: bool | None = None,
    variant: str | None = None,
    **hub: Any,
) -> Weights:
    """Find and open the weights of a folder or a hub id.

    Looks for `model.safetensors`, its index, `pytorch_model.bin`, its index, in this order; `variant="fp16"` looks for
    `model.fp16.safetensors` and so on. `framework` is "pt" or "np": whose arrays `read` gives.

    Raises:
        FileNotFoundError: there are no weights; the message says what there is.
        OSError: a file is truncated, corrupt, or would run code.
        ValueError: an index points outside its folder, or does not fit its shards.
    """
    for filename in _candidates(use_safetensors, variant):
        if (path := find_file(name_or_path, filename, required=False, **hub)) is not None:
            return Weights(str(path), dict.fromkeys(_names(file := _open(path, framework)), file))
        index = f"{filename}.index.json"
        if (path := find_file(name_or_path, index, required=False, **hub)) is not None:
            return _sharded(name_or_path, path, framework, hub)
    there = [name for name in OTHER_FRAMEWORKS if find_file(name_or_path, name, required=False, **hub) is not None]
    other = f"; there is {', '.join(there)}, which this class does not read: save it as safetensors" if there else ""
    raise FileNotFoundError(
        f"{name_or_path} has no weights: none of {', '.join(_candidates(use_safetensors, variant))}, nor an index of "
        f"shards{other}"
    )


def _candidates(use_safetensors: bool | None, variant: str | None) -> list[str]:
    names = [name for name in WHOLE if use_safetensors in (None, name.endswith(".safetensors"))]
    return [name.replace(".", f".{variant}.", 1) if variant else name for name in names]


def _names(file: WeightFile) -> list[str]:
    return list(file.shapes)


def _open(path: Path, framework: str) -> WeightFile:
    return SafetensorsFile(path, framework) if path.suffix == ".safetensors" else PickledFile(path)


def _sharded(name_or_path: str | Path, index: Path, framework: str, hub: Mapping[str, Any]) -> Weights:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise ValueError(f"{index} has no `weight_map` from tensor names to file names; save the checkpoint again")
    shards: dict[str, WeightFile] = {}
    for shard in sorted(set(weight_map.values())):
        inside(index.parent, shard)
        path = find_file(name_or_path, shard, **hub)
        if path is None:
            raise FileNotFoundError(f"{index} names the shard {shard!r}, which is not there")
        shards[shard] = _open(path, framework)
    lost = [name for name, shard in weight_map.items() if name not in shards[shard].shapes]
    if lost:
        raise ValueError(f"{index} promises tensors that its shards lack: {_few(lost)}; download or save it again")
    return Weights(str(index), {name: shards[shard] for name, shard in weight_map.items()})


def _unpickle(path: Path) -> dict[str, Any]:
    try:
        import torch
    except ImportError as error:
        raise ImportError(f'reading {path} needs PyTorch: pip install "warmstart[torch]"') from error
    try:
        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):  # files of torch before 1.6 cannot be mapped
                raise
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OSError(
            f"{path} is not a sound file of tensors alone ({reason}); it is truncated, corrupt or holds code, which "
            "is never run: get the checkpoint as safetensors"
        ) from error
    if not isinstance(tensors, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise OSError(f"{path} holds something other than named tensors; save the model's state_dict() alone")
    return dict(tensors)


def _few(names: list[str], shown: int = 5) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
