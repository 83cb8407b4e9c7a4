"""One block of a transformer, built by its spec.

Shapes: r rows, t length, h hidden size.
"""

from __future__ import annotations

from torch import Tensor, nn

from warmstart.spec import MLPSpec, StackSpec
from warmstart.torch.attention import OPEN, Attention, Mask
from warmstart.torch.cache import LayerCache
from warmstart.torch.disentangled import Rows
from warmstart.torch.dropout import Dropout
from warmstart.torch.elements import ACTIVATIONS, check_activation, make_norm
from warmstart.torch.spared import branches, normed, note


class MLP(nn.Module):
    """One hidden layer; where it is gated, the activation of one projection multiplies the other (Shazeer 2020)."""

    def __init__(self, spec: MLPSpec, hidden_size: int):
        super().__init__()
        self.gate = nn.Linear(hidden_size, spec.size, spec.bias) if spec.gated else None
        self.up = nn.Linear(hidden_size, spec.size, spec.bias)
        self.down = nn.Linear(spec.size, hidden_size, spec.bias)
        self.activation = check_activation(spec.activation)
        self.dropout = Dropout(spec.dropout)

    def forward(self, x: Tensor) -> Tensor:
        activation = ACTIVATIONS[self.activation]
        if self.gate is None:
            up = self.up(branches(x, 1)[0])
            inner = note(activation(up), activation, up)
        else:
            first, second = branches(x, 2)
            gate, up = self.gate(first), self.up(second)
            opened = note(activation(gate), activation, gate)
            inner = note(opened * up, lambda gate, up: activation(gate) * up, gate, up)
        return self.down(self.dropout(inner))


class Layer(nn.Module):
    """One block: self-attention, cross-attention where the stack has it, MLP, each with its residual and norms.

    In a parallel block the MLP reads the block's input; cross-attention reads what self-attention gave, as elsewhere.
    """

    def __init__(self, spec: StackSpec, layer: int):
        super().__init__()
        size, norm = spec.hidden_size, spec.norm
        self.norm_before, self.parallel, self.residual_scale = norm.before, spec.parallel, spec.residual_scale

        def made(wanted: bool) -> nn.Module | None:
            return make_norm(size, norm) if wanted else None

        self.attention = Attention(spec.attention, layer, size, None, norm)
        self.attention_norm = made(norm.main and (norm.first or layer > 0))
        self.attention_output_norm = made(norm.output)
        self.cross_attention: Attention | None = None
        self.cross_attention_norm: nn.Module | None = None
        self.cross_attention_output_norm: nn.Module | None = None
        if spec.cross_attention is not None:
            self.cross_attention = Attention(spec.cross_attention, layer, size, spec.cross_attention_size, norm)
            self.cross_attention_norm, self.cross_attention_output_norm = made(norm.main), made(norm.output)
        self.mlp = MLP(spec.mlp, size)
        self.mlp_norm, self.mlp_output_norm = made(norm.main and not norm.shared), made(norm.output)
        self.dropout = Dropout(spec.dropout)

    def forward(
        self,
        x: Tensor,
        mask: Mask,
        rotation: tuple[Tensor, Tensor] | None = None,
        source: Tensor | None = None,
        source_mask: Mask = OPEN,
        cache: LayerCache | None = None,
        want_weights: bool = False,
        distances: Rows | None = None,
        reach: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(r, t, h) to (r, t, h), with the weights of self-attention and of cross-attention if wanted."""
        before, h = x, self._before(x, self.attention_norm)
        y, weights = self.attention(h, None, mask, rotation, cache, want_weights, distances, reach)
        x = self._after(x, y, self.attention_norm, self.attention_output_norm)
        cross_weights = None
        if self.cross_attention is not None and (
            source is not None or (cache is not None and cache.source is not None)
        ):
            y = self._before(x, self.cross_attention_norm)
            y, cross_weights = self.cross_attention(y, source, source_mask, None, cache, want_weights)
            x = self._after(x, y, self.cross_attention_norm, self.cross_attention_output_norm)
        if not self.parallel:
            h = self._before(x, self.mlp_norm)
        elif self.mlp_norm is not None:  # else it reads what self-attention read
            h = self._before(before, self.mlp_norm)
        return self._after(x, self.mlp(h), self.mlp_norm, self.mlp_output_norm), weights, cross_weights

    def _before(self, x: Tensor, norm: nn.Module | None) -> Tensor:
        return normed(norm, x) if self.norm_before and norm is not None else x

    def _after(self, x: Tensor, y: Tensor, norm: nn.Module | None, output_norm: nn.Module | None) -> Tensor:
        y = self.dropout(y if output_norm is None else output_norm(y))
        x = x + (y if self.residual_scale == 1.0 else y * self.residual_scale)
        return x if self.norm_before or norm is None else normed(norm, x)
