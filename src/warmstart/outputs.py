"""What the models return: dataclasses whose fields are read by attribute, by key or by index, in any framework.

Shapes: b batch, s source length, t target length, h hidden size, v vocabulary, n heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any


class ModelOutput(Mapping):
    """A record of tensors; fields that are None are left out of `keys`, of indexing and of `to_tuple`.

    >>> output = BaseModelOutput(last_hidden_state=[1.0], attentions=([0.5],))
    >>> output["last_hidden_state"] is output.last_hidden_state is output[0]
    True
    >>> list(output), len(output), output.hidden_states
    (['last_hidden_state', 'attentions'], 2, None)
    """

    def __post_init__(self) -> None:
        names = [field.name for field in fields(self)]  # type: ignore[arg-type]
        first = getattr(self, names[0])
        # Tools that map a function over a mapping rebuild it as `type(output)({...})`.
        if isinstance(first, dict) and all(getattr(self, name) is None for name in names[1:]):
            setattr(self, names[0], None)
            for name, value in first.items():
                setattr(self, name, value)

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None, in order."""
        return tuple(value for field in fields(self) if (value := getattr(self, field.name)) is not None)  # type: ignore[arg-type]

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            value = getattr(self, key, None) if key in self.__dataclass_fields__ else None  # type: ignore[attr-defined]
            if value is None:
                raise KeyError(key)
            return value
        return self.to_tuple()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        if key not in self.__dataclass_fields__:  # type: ignore[attr-defined]
            raise KeyError(f"{type(self).__name__} has no field {key!r}; it has {list(self.__dataclass_fields__)}")  # type: ignore[attr-defined]
        setattr(self, key, value)

    def __iter__(self) -> Iterator[str]:
        return iter([field.name for field in fields(self) if getattr(self, field.name) is not None])  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.to_tuple())

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and getattr(self, key, None) is not None

    __eq__ = object.__eq__  # tensors have no one truth value
    __hash__ = object.__hash__


@dataclass(eq=False)
class BaseModelOutput(ModelOutput):
    """A stack's output: `last_hidden_state` (b, s, h); `hidden_states`, a tuple of layers + 1 such; `attentions`, a
    tuple of layers (b, n, s, s).
    """

    last_hidden_state: Any = None
    hidden_states: tuple[Any, ...] | None = None
    attentions: tuple[Any, ...] | None = None


def as_encoded(given: Any) -> Any:
    """What an encoder gave, as a record: as it is, or made of a tuple of its fields or of the states alone.

    >>> as_encoded(("states", None)).last_hidden_state, as_encoded("states").last_hidden_state
    ('states', 'states')
    """
    if hasattr(given, "last_hidden_state"):
        return given
    return BaseModelOutput(*(given if isinstance(given, (tuple, list)) else (given,)))


@dataclass(eq=False)
class BaseModelOutputWithPastAndCrossAttentions(ModelOutput):
    """A decoder stack's output: as `BaseModelOutput`, with the KV cache and `cross_attentions`, a tuple of layers
    (b, n, t, s).
    """

    last_hidden_state: Any = None
    past_key_values: Any = None
    hidden_states: tuple[Any, ...] | None = None
    attentions: tuple[Any, ...] | None = None
    cross_attentions: tuple[Any, ...] | None = None


@dataclass(eq=False)
class CausalLMOutputWithCrossAttentions(ModelOutput):
    """A language model's output: `loss` (a scalar, with labels), `logits` (b, t, v), the KV cache, and the states."""

    loss: Any = None
    logits: Any = None
    past_key_values: Any = None
    hidden_states: tuple[Any, ...] | None = None
    attentions: tuple[Any, ...] | None = None
    cross_attentions: tuple[Any, ...] | None = None


@dataclass(eq=False)
class MaskedLMOutput(ModelOutput):
    """A masked language model's output: `loss` (a scalar, with labels), `logits` (b, s, v), and the states."""

    loss: Any = None
    logits: Any = None
    hidden_states: tuple[Any, ...] | None = None
    attentions: tuple[Any, ...] | None = None


@dataclass(eq=False)
class Seq2SeqLMOutput(ModelOutput):
    """An encoder-decoder's output.

    `loss` is a scalar (with labels), `logits` (b, t, v), `past_key_values` the KV cache, `decoder_hidden_states` a
    tuple of layers + 1 (b, t, h), `decoder_attentions` of layers (b, n, t, t), `cross_attentions` of layers
    (b, n, t, s), `encoder_last_hidden_state` (b, s, h), and the encoder's own states and attentions.
    """

    loss: Any = None
    logits: Any = None
    past_key_values: Any = None
    decoder_hidden_states: tuple[Any, ...] | None = None
    decoder_attentions: tuple[Any, ...] | None = None
    cross_attentions: tuple[Any, ...] | None = None
    encoder_last_hidden_state: Any = None
    encoder_hidden_states: tuple[Any, ...] | None = None
    encoder_attentions: tuple[Any, ...] | None = None


@dataclass(eq=False)
class FlaxBaseModelOutputWithPastAndCrossAttentions(ModelOutput):
    """A stack's output in JAX; the fields of `BaseModelOutputWithPastAndCrossAttentions`."""

    last_hidden_state: Any = None
    past_key_values: Any = None
    hidden_states: tuple[Any, ...] | None = None
    attentions: tuple[Any, ...] | None = None
    cross_attentions: tuple[Any, ...] | None = None


@dataclass(eq=False)
class FlaxCausalLMOutputWithCrossAttentions(ModelOutput):
    """A language model's output in JAX: `logits` (b, t, v), the KV cache, and the states."""

    logits: Any = None
    past_key_values: Any = None
    hidden_states: tuple[Any, ...] | None = None
    attentions: tuple[Any, ...] | None = None
    cross_attentions: tuple[Any, ...] | None = None


@dataclass(eq=False)
class FlaxMaskedLMOutput(ModelOutput):
    """A masked language model's output in JAX: `logits` (b, s, v), and the states."""

    logits: Any = None
    hidden_states: tuple[Any, ...] | None = None
    attentions: tuple[Any, ...] | None = None


@dataclass(eq=False)
class FlaxSeq2SeqLMOutput(ModelOutput):
    """An encoder-decoder's output in JAX; the fields of `Seq2SeqLMOutput` without a loss."""

    logits: Any = None
    past_key_values: Any = None
    decoder_hidden_states: tuple[Any, ...] | None = None
    decoder_attentions: tuple[Any, ...] | None = None
    cross_attentions: tuple[Any, ...] | None = None
    encoder_last_hidden_state: Any = None
    encoder_hidden_states: tuple[Any, ...] | None = None
    encoder_attentions: tuple[Any, ...] | None = None


@dataclass(eq=False)
class FlaxGenerateOutput(ModelOutput):
    """What `generate` gives in JAX.

    `sequences` (b * m, n) are ids, prompt included, filled with the pad id up to the length that was compiled for.
    `scores` (b * m,), with beams, are their log-probabilities after the length penalty.
    """

    sequences: Any = None
    scores: Any = None
