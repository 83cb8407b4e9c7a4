"""What a transformer stack is made of, as plain data: every framework builds its block by this and nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

# Activations that every framework here has.
_SMOOTH = {"gelu", "gelu_python", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "silu", "swish", "mish"}
ACTIVATIONS = frozenset(_SMOOTH | {"relu", "relu2", "tanh", "sigmoid", "linear"})


@dataclass(frozen=True)
class RotarySpec:
    """Rotary positions (Su et al. 2021, "RoFormer", section 3.2): base, rotated size, and how long texts are scaled."""

    size: int  # how many of a head's numbers are rotated
    theta: float = 10000.0
    scaling: dict[str, Any] = field(default_factory=dict, hash=False)
    positions: int = 0  # the length the model was trained for, where a scaling needs it
    interleaved: bool = False  # the pairs that turn are neighbours (GPT-J), not one number of either half

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in _SCALINGS:
            raise ValueError(
                f"rope_scaling={self.scaling}: this rope_type is not supported; use one of {', '.join(_SCALINGS)}"
            )
        for name in _SCALINGS[self.kind][1]:
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
        """How long texts are scaled: a key of the table below."""
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
    beside: tuple[tuple[str, int, int], ...] = ()  # tables whose row 0 stands beside every token: (name, rows, size)
    projected: bool = False  # at the end, from `size` to the hidden size
    projected_first: bool = False  # or before the norm, and without a bias (DeBERTa)
    tokens_projected: bool = False  # tokens alone, without a bias, before positions are added (OPT-350m)
    norm: bool = False
    norm_before_positions: bool = False  # the norm acts on the tokens alone (Blenderbot's small decoder)
    scale: float = 1.0
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

    def initial_deviation(self, name: str) -> float:
        """Standard deviation with which a new matrix of this name starts."""
        if self.residual_shrink and name.endswith(("attention.output.weight", "mlp.down.weight")):
            return self.initializer_range / math.sqrt(2 * self.layers)
        return self.initializer_range


def sinusoids(spec: EmbeddingSpec) -> np.ndarray:
    """The table of computed positions (rows, size) in float32: sines in the first half of a row, cosines in the other.

    "plain" has the wave lengths of Vaswani et al. 2017, section 3.5; "stretched" those of their code (tensor2tensor),
    in which the last is 10000 * 2 * pi exactly, and a row of zeros for padding.

    >>> sinusoids(EmbeddingSpec(vocabulary=9, size=4, positions=2, sinusoids="plain"))[1].round(3).tolist()
    [0.8410000205039978, 0.009999999776482582, 0.5400000214576721, 1.0]
    """
    half = spec.size // 2
    rows = np.arange(spec.positions + spec.position_offset)
    if spec.sinusoids == "plain":
        angles = rows[:, None] / 10000.0 ** (np.arange(half) * 2 / spec.size)
    else:
        step = np.float32(math.log(10000.0) / max(half - 1, 1))
        angles = rows[:, None].astype(np.float32) * np.exp(np.arange(half, dtype=np.float32) * -step)
    table = np.concatenate([np.sin(angles), np.cos(angles)], 1).astype(np.float32)
    table = np.pad(table, ((0, 0), (0, spec.size % 2)))
    if spec.sinusoids == "stretched" and spec.padding_id is not None and spec.padding_id < len(table):
        table[spec.padding_id] = 0.0
    return table


def relative_buckets(relative: RelativeSpec) -> np.ndarray:
    """The bucket of each distance from `-relative.distance` to `relative.distance`, a key's place less the query's.

    Half of the buckets are for small distances, one each; the others grow with the logarithm.

    >>> relative_buckets(RelativeSpec(buckets=8, distance=6, both_ways=False)).tolist()
    [7, 6, 4, 3, 2, 1, 0, 0, 0, 0, 0, 0, 0]
    """
    away = np.arange(-relative.distance, relative.distance + 1)
    buckets = relative.buckets // 2 if relative.both_ways else relative.buckets
    first = (away > 0) * buckets if relative.both_ways else np.zeros_like(away)
    away = np.abs(away) if relative.both_ways else -np.minimum(away, 0)
    exact = buckets // 2
    near = away < exact
    times = np.maximum(away, 1).astype(np.float32) / np.float32(exact)
    far = np.log(times) / np.float32(math.log(relative.distance / exact)) * np.float32(buckets - exact)
    return first + np.where(near, away, np.minimum(exact + np.where(near, 0, far).astype(int), buckets - 1))


def disentangled_rows(spec: DisentangledSpec) -> np.ndarray:
    """The row of each distance from `-spec.distance` to `spec.distance`, a key's place less the query's.

    The middle row is no distance, those before it are keys after the query. With buckets, distances to half of them
    have a row each; the rows of others grow with the logarithm.

    >>> disentangled_rows(DisentangledSpec(distance=9, buckets=4)).tolist()
    [7, 7, 7, 7, 7, 7, 7, 6, 5, 4, 3, 2, 1, 1, 1, 1, 1, 1, 0]
    """
    back = np.arange(spec.distance, -spec.distance - 1, -1)
    if spec.buckets:
        exact, size = spec.buckets // 2, np.abs(back)
        times = np.maximum(size, 1).astype(np.float32) / np.float32(exact)
        most = np.log(np.float32((spec.distance - 1) / exact))
        far = np.ceil(np.log(times) / most * np.float32(exact - 1)).astype(int) + exact
        back = np.where(size <= exact, back, np.sign(back) * far)
    return np.clip(back + spec.span, 0, 2 * spec.span - 1)


def inverse_frequencies(rotary: RotarySpec) -> tuple[np.ndarray, float]:
    """Inverse frequencies (size / 2,) in float32, and the factor on cosine and sine.

    Kinds: "default"; "linear" (position interpolation, Chen et al. 2023); "llama3" (Llama 3.1's `apply_scaling`);
    "yarn" (Peng et al. 2023, sections 3.2 to 3.4); "dynamic" (their appendix B.2) and "longrope" (Ding et al. 2024),
    whose frequencies are others beyond the trained length: see `beyond`.

    >>> frequencies, factor = inverse_frequencies(RotarySpec(size=4, theta=100.0))
    >>> [round(float(x), 3) for x in frequencies], factor
    ([1.0, 0.1], 1.0)
    """
    plain = (1.0 / _wave_lengths(rotary)).astype(np.float32)
    frequencies, factor = _SCALINGS[rotary.kind][0](plain, rotary)
    return frequencies.astype(np.float32), factor


class Beyond(NamedTuple):
    """The frequencies of a pass over more positions than `trained`: of length l, those of `at`."""

    trained: int
    frequencies: np.ndarray
    exponents: np.ndarray
    slope: float

    def at(self, length: Any) -> Any:
        """Inverse frequencies (size / 2,) for a length beyond the trained one: a number, or a framework's scalar."""
        return self.frequencies * (1 + self.slope * (length - self.trained)) ** self.exponents


def beyond(rotary: RotarySpec) -> Beyond | None:
    """What becomes of the frequencies where a text is longer than the model was trained for; None is nothing.

    Keys that a cache holds stay as they were turned, as in the reference, so that what is written past that length one
    token at a time is not what one pass over all of it would give.

    >>> beyond(RotarySpec(size=4, theta=100.0, scaling={"rope_type": "dynamic", "factor": 2.0}, positions=8)).at(16)[0]
    np.float32(1.0)
    """
    plain = (1.0 / _wave_lengths(rotary)).astype(np.float32)
    steps = np.arange(0, rotary.size, 2, dtype=np.float32)
    if rotary.kind == "dynamic":  # the base grows so that the slowest frequency is divided by the share of the length
        growing = -steps / np.float32(max(rotary.size - 2, 1))
        return Beyond(rotary.positions, plain, growing, rotary.scaling["factor"] / rotary.positions)
    if rotary.kind == "longrope":
        return Beyond(_trained(rotary), plain / np.float32(rotary.scaling["long_factor"]), np.zeros_like(steps), 0.0)
    return None


def _wave_lengths(rotary: RotarySpec) -> np.ndarray:
    exponents = np.arange(0, rotary.size, 2, dtype=np.float32) / np.float32(rotary.size)
    return np.asarray(np.float32(rotary.theta) ** exponents)


def _trained(rotary: RotarySpec) -> int:
    return int(rotary.scaling.get("original_max_position_embeddings") or rotary.positions)


def alibi_slopes(heads: int) -> np.ndarray:
    """How much each head minds distance (heads,) in float32 (Press et al. 2022, section 3).

    A geometric series for powers of two; for other counts, between it come values of the next power's.

    >>> [float(x) for x in alibi_slopes(4)]
    [0.25, 0.0625, 0.015625, 0.00390625]
    """
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (index + 1) / power) for index in range(power)]
    slopes += [2 ** (-4 * (index + 1) / power) for index in range(0, 2 * (heads - power), 2)]
    return np.array(slopes, np.float32)


