"""The two ends of a stack, each built by its spec: token ids to vectors, hidden states to logits.

Shapes: r rows, t length, h hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from warmstart.positions import sinusoids
from warmstart.spec import EmbeddingSpec, NormSpec, StackSpec
from warmstart.torch.dropout import Dropout
from warmstart.torch.elements import ACTIVATIONS, capped, check_activation, make_norm


class Sinusoids(nn.Module):
    """A table of positions that is computed, not loaded: real and exact in fp32 whatever becomes of the parameters."""

    weight: Tensor

    def __init__(self, spec: EmbeddingSpec):
        super().__init__()
        self.spec = spec
        self.register_buffer("weight", torch.tensor(sinusoids(spec), device="cpu"), persistent=False)
        self.num_embeddings = len(self.weight)

    def forward(self, rows: Tensor) -> Tensor:
        return F.embedding(rows, self.weight)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Sinusoids:
        super()._apply(fn, recurse)
        place = "cpu" if self.weight.is_meta else self.weight.device
        self.weight = torch.tensor(sinusoids(self.spec), device=place)
        return self


class Embeddings(nn.Module):
    """The way in: token ids to vectors, with positions and token types where the spec has them."""

    def __init__(self, spec: EmbeddingSpec, norm: NormSpec, hidden_size: int):
        super().__init__()
        self.token = nn.Embedding(spec.vocabulary, spec.size, spec.padding_id)
        rows = spec.positions + spec.position_offset
        padding_row = spec.position_offset - 1 if spec.positions_skip_padding else None
        self.position: nn.Embedding | Sinusoids | None = None
        if spec.positions:
            width = hidden_size if spec.tokens_projected else spec.size
            self.position = Sinusoids(spec) if spec.sinusoids else nn.Embedding(rows, width, padding_row)
        self.token_projection = nn.Linear(spec.size, hidden_size, bias=False) if spec.tokens_projected else None
        self.token_type = nn.Embedding(spec.token_types, spec.size) if spec.token_types else None
        self.task_type = nn.Embedding(spec.task_types, spec.size) if spec.task_types else None
        self.beside: nn.ModuleDict | None = None
        self.joined_projection: nn.Linear | None = None
        if spec.beside:
            tables = {name: nn.Embedding(rows, size, spec.padding_id) for name, rows, size in spec.beside}
            self.beside = nn.ModuleDict(tables)
            self.joined_projection = nn.Linear(spec.size + spec.beside_size, spec.size)
        self.norm = make_norm(hidden_size if spec.projected_first else spec.size, norm) if spec.norm else None
        self.norm_before_positions = spec.norm_before_positions
        self.dropout = Dropout(spec.dropout)
        self.projection = nn.Linear(spec.size, hidden_size, not spec.projected_first) if spec.projected else None
        self.projected_first = spec.projected_first
        self.scale, self.scales_given = spec.scale, spec.scales_given

    def forward(
        self,
        ids: Tensor | None,
        vectors: Tensor | None,
        position_rows: Tensor | None,
        token_type_ids: Tensor | None,
        beside: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """(r, t) ids, or (r, t, h) vectors in their place, to (r, t, h)."""
        scales = self.scale != 1.0 and (vectors is None or self.scales_given)
        vectors = self.token(ids) if vectors is None else vectors
        if scales:  # rounded to the weights' type first, as those who trained with it have it
            vectors = vectors * torch.tensor(self.scale, dtype=vectors.dtype)
        x = vectors if self.token_projection is None else self.token_projection(vectors)
        if self.beside is not None and self.joined_projection is not None:
            x = self.joined_projection(_joined(x, self.beside, beside or {}))
        if self.task_type is not None:
            x = x + self.task_type(x.new_zeros(1, 1, dtype=torch.long))
        if self.token_type is not None:
            kinds = x.new_zeros(1, 1, dtype=torch.long) if token_type_ids is None else token_type_ids
            x = x + self.token_type(kinds)
        if self.norm is not None and self.norm_before_positions:
            x = self.norm(x)
        if self.position is not None:
            x = x + self.position(position_rows).to(x.dtype)
        if self.projection is not None and self.projected_first:
            x = self.projection(x)
        x = self.dropout(x if self.norm is None or self.norm_before_positions else self.norm(x))
        return x if self.projection is None or self.projected_first else self.projection(x)


def _joined(x: Tensor, tables: nn.ModuleDict, ids: Mapping[str, Tensor]) -> Tensor:
    """Vectors and, beside each, its row of every table: the first where there are no ids."""
    first = x.new_zeros(1, 1, dtype=torch.long)
    rows = (table(ids.get(name, first)) for name, table in tables.items())
    return torch.cat((x, *(row.expand(*x.shape[:2], -1) for row in rows)), -1)


class Head(nn.Module):
    """From hidden states (r, t, h) to logits (r, t, vocabulary)."""

    def __init__(self, stack: StackSpec):
        super().__init__()
        spec, size = stack.head, stack.head_width
        assert spec is not None
        self.activation = check_activation(spec.transform) if spec.transform else None
        self.dense = nn.Linear(stack.hidden_size, size, spec.transform_bias) if spec.transform else None
        self.norm = make_norm(size, stack.norm) if spec.transform and spec.transform_norm else None
        self.output = nn.Linear(size, stack.embedding.vocabulary, spec.bias)
        if spec.fixed_bias:
            self.output.bias.requires_grad_(False)
        self.soft_cap, self.scale = spec.soft_cap, spec.scale

    def forward(self, x: Tensor) -> Tensor:
        logits = self.output(self.transformed(x))
        return logits if self.soft_cap is None else capped(logits, self.soft_cap)

    def transformed(self, x: Tensor) -> Tensor:
        """What the last layer reads: hidden states, through the transform where the head has one."""
        if self.activation is not None and self.dense is not None:
            x = ACTIVATIONS[self.activation](self.dense(x))
        x = x if self.norm is None else self.norm(x)
        return x if self.scale == 1.0 else x * self.scale
