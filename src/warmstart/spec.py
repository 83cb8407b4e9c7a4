"""What a transformer stack is made of, as plain data: every framework builds its block by this and nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

# Activations that every framework here has.
_SMOOTH = {"gelu", "gelu_python", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "silu", "swish", "mish"}
ACTIVATIONS = frozenset(_SMOOTH | {"relu", "relu2", "tanh", "sigmoid", "linear"})

# Tables that may stand beside the tokens' (RoCBert): the name -> the argument that gives each token's row.
BESIDE = {"shape": "input_shape_ids", "pronunciation": "input_pronunciation_ids"}

# How rotary positions are scaled for long texts: the kind -> the numbers that it needs.
ROTARY_KINDS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor",),
    "dynamic": ("factor",),
    "longrope": (),
}


@dataclass(frozen=True)
class RotarySpec:
    """Rotary positions (Su et al. 2021, "RoFormer", section 3.2): base, rotated size, and how long texts are scaled."""

    size: int  # how many of a head's numbers are rotated
    theta: float = 10000.0
    scaling: dict[str, Any] = field(default_factory=dict, hash=False)
    positions: int = 0  # the length the model was trained for, where a scaling needs it
    interleaved: bool = False  # the pairs that turn are neighbours (GPT-J), not one number of either half

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in ROTARY_KINDS:
            raise ValueError(
                f"rope_scaling={self.scaling}: this rope_type is not supported; use one of {', '.join(ROTARY_KINDS)}"
            )
        for name in ROTARY_KINDS[self.kind]:
            value = self.scaling.get(name)
            if not _is_above_0(value):
                raise ValueError(f"rope_scaling={self.scaling}: {self.kind!r} needs a number above 0 as {name}")
        for name in ("short_factor", "long_factor") if self.kind == "longrope" else ():
            values = self.scaling.get(name)
            if (
                not isinstance(values, (list, tuple))
                or len(values) != self.size // 2
                or not all(map(_is_above_0, values))
            ):
                raise ValueError(
                    f"rope_scaling={self.scaling}: 'longrope' needs {self.size // 2} numbers above 0 as {name}"
                )

    @property
    def kind(self) -> Any:
        """How long texts are scaled: a key of `ROTARY_KINDS`."""
        return self.scaling.get("rope_type") or self.scaling.get("type") or "default"


def _is_above_0(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


@dataclass(frozen=True)
class RelativeSpec:
    """What a head adds to scores by how far a key stands from the query, in buckets (Raffel et al. 2020, section 2.1).

    One table (buckets, heads) serves all layers.
    """

    buckets: int
    distance: int  # from here on all distances share a bucket
    both_ways: bool  # half of the buckets are for keys after the query


@dataclass(frozen=True)
class DisentangledSpec:
    """What distances add to scores by content: a query with a key's distance, a key with a query's, or both.

    DeBERTa (He et al. 2021, section 3.1). One table (2 * span, hidden) of distances serves all layers.
    """

    distance: int  # from here on all distances share a row
    buckets: int = 0  # even: rows on either side, far ones for ever more distances; 0 is a row for each distance
    content_to_position: bool = True
    position_to_content: bool = True
    shared: bool = True  # distances go through the layer's own query and key matrices (version 2), not through others
    norm: bool = False  # over the rows of the table
    dropout: float = 0.0  # on them, in each layer

    @property
    def span(self) -> int:
        """How many rows of the table there are on either side."""
        return self.buckets or self.distance


@dataclass(frozen=True)
class ConvolutionSpec:
    """A convolution over the embeddings, whose activation is added to what the first layer gives, with a norm."""

    width: int  # in tokens, odd
    activation: str


@dataclass(frozen=True)
class AttentionSpec:
    """One attention layer: heads, biases, scale, and what acts on queries and keys."""

    heads: int
    key_value_heads: int
    head_size: int
    bias: bool = True  # on queries, keys and values
    output_bias: bool = True
    dropout: float = 0.0
    scaled: bool = True  # by 1 / sqrt(head_size)
    scaled_by_layer: bool = False  # and by 1 / (layer + 1)
    scale_size: float | None = None  # by 1 / sqrt(this) in place of head_size (Gemma 2)
    soft_cap: float | None = None  # scores become cap * tanh(score / cap) (Gemma 2)
    head_norm: bool = False  # a norm over each head of queries and keys, of the kind that the stack's norms have
    head_norms_apart: bool = False  # each head has such a norm of its own, without a bias (StableLM 2 12B)
    whole_norm: bool = False  # such a norm over all heads of the queries, and over all of the keys (OLMo 2)
    alibi: float = 0.0  # distance lowers scores (Press et al. 2022, "ALiBi"), by slopes times this; 0 is no such thing
    rotary: RotarySpec | None = None
    relative: RelativeSpec | None = None
    disentangled: DisentangledSpec | None = None
    rotaries: tuple[RotarySpec | None, ...] = ()  # per layer, where they differ; () is `rotary` in every layer
    windows: tuple[int | None, ...] = ()  # per layer: how far back a token sees; () is everywhere without bound
    global_tokens: bool = False  # tokens may be chosen that see all, by matrices of their own, and that all see
    pruned: dict[int, tuple[int, ...]] = field(default_factory=dict, hash=False)  # layer -> heads taken out

    def scale(self, layer: int) -> float:
        """What the scores of this layer are multiplied by."""
        scale = (self.scale_size or self.head_size) ** -0.5 if self.scaled else 1.0
        return scale / (layer + 1) if self.scaled_by_layer else scale

    def window(self, layer: int) -> int | None:
        """How many positions, itself included, a token of this layer sees backwards."""
        return self.windows[layer] if self.windows else None

    def for_source(self) -> AttentionSpec:
        """The same heads over a source: what is added where a family has no cross-attention. It has no positions."""
        return replace(self, rotary=None, rotaries=(), windows=(), alibi=0.0)

    def rotary_kinds(self) -> tuple[RotarySpec, ...]:
        """The different rotary positions of the layers: none, mostly one."""
        return tuple(dict.fromkeys(x for x in self.rotaries or (self.rotary,) if x is not None))

    def heads_of(self, layer: int) -> tuple[int, int]:
        """Query heads and key-value heads of a layer, after pruning."""
        gone = len(self.pruned.get(layer, ()))
        return self.heads - gone, self.key_value_heads - gone


@dataclass(frozen=True)
class EmbeddingSpec:
    """The way in: tokens, learned or computed positions, token types, norm, scale, projection."""

    vocabulary: int
    size: int
    positions: int = 0  # rows for positions; 0 is none
    position_offset: int = 0  # rows of the table before position 0
    positions_skip_padding: bool = False  # an encoder counts only tokens that are not padding (RoBERTa)
    sinusoids: str | None = None  # positions are computed, "plain" or "stretched": see `sinusoids`; None is learned
    token_types: int = 0
    task_types: int = 0  # a table of which row 0 is added to every token (ERNIE)
    beside: tuple[tuple[str, int, int], ...] = ()  # tables, a row of each beside every token: (name, rows, size)
    projected: bool = False  # at the end, from `size` to the hidden size
    projected_first: bool = False  # or before the norm, and without a bias (DeBERTa)
    tokens_projected: bool = False  # tokens alone, without a bias, before positions are added (OPT-350m)
    norm: bool = False
    norm_before_positions: bool = False  # the norm acts on the tokens alone (Blenderbot's small decoder)
    scale: float = 1.0
    scales_given: bool = False  # vectors that are given in place of ids, too (Granite)
    padding_id: int | None = None
    dropout: float = 0.0

    @property
    def first_row(self) -> int:
        """The row of the table that position 0 of given `position_ids` has; RoBERTa's ids are rows themselves."""
        return 0 if self.positions_skip_padding else self.position_offset

    @property
    def beside_size(self) -> int:
        """How wide all that stands beside a token's vector is; both are projected to the token's size (RoCBert)."""
        return sum(size for _, _, size in self.beside)

    def zero_rows(self) -> dict[str, int]:
        """Which row of which table starts at zero: that of padding, where it has one."""
        tables = ("token", *(f"beside.{name}" for name, _, _ in self.beside))
        rows = {} if self.padding_id is None else {f"embeddings.{name}.weight": self.padding_id for name in tables}
        learned = self.positions_skip_padding and self.sinusoids is None
        return rows | ({"embeddings.position.weight": self.position_offset - 1} if learned else {})


