"""The single-stack models: `FlaxAutoModel` (states), `FlaxAutoModelForCausalLM` and `...ForMaskedLM` (logits).

They serve every family; `FlaxBertModel`, `FlaxGPT2LMHeadModel` and the other familiar names are thin names over them.
Shapes: r rows, b sources, t length, s source length, h hidden size, v vocabulary.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array

from warmstart.config import PretrainedConfig
from warmstart.families import family_of, spec_of
from warmstart.fitting import Side
from warmstart.flax.cache import KeyValueCache, new_cache
from warmstart.flax.generation.generate import compute_transition_scores, generate
from warmstart.flax.loading import as_dtype
from warmstart.flax.masks import with_global
from warmstart.flax.pretrained import FlaxPreTrainedModel
from warmstart.flax.stack import Stack, States, check_input
from warmstart.outputs import (
    FlaxBaseModelOutputWithPastAndCrossAttentions,
    FlaxCausalLMOutputWithCrossAttentions,
    FlaxMaskedLMOutput,
    ModelOutput,
)
from warmstart.spec import StackSpec
from warmstart.warm_start import half


class FlaxStackModel(FlaxPreTrainedModel):
    """What the models of one stack share: how they are built from a configuration, and how they are called."""

    kind: ClassVar[str] = "base"
    side: ClassVar[str] = "encoder"
    config_class: ClassVar[type[PretrainedConfig] | None] = None
    output: ClassVar[type[ModelOutput]] = FlaxBaseModelOutputWithPastAndCrossAttentions
    module: Stack

    def __init__(
        self,
        config: PretrainedConfig,
        input_shape: tuple[int, int] | None = None,
        seed: int = 0,
        dtype: Any = jnp.float32,
        _do_init: bool = True,
    ):
        if not isinstance(config, PretrainedConfig):
            raise TypeError(
                f"{type(self).__name__} is built from a configuration (AutoConfig.from_pretrained(...)), not from a "
                f"{type(config).__name__}"
            )
        if config.model_type == "encoder-decoder":
            raise ValueError(
                f"{type(self).__name__} is one stack and the configuration a pair's; use FlaxEncoderDecoderModel"
            )
        if self.config_class is not None and not isinstance(config, self.config_class):
            raise TypeError(
                f"{type(self).__name__} is built from a {self.config_class.__name__}, not {type(config).__name__}"
            )
        dtype = as_dtype(dtype)
        self.spec: StackSpec = spec_of(config, self.kind)
        super().__init__(config, Stack(self.spec, dtype), input_shape, seed, dtype, _do_init)

    def sides(self) -> list[Side]:
        return [Side("", "", self.config, self.spec)]

    @classmethod
    def part_of(cls, config: PretrainedConfig) -> tuple[PretrainedConfig, str]:
        return half(config, cls.side)

    def architecture(self) -> str:
        names = family_of(self.config).architectures
        return names.get(self.kind, names["base"])

    def adopt(self, config: PretrainedConfig) -> None:
        """Take another configuration of the same shape as one's own."""
        self.config = config
        self.spec = spec_of(config, self.kind)
        self.module = self.module.clone(spec=self.spec)

    def example_inputs(self, input_shape: Any = None) -> tuple[Any, ...]:
        shape, spec = tuple(input_shape or (1, 1)), self.spec
        source = None if spec.cross_attention is None else jnp.zeros((shape[0], 1, spec.cross_attention_size))
        return (jnp.zeros(shape, jnp.int32), None, None, None, None, source)

    def init_cache(self, batch_size: int, max_length: int, encoder_hidden_states: Any = None) -> KeyValueCache:
        """An empty cache for so many rows of at most so many tokens."""
        return new_cache(self.spec, batch_size, max_length, self.dtype)

    def __call__(
        self,
        input_ids: Array | None = None,
        attention_mask: Array | None = None,
        token_type_ids: Array | None = None,
        position_ids: Array | None = None,
        inputs_embeds: Array | None = None,
        encoder_hidden_states: Array | None = None,
        encoder_attention_mask: Array | None = None,
        params: Any = None,
        dropout_rng: Any = None,
        train: bool = False,
        past_key_values: KeyValueCache | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        global_attention_mask: Array | None = None,
        input_shape_ids: Array | None = None,
        input_pronunciation_ids: Array | None = None,
    ) -> Any:
        """Ids (r, t) to states (r, t, h), or with a head to logits (r, t, v).

        `attention_mask` (r, t) is 1 for tokens and 0 for padding; with `past_key_values` it covers the whole cache.
        `global_attention_mask` (r, t) is 1 for tokens of a Longformer that see everything and that everything sees.
        `input_shape_ids` and `input_pronunciation_ids` (r, t) are a RoCBert's, the first of either where they are not
        given. `encoder_hidden_states` (b, s, h) with their mask (b, s) are what cross-attention reads, where the model
        has it; row i belongs to source i // (r / b). `params` are used in place of the model's own.
        """
        config, spec = self.config, self.spec
        beside = spec.beside({"input_shape_ids": input_shape_ids, "input_pronunciation_ids": input_pronunciation_ids})
        attention_mask = with_global(attention_mask, global_attention_mask, spec)
        check_input(
            spec, input_ids, inputs_embeds, attention_mask, past_key_values, position_ids, token_type_ids, beside
        )
        if encoder_hidden_states is not None and spec.cross_attention is None:
            raise ValueError(
                f"this {config.model_type} has no cross-attention to read encoder_hidden_states with; make it with "
                "is_decoder=True, add_cross_attention=True"
            )
        arrays = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            "source": encoder_hidden_states,
            "source_attention_mask": encoder_attention_mask,
            "beside": beside,
        }
        flags = {
            "want_attentions": either(output_attentions, config.output_attentions),
            "want_hidden": either(output_hidden_states, config.output_hidden_states),
            "train": train,
        }
        states = self.run("__call__", arrays, flags, params, dropout_rng, cache=past_key_values)
        return self._returned(states, return_dict)

    def _returned(self, states: States, return_dict: bool | None) -> Any:
        values = {
            "last_hidden_state": states.last,
            "logits": states.logits,
            "past_key_values": states.cache,
            "hidden_states": states.hidden,
            "attentions": states.attentions,
            "cross_attentions": states.cross_attentions,
        }
        fields = self.output.__dataclass_fields__  # type: ignore[attr-defined]
        result = self.output(**{name: value for name, value in values.items() if name in fields})
        return result if either(return_dict, self.config.use_return_dict) else result.to_tuple()


