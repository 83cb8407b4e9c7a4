"""An encoder as the engine runs it: padding takes no part in its matrix products.

Shapes: b sources, s source length, n tokens that are no padding, h hidden size.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from warmstart.torch.attention import Mask, attend
from warmstart.torch.engine import native
from warmstart.torch.engine.pages import fresh
from warmstart.torch.engine.products import add_norm, norm, product
from warmstart.torch.engine.program import LayerParts, SourceProgram, StackProgram, can_keep, can_program
from warmstart.torch.engine.step import by_heads, feed_forward, qkv
from warmstart.torch.loading import straighten
from warmstart.torch.masks import position_rows, self_mask

# Tokens of sources that go through all layers together: enough for the products, and few enough for what lies between
# them to stay near and small.
_TOGETHER = 512


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
    given, library = (ids, vectors, position_ids, token_type_ids), native.library()
    if library is not None and can_program(encoder, encodes=True):
        return _programmed(library, encoder, given, mask, (rows, length))
    x = tables(*given).float()
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


def _programmed(
    library: ctypes.CDLL, encoder: Any, given: Sequence[Tensor | None], mask: Tensor | None, shape: tuple[int, int]
) -> Tensor:
    """What the tables read of sources, (b, s) each or (1, s) for all, to states (b, s, h), by the compiled kernels: one
    call for all layers of some sources.
    """
    layers = [LayerParts(layer, encoder.spec, index) for index, layer in enumerate(encoder.layers_in_order())]
    program = StackProgram(encoder, layers, norm(encoder.final_norm), encodes=True)
    counts = _counts(mask, shape)
    states = torch.zeros(*shape, program.size)
    for some in parts_of(counts, _TOGETHER):
        x = encoder.embeddings(*(of if of is None or len(of) == 1 else of[some] for of in given)).float().flatten(0, 1)
        kept = slice(None) if mask is None else mask[some].reshape(-1).bool()
        states[some].flatten(0, 1)[kept] = program.encoded(library, x[kept], counts[some])
    return states


def _counts(mask: Tensor | None, shape: Sequence[int]) -> list[int]:
    """How many tokens of each source (b, s) are no padding."""
    return [shape[1]] * shape[0] if mask is None else [int(count) for count in mask.bool().sum(1)]


def parts_of(counts: Sequence[int], together: int) -> Iterator[slice]:
    """Sources of so many tokens each, in runs of about as many as go `together`, one after the other."""
    start = tokens = 0
    for index, count in enumerate(counts):
        if index > start and tokens + count > together:
            yield slice(start, index)
            start, tokens = index, 0
        tokens += count
    yield slice(start, len(counts))


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
    counts = _counts(mask, states.shape)
    shapes = [(decoder.spec.layers, 2, spec.key_value_heads, count, spec.head_size) for count in counts]
    pairs = [fresh(shape, dtype) for shape in shapes]
    keep = _keeper(decoder)
    for some in parts_of(counts, _TOGETHER):
        x = states[some].float().flatten(0, 1) if mask is None else states[some].float()[mask[some].bool()]
        keep(x, counts[some], pairs[some])
    return pairs


def _keeper(decoder: Any) -> Callable[[Tensor, Sequence[int], Sequence[Tensor]], None]:
    """What puts keys and values of states (n, h) of sources, each of so many, into their pairs (layers, 2, m, s, d)."""
    if (library := native.library()) is not None and can_keep(decoder):
        return functools.partial(SourceProgram(decoder).keep, library)
    heads, size = decoder.spec.cross_attention.key_value_heads, decoder.spec.cross_attention.head_size
    modules = [layer.cross_attention for layer in decoder.layers]
    ways = [(product(module.key, module.value), norm(module.key_norm)) for module in modules]

    def keep(x: Tensor, counts: Sequence[int], pairs: Sequence[Tensor]) -> None:
        for index, (multiply, key_norm) in enumerate(ways):
            key, value = multiply(x).split(heads * size, 1)
            for place, part in enumerate((by_heads(key, key_norm, size, None), value)):
                for pair, own in zip(pairs, part.split(list(counts)), strict=True):
                    pair[index, place].copy_(own.reshape(len(own), heads, size).transpose(0, 1))

    return keep
