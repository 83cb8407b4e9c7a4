"""The layers of a transformer block, each built by its spec.

Shapes: r rows, b sources (r = b * beams), t target length, s source length, h hidden size, n heads, d head size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from warmstart.spec import AttentionSpec, EmbeddingSpec, MLPSpec, NormSpec, StackSpec, sinusoids
from warmstart.torch.cache import LayerCache
from warmstart.torch.dropped_attention import dropped_attention, is_dropped_apart

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_python": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_fast": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "silu": F.silu,
    "swish": F.silu,
    "mish": F.mish,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "linear": lambda x: x,
}


def check_activation(name: str) -> str:
    """The name of an activation, if it is known."""
    if name not in ACTIVATIONS:
        raise ValueError(f"the activation {name!r} is not supported; use one of {', '.join(sorted(ACTIVATIONS))}")
    return name


@dataclass
class Mask:
    """What a query may see: `allowed` (r or 1, 1, t or 1, s), True where it may, or None; or all before it.

    `bias` (r or 1, n, t, s), where there is one, is added to the scores, and forbids what `allowed` would.
    """

    allowed: Tensor | None = None
    causal: bool = False
    bias: Tensor | None = None


OPEN = Mask()


class RMSNorm(nn.Module):
    """Root mean square norm (Zhang & Sennrich 2019), computed in fp32 whatever the weights' type."""

    def __init__(self, size: int, epsilon: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.epsilon)
        return self.weight * y.to(x.dtype)


class RMSNormFromOne(RMSNorm):
    """A root mean square norm whose weight is what is added to 1 (Gemma)."""

    def __init__(self, size: int, epsilon: float):
        super().__init__(size, epsilon)
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.epsilon)
        return (y * (1 + self.weight.float())).to(x.dtype)


def make_norm(size: int, spec: NormSpec) -> nn.Module:
    """The norm that a spec asks for, over the last `size` numbers."""
    return make_rms_norm(size, spec) if spec.kind == "rms" else nn.LayerNorm(size, spec.epsilon, bias=spec.bias)