class FlaxAutoModel(FlaxStackModel):
    """A stack of any family: ids in, hidden states out. It has no pooler.

    >>> from warmstart import BertConfig
    >>> model = FlaxAutoModel(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
    >>> model(jnp.array([[1, 2, 3]])).last_hidden_state.shape
    (1, 3, 8)
    """


class FlaxAutoModelForCausalLM(FlaxStackModel):
    """A decoder of any family: ids in, next-token logits out; with cross-attention where the configuration has it.

    >>> from warmstart import GPT2Config
    >>> model = FlaxAutoModelForCausalLM(GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=2))
    >>> model(jnp.array([[1, 2, 3]])).logits.shape
    (1, 3, 9)
    """

    kind = "causal"
    side = "decoder"
    output = FlaxCausalLMOutputWithCrossAttentions
    can_generate_text = True
    generate = generate
    compute_transition_scores = compute_transition_scores


class FlaxAutoModelForMaskedLM(FlaxStackModel):
    """An encoder of any family with its language model head: ids in, logits of each position out."""

    kind = "masked"
    output = FlaxMaskedLMOutput


def either(value: bool | None, default: bool) -> bool:
    """What was asked for, or the default."""
    return default if value is None else value


_KINDS = {"base": FlaxAutoModel, "causal": FlaxAutoModelForCausalLM, "masked": FlaxAutoModelForMaskedLM}
# Classes whose name in Flax is not that in PyTorch with "Flax" before it.
_OTHER_NAMES = {"FlaxBertForCausalLM": "BertLMHeadModel"}


def __getattr__(name: str) -> Any:
    """The familiar name of a family's model: one of the classes above, bound to that family's configuration."""
    if not name.startswith("Flax"):  # the import machinery asks for `__path__`: no reason to import every family
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from warmstart.families import MODULES, family

    wanted = _OTHER_NAMES.get(name, name.removeprefix("Flax"))
    for model_type in MODULES:
        entry = family(model_type)
        for kind, architecture in entry.architectures.items():
            if architecture == wanted:
                parent = _KINDS[kind]
                doc = f"{parent.__name__} of the family {model_type!r}."
                body = {"config_class": entry.config, "__doc__": doc, "__module__": __name__}
                globals()[name] = type(name, (parent,), body)
                return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["FlaxAutoModel", "FlaxAutoModelForCausalLM", "FlaxAutoModelForMaskedLM"]
