"""Reads and writes `flax_model.msgpack`, and says how its names and axes differ from those of the other files.

There a matrix is a `kernel` (in, out), the table of an embedding an `embedding`, the weight of a norm a `scale`; the
path to it is the same. The format is that of `flax.serialization`: msgpack with an extension type for arrays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

FLAX_FILE = "flax_model.msgpack"
_ARRAY, _SCALAR = 1, 3  # extension types: an array, and a numpy scalar
_CHUNKED = "__msgpack_chunked_array__"
_CHUNK = 2**30  # bytes: what is larger is written in pieces, as msgpack's limit of 4 GiB for one value asks
_LEAVES = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}


def name_from_flax(path: str) -> str:
    """The name in the other files of what stands at a path.

    >>> name_from_flax("bert/encoder/layer/0/output/dense/kernel")
    'bert.encoder.layer.0.output.dense.weight'
    """
    *modules, leaf = path.split("/")
    return ".".join([*modules, _LEAVES.get(leaf, leaf)])


def path_in_flax(name: str, ours: str) -> str:
    """The path at which a parameter is kept that the other files call `name` and that is `ours` in memory.

    >>> path_in_flax("bert.embeddings.LayerNorm.weight", "embeddings.norm.weight")
    'bert/embeddings/LayerNorm/scale'
    """
    *modules, leaf = name.split(".")
    return "/".join([*modules, leaf if leaf != "weight" else kind_of(ours)])


def kind_of(ours: str) -> str:
    """What Flax calls the weight that has this name in memory: "scale", "embedding" or, turned, "kernel".

    >>> kind_of("layers.0.mlp.up.weight")
    'kernel'
    """
    module, _, _ = ours.rpartition(".")
    if module.endswith("norm"):
        return "scale"
    is_table = ".embeddings." in f".{module}" and not module.endswith("projection")
    return "embedding" if is_table or module.endswith(("relative_bias", "distances.table")) else "kernel"


class FlaxFile:
    """A `flax_model.msgpack` as arrays under the names and with the axes of the other files.

    Raises:
        ImportError: msgpack is missing.
        OSError: the file is truncated, corrupt, or holds anything but named arrays.
    """

    def __init__(self, path: Path):
        try:
            import msgpack
        except ImportError as error:
            raise ImportError(f'reading {path} needs msgpack: pip install "warmstart[flax]"') from error
        data = path.read_bytes()
        try:
            tree = msgpack.unpackb(data, ext_hook=_extension, raw=False, strict_map_key=False)
            arrays = dict(_flat(tree))
        except Exception as error:  # msgpack's errors have no common class
            raise OSError(
                f"{path} is not a sound flax_model.msgpack ({error or type(error).__name__}); it is truncated or "
                "corrupt: download or save it again"
            ) from error
        self._arrays = {
            name_from_flax(name): value.T if name.endswith("/kernel") else value for name, value in arrays.items()
        }
        self.shapes = {name: tuple(value.shape) for name, value in self._arrays.items()}
        self.types = {name: value.dtype.name for name, value in self._arrays.items()}

    def read(self, name: str) -> np.ndarray:
        """The array of that name."""
        return self._arrays[name]


def packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The bytes of a file that holds these arrays at these paths ("encoder/embeddings/...")."""
    import msgpack

    tree: dict[str, Any] = {}
    for path, array in arrays.items():
        *modules, leaf = path.split("/")
        node = tree
        for module in modules:
            node = node.setdefault(module, {})
        node[leaf] = _chunked(np.asarray(array))
    return msgpack.packb(tree, default=_extended, use_bin_type=True, strict_types=True)


def _flat(tree: Any, before: str = "") -> Iterator[tuple[str, np.ndarray]]:
    if not isinstance(tree, Mapping):
        raise ValueError(f"{before or 'it'} is a {type(tree).__name__} and not an array")
    for name, value in tree.items():
        path = f"{before}/{name}" if before else str(name)
        if isinstance(value, Mapping) and _CHUNKED in value:
            chunks = [value["chunks"][str(index)] for index in range(len(value["chunks"]))]
            value = np.concatenate(chunks).reshape([value["shape"][str(i)] for i in range(len(value["shape"]))])
        if isinstance(value, np.ndarray):
            yield path, value
        else:
            yield from _flat(value, path)


def _extension(code: int, data: bytes) -> np.ndarray:
    import msgpack

    if code not in (_ARRAY, _SCALAR):
        raise ValueError(f"it holds a value of the unknown type {code}")
    shape, name, values = msgpack.unpackb(data, raw=False)
    return np.frombuffer(values, _dtype(name)).reshape(shape)


def _extended(value: Any) -> Any:
    import msgpack

    parts = (value.shape, value.dtype.name, np.ascontiguousarray(value).tobytes())
    return msgpack.ExtType(_ARRAY, msgpack.packb(parts, use_bin_type=True))


def _chunked(array: np.ndarray) -> Any:
    if array.nbytes <= _CHUNK:
        return array
    flat, step = array.reshape(-1), _CHUNK // array.itemsize
    chunks = [flat[start : start + step] for start in range(0, flat.size, step)]
    sizes = {str(index): int(size) for index, size in enumerate(array.shape)}
    return {_CHUNKED: True, "shape": sizes, "chunks": {str(index): chunk for index, chunk in enumerate(chunks)}}


def _dtype(name: str) -> np.dtype[Any]:
    if name in ("bfloat16", "V2"):
        import ml_dtypes  # comes with JAX and TensorFlow

        return np.dtype(ml_dtypes.bfloat16)
    dtype = np.dtype(name)
    if dtype.hasobject:
        raise ValueError(f"arrays of type {name} are not read")
    return dtype
