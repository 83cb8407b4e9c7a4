"""Reads and writes `tf_model.h5`, reads original TensorFlow checkpoints, and says how their names differ.

In `tf_model.h5` a dense layer's matrix is a `kernel` (in, out), a norm has `gamma` and `beta`, a numbered layer is
`layer_._0`, and a scope stands before every name. GPT-2's matrices keep their layout, and their biases are rows (1, n).
In BERT's release format the scopes are the other files' modules, with `layer_0` for a layer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

H5_FILE, INDEX_FILE = "tf_model.h5", "model.ckpt.index"

# From h5 to the other files' names, in this order; the second table goes back.
_FROM_H5 = {r"_\._": ".", r"/[^/]*___": "/", "/": "."}
_TO_H5 = {r"\.(layer|h)\.(\d+)(?=\.)": r".\1_._\2", r"(^|\.)cls\.predictions": r"\1mlm___cls.predictions"}
# Layers of BART keep their dot, which is no step into a group.
_DOTTED = r"\.layers\.(\d+)\."
_LEAVES = {"kernel": "weight", "embeddings": "weight", "gamma": "weight", "beta": "bias"}
# Tables whose variable is called `weight`; every other table's is `embeddings`.
_TABLES_OF_WEIGHT = ("word_embeddings",)
# Names that an original checkpoint has beside the weights: the optimizer's moments, and counts.
_NOT_WEIGHTS = (
    r"(^|/)(adam_[mv]|AdamWeightDecayOptimizer(_1)?|Adam(_1)?|global_step|_CHECKPOINTABLE_OBJECT_GRAPH|save_counter)"
)
_FROM_INDEX = {
    r"layer_(\d+)(?=/)": r"layer/\1",
    r"(_embeddings)$": r"\1/weight",
    r"/(kernel|gamma|output_weights)$": "/weight",
    r"/beta$": "/bias",
    r"predictions/output_bias$": "predictions/bias",
    r"/output_bias$": "/bias",
    "/": ".",
}


def name_from_h5(path: str) -> str:
    """The name in the other files of what `tf_model.h5` keeps under a path.

    >>> name_from_h5("tf_bert_model/bert/encoder/layer_._0/output/LayerNorm/gamma:0")
    'bert.encoder.layer.0.output.LayerNorm.weight'
    """
    path = path.removesuffix(":0")
    inner = path.partition("/")[2] or path
    *modules, leaf = _renamed(f"/{inner}", _FROM_H5).lstrip(".").split(".")
    return ".".join([*modules, _LEAVES.get(leaf, leaf)])


def path_in_h5(name: str, ours: str, turned: bool) -> str:
    """The path, behind the scope, under which `tf_model.h5` keeps what the other files call `name`.

    `ours` is its name in memory; `turned` says that the other files keep it transposed, as GPT-2's do.

    >>> path_in_h5("bert.encoder.layer.0.output.dense.weight", "layers.0.mlp.down.weight", turned=False)
    'bert/encoder/layer_._0/output/dense/kernel'
    """
    module, _, leaf = name.rpartition(".")
    kind = ours.rpartition(".")[0].rpartition(".")[2]
    if kind.endswith("norm"):
        leaf = {"weight": "gamma", "bias": "beta"}[leaf]
    elif (".embeddings." in f".{ours}" and not kind.endswith("projection")) or kind in ("relative_bias", "table"):
        leaf = "weight" if module.endswith(_TABLES_OF_WEIGHT) else "embeddings"
    elif leaf == "weight" and not turned:
        leaf = "kernel"
    dotted = re.sub(_DOTTED, r".layers\0\1.", f"{module}.")
    path = _renamed(dotted, _TO_H5).rstrip(".")
    steps = [step.replace("\0", ".") for step in _split(path)]
    return "/".join([*steps, leaf])


def name_from_index(path: str) -> str | None:
    """The name in the other files of a variable of BERT's release format; None if it is no weight.

    >>> name_from_index("bert/encoder/layer_0/attention/self/query/kernel")
    'bert.encoder.layer.0.attention.self.query.weight'
    """
    return None if re.search(_NOT_WEIGHTS, path) else _renamed(path, _FROM_INDEX)


def _renamed(name: str, table: Mapping[str, str]) -> str:
    for pattern, replacement in table.items():
        name = re.sub(pattern, replacement, name)
    return name


def _split(path: str) -> list[str]:
    """The steps of a dotted path; the dot of `layer_._0` is none."""
    return [step.replace("\1", "_._") for step in path.replace("_._", "\1").split(".") if step]


class H5File:
    """A `tf_model.h5` as arrays under the names and with the axes of the other files.

    Raises:
        ImportError: h5py is missing.
        OSError: the file is truncated, corrupt, or has no named weights.
    """

    def __init__(self, path: Path):
        try:
            import h5py
        except ImportError as error:
            raise ImportError(f'reading {path} needs h5py: pip install "warmstart[tf]"') from error
        try:
            self._file = h5py.File(path, "r")
            places = {
                name_from_h5(_text(weight)): (f"{_text(layer)}/{_text(weight)}", _text(weight))
                for layer in self._file.attrs["layer_names"]
                for weight in self._file[layer].attrs["weight_names"]
            }
            self._places = {name: (self._file[place], weight) for name, (place, weight) in places.items()}
        except (OSError, KeyError, AttributeError) as error:
            raise OSError(
                f"{path} is not a sound tf_model.h5 ({error}); it is truncated, corrupt or of another layout: download "
                "or save it again"
            ) from error
        self.shapes = {name: self._shape(name) for name in self._places}
        self.types = {name: data.dtype.name for name, (data, _) in self._places.items()}

    def _shape(self, name: str) -> tuple[int, ...]:
        data, weight = self._places[name]
        shape = tuple(data.shape)
        if name.endswith("bias") and len(shape) == 2 and shape[0] == 1:
            return shape[1:]
        return shape[::-1] if weight.endswith("/kernel:0") else shape

    def read(self, name: str) -> np.ndarray:
        """The array of that name."""
        data, weight = self._places[name]
        array = np.asarray(data)
        return (array.T if weight.endswith("/kernel:0") else array).reshape(self.shapes[name])


class IndexFile:
    """An original TensorFlow checkpoint (`model.ckpt.index` and its data), in BERT's release format.

    Raises:
        ImportError: tensorflow is missing, which alone reads the format.
        OSError: the file is truncated or corrupt, or its data are not there.
    """

    def __init__(self, path: Path):
        try:
            import tensorflow as tf
        except ImportError as error:
            raise ImportError(f'reading {path} needs tensorflow: pip install "warmstart[tf]"') from error
        try:
            self._reader = tf.train.load_checkpoint(str(path).removesuffix(".index"))
            shapes = self._reader.get_variable_to_shape_map()
        except (tf.errors.OpError, ValueError, RuntimeError) as error:
            raise OSError(
                f"{path} is not a sound TensorFlow checkpoint ({str(error).splitlines()[0]}); its .data files must "
                "stand beside it: download them again"
            ) from error
        self._paths = {name: path for path in shapes if (name := name_from_index(path)) is not None}
        self.shapes = {
            name: tuple(shapes[path])[::-1] if path.endswith("/kernel") else tuple(shapes[path])
            for name, path in self._paths.items()
        }
        types = self._reader.get_variable_to_dtype_map()
        self.types = {name: types[path].name for name, path in self._paths.items()}

    def read(self, name: str) -> np.ndarray:
        """The array of that name."""
        path = self._paths[name]
        array = self._reader.get_tensor(path)
        return array.T if path.endswith("/kernel") else array


def write_h5(arrays: Mapping[str, np.ndarray], paths: Mapping[str, str], scope: str, path: Path) -> None:
    """Write a `tf_model.h5`: arrays by the other files' names, each at its path behind the scope."""
    import h5py

    by_layer: dict[str, list[str]] = {}
    for name in arrays:
        by_layer.setdefault(paths[name].partition("/")[0], []).append(name)
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = _as_bytes(by_layer)
        file.attrs["backend"], file.attrs["keras_version"] = b"tensorflow", b"2.15.0"
        for layer, names in by_layer.items():
            group = file.create_group(layer)
            group.attrs["weight_names"] = _as_bytes(f"{scope}/{paths[name]}:0" for name in names)
            for name in names:
                array, place = arrays[name], paths[name]
                if place.endswith("/kernel"):
                    array = array.T
                elif place.endswith("/bias") and _is_row(place):
                    array = array[None]
                group.create_dataset(f"{scope}/{place}:0", data=array)


def _is_row(path: str) -> bool:
    """Whether a bias is kept as a row (1, n): GPT-2's are."""
    return re.search(r"h_\._\d+/(attn|crossattention|mlp)/", path) is not None


def _as_bytes(names: Iterable[str]) -> list[bytes]:
    return [name.encode() for name in names]


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
