"""The single-stack models: `TFAutoModel` (states), `TFAutoModelForCausalLM` and `TFAutoModelForMaskedLM` (logits).

They serve every family; `TFBertModel`, `TFGPT2LMHeadModel` and the other familiar names are thin names over them.
Shapes: r rows, b sources, t length, p cached tokens, s source length, h hidden size, v vocabulary.
"""

from __future__ import annotations

from typing import Any, ClassVar

import keras
import tensorflow as tf

from warmstart.config import PretrainedConfig
from warmstart.families import family_of, spec_of
from warmstart.fitting import Side
from warmstart.inputs import check_target_rows
from warmstart.outputs import (
    BaseModelOutputWithPastAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
    MaskedLMOutput,
    ModelOutput,
)
from warmstart.spec import BESIDE
from warmstart.tf import surgery
from warmstart.tf.cache import KeyValueCache
from warmstart.tf.ends import Head
from warmstart.tf.generation.generate import compute_transition_scores, generate
from warmstart.tf.inputs import as_ids, as_tensor
from warmstart.tf.loss import counted_losses
from warmstart.tf.masks import with_global
from warmstart.tf.serving import export
from warmstart.tf.stack import Stack, States
from warmstart.tf.unfilled import is_unfilled
from warmstart.warm_start import half

_ARGUMENTS = (
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "position_ids",
    "inputs_embeds",
    "global_attention_mask",
    "encoder_hidden_states",
    "encoder_attention_mask",
    "past_key_values",
    "labels",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    *BESIDE.values(),
)


class StackModel(Stack):
    """What the models of one stack share: how they are built from a configuration, and their embeddings."""

    kind: ClassVar[str] = "base"
    side: ClassVar[str] = "encoder"

    def __init__(self, config: PretrainedConfig, **kwargs: Any) -> None:
        if not isinstance(config, PretrainedConfig):
            raise TypeError(
                f"{type(self).__name__} is built from a configuration (AutoConfig.from_pretrained(...)), not from a "
                f"{type(config).__name__}"
            )
        if config.model_type == "encoder-decoder":
            raise ValueError(
                f"{type(self).__name__} is one stack and the configuration a pair's; use TFEncoderDecoderModel"
            )
        if self.config_class is not None and not isinstance(config, self.config_class):
            raise TypeError(
                f"{type(self).__name__} is built from a {self.config_class.__name__}, not {type(config).__name__}"
            )
        super().__init__(config, **kwargs)
        self.build_stack(spec_of(config, self.kind))
        if self.spec.head is not None:
            self.head = Head(self.spec, self.embeddings.token)
        if not is_unfilled():
            self.init_weights()

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

    def _run(self, arguments: dict[str, Any]) -> tuple[States, dict[str, Any]]:
        """The states for the arguments of `call`, and those arguments by name."""
        given = {name: arguments.get(name) for name in (*_ARGUMENTS, "training")}
        config, cache, source = self.config, given["past_key_values"], given["encoder_hidden_states"]
        if cache is not None and not isinstance(cache, KeyValueCache):
            raise TypeError(
                f"past_key_values must be a KeyValueCache that a model returned, not {type(cache).__name__}"
            )
        if source is not None and self.spec.cross_attention is None:
            raise ValueError(
                f"this {config.model_type} has no cross-attention to read encoder_hidden_states with; make it with "
                "is_decoder=True, add_cross_attention=True"
            )
        if source is not None:
            source = tf.cast(as_tensor(source, "encoder_hidden_states"), self.compute_dtype)
            own = given["input_ids"] if given["inputs_embeds"] is None else given["inputs_embeds"]
            _check_sources(own, source)
        # In training nothing reads a cache.
        use_cache = config.use_cache and not given["training"] if given["use_cache"] is None else given["use_cache"]
        if cache is None and use_cache and self.spec.causal:
            cache = self.new_cache()
        given["attention_mask"] = with_global(given["attention_mask"], given["global_attention_mask"], self.spec)
        states = self.states(
            **{name: given[name] for name in _ARGUMENTS[:5]},
            source=source,
            source_attention_mask=given["encoder_attention_mask"],
            cache=cache,
            want_attentions=_or(given["output_attentions"], config.output_attentions),
            want_hidden=_or(given["output_hidden_states"], config.output_hidden_states),
            training=given["training"],
            beside=self.spec.beside(given),
        )
        return states, given

    def _returned(self, states: States, return_dict: bool | None, output: type[ModelOutput], **first: Any) -> Any:
        """The output class that is asked for, filled from the states."""
        values = {
            "last_hidden_state": states.last,
            "past_key_values": states.cache,
            "hidden_states": states.hidden,
            "attentions": states.attentions,
            "cross_attentions": states.cross_attentions,
        } | first
        fields = output.__dataclass_fields__  # type: ignore[attr-defined]
        result = output(**{name: value for name, value in values.items() if name in fields})
        return result if _or(return_dict, self.config.use_return_dict) else result.to_tuple()

    def vocabularies(self) -> dict[str, tuple[int, str]]:
        """The vocabulary of the inputs and of `labels`."""
        return dict.fromkeys(("input_ids", "labels"), (self.spec.embedding.vocabulary, self.spec.family))

    def get_input_embeddings(self) -> keras.layers.Embedding:
        """The table of token embeddings."""
        return self.embeddings.token

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> keras.layers.Embedding:
        """Change the vocabulary; the configuration follows. See `surgery.resize`."""
        surgery.resize(self, new_num_tokens, pad_to_multiple_of, mean_resizing)
        return self.embeddings.token

    def get_output_embeddings(self) -> Any:
        """The last layer of the head; None without one."""
        return self.head.output_layer if self.spec.head is not None else None


