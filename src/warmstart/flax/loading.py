"""Fills a tree of parameters with a checkpoint's weights, and writes one: our names and axes, theirs on disk.

A tree is nested dictionaries by module, as Linen has them: `params["encoder"]["layers"]["0"]["mlp"]["up"]["kernel"]`.
With its dots this is our name of the parameter, "encoder.layers.0.mlp.up.weight"; a matrix is (in, out) here, (out, in)
under our name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from warmstart.checkpoint.flax_files import kind_of, packed, path_in_flax
from warmstart.checkpoint.names import Shape, pack, unpack
from warmstart.checkpoint.readers import Weights
from warmstart.families.entry import Stored
from warmstart.fitting import Fit, Groups, Side, written

Params = dict[str, Any]
NUMBERS = ("float32", "bfloat16", "float16", "float64")
TABLE, OUTPUT = "embeddings.token.weight", "head.output.weight"


def as_dtype(dtype: Any) -> Any:
    """A floating-point type of JAX from a type or its name.

    Raises:
        ValueError: it is none.

    >>> as_dtype("bfloat16").name
    'bfloat16'
    """
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or found.name not in NUMBERS[:3]:
        raise ValueError(f"dtype {dtype!r} is not a floating-point type; use 'float32', 'bfloat16' or 'float16'")
    return found


def flat(params: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """The leaves of a tree by our names; a matrix stays as it lies.

    >>> flat({"mlp": {"up": {"kernel": 1, "bias": 2}}})
    {'mlp.up.weight': 1, 'mlp.up.bias': 2}
    """
    leaves: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            leaves |= flat(value, f"{before}{name}.")
        else:
            leaves[f"{before}{name if name == 'bias' else 'weight'}"] = value
    return leaves


def nested(leaves: Mapping[str, Any]) -> Params:
    """The tree of what has our names: what `flat` took apart."""
    tree: Params = {}
    for name, value in leaves.items():
        *modules, leaf = name.split(".")
        node = tree
        for module in modules:
            node = node.setdefault(module, {})
        node[leaf if leaf == "bias" else kind_of(name)] = value
    return tree


def our_shapes(leaves: Mapping[str, Any]) -> dict[str, Shape]:
    """The shapes under our names, where a matrix is (out, in)."""
    return {name: tuple(x.shape[::-1]) if _is_kernel(name) else tuple(x.shape) for name, x in leaves.items()}


def groups_of(names: Iterable[str], sides: list[Side], sharing: str) -> dict[str, list[str]]:
    """Each parameter of a tree -> all names that it has in files: a tied head's, and the decoder's where it is shared.

    `sharing` is "tie_encoder_decoder", "share_embeddings", or nothing.
    """
    groups = {name: [name] for name in names}
    if sharing:
        for name, group in groups.items():
            own = name.removeprefix("encoder.")
            if name != own and (sharing == "tie_encoder_decoder" or own == TABLE):
                group.append(f"decoder.{own}")
    for side in sides:
        if side.spec.head is not None and side.spec.head.tied:
            next(group for group in groups.values() if side.ours + TABLE in group).append(side.ours + OUTPUT)
    return groups


def read(weights: Weights, entry: Stored) -> np.ndarray:
    """A parameter as it lies in the file, with the axes of our names.

    Raises:
        ValueError: it is not of real numbers.
    """
    tensor = weights.read(entry.name)
    if tensor.dtype.name not in NUMBERS:
        raise ValueError(
            f"{weights.place}: {entry.name} is of type {tensor.dtype}; weights are read as float32, bfloat16, float16 "
            "or float64: use a checkpoint that is not quantised"
        )
    return unpack(entry, tensor.astype(np.float32) if tensor.dtype.name == "float64" else tensor)


def fill(plan: Fit, weights: Weights, new: Callable[[list[str]], Mapping[str, Any]]) -> Params:
    """The tree that a plan describes; `new` makes the first values of the parameters that the file has not."""
    leaves = {}
    for name, entry in plan.stored.items():
        value = read(weights, entry)
        leaves[name] = jnp.asarray(np.ascontiguousarray(value.T if _is_kernel(name) else value))
    return nested(leaves | dict(new(plan.new) if plan.new else {}))


def initial_values(shapes: Mapping[str, Any], sides: list[Side], key: Any) -> dict[str, Any]:
    """First values by our names: norms 1, biases 0, the rest normal with the configuration's deviation.

    All of them are cut from one draw, which compiles in a moment; a draw for each takes a hundred times as long.
    """
    drawn = {name: int(np.prod(x.shape)) for name, x in shapes.items() if _is_drawn(name)}
    numbers: Any = jax.random.normal(key, (sum(drawn.values()),))
    start, values = 0, {}
    is_traced = isinstance(numbers, jax.core.Tracer)
    xp: Any = jnp if is_traced else np
    numbers = numbers if is_traced else np.asarray(numbers)
    for name, x in shapes.items():
        side = next((side for side in sides if side.ours and name.startswith(side.ours)), sides[-1])
        if name not in drawn:
            values[name] = xp.full(x.shape, 0.0 if name.endswith(".bias") else side.spec.norm.start, np.float32)
            continue
        value = numbers[start : start + drawn[name]].reshape(x.shape) * np.float32(side.spec.initial_deviation(name))
        start += drawn[name]
        row = side.spec.embedding.zero_rows().get(name.removeprefix(side.ours))
        values[name] = value if row is None else value * (np.arange(len(value)) != row)[:, None].astype(np.float32)
    return {name: jnp.asarray(value) for name, value in values.items()}


def _is_drawn(name: str) -> bool:
    return name.endswith(".weight") and kind_of(name) != "scale"


def copied(params: Params, copies: Mapping[str, str]) -> Params:
    """The tree with parameters that are copies of others: name -> whose value it gets."""
    leaves = flat(params)
    return nested(leaves | {name: leaves[source] for name, source in copies.items()})


def check_tree(params: Any, wanted: Mapping[str, Any]) -> None:
    """Check that a tree has the parameters of a model and no others, each in its shape.

    Raises:
        ValueError: lists those that are missing, not known, or of another shape.
    """
    if not isinstance(params, Mapping):
        raise ValueError(f"params is a {type(params).__name__}; give a tree of parameters, as model.params is")
    given = {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(_plain(params))}
    model = {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(_plain(wanted))}
    unequal = [
        f"{name} {tuple(given[name].shape)} where {tuple(x.shape)} is wanted"
        for name, x in model.items()
        if name in given and tuple(given[name].shape) != tuple(x.shape)
    ]
    kinds = {
        "missing": [name for name in model if name not in given],
        "not known to this model": [name for name in given if name not in model],
        "of another shape": unequal,
    }
    wrong = [
        f"{len(names)} are {kind}: {', '.join(names[:8])}{' ...' * (len(names) > 8)}"
        for kind, names in kinds.items()
        if names
    ]
    if wrong:
        raise ValueError("the parameters do not fit the config; " + "; ".join(wrong))


def saved(params: Params, sides: list[Side], groups: Groups, as_flax: bool) -> tuple[dict[str, int], dict[str, Stored]]:
    """The sizes in bytes of the tensors a checkpoint of this model holds, and where each parameter lies in them."""
    leaves, entries = flat(params), {}
    for name, entry in written(groups, sides).items():
        first = next(first for first, names in groups.items() if name in names)
        entries[first] = replace(entry, name=path_in_flax(entry.name, first), untied="") if as_flax else entry
    sizes: dict[str, int] = {}
    for name, entry in entries.items():
        for key in filter(None, (entry.name, entry.untied)):
            sizes[key] = sizes.get(key, 0) + leaves[name].size * leaves[name].dtype.itemsize
    return sizes, entries


def write_tensors(params: Params, entries: Mapping[str, Stored], keys: list[str], path: Path) -> None:
    """Write some of a checkpoint's tensors to one file, safetensors or `.msgpack`."""
    leaves = flat(params)
    wanted = {name for name, entry in entries.items() if {entry.name, entry.untied} & set(keys)}
    ours = {name: np.asarray(leaves[name]) for name in wanted}
    ours = {name: value.T if _is_kernel(name) else value for name, value in ours.items()}
    tensors = {key: pack(entries, ours, key, np.concatenate) for key in keys}
    if path.suffix == ".msgpack":
        path.write_bytes(packed({key: x.T if key.endswith("/kernel") else x for key, x in tensors.items()}))
        return
    from safetensors.numpy import save_file

    save_file({key: np.ascontiguousarray(x) for key, x in tensors.items()}, path, metadata={"format": "pt"})


def _is_kernel(name: str) -> bool:
    return name.endswith(".weight") and kind_of(name) == "kernel"


def _plain(tree: Any) -> Any:
    """The same tree of dictionaries, whatever mappings it was made of."""
    return {name: _plain(value) for name, value in tree.items()} if isinstance(tree, Mapping) else tree
