"""An encoder as the engine runs it: padding takes no part in its matrix products.

Shapes: b sources, s source length, n tokens that are no padding, h hidden size.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from warmstart.torch.attention import Mask, attend
from warmstart.torch.engine import native
from warmstart.torch.engine.products import add_norm, norm, product
from warmstart.torch.engine.program import LayerParts, StackProgram, can_program
from warmstart.torch.engine.step import by_heads, feed_forward, qkv
from warmstart.torch.loading import straighten
from warmstart.torch.masks import position_rows, self_mask


def encode(
    encoder: Any,
    ids: Tensor | None,
    mask: Tensor | None,
    vectors: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    position_ids: Tensor | None = None,
) -> Tensor:
    """Source ids (b, s), or vectors (b, s, h) in their place, to states (b, s, h); those of padding are 0."""
    straighten(encoder)
    spec, tables = encoder.spec, encoder.embeddings
    rows, length = encoder._check(ids, vectors, mask, None)
    if position_ids is None and tables.position is not None:
        position_ids = position_rows(ids, mask, (rows, length), 0, spec.causal, spec.embedding)
    x = tables(ids, vectors, position_ids, token_type_ids).float()
    library = native.library()
    if library is not None and can_program(encoder, encodes=True):
        return _programmed(library, encoder, x, mask)
    rotations = encoder._rotations(x, position_ids, mask, (rows, length), 0)
    masks = {
        window: self_mask(mask, length, 0, spec.causal, window, x.device)
        for window in set(spec.attention.windows or (None,))
    }
    kept = None if mask is None or mask.dim() != 2 or bool(mask.all()) else mask.reshape(-1).nonzero()[:, 0]
    shape = rows, length, kept
    x = x.flatten(0, 1) if kept is None else x.flatten(0, 1)[kept]
    for index, layer in enumerate(encoder.layers_in_order()):
        x = _layer(layer, x, masks[spec.attention.window(index)], rotations[index], shape)
    if encoder.final_norm is not None:
        x = add_norm(x, None, norm(encoder.final_norm))[1]  # type: ignore[arg-type]
    return _spread(x, shape).view(rows, length, -1)


def _programmed(library: ctypes.CDLL, encoder: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    """Embedded sources (b, s, h) to states, by the compiled kernels, in one call for all layers."""
    layers = [LayerParts(layer, encoder.spec, index) for index, layer in enumerate(encoder.layers_in_order())]
    program = StackProgram(encoder, layers, norm(encoder.final_norm), encodes=True)
    if mask is None or bool(mask.all()):
        return program.encoded(library, x.flatten(0, 1), [x.shape[1]] * len(x)).view(x.shape)
    kept = mask.reshape(-1).nonzero()[:, 0]
    states = program.encoded(library, x.flatten(0, 1)[kept], mask.bool().sum(1).tolist())
    return _spread(states, (*x.shape[:2], kept)).view(x.shape)


_Shape = tuple[int, int, Tensor | None]


def _layer(layer: Any, x: Tensor, mask: Mask, rotation: tuple[Tensor, Tensor] | None, shape: _Shape) -> Tensor:
    first, second = norm(layer.attention_norm), norm(layer.mlp_norm)
    assert first is not None and second is not None
    if layer.norm_before:
        y = _attention(layer.attention, add_norm(x, None, first)[1], mask, rotation, shape)
        x, h = add_norm(x, y, second)
        return x + feed_forward(layer.mlp)(h)
    x = add_norm(x, _attention(layer.attention, x, mask, rotation, shape), first)[1]
    return add_norm(x, feed_forward(layer.mlp)(x), second)[1]


def _attention(module: Any, x: Tensor, mask: Mask, rotation: tuple[Tensor, Tensor] | None, shape: _Shape) -> Tensor:
    size, width = module.head_size, module.key.out_features
    y = qkv(module)(x)
    parts = y.split((y.shape[1] - 2 * width, width, width), 1)
    norms = norm(module.query_norm), norm(module.key_norm), None
    rows, length, kept = shape
    heads = [
        _spread(by_heads(part, of, size, None), shape).view(rows, length, -1, size).transpose(1, 2)
        for part, of in zip(parts, norms, strict=True)
    ]
    if rotation is not None:
        from warmstart.torch.attention import rotate

        heads[:2] = rotate(heads[0], rotation), rotate(heads[1], rotation)
    out, _ = attend(heads[0], heads[1], heads[2], mask, module.scale, 0.0, False)
    out = out.transpose(1, 2).reshape(rows * length, -1)
    return product(module.output)(out if kept is None else out[kept])


def _spread(x: Tensor, shape: _Shape) -> Tensor:
    """Rows (n, ...) back at their places in (b * s, ...)."""
    rows, length, kept = shape
    if kept is None:
        return x
    return x.new_zeros(rows * length, x.shape[1]).index_copy_(0, kept, x)


def source_pairs(decoder: Any, states: Tensor, mask: Tensor | None, dtype: torch.dtype) -> list[Tensor]:
    """The keys and values of each source (layers, 2, m, its length, d) from the states (b, s, h), padding left out."""
    spec = decoder.spec.cross_attention
    if mask is None:
        counts = [states.shape[1]] * len(states)
        x = states.float().flatten(0, 1)
    else:
        counts = [int(count) for count in mask.bool().sum(1)]
        x = states.float()[mask.bool()]
    pairs = [
        torch.empty(decoder.spec.layers, 2, spec.key_value_heads, count, spec.head_size, dtype=dtype)
        for count in counts
    ]
    width = spec.key_value_heads * spec.head_size
    for index, layer in enumerate(decoder.layers):
        module = layer.cross_attention
        both = product(module.key, module.value)(x)
        key = by_heads(both[:, :width], norm(module.key_norm), spec.head_size, None)
        for place, part in enumerate((key, both[:, width:])):
            for pair, own in zip(pairs, part.split(counts), strict=True):
                pair[index, place] = own.view(len(own), -1, spec.head_size).transpose(0, 1)
    return pairs
