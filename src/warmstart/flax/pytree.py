"""Tells JAX how outputs split into arrays, so that `jit`, `grad`, `vmap` and `jax.tree` take them as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from typing import Any

import jax

from warmstart import outputs
from warmstart.decoding import outputs as of_generate


def register() -> None:
    """Make the output classes nodes of JAX's trees."""
    kinds = {id(kind): kind for room in (outputs, of_generate) for kind in vars(room).values()}
    for kind in kinds.values():
        if isinstance(kind, type) and is_dataclass(kind):
            names = tuple(field.name for field in fields(kind))
            jax.tree_util.register_pytree_with_keys(kind, _flatten(names), _unflatten(kind, names))


def _flatten(names: tuple[str, ...]) -> Callable[[Any], Any]:
    return lambda output: ([(jax.tree_util.GetAttrKey(name), getattr(output, name)) for name in names], None)


def _unflatten(kind: type, names: tuple[str, ...]) -> Callable[[Any, Iterable[Any]], Any]:
    def unflatten(_: Any, values: Iterable[Any]) -> Any:
        output: Any = object.__new__(kind)  # JAX puts placeholders in, which no check should look at
        output.__dict__.update(zip(names, values, strict=True))
        return output

    return unflatten
