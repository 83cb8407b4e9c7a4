"""Tells torch how outputs and the KV cache split into tensors, for `torch.export`, `fully_shard` and their like."""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import Any

import torch.export
from torch import Tensor
from torch.utils import _pytree  # the registry that `torch.export` and `fully_shard` read

from warmstart import outputs
from warmstart.torch.cache import KeyValueCache


def register() -> None:
    """Make the output classes and `KeyValueCache` nodes of torch's trees; their names go into saved programs."""
    for name, kind in vars(outputs).items():
        if isinstance(kind, type) and is_dataclass(kind):
            torch.export.register_dataclass(kind, serialized_type_name=f"warmstart.{name}")
    _pytree.register_pytree_node(
        KeyValueCache,
        _tensors,
        _cache,
        serialized_type_name="warmstart.KeyValueCache",
        flatten_with_keys_fn=_tensors_with_keys,
    )


def _tensors(cache: KeyValueCache) -> tuple[list[Tensor], list[int]]:
    """The tensors of all layers one after another, and how many each layer has: 0 (empty), 2, or 4 with a source."""
    layers = [cache[place] if layer.keys is not None else () for place, layer in enumerate(cache.layers)]
    return [tensor for layer in layers for tensor in layer], [len(layer) for layer in layers]


def _tensors_with_keys(cache: KeyValueCache) -> tuple[list[tuple[Any, Tensor]], list[int]]:
    tensors, counts = _tensors(cache)
    return [(_pytree.SequenceKey(place), tensor) for place, tensor in enumerate(tensors)], counts


def _cache(tensors: Any, counts: list[int]) -> KeyValueCache:
    """The cache that `_tensors` took apart."""
    cache, rest = KeyValueCache(len(counts)), list(tensors)
    for layer, count in zip(cache.layers, counts, strict=True):
        held, rest = rest[:count], rest[count:]
        if count:
            layer.keys, layer.values, layer.source = held[0], held[1], tuple(held[2:]) or None
            layer.length = layer.keys.shape[2]
    return cache
