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
        replace(target, last, getattr(source, last))
    head = getattr(decoder, "head", None)
    if head is not None and head.output_layer.tied is not None:
        replace(head.output_layer, "tied", decoder.embeddings.token)


def _part(layer: Any, name: str) -> Any:
    return layer[int(name)] if name.isdigit() else getattr(layer, name)


def replace(holder: Any, name: str, new: keras.layers.Layer) -> None:
    """Put another layer in a layer's place; Keras keeps a list of them, in which the old one would stay."""
    if (old := getattr(holder, name)) is new:
        return
    del holder._layers[next(place for place, layer in enumerate(holder._layers) if layer is old)]
    setattr(holder, name, new)
