"""How parameters and batches lie on a mesh of devices: a rule for each kind of parameter, for GSPMD to follow.

A mesh may have any of three axes. Over "data" every device holds all parameters and a part of the batch. Over "fsdp"
the batch is split too, and every parameter as well, which is gathered when it is used (Rajbhandari et al. 2020, "ZeRO",
stage 3). Over "tensor" heads and the hidden layers of MLPs are split (Shoeybi et al. 2019, "Megatron-LM", section 3).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from warmstart.flax import loading

BATCH = ("data", "fsdp")
AXES = (*BATCH, "tensor")

# Our name of a parameter -> the axis that each dimension is split over, as the array lies (a matrix is (in, out)).
# The first that fits counts; what fits none is held whole by every device: norms, and biases of what is summed.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"embeddings\.token\.weight$", ("tensor", "fsdp")),  # (vocabulary, hidden)
    (r"embeddings\.(position|token_type)\.weight$", (None, "fsdp")),
    (r"attention\.(query|key|value)\.weight$", ("fsdp", "tensor")),  # (hidden, heads * size)
    (r"attention\.(query|key|value)\.bias$", ("tensor",)),
    (r"attention\.output\.weight$", ("tensor", "fsdp")),  # (heads * size, hidden)
    (r"mlp\.(gate|up)\.weight$", ("fsdp", "tensor")),
    (r"mlp\.(gate|up)\.bias$", ("tensor",)),
    (r"mlp\.down\.weight$", ("tensor", "fsdp")),
    (r"head\.dense\.weight$", ("fsdp", None)),
    (r"head\.output\.weight$", ("fsdp", "tensor")),  # (hidden, vocabulary)
    (r"head\.output\.bias$", ("tensor",)),
    (r"enc_to_dec_proj\.weight$", ("fsdp", None)),
)


def partition_specs(params: Mapping[str, Any], mesh: Mesh, head_size: int | None = None) -> Any:
    """The `PartitionSpec` of every parameter: a tree like `params`, whose leaves may be mere shapes.

    An axis that the mesh lacks, or whose size does not divide the dimension, splits nothing there. With `head_size`
    heads are never cut in two.

    Raises:
        ValueError: the mesh has an axis of another name.

    >>> import numpy as np
    >>> mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tensor"))
    >>> tuple(partition_specs({"mlp": {"up": {"kernel": np.zeros((4, 8))}}}, mesh)["mlp"]["up"]["kernel"])
    ('fsdp', 'tensor')
    """
    if unknown := set(mesh.axis_names) - set(AXES):
        raise ValueError(f"the mesh has axes {sorted(unknown)}; name them {', '.join(AXES)}")

    def spec(name: str, shape: tuple[int, ...]) -> PartitionSpec:
        axes = next((axes for pattern, axes in RULES if re.search(pattern, name)), ())
        unit = head_size if head_size and "attention." in name else 1
        kept = [
            axis if axis in mesh.shape and size % (mesh.shape[axis] * (unit if axis == "tensor" else 1)) == 0 else None
            for axis, size in zip(axes, shape, strict=False)
        ]
        return PartitionSpec(*kept)

    return loading.nested({name: spec(name, tuple(x.shape)) for name, x in loading.flat(params).items()})


def shardings(model: Any, mesh: Mesh) -> Any:
    """The `NamedSharding` of every parameter of a model: a tree like `model.params`."""
    sizes = {side.spec.attention.head_size for side in model.sides()}
    specs = partition_specs(model.params_shape_tree, mesh, max(sizes))
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=_is_spec)


def _is_spec(x: Any) -> bool:
    return isinstance(x, PartitionSpec)


def shard(model: Any, mesh: Mesh, params: Mapping[str, Any] | None = None) -> Any:
    """The parameters of a model, or those given, spread over a mesh by the rules."""
    return jax.device_put(model.params if params is None else params, shardings(model, mesh))


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Arrays whose first axis is the batch, spread over the mesh's "data" and "fsdp" axes.

    Raises:
        ValueError: the batch is no multiple of the devices along these axes.
    """
    axes = tuple(axis for axis in BATCH if axis in mesh.axis_names)
    count = 1
    for axis in axes:
        count *= mesh.shape[axis]
    for x in jax.tree.leaves(batch):
        if x.shape[0] % count:
            raise ValueError(f"a batch of {x.shape[0]} rows cannot be spread over {count} devices; give a multiple")
    return jax.device_put(batch, NamedSharding(mesh, PartitionSpec(axes)))
