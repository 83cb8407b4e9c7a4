"""Makes one of what encoder and decoder share (BERTSHARE): layers with weights are put into both."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras

# What a path's part is called in a Keras model, where Keras has taken the name itself.
_NAMES = {"layers": "blocks", "output": "output_layer"}


def tie(encoder: Any, decoder: Any, names: Iterable[str]) -> None:
    """Put the encoder's layers of these parameters into the decoder; a tied head follows its table."""
    for path in dict.fromkeys(name.rpartition(".")[0] for name in names):
        *parts, last = [_NAMES.get(part, part) for part in path.split(".")]
        source, target = encoder, decoder
        for part in parts:
            source, target = _part(source, part), _part(target, part)
        old, new = getattr(target, last), getattr(source, last)
        _replace(target, last, old, new)
    head = getattr(decoder, "head", None)
    if head is not None and head.output_layer.tied is not None:
        _replace(head.output_layer, "tied", head.output_layer.tied, decoder.embeddings.token)


def _part(layer: Any, name: str) -> Any:
    return layer[int(name)] if name.isdigit() else getattr(layer, name)


def _replace(holder: Any, name: str, old: keras.layers.Layer, new: keras.layers.Layer) -> None:
    """Put another layer in a layer's place; Keras keeps a list of them, in which the old one would stay."""
    if old is new:
        return
    holder._layers = [layer for layer in holder._layers if layer is not old]
    setattr(holder, name, new)