@dataclass(frozen=True)
class MLPSpec:
    """The feed-forward layer: one hidden layer, gated or not."""

    size: int
    activation: str
    gated: bool = False
    bias: bool = True
    dropout: float = 0.0  # on the hidden layer


@dataclass(frozen=True)
class NormSpec:
    """Layer norm or RMS norm, and where it stands."""

    kind: str = "layer"  # or "rms"
    epsilon: float = 1e-12
    before: bool = False  # before each sub-layer (pre-norm) rather than after its residual
    output: bool = False  # on each sub-layer's output: beside the one before it (Gemma 2), else in its place (OLMo 2)
    shared: bool = False  # self-attention and MLP, in parallel, read the same normed states (GPT-J)
    bias: bool = True  # of layer norm
    first: bool = True  # before the first layer's self-attention, too; ModernBERT has that of its embeddings there
    from_one: bool = False  # the weight is what is added to 1 (Gemma)
    final: bool = False  # one more after the last layer

    @property
    def main(self) -> bool:
        """Whether a sub-layer has a norm before it or after its residual."""
        return self.before or not self.output

    @property
    def start(self) -> float:
        """The value with which a new weight starts."""
        return 0.0 if self.from_one else 1.0


@dataclass(frozen=True)
class HeadSpec:
    """From hidden states to logits: optionally dense, activation and norm first; then the vocabulary."""

    transform: str | None = None  # the activation; None is no transform
    bias: bool = False
    fixed_bias: bool = False  # which is not trained (Marian's)
    tied: bool = True  # the output matrix is the embedding matrix
    scale: float = 1.0  # of the states that it reads (T5)
    soft_cap: float | None = None  # logits become cap * tanh(logit / cap) (Gemma 2)
    size: int = 0  # what the transform gives; 0 is the size of the embeddings
    transform_bias: bool = True
    transform_norm: bool = True


