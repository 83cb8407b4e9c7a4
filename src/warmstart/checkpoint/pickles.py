"""Reads `pytorch_model.bin` without torch: a pickle of named tensors, of which nothing but tensors is ever built.

Both forms of `torch.save` are read: the zip archive (torch 1.6 and later) and the row of pickles before it. The
unpickler knows the few names that stand for tensors and refuses every other, so that no code of a file is run.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

# What torch calls a storage -> numpy's type.
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the older form


@dataclass(frozen=True)
class _Kind:
    name: str


@dataclass(frozen=True)
class _Storage:
    dtype: str
    count: int
    data: Callable[[], bytes]


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        """The values, a read-only view of what was read."""
        dtype = _dtype(self.storage.dtype)
        flat = np.frombuffer(self.storage.data(), dtype, self.storage.count)[self.offset :]
        size = dtype.itemsize
        return np.lib.stride_tricks.as_strided(flat, self.shape, [x * size for x in self.strides], writeable=False)


class PickledArrays:
    """A `.bin` file as named numpy arrays; a tensor's values are read when they are asked for.

    Raises:
        OSError: the file is truncated or corrupt, or holds anything but named, dense tensors.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            tensors = _read(path)
        except (
            pickle.UnpicklingError,
            zipfile.BadZipFile,
            struct.error,
            ValueError,
            TypeError,
            AttributeError,
        ) as error:
            raise _unsound(path, error) from error
        except (EOFError, KeyError, IndexError, OverflowError, RecursionError) as error:
            raise _unsound(path, error) from error
        if not isinstance(tensors, Mapping) or not all(isinstance(name, str) for name in tensors):
            raise OSError(f"{path} holds something other than named tensors; save the model's state_dict() alone")
        for name, tensor in tensors.items():
            if not isinstance(tensor, _Tensor):
                raise OSError(
                    f"{path} holds a {type(tensor).__name__} under {name!r} where a tensor should be; save the model's "
                    "state_dict() alone"
                )
        self._tensors: dict[str, _Tensor] = dict(tensors)
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}
        self.types = {name: tensor.storage.dtype for name, tensor in self._tensors.items()}

    def read(self, name: str) -> np.ndarray:
        """The tensor of that name."""
        return self._tensors[name].array()


def _unsound(path: Path, error: Exception) -> OSError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return OSError(
        f"{path} is not a sound file of tensors alone ({reason}); it is truncated, corrupt or holds code, which is "
        "never run: get the checkpoint as safetensors"
    )


def _read(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        archive = zipfile.ZipFile(path)
        pickled = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
        if pickled is None:
            raise ValueError("it is an archive without data.pkl")
        folder = pickled.removesuffix("data.pkl")

        def stored(dtype: str, key: str, count: int) -> _Storage:
            entry = archive.getinfo(f"{folder}data/{key}")
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size < count * _size(dtype):
                raise ValueError(f"the values {key} are not whole")
            return _Storage(dtype, count, lambda: archive.read(entry))

        with archive.open(pickled) as file:
            return _Unpickler(file, stored).load()
    with path.open("rb") as file:
        return _read_older(file, path)


def _read_older(file: IO[bytes], path: Path) -> Any:
    """Three pickles of facts, one of the tensors, one of the storages' keys, and the storages one after another."""

    def nothing(*_: Any) -> _Storage:
        raise ValueError("a storage stands where none belongs")

    if _Unpickler(file, nothing).load() != _MAGIC or _Unpickler(file, nothing).load() != _PROTOCOL:
        raise ValueError("it does not begin as torch's files do")
    _Unpickler(file, nothing).load()
    places: dict[str, tuple[int, int]] = {}

    def stored(dtype: str, key: str, count: int) -> _Storage:
        def data() -> bytes:
            start, held = places[key]
            if held != count:
                raise OSError(f"{path} is not sound: the values {key} are not whole")
            with path.open("rb") as again:
                again.seek(start)
                return again.read(count * _size(dtype))

        sizes[key] = _size(dtype)
        return _Storage(dtype, count, data)

    sizes: dict[str, int] = {}
    tensors = _Unpickler(file, stored).load()
    end = path.stat().st_size
    for key in _Unpickler(file, nothing).load():
        (count,) = struct.unpack("<q", file.read(8))
        places[key] = (file.tell(), count)
        if count < 0 or file.tell() + count * sizes[key] > end:
            raise EOFError("its values are not whole")
        file.seek(count * sizes[key], 1)
    return tensors


class _Unpickler(pickle.Unpickler):
    """Builds tensors, dictionaries, lists, text and numbers."""

    def __init__(self, file: IO[bytes], stored: Callable[[str, str, int], _Storage]):
        super().__init__(file)
        self._stored = stored

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _Kind(_STORAGES[name])
        found = _NAMES.get((module, name))
        if found is None:
            raise pickle.UnpicklingError(f"its pickle asks for more than tensors: {module}.{name}")
        return found

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, count = pid[:5]
        if kind != "storage" or not isinstance(dtype, _Kind) or (len(pid) > 5 and pid[5] is not None):
            raise pickle.UnpicklingError("it has values of a kind that is not known")
        return self._stored(dtype.name, str(key), int(count))


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor has no values")
    offset, shape, strides = int(offset), tuple(map(int, shape)), tuple(map(int, strides))
    last = offset + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    is_empty = 0 in shape
    if min((offset, *shape, *strides)) < 0 or (not is_empty and last >= storage.count):
        raise pickle.UnpicklingError(f"a tensor of shape {shape} reaches beyond its values")
    if not is_empty and np.prod(shape, dtype=float) > storage.count:
        raise pickle.UnpicklingError(f"a tensor of shape {shape} is larger than its values; it is made to harm")
    return _Tensor(storage, offset, shape, strides)


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor


_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
}


def _size(name: str) -> int:
    return 2 if name == "bfloat16" else np.dtype(name).itemsize


def _dtype(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        import ml_dtypes  # comes with JAX and TensorFlow

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)