def _default(plain: np.ndarray, rotary: RotarySpec) -> tuple[np.ndarray, float]:
    return plain, 1.0


def _linear(plain: np.ndarray, rotary: RotarySpec) -> tuple[np.ndarray, float]:
    return plain / np.float32(rotary.scaling["factor"]), 1.0


def _llama3(plain: np.ndarray, rotary: RotarySpec) -> tuple[np.ndarray, float]:
    factor, low, high, trained = (
        rotary.scaling[name]
        for name in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    )
    turns = trained * plain / (2 * np.pi)  # how often a frequency turns within the trained length
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0).astype(np.float32)
    return plain / np.float32(factor) * (1 - blend) + plain * blend, 1.0


def _yarn(plain: np.ndarray, rotary: RotarySpec) -> tuple[np.ndarray, float]:
    scaling, size = rotary.scaling, rotary.size
    factor = scaling["factor"]
    trained = _trained(rotary)

    def index_that_turns(times: float) -> float:
        return size * math.log(trained / (times * 2 * math.pi)) / (2 * math.log(rotary.theta))

    low, high = index_that_turns(scaling.get("beta_fast") or 32), index_that_turns(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    ramp = np.clip((np.arange(size // 2, dtype=np.float32) - low) / ((high - low) or 0.001), 0.0, 1.0)
    return plain / np.float32(factor) * ramp + plain * (1 - ramp), _yarn_magnitude(scaling, factor)


def _yarn_magnitude(scaling: dict[str, Any], factor: float) -> float:
    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if (given := scaling.get("attention_factor")) is not None:
        return float(given)
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return magnitude(scaling["mscale"]) / magnitude(scaling["mscale_all_dim"])
    return magnitude(1.0)


def _longrope(plain: np.ndarray, rotary: RotarySpec) -> tuple[np.ndarray, float]:
    scaling, trained = rotary.scaling, _trained(rotary)
    factor = scaling.get("factor") or rotary.positions / trained
    magnitude = math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0
    given = scaling.get("attention_factor")
    return plain / np.float32(scaling["short_factor"]), magnitude if given is None else float(given)


# kind of scaling -> how it is computed, and the numbers that it needs
_SCALINGS = {
    "default": (_default, ()),
    "linear": (_linear, ("factor",)),
    "llama3": (_llama3, ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")),
    "yarn": (_yarn, ("factor",)),
    "dynamic": (_default, ("factor",)),
    "longrope": (_longrope, ()),
}