@dataclass(frozen=True)
class StackSpec:
    """A whole stack: what every framework needs to build it."""

    family: str
    hidden_size: int
    layers: int
    embedding: EmbeddingSpec
    attention: AttentionSpec
    mlp: MLPSpec
    norm: NormSpec
    cross_attention: AttentionSpec | None = None
    cross_attention_size: int = 0  # width of what the cross-attention reads
    head: HeadSpec | None = None
    causal: bool = False
    convolution: ConvolutionSpec | None = None
    parallel: bool = False  # the MLP reads what self-attention reads, not what it gives (GPT-J)
    dropout: float = 0.0  # on each sub-layer's output
    residual_scale: float = 1.0  # what each sub-layer gives is multiplied by this before it is added (Granite)
    layer_drop: float = 0.0  # share of layers skipped in training (Fan et al. 2019, "LayerDrop")
    initializer_range: float = 0.02  # standard deviation of new weights
    residual_shrink: bool = False  # new residual outputs divided by sqrt(2 * layers) (GPT-2, section 2.3)
    positions: int | None = None  # the longest input; None is without bound
    groups: int = 0  # layers in as many groups, each of one set of weights (ALBERT); 0 is each its own

    @property
    def distinct_layers(self) -> int:
        """How many layers have weights of their own."""
        return self.groups or self.layers

    def weights_of(self, layer: int) -> int:
        """Which of the distinct layers computes this one."""
        return layer * self.groups // self.layers if self.groups else layer

    @property
    def head_width(self) -> int:
        """The width of what the last matrix of the head reads."""
        return (self.head.size if self.head else 0) or self.embedding.size

    @property
    def beside_names(self) -> tuple[str, ...]:
        """The arguments that give each token its row of the tables beside the tokens' (RoCBert)."""
        return tuple(BESIDE[table] for table, _, _ in self.embedding.beside)

    def beside(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """By table, the ids that arguments give for those beside the tokens'; a table that is not used needs none.

        Raises:
            ValueError: the stack has no such tables.
        """
        found = {table: given[name] for table, name in BESIDE.items() if given.get(name) is not None}
        if found and not self.embedding.beside:
            names = " and ".join(BESIDE[table] for table in found)
            raise ValueError(f"a {self.family} stack has no tables of shapes and pronunciations; leave {names} out")
        return {table: found[table] for table, _, _ in self.embedding.beside if table in found}

    def initial_deviation(self, name: str) -> float:
        """Standard deviation with which a new matrix of this name starts."""
        if self.residual_shrink and name.endswith(("attention.output.weight", "mlp.down.weight")):
            return self.initializer_range / math.sqrt(2 * self.layers)
        return self.initializer_range
