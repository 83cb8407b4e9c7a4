"""Fills a model with a checkpoint's weights: named, checked against their shapes, and only then read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from warmstart import fitting
from warmstart.checkpoint import tensorflow_files
from warmstart.checkpoint.names import Shape, pack, unpack
from warmstart.checkpoint.readers import Weights
from warmstart.checkpoint.tensorflow_files import path_in_h5
from warmstart.config import PretrainedConfig
from warmstart.families import family_of
from warmstart.families.entry import Stored
from warmstart.fitting import Side
from warmstart.spec import StackSpec
from warmstart.tf.elements import Block, Output, RMSNorm
from warmstart.warm_start import PROJECTION, LoadReport, copies_of_self_attention

# Attributes whose names Keras has taken, and what their contents are called in all frameworks.
_NAMES = {"blocks": "layers", "output_layer": "output"}


class Parameter(NamedTuple):
    """A variable, and whether it is our parameter's matrix turned: Keras keeps dense layers (inputs, outputs).

    A convolution's has its axes the other way round: (width, inputs, outputs).
    """

    variable: keras.Variable
    turned: bool = False

    @property
    def shape(self) -> Shape:
        """The shape of our parameter."""
        shape = tuple(self.variable.shape)
        return shape[::-1] if self.turned else shape

    def value(self) -> np.ndarray:
        """Our parameter's value."""
        value = self.variable.numpy()
        return value.T if self.turned else value

    def assign(self, value: Any) -> None:
        """Give the parameter a value."""
        self.variable.assign(value.T if self.turned else value)


def named_parameters(layer: Any, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
    """Every parameter of a model under the name that it has in all frameworks; what is tied comes several times."""
    own = _own_parameters(layer)
    if own is not None:
        yield from ((prefix + leaf, parameter) for leaf, parameter in own.items() if parameter.variable is not None)
        return
    for attribute, value in vars(layer).items():
        if attribute.startswith("_"):
            continue
        name = prefix + _NAMES.get(attribute, attribute)
        if isinstance(value, keras.layers.Layer):
            yield from named_parameters(value, f"{name}.")
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, Block):
                    yield from named_parameters(item, f"{name}.{index}.")


def _own_parameters(layer: Any) -> dict[str, Parameter] | None:
    """The parameters of a layer that has some itself; None of one that only holds others."""
    if isinstance(layer, (keras.layers.Dense, keras.layers.Conv1D)):
        bias = {"bias": Parameter(layer.bias)} if layer.use_bias else {}
        return {"weight": Parameter(layer._kernel, turned=True), **bias}
    if isinstance(layer, keras.layers.Embedding):
        return {"weight": Parameter(layer._embeddings)}
    if isinstance(layer, keras.layers.LayerNormalization):
        return {"weight": Parameter(layer.gamma), "bias": Parameter(layer.beta)}
    if isinstance(layer, RMSNorm):
        return {"weight": Parameter(layer.weight)}
    if isinstance(layer, Output):
        bias = {} if layer.bias is None else {"bias": Parameter(layer.bias)}
        return {"weight": Parameter(layer.weight), **bias}
    return None


def shared_names(model: Any) -> dict[str, list[str]]:
    """Each parameter's first name -> all of its names; tied weights have several."""
    groups: dict[int, list[str]] = {}
    for name, parameter in named_parameters(model):
        groups.setdefault(id(parameter.variable), []).append(name)
    return {names[0]: names for names in groups.values()}


def fill(
    model: Any, sides: list[Side], weights: Weights, *, cross_attention_init: str = "random", **options: Any
) -> LoadReport:
    """Give every parameter of a model its value: the checkpoint's, or a new one where the plan allows it.

    `options` are those of `fitting.fit`.

    Raises:
        ValueError: weights are missing, unexpected or of another shape; nothing was read yet.
    """
    parameters = dict(named_parameters(model))
    groups = shared_names(model)
    shapes = {name: parameters[name].shape for name in groups}
    plan = fitting.fit(groups, shapes, sides, weights, **options)
    for name, entry in plan.stored.items():
        parameters[name].assign(unpack(entry, number(weights, entry.name)))
    initialise(model, sides, plan.new)
    copied = copies_of_self_attention(plan.new, shapes) if cross_attention_init == "copy" else {}
    copy_weights(model, copied)
    return plan.report(copied)