def make_rms_norm(size: int, spec: NormSpec) -> RMSNorm:
    """A root mean square norm, of the form that the stack's norms have."""
    return (RMSNormFromOne if spec.from_one else RMSNorm)(size, spec.epsilon)


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the first numbers of each head (r, n, t, d) by cosine and sine (r or 1, 1, t, rotated size)."""
    cosine, sine = rotation
    size = cosine.shape[-1]
    turned = x[..., :size] if size < x.shape[-1] else x
    left, right = turned.chunk(2, -1)
    turned = turned * cosine + torch.cat((-right, left), -1) * sine
    return torch.cat((turned, x[..., size:]), -1) if size < x.shape[-1] else turned


def rotate_neighbours(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """As `rotate`, where neighbours turn together: numbers 0 and 1, 2 and 3, and so on."""
    cosine, sine = rotation
    size = cosine.shape[-1]
    turned = x[..., :size] if size < x.shape[-1] else x
    crossed = torch.stack((-turned[..., 1::2], turned[..., ::2]), -1).flatten(-2)
    turned = turned * cosine + crossed * sine
    return torch.cat((turned, x[..., size:]), -1) if size < x.shape[-1] else turned


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask,
    scale: float,
    dropout: float,
    want_weights: bool,
    soft_cap: float | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Attention of queries (r, n, t, d) over keys and values (b, m, s, d); heads n may share m, and rows r share b.

    Gives (r, n, t, d) and, if wanted, the weights (r, n, t, s).
    """
    rows, heads, length, _ = query.shape
    shared = rows // key.shape[0]
    if shared > 1:  # the beams of a source stand one after another on the query axis: no key is copied
        query = query.unflatten(0, (-1, shared)).transpose(1, 2).flatten(2, 3)
    if key.shape[1] != heads:
        key, value = (x.repeat_interleave(heads // x.shape[1], 1) for x in (key, value))
    weights = None
    if want_weights or soft_cap is not None:  # torch's own attention caps nothing
        scores = query @ key.transpose(-1, -2) * scale
        weights = scores_to_weights(scores if soft_cap is None else capped(scores, soft_cap), mask)
        weights = F.dropout(weights, dropout, training=dropout > 0)
        out = weights @ value
    elif dropout > 0 and mask.bias is None and is_dropped_apart(query, key, value):
        out = dropped_attention(query, key, value, mask.allowed, dropout, mask.causal, scale)
    else:
        seen = mask.allowed if mask.bias is None else mask.bias
        out = F.scaled_dot_product_attention(query, key, value, seen, dropout, mask.causal, scale=scale)
    if shared > 1:
        out = out.unflatten(2, (shared, length)).transpose(1, 2).flatten(0, 1)
        weights = None if weights is None else weights.unflatten(2, (shared, length)).transpose(1, 2).flatten(0, 1)
    return out, weights


def capped(x: Tensor, cap: float) -> Tensor:
    """Numbers between -cap and cap: a soft cap (Gemma 2, section 2)."""
    return torch.tanh(x / cap) * cap


def scores_to_weights(scores: Tensor, mask: Mask) -> Tensor:
    """Softmax over the keys that may be seen, in fp32."""
    allowed = mask.allowed
    if mask.bias is not None:
        scores, allowed = scores + mask.bias, None
    if mask.causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if allowed is not None:
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    return F.softmax(scores, -1, dtype=torch.float32).to(scores.dtype)


class Attention(nn.Module):
    """Attention with heads, over the stack's own tokens or over a source of width `source_size`."""

    def __init__(self, spec: AttentionSpec, layer: int, hidden_size: int, source_size: int | None, norm: NormSpec):
        super().__init__()
        # Pruning takes heads out of self-attention only, as in the files.
        heads, key_value_heads = spec.heads_of(layer) if source_size is None else (spec.heads, spec.key_value_heads)
        width = source_size or hidden_size
        self.head_size, self.scale, self.dropout = spec.head_size, spec.scale(layer), spec.dropout
        self.soft_cap, self.whole_norm = spec.soft_cap, spec.whole_norm
        kinds = spec.rotary_kinds()
        self.rotate = rotate_neighbours if kinds and kinds[0].interleaved else rotate
        self.is_cross = source_size is not None
        self.query = nn.Linear(hidden_size, heads * spec.head_size, spec.bias)
        self.key = nn.Linear(width, key_value_heads * spec.head_size, spec.bias)
        self.value = nn.Linear(width, key_value_heads * spec.head_size, spec.bias)
        self.output = nn.Linear(heads * spec.head_size, hidden_size, spec.output_bias)
        sizes = (heads * spec.head_size, key_value_heads * spec.head_size) if spec.whole_norm else (spec.head_size,) * 2
        has_norm = spec.head_norm or spec.whole_norm
        self.query_norm, self.key_norm = (make_rms_norm(size, norm) if has_norm else None for size in sizes)

    def forward(
        self,
        x: Tensor,
        source: Tensor | None = None,
        mask: Mask = OPEN,
        rotation: tuple[Tensor, Tensor] | None = None,
        cache: LayerCache | None = None,
        want_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        query = self._heads(self.query(x), self.query_norm)
        if rotation is not None:
            query = self.rotate(query, rotation)
        key, value = self._source_pair(source, cache) if self.is_cross else self._own_pair(x, rotation, cache)
        dropout = self.dropout if self.training else 0.0
        out, weights = attend(query, key, value, mask, self.scale, dropout, want_weights, self.soft_cap)
        return self.output(out.transpose(1, 2).flatten(2)), weights

    def _own_pair(
        self, x: Tensor, rotation: tuple[Tensor, Tensor] | None, cache: LayerCache | None
    ) -> tuple[Tensor, Tensor]:
        key, value = self._heads(self.key(x), self.key_norm), self._heads(self.value(x), None)
        if rotation is not None:
            key = self.rotate(key, rotation)
        return (key, value) if cache is None else cache.append(key, value)

    def _source_pair(self, source: Tensor | None, cache: LayerCache | None) -> tuple[Tensor, Tensor]:
        """The source's keys and values: made once, then kept."""
        if cache is not None and cache.source is not None:
            return cache.source
        assert source is not None
        pair = self._heads(self.key(source), self.key_norm), self._heads(self.value(source), None)
        if cache is not None:
            cache.source = pair
        return pair

    def _heads(self, x: Tensor, norm: nn.Module | None) -> Tensor:
        if self.whole_norm and norm is not None:
            x, norm = norm(x), None
        x = x.unflatten(-1, (-1, self.head_size))
        return (x if norm is None else norm(x)).transpose(1, 2)


class MLP(nn.Module):
    """One hidden layer; where it is gated, the activation of one projection multiplies the other (Shazeer 2020)."""

    def __init__(self, spec: MLPSpec, hidden_size: int):
        super().__init__()
        self.gate = nn.Linear(hidden_size, spec.size, spec.bias) if spec.gated else None
        self.up = nn.Linear(hidden_size, spec.size, spec.bias)
        self.down = nn.Linear(spec.size, hidden_size, spec.bias)
        self.activation = check_activation(spec.activation)
        self.dropout = nn.Dropout(spec.dropout)

    def forward(self, x: Tensor) -> Tensor:
        activation = ACTIVATIONS[self.activation]
        inner = activation(self.up(x)) if self.gate is None else activation(self.gate(x)) * self.up(x)
        return self.down(self.dropout(inner))


class Layer(nn.Module):
    """One block: self-attention, cross-attention where the stack has it, MLP, each with its residual and norms.

    In a parallel block the MLP reads the block's input; cross-attention reads what self-attention gave, as elsewhere.
    """

    def __init__(self, spec: StackSpec, layer: int):
        super().__init__()
        size, norm = spec.hidden_size, spec.norm
        self.norm_before, self.parallel = norm.before, spec.parallel

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
        self.dropout = nn.Dropout(spec.dropout)

    def forward(
        self,
        x: Tensor,
        mask: Mask,
        rotation: tuple[Tensor, Tensor] | None = None,
        source: Tensor | None = None,
        source_mask: Mask = OPEN,
        cache: LayerCache | None = None,
        want_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(r, t, h) to (r, t, h), with the weights of self-attention and of cross-attention if wanted."""
        before, h = x, self._before(x, self.attention_norm)
        y, weights = self.attention(h, None, mask, rotation, cache, want_weights)
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
        return norm(x) if self.norm_before and norm is not None else x

    def _after(self, x: Tensor, y: Tensor, norm: nn.Module | None, output_norm: nn.Module | None) -> Tensor:
        x = x + self.dropout(y if output_norm is None else output_norm(y))
        return x if self.norm_before or norm is None else norm(x)


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
            self.position = Sinusoids(spec) if spec.sinusoids else nn.Embedding(rows, spec.size, padding_row)
        self.token_type = nn.Embedding(spec.token_types, spec.size) if spec.token_types else None
        self.task_type = nn.Embedding(spec.task_types, spec.size) if spec.task_types else None
        self.beside: nn.ModuleDict | None = None
        self.joined_projection: nn.Linear | None = None
        if spec.beside:
            tables = {name: nn.Embedding(rows, size, spec.padding_id) for name, rows, size in spec.beside}
            self.beside = nn.ModuleDict(tables)
            self.joined_projection = nn.Linear(spec.size + spec.beside_size, spec.size)
        self.norm = make_norm(spec.size, norm) if spec.norm else None
        self.norm_before_positions = spec.norm_before_positions
        self.dropout = nn.Dropout(spec.dropout)
        self.projection = nn.Linear(spec.size, hidden_size) if spec.projected else None
        self.scale = spec.scale

    def forward(
        self, ids: Tensor | None, vectors: Tensor | None, position_rows: Tensor | None, token_type_ids: Tensor | None
    ) -> Tensor:
        """(r, t) ids, or (r, t, h) vectors in their place, to (r, t, h)."""
        if vectors is None:
            vectors = self.token(ids)
            if self.scale != 1.0:  # rounded to the weights' type first, as those who trained with it have it
                vectors = vectors * torch.tensor(self.scale, dtype=vectors.dtype)
        x = vectors
        if self.beside is not None and self.joined_projection is not None:
            x = self.joined_projection(_joined(x, self.beside))
        if self.task_type is not None:
            x = x + self.task_type(x.new_zeros(1, 1, dtype=torch.long))
        if self.token_type is not None:
            kinds = x.new_zeros(1, 1, dtype=torch.long) if token_type_ids is None else token_type_ids
            x = x + self.token_type(kinds)
        if self.norm is not None and self.norm_before_positions:
            x = self.norm(x)
        if self.position is not None:
            x = x + self.position(position_rows).to(x.dtype)
        x = self.dropout(x if self.norm is None or self.norm_before_positions else self.norm(x))
        return x if self.projection is None else self.projection(x)


def _joined(x: Tensor, tables: nn.ModuleDict) -> Tensor:
    first = x.new_zeros(1, 1, dtype=torch.long)
    return torch.cat((x, *(table(first).expand(*x.shape[:2], -1) for table in tables.values())), -1)


class Head(nn.Module):
    """From hidden states (r, t, h) to logits (r, t, vocabulary)."""

    def __init__(self, stack: StackSpec):
        super().__init__()
        spec, size = stack.head, stack.head_width
        assert spec is not None
        self.activation = check_activation(spec.transform) if spec.transform else None
        self.dense = nn.Linear(stack.hidden_size, size, spec.transform_bias) if spec.transform else None
        self.norm = make_norm(size, stack.norm) if spec.transform else None
        self.output = nn.Linear(size, stack.embedding.vocabulary, spec.bias)
        if spec.fixed_bias:
            self.output.bias.requires_grad_(False)
        self.soft_cap, self.scale = spec.soft_cap, spec.scale

    def forward(self, x: Tensor) -> Tensor:
        logits = self.output(self.transformed(x))
        return logits if self.soft_cap is None else capped(logits, self.soft_cap)

    def transformed(self, x: Tensor) -> Tensor:
        """What the last layer reads: hidden states, through the transform where the head has one."""
        if self.activation is not None and self.dense is not None and self.norm is not None:
            x = self.norm(ACTIVATIONS[self.activation](self.dense(x)))
        return x if self.scale == 1.0 else x * self.scale
