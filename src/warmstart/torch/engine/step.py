"""A decoder as the engine runs it: new tokens in, hidden states and logits out, by the stack's spec.

Shapes: r rows, n new tokens, row by row, h hidden size, m key-value heads, d head size, v vocabulary. Numbers are
float32 between the layers, whatever the type of the weights.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from warmstart.torch.attention import Attention, rotate
from warmstart.torch.elements import ACTIVATIONS
from warmstart.torch.engine import native
from warmstart.torch.engine.memory import Lines, Memory, NativeMemory
from warmstart.torch.engine.products import add_norm, norm, product
from warmstart.torch.engine.program import HeadProgram, LayerParts, StackProgram, can_program
from warmstart.torch.layers import MLP
from warmstart.torch.loading import straighten


class Step:
    """The decoder's layers as products over their weights. It reads weights where they lie and keeps no copy."""

    def __init__(self, decoder: Any):
        straighten(decoder)
        self.decoder, self.spec = decoder, decoder.spec
        self.before = self.spec.norm.before
        self.layers = [_Layer(layer, decoder.spec, index) for index, layer in enumerate(decoder.layers_in_order())]
        self.final_norm = norm(decoder.final_norm)
        self.embedding_norm = norm(decoder.embeddings.norm)
        head = decoder.head
        self.dense = None if head.dense is None else product(head.dense, activation=head.activation)
        self.head_norm, self.output = norm(head.norm), product(head.output)
        self.program: tuple[StackProgram, HeadProgram] | None = None
        if can_program(decoder):
            self.program = StackProgram(decoder, self.layers, self.final_norm), HeadProgram(head, self.head_norm)

    def states(self, ids: Tensor, memory: Memory, lines: Lines | None = None) -> Tensor:
        """New ids (r, any number), or (n,) where the memory was told which `lines` to expect, to their states (n, h);
        the memory then holds them.
        """
        if lines is None:
            lines = memory.expect(memory.before.new_full(memory.before.shape, ids.shape[1]))
        positions = (lines.places - memory.first[lines.rows]).clamp_min_(0).long()
        x = self._embed(ids.reshape(1, -1), positions[None])
        if self.program is not None and isinstance(memory, NativeMemory):
            h = self.program[0].states(x, memory)
            memory.advance()
            return h
        rotation = self._rotation(positions)
        h = x
        if self.before:
            x, h = add_norm(x, None, self.layers[0].attention_norm)  # type: ignore[arg-type]
        for index, layer in enumerate(self.layers):
            query, key, value = layer.attention.all(h, rotation)
            y = layer.attention.output(memory.own(index, query, key, value))
            following = layer.attention_norm if not self.before else (layer.cross_norm or layer.mlp_norm)
            x, h = self._add(x, y, following)
            if layer.cross is not None:
                y = layer.cross.output(memory.source(index, layer.cross.query(h)))
                x, h = self._add(x, y, layer.mlp_norm if self.before else layer.cross_norm)
            y = layer.mlp(h)
            following = layer.mlp_norm
            if self.before:
                last = index + 1 == len(self.layers)
                following = self.final_norm if last else self.layers[index + 1].attention_norm
            x, h = self._add(x, y, following)
        memory.advance()
        return h

    def _add(self, x: Tensor, y: Tensor, following: Any) -> tuple[Tensor, Tensor]:
        """The residual sum, and what the next layer reads; where norms stand after it, they are one."""
        if following is None:
            x = x + y
            return x, x
        total, normed = add_norm(x, y, following)
        return (total, normed) if self.before else (normed, normed)

    def logits(self, states: Tensor) -> Tensor:
        """States (n, h) to logits (n, v)."""
        if self.program is not None and (library := native.library()) is not None:
            return self.program[1].logits(library, states)
        if self.dense is not None and self.head_norm is not None:
            states = add_norm(self.dense(states), None, self.head_norm)[1]
        return self.output(states)

    def _embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        spec, tables = self.spec.embedding, self.decoder.embeddings
        if tables.projection is not None or spec.task_types or spec.beside:  # rare: as the module has it
            return tables(ids, None, positions + spec.position_offset, None).float().flatten(0, 1)
        x = F.embedding(ids, tables.token.weight).float()
        x = x if spec.scale == 1.0 else x * spec.scale
        if tables.token_type is not None:
            x = x + tables.token_type.weight[0].float()
        x = x.flatten(0, 1)
        if self.embedding_norm is not None and spec.norm_before_positions:
            x = add_norm(x, None, self.embedding_norm)[1]
        if tables.position is not None:
            x = x + F.embedding(positions.flatten() + spec.position_offset, tables.position.weight).float()
        if self.embedding_norm is None or spec.norm_before_positions:
            return x
        return add_norm(x, None, self.embedding_norm)[1]

    def _rotation(self, positions: Tensor) -> tuple[Tensor, Tensor] | None:
        """Cosine and sine (n, 1, 1, rotated size) of each position (n,)."""
        if self.spec.attention.rotary is None:
            return None
        angles = positions.reshape(-1, 1, 1, 1).float() * self.decoder.frequencies
        angles = torch.cat((angles, angles), -1)
        factor = self.decoder.rotation_factors[0]
        return angles.cos() * factor, angles.sin() * factor


class _Layer(LayerParts):
    def __init__(self, layer: Any, spec: Any, index: int):
        super().__init__(layer, spec, index)
        self.attention = _Attention(layer.attention, self.own_heads.count)
        self.cross: _Attention | None = None
        if layer.cross_attention is not None:
            assert self.cross_heads is not None
            self.cross = _Attention(layer.cross_attention, self.cross_heads.count)
        self.mlp = feed_forward(layer.mlp)


class _Attention:
    """The projections of one attention layer."""

    def __init__(self, attention: Attention, heads: int):
        self.size, self.width = attention.head_size, heads * attention.head_size
        self.output = product(attention.output)
        self.project = product(attention.query) if attention.is_cross else qkv(attention)
        self.query_norm, self.key_norm = norm(attention.query_norm), norm(attention.key_norm)

    def all(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of self-attention, each (n, its heads times d)."""
        y = self.project(x)
        query, key, value = y.split((y.shape[1] - 2 * self.width, self.width, self.width), 1)
        query, key = (
            by_heads(z, of, self.size, rotation) for z, of in ((query, self.query_norm), (key, self.key_norm))
        )
        return query, key, value

    def query(self, x: Tensor) -> Tensor:
        """The queries of cross-attention."""
        return by_heads(self.project(x), self.query_norm, self.size, None)


def qkv(attention: Attention) -> Any:
    """Queries, keys and values in one product."""
    return product(attention.query, attention.key, attention.value)


def by_heads(x: Tensor, of: Any, size: int, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
    """Norm and rotate each head of x (n, heads * d), where there is that to do."""
    if of is None and rotation is None:
        return x
    heads = x.unflatten(1, (-1, size))
    if of is not None:
        heads = add_norm(heads.reshape(-1, size), None, of)[1].view(heads.shape)
    if rotation is not None:
        heads = rotate(heads[:, :, None], rotation)[:, :, 0]
    return heads.flatten(1)


def feed_forward(mlp: MLP) -> Any:
    """One MLP, gate and value in one product."""
    down = product(mlp.down)
    if mlp.gate is None:
        up = product(mlp.up, activation=mlp.activation)
        return lambda x: down(up(x))
    activation = ACTIVATIONS[mlp.activation]
    both = product(mlp.gate, mlp.up)

    def gated(x: Tensor) -> Tensor:
        gate, up = both(x).chunk(2, 1)
        return down(activation(gate) * up)

    return gated