@keras.saving.register_keras_serializable(package="warmstart")
class TFAutoModel(StackModel):
    """A stack of any family: ids in, hidden states out. It has no pooler.

    >>> from warmstart import BertConfig
    >>> model = TFAutoModel(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
    >>> model([[1, 2, 3]]).last_hidden_state.shape
    TensorShape([1, 3, 8])
    """

    def call(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        inputs_embeds: Any = None,
        encoder_hidden_states: Any = None,
        encoder_attention_mask: Any = None,
        past_key_values: KeyValueCache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = None,
        global_attention_mask: Any = None,
        input_shape_ids: Any = None,
        input_pronunciation_ids: Any = None,
    ) -> Any:
        """Ids (r, t) to states (r, t, h); the first argument may be a dict of all.

        `attention_mask` (r, p + t) is 1 for tokens and 0 for padding. `global_attention_mask` (r, t) is 1 for tokens of
        a Longformer that see everything and that everything sees. `input_shape_ids` and `input_pronunciation_ids`
        (r, t) are a RoCBert's, the first of either where they are not given. `encoder_hidden_states` (b, s, h) with
        their mask (b, s) are what cross-attention reads, where the model has it; row i belongs to source i // (r / b).
        """
        states, given = self._run(_without_self(locals()))
        return self._returned(states, given["return_dict"], BaseModelOutputWithPastAndCrossAttentions)


@keras.saving.register_keras_serializable(package="warmstart")
class TFAutoModelForCausalLM(StackModel):
    """A decoder of any family: ids in, next-token logits out; with cross-attention where the configuration has it.

    >>> from warmstart import GPT2Config
    >>> config = GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1)
    >>> model = TFAutoModelForCausalLM(config)
    >>> model([[1, 2, 3]]).logits.shape
    TensorShape([1, 3, 9])
    """

    kind = "causal"
    side = "decoder"
    can_generate_text = True
    generate = generate
    compute_transition_scores = compute_transition_scores
    export = export

    def call(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        inputs_embeds: Any = None,
        encoder_hidden_states: Any = None,
        encoder_attention_mask: Any = None,
        labels: Any = None,
        past_key_values: KeyValueCache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = None,
        input_shape_ids: Any = None,
        input_pronunciation_ids: Any = None,
    ) -> Any:
        """Ids (r, t) to logits (r, t, v); with `labels` (r, t), the same ids with -100 where ignored, the losses too.

        Labels are those of the input's own positions; each is predicted from the tokens before it. `loss` (n,) has a
        value for each of the n labels that count.
        """
        states, given = self._run(_without_self(locals()))
        logits = self.head(states.last)
        loss = None
        if given["labels"] is not None:
            loss = counted_losses(logits[:, :-1], as_ids(given["labels"], "labels")[:, 1:])
        return self._returned(states, given["return_dict"], CausalLMOutputWithCrossAttentions, loss=loss, logits=logits)

    def training_inputs(self, inputs: dict[str, Any], labels: Any) -> tuple[dict[str, Any], Any]:
        labels = as_ids(labels, "labels")
        none = tf.fill([tf.shape(labels)[0], 1], -100)
        return inputs, tf.concat([labels[:, 1:], none], 1)

    def encoder_attention_mask(self, input_ids: Any, attention_mask: Any = None) -> Any:
        """The mask of a prompt: as given; a decoder derives none, since padding may also be the start or the end."""
        return attention_mask


@keras.saving.register_keras_serializable(package="warmstart")
class TFAutoModelForMaskedLM(StackModel):
    """An encoder of any family with its language model head: ids in, logits of each position out."""

    kind = "masked"

    def call(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        inputs_embeds: Any = None,
        labels: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        use_cache: bool | None = None,
        training: bool | None = None,
        global_attention_mask: Any = None,
        input_shape_ids: Any = None,
        input_pronunciation_ids: Any = None,
    ) -> Any:
        """Ids (b, s) to logits (b, s, v); with `labels` (b, s), -100 where nothing is to be predicted, the losses too.

        `loss` (n,) has a value for each of the n labels that count.
        """
        states, given = self._run(_without_self(locals()) | {"use_cache": False})
        logits = self.head(states.last)
        loss = None
        if given["labels"] is not None:
            loss = counted_losses(logits, as_ids(given["labels"], "labels"))
        return self._returned(states, given["return_dict"], MaskedLMOutput, loss=loss, logits=logits)

    def training_inputs(self, inputs: dict[str, Any], labels: Any) -> tuple[dict[str, Any], Any]:
        return inputs, as_ids(labels, "labels")


def _check_sources(own: Any, source: Any) -> None:
    rows = getattr(own, "shape", (None,))[0] if own is not None else None
    if rows is not None and source.shape[0]:
        check_target_rows(rows, source.shape[0])


def _without_self(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name not in ("self", "__class__")}


def _or(value: bool | None, default: bool) -> bool:
    return default if value is None else value


_KINDS = {"base": TFAutoModel, "causal": TFAutoModelForCausalLM, "masked": TFAutoModelForMaskedLM}


def __getattr__(name: str) -> Any:
    """The familiar name of a family's model: one of the classes above, bound to that family's configuration."""
    if not name.startswith("TF"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from warmstart.families import MODULES, family

    for model_type in MODULES:
        entry = family(model_type)
        for kind, architecture in entry.architectures.items():
            if f"TF{architecture}" == name:
                parent = _KINDS[kind]
                doc = f"{parent.__name__} of the family {model_type!r}."
                body = {"config_class": entry.config, "__doc__": doc, "__module__": __name__}
                made = type(name, (parent,), body)
                globals()[name] = keras.saving.register_keras_serializable(package="warmstart")(made)
                return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["TFAutoModel", "TFAutoModelForCausalLM", "TFAutoModelForMaskedLM"]