def broken_ties(model: Any, sides: list[Side], weights: Weights) -> dict[str, PretrainedConfig]:
    """Settings that tie weights of which the file holds several, different copies: name -> whose setting it is."""

    def read(entry: Stored) -> np.ndarray:
        return unpack(entry, number(weights, entry.name))

    def equal(one: np.ndarray, other: np.ndarray) -> bool:
        return one.dtype == other.dtype and np.array_equal(one, other)

    return fitting.broken_ties(shared_names(model), sides, weights, model.config, read, equal)


def initialise(model: Any, sides: list[Side], names: Iterable[str]) -> None:
    """Make new values for these parameters: norms 1 and 0, biases 0, the rest normal with the config's deviation."""
    parameters = dict(named_parameters(model))
    for name in names:
        side = max(
            (side for side in sides if name.startswith(side.ours)), key=lambda side: len(side.ours), default=sides[-1]
        )
        parameters[name].assign(initial_value(name, parameters[name].shape, side.spec))


def initial_value(name: str, shape: Shape, spec: StackSpec) -> Any:
    """The value that a new parameter of this name starts with."""
    *_, module, leaf = ("", *name.split("."))
    if module.endswith("norm"):
        return np.full(shape, spec.norm.start if leaf == "weight" else 0.0, np.float32)
    if leaf == "bias":
        return np.zeros(shape, np.float32)
    value = np.array(keras.random.normal(shape, stddev=spec.initial_deviation(name), dtype="float32"))
    row = next((row for table, row in spec.embedding.zero_rows().items() if name.endswith(table)), None)
    if row is not None:
        value[row] = 0.0
    return value


def copy_weights(model: Any, copies: Mapping[str, str]) -> None:
    """Give each parameter a copy of another's value."""
    parameters = dict(named_parameters(model))
    for name, source in copies.items():
        parameters[name].assign(parameters[source].value())


def saved(model: Any, sides: list[Side]) -> tuple[dict[str, int], dict[str, Stored]]:
    """The sizes in bytes of the tensors a checkpoint of this model holds, and where each parameter lies in them."""
    entries = fitting.written(shared_names(model), sides)
    parameters = dict(named_parameters(model))
    sizes: dict[str, int] = {}
    for name, entry in entries.items():
        variable = parameters[name].variable
        size = int(np.prod(variable.shape)) * np.dtype(keras.backend.standardize_dtype(variable.dtype)).itemsize
        for key in filter(None, (entry.name, entry.untied)):
            sizes[key] = sizes.get(key, 0) + size
    return sizes, entries


def packed(model: Any, entries: Mapping[str, Stored], keys: Iterable[str]) -> dict[str, np.ndarray]:
    """Some of a checkpoint's tensors, as files hold them."""
    parameters = dict(named_parameters(model))
    values = {name: parameters[name].value() for name, entry in entries.items()}
    return {key: np.ascontiguousarray(pack(entries, values, key, np.concatenate)) for key in keys}


def write_tensors(model: Any, entries: Mapping[str, Stored], keys: list[str], path: Path) -> None:
    """Write some of a checkpoint's tensors to one safetensors file."""
    from safetensors.numpy import save_file

    save_file(packed(model, entries, keys), path, metadata={"format": "pt"})


def write_h5(model: Any, sides: list[Side], entries: Mapping[str, Stored], path: Path) -> None:
    """Write all of a checkpoint's tensors to one `tf_model.h5`, under the names of the reference's classes."""
    names: dict[str, str] = {}
    for ours, entry in entries.items():
        name = entry.name
        for side in sides:
            if side.spec.head is None and ours.startswith(side.ours) and not ours.startswith(PROJECTION):
                name = side.theirs + _base(side) + name[len(side.theirs) :]
        names[entry.name] = path_in_h5(name, ours, entry.transposed)
    tensorflow_files.write_h5(packed(model, entries, names), names, "model", path)


def _base(side: Side) -> str:
    """What stands before the names of a stack without a head in `tf_model.h5`."""
    family = family_of(side.config)
    base = family.prefixes[-1]
    return base.partition(".")[0] + "." if family.alone_prefix and not side.ours else base


def number(weights: Weights, name: str) -> np.ndarray:
    """A stored tensor of real numbers."""
    tensor = weights.read(name)
    if str(tensor.dtype) not in ("float16", "bfloat16", "float32", "float64"):
        raise ValueError(
            f"{weights.place}: {name} is of type {tensor.dtype}; weights are read as float32, bfloat16, float16 or "
            "float64: use a checkpoint that is not quantised"
        )
    return tensor
