"""Opens the weights of a folder or a hub id: safetensors or `.bin`, whole or sharded, mapped, no code of theirs run."""

from __future__ import annotations

import contextlib
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol

from warmstart.checkpoint.flax_files import FLAX_FILE, FlaxFile, name_from_flax
from warmstart.checkpoint.pickles import PickledArrays
from warmstart.checkpoint.tensorflow_files import H5_FILE, INDEX_FILE, H5File, IndexFile
from warmstart.checkpoint.writer import check_variant, index_name
from warmstart.hub import find_file, inside, read_json

# What may hold the weights, best first.
WHOLE = ("model.safetensors", "pytorch_model.bin")
OTHER_FRAMEWORKS = ("tf_model.h5", "flax_model.msgpack", "model.ckpt.index")
_POINTER = b"version https://git-lfs"


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
    unlisted: list[str] = field(default_factory=list)  # tensors that shards hold and their index does not name

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor."""
        return {name: file.shapes[name] for name, file in self.files.items()}

    def read(self, name: str) -> Any:
        """The tensor of that name."""
        return self.files[name].read(name)

    def read_alone(self, name: str) -> Any:
        """The tensor of that name (of torch) in memory, or a mapping of the file, that goes when it goes."""
        file = self.files[name]
        return file.read_alone(name) if isinstance(file, SafetensorsFile) else file.read(name).clone()


class SafetensorsFile:
    """A `.safetensors` file; the library checks that header and offsets fit the file."""

    def __init__(self, path: Path, framework: str):
        from safetensors import SafetensorError, safe_open

        if framework == "np":
            with contextlib.suppress(ImportError):
                import ml_dtypes  # noqa: F401  (with it numpy knows bfloat16)
        self._open = lambda: safe_open(str(path), framework=framework)
        try:
            self._file = self._open()
            self.shapes = {name: tuple(self._file.get_slice(name).get_shape()) for name in self._file.keys()}
        except (SafetensorError, ValueError, OverflowError) as error:
            _check_not_pointer(path)
            raise OSError(
                f"{path} is not a sound safetensors file ({error}); it is truncated, corrupt or made to harm: "
                "download or save it again"
            ) from error

    def read(self, name: str) -> Any:
        return self._file.get_tensor(name)

    def read_alone(self, name: str) -> Any:
        """See `Weights.read_alone`: the file is mapped anew, for this one tensor."""
        return self._open().get_tensor(name)


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
    from_tf: bool = False,
    **hub: Any,
) -> Weights:
    """Find and open the weights of a folder or a hub id, or an original TensorFlow checkpoint by its `.index` file.

    Looks for `model.safetensors`, its index, `pytorch_model.bin`, its index, in this order; `variant="fp16"` looks for
    `model.fp16.safetensors` and so on. `framework` is "pt" or "np": whose arrays `read` gives. With "np" a `.bin` is
    read without torch, and `flax_model.msgpack`, `tf_model.h5` and `model.ckpt.index` are looked for too, last; with
    `from_tf` the latter two alone.

    Raises:
        FileNotFoundError: there are no weights; the message says what there is.
        OSError: a file is truncated, corrupt, or would run code.
        ValueError: an index points outside its folder, or does not fit its shards.
    """
    if is_index(name_or_path):
        return Weights(str(name_or_path), dict.fromkeys(_names(file := _open(Path(name_or_path), framework)), file))
    wanted = [H5_FILE, INDEX_FILE] if from_tf else _candidates(use_safetensors, variant, framework)
    for filename in wanted:
        if (path := find_file(name_or_path, filename, required=False, **hub)) is not None:
            return Weights(str(path), dict.fromkeys(_names(file := _open(path, framework)), file))
        index = index_name(filename.replace(f".{variant}.", ".", 1), variant)
        if (path := find_file(name_or_path, index, required=False, **hub)) is not None:
            return _sharded(name_or_path, path, framework, hub)
    _explain_missing(name_or_path, wanted, hub)


def _explain_missing(name_or_path: str | Path, wanted: list[str], hub: Mapping[str, Any]) -> NoReturn:
    """Say that there are no weights, and what there is."""
    names = (*WHOLE, *OTHER_FRAMEWORKS)
    there = [name for name in names if find_file(name_or_path, name, required=False, **hub) is not None]
    other = f"; {', '.join(there)} is not what was asked for, or not what this class reads" if there else ""
    try:
        find_file(name_or_path, wanted[0], **hub)
        found = ""
    except FileNotFoundError as error:
        found = f" ({error})"
    raise FileNotFoundError(
        f"{name_or_path} has no weights: none of {', '.join(wanted)}, nor an index of shards{found}{other}. Give the "
        "folder that save_pretrained wrote, or make a new model with from_config"
    )


def _candidates(use_safetensors: bool | None, variant: str | None, framework: str) -> list[str]:
    names = [name for name in WHOLE if use_safetensors in (None, name.endswith(".safetensors"))]
    if framework == "np" and not use_safetensors:
        names += [FLAX_FILE, H5_FILE, INDEX_FILE]
    return [name.replace(".", f".{check_variant(variant)}.", 1) if variant else name for name in names]


def _names(file: WeightFile) -> list[str]:
    return list(file.shapes)


def _open(path: Path, framework: str) -> WeightFile:
    if path.suffix == ".safetensors":
        return SafetensorsFile(path, framework)
    try:
        if path.suffix == ".msgpack":
            return FlaxFile(path)
        if path.suffix in (".h5", ".index"):
            return _of_framework(H5File(path) if path.suffix == ".h5" else IndexFile(path), framework)
        return PickledArrays(path) if framework == "np" else PickledFile(path)
    except OSError:
        _check_not_pointer(path)
        raise


def is_index(place: str | Path) -> bool:
    """Whether a place is the index of an original TensorFlow checkpoint rather than a folder or a hub id."""
    return str(place).endswith(".index") and Path(place).is_file()


def folder_of(place: str | Path) -> str | Path:
    """Where the configuration of a checkpoint is looked for: beside its index, or the place itself."""
    return Path(place).parent if is_index(place) else place


class _AsTensors:
    """A file of arrays, read as tensors of torch."""

    def __init__(self, file: WeightFile):
        self._file, self.shapes = file, file.shapes

    def read(self, name: str) -> Any:
        import torch

        return torch.from_numpy(self._file.read(name).copy())


def _of_framework(file: WeightFile, framework: str) -> WeightFile:
    return _AsTensors(file) if framework == "pt" else file


def _sharded(name_or_path: str | Path, index: Path, framework: str, hub: Mapping[str, Any]) -> Weights:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise ValueError(f"{index} has no `weight_map` from tensor names to file names; save the checkpoint again")
    if index.name.startswith(FLAX_FILE):
        weight_map = {name_from_flax(name): shard for name, shard in weight_map.items()}
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
    unlisted = [name for file in shards.values() for name in file.shapes if name not in weight_map]
    return Weights(str(index), {name: shards[shard] for name, shard in weight_map.items()}, unlisted)


def _unpickle(path: Path) -> dict[str, Any]:
    try:
        import torch
    except ImportError as error:
        raise ImportError(f'reading {path} needs PyTorch: pip install "warmstart[torch]"') from error
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "Detected pickle protocol", UserWarning
            )  # what it cannot read, it refuses
            tensors = _load(torch, path)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError) as error:
        _check_not_pointer(path)
        reason = str(error).splitlines()[0].split(". ")[0] if str(error) else type(error).__name__
        if "weights only" in reason.lower():  # torch's own advice is to run the code
            reason = "its pickle asks for more than tensors"
        raise OSError(
            f"{path} is not a sound file of tensors alone ({reason}); it is truncated, corrupt or holds code, which "
            "is never run: get the checkpoint as safetensors"
        ) from error
    if not isinstance(tensors, Mapping) or not all(isinstance(name, str) for name in tensors):
        raise OSError(f"{path} holds something other than named tensors; save the model's state_dict() alone")
    for name, tensor in tensors.items():
        _check_tensor(path, name, tensor, torch)
    return dict(tensors)


def _load(torch: Any, path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):  # files of torch before 1.6 cannot be mapped
            raise
        return torch.load(path, map_location="cpu", weights_only=True)


def _check_tensor(path: Path, name: str, tensor: Any, torch: Any) -> None:
    """A pickle can describe tensors that have no values in the file, or the same few for terabytes."""
    if not isinstance(tensor, torch.Tensor):
        raise OSError(
            f"{path} holds a {type(tensor).__name__} under {name!r} where a tensor should be; save the model's "
            "state_dict() alone"
        )
    if tensor.device.type != "cpu" or tensor.layout != torch.strided:
        raise OSError(f"{path}: {name!r} is a {tensor.layout} tensor on {tensor.device}; save it as a plain, dense one")
    if tensor.numel() * tensor.element_size() > path.stat().st_size:
        raise OSError(f"{path}: {name!r} of shape {tuple(tensor.shape)} is larger than the file; it is made to harm")


def _check_not_pointer(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise OSError(f"{path} is a pointer of git-lfs and not the file itself: run `git lfs pull` in its folder")


def _few(names: list[str], shown: int = 5) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
