"""What DeBERTa has beside the common block: scores by distance and content, and a convolution.

Shapes: r rows, t length, h hidden size, n heads, d head size, p rows of the table of distances.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from warmstart.positions import disentangled_rows
from warmstart.spec import AttentionSpec, ConvolutionSpec, DisentangledSpec, NormSpec
from warmstart.torch.elements import ACTIVATIONS, check_activation, make_norm

Rows = tuple[Tensor, Tensor]  # the table of distances (p, h), and the row of each query and key (t, t)


class Distances(nn.Module):
    """The table of distances, which all layers read."""

    def __init__(self, spec: DisentangledSpec, hidden_size: int, norm: NormSpec):
        super().__init__()
        self.spec = spec
        self.table = nn.Embedding(2 * spec.span, hidden_size)
        self.norm = make_norm(hidden_size, norm) if spec.norm else None

    def forward(self, length: int) -> Rows:
        table, most = self.table.weight, self.spec.distance
        place = torch.arange(length, device=table.device)
        rows = torch.tensor(disentangled_rows(self.spec), device=table.device)
        rows = rows[(place - place[:, None]).clamp(-most, most) + most]
        return (table if self.norm is None else self.norm(table)), rows


class Disentangled(nn.Module):
    """What distances add to the scores of a layer (He et al. 2021, equation 4)."""

    def __init__(self, spec: AttentionSpec, heads: int, hidden_size: int):
        super().__init__()
        assert spec.disentangled is not None
        self.spec, self.head_size, size = spec.disentangled, spec.head_size, heads * spec.head_size
        own = not self.spec.shared
        self.query = nn.Linear(hidden_size, size) if own and self.spec.position_to_content else None
        self.key = nn.Linear(hidden_size, size) if own and self.spec.content_to_position else None
        self.dropout = nn.Dropout(self.spec.dropout)

    def forward(
        self, query: Tensor, key: Tensor, distances: Rows, query_matrix: nn.Module, key_matrix: nn.Module
    ) -> Tensor:
        """(r, n, t, t) for queries and keys (r, n, t, d); the matrices are the layer's own, for where they are shared.

        The matrices meet the table, which is short, not each pair of tokens; what pairs need is then looked up.
        """
        table, rows = self.dropout(distances[0]), distances[1].expand(*query.shape[:2], -1, -1)
        bias = torch.zeros((), dtype=query.dtype, device=query.device)
        if self.spec.content_to_position:
            bias = bias + (query @ self._heads((self.key or key_matrix)(table)).mT).gather(-1, rows)
        if self.spec.position_to_content:
            bias = bias + (key @ self._heads((self.query or query_matrix)(table)).mT).gather(-1, rows.mT).mT
        return bias

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_size)).transpose(0, 1)


class Convolution(nn.Module):
    """A convolution over the embeddings, whose activation is added to what the first layer gives."""

    def __init__(self, spec: ConvolutionSpec, hidden_size: int, norm: NormSpec, dropout: float):
        super().__init__()
        self.conv = nn.Conv1d(hidden_size, hidden_size, spec.width, padding=spec.width // 2)
        self.norm = make_norm(hidden_size, norm)
        self.dropout = nn.Dropout(dropout)
        self.activation = check_activation(spec.activation)

    def forward(self, embedded: Tensor, x: Tensor, attention_mask: Tensor | None) -> Tensor:
        """The embeddings and what the first layer makes of them, (r, t, h) each, to (r, t, h); padding is no token."""
        if attention_mask is not None:
            seen = attention_mask.bool()
            seen = seen.any(1) if seen.dim() == 3 else seen
            embedded = embedded * seen[..., None].to(embedded.dtype)
        y = self.conv(embedded.transpose(1, 2)).transpose(1, 2)
        return self.norm(x + ACTIVATIONS[self.activation](self.dropout(y)))
