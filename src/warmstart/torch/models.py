"""The single-stack models: `AutoModel` (states), `AutoModelForCausalLM` and `AutoModelForMaskedLM` (logits).

They serve every family; `BertModel`, `GPT2LMHeadModel` and the other familiar names are thin names over them.
Shapes: r rows, b sources, t length, p cached tokens, s source length, h hidden size, v vocabulary.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

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
from warmstart.torch import surgery
from warmstart.torch.cache import KeyValueCache
from warmstart.torch.ends import Head
from warmstart.torch.generation.generate import compute_transition_scores, generate
from warmstart.torch.loss import cross_entropy
from warmstart.torch.masks import eager, with_global
from warmstart.torch.options import take_unneeded
from warmstart.torch.stack import Stack, States
from warmstart.torch.unfilled import unfilled
from warmstart.warm_start import half


class StackModel(Stack):
    """What the models of one stack share: how they are built from a configuration, and their embeddings."""

    kind: ClassVar[str] = "base"
    side: ClassVar[str] = "encoder"
    config_class: ClassVar[type[PretrainedConfig] | None] = None

    def __init__(self, config: PretrainedConfig, add_pooling_layer: bool = False):
        take_unneeded({"add_pooling_layer": add_pooling_layer}, type(self).__name__)
        if not isinstance(config, PretrainedConfig):
            raise TypeError(
                f"{type(self).__name__} is built from a configuration (AutoConfig.from_pretrained(...)), not from a "
                f"{type(config).__name__}"
            )
        if config.model_type == "encoder-decoder":
            raise ValueError(
                f"{type(self).__name__} is one stack and the configuration a pair's; use EncoderDecoderModel"
            )
        if self.config_class is not None and not isinstance(config, self.config_class):
            raise TypeError(
                f"{type(self).__name__} is built from a {self.config_class.__name__}, not {type(config).__name__}"
            )
        super().__init__(config)
        device = torch.empty(0).device  # the default one, which may be "meta": then there is no memory to fill
        with unfilled():
            self.build_stack(spec_of(config, self.kind))
            if self.spec.head is not None:
                self.head = Head(self.spec)
        self.tie_weights()
        if device.type != "meta":
            self.init_weights(device)

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

    def _common(self, given: dict[str, Any]) -> dict[str, Any]:
        """The arguments of `states` from those of `forward`."""
        config, cache = self.config, given["past_key_values"]
        if cache is not None and not isinstance(cache, KeyValueCache):
            raise TypeError(
                f"past_key_values must be a KeyValueCache that a model returned, not {type(cache).__name__}"
            )
        if given["encoder_hidden_states"] is not None and self.spec.cross_attention is None:
            raise ValueError(
                f"this {config.model_type} has no cross-attention to read encoder_hidden_states with; make it with "
                "is_decoder=True, add_cross_attention=True"
            )
        source, own = given["encoder_hidden_states"], given["input_ids"]
        own = given["inputs_embeds"] if own is None else own
        if isinstance(own, Tensor) and source is not None and eager(own):
            check_target_rows(own.shape[0], source.shape[0])
        # In training nothing reads a cache: made unasked, it would keep keys and values beyond the backward pass.
        use_cache = config.use_cache and not self.training if given["use_cache"] is None else given["use_cache"]
        if cache is None and use_cache and self.spec.causal and not (self.checkpoint_layers and self.training):
            cache = self.new_cache()
        names = ("input_ids", "token_type_ids", "position_ids", "inputs_embeds")
        wide = given.get("global_attention_mask")
        return {name: given[name] for name in names} | {
            "attention_mask": with_global(given["attention_mask"], wide, self.spec),
            "source": given["encoder_hidden_states"],
            "source_attention_mask": given["encoder_attention_mask"],
            "cache": cache,
            "want_attentions": _or(given["output_attentions"], config.output_attentions),
            "want_hidden": _or(given["output_hidden_states"], config.output_hidden_states),
            "beside": self.spec.beside(given),
        }

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

    def get_input_embeddings(self) -> nn.Embedding:
        """The table of token embeddings."""
        return self.embeddings.token

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the table of token embeddings, and the head's where it is tied."""
        self.embeddings.token = value
        self.tie_weights()

    def get_output_embeddings(self) -> nn.Linear | None:
        """The last layer of the head; None without one."""
        return self.head.output if self.spec.head is not None else None

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the last layer of the head."""
        self.head.output = new_embeddings

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Change the vocabulary; the configuration follows. See `surgery.resize`."""
        surgery.resize(self, new_num_tokens, pad_to_multiple_of, mean_resizing)
        return self.embeddings.token

    def prune_heads(self, heads_to_prune: dict[int, list[int]]) -> None:
        """Take attention heads out for good: {layer: [head, ...]}; the configuration follows."""
        surgery.prune_heads(self, heads_to_prune)

    def tie_weights(self) -> None:
        head = self.spec.head
        if head is not None and head.tied:
            self.head.output.weight = self.embeddings.token.weight


class AutoModel(StackModel):
    """A stack of any family: ids in, hidden states out. It has no pooler.

    >>> from warmstart import BertConfig
    >>> model = AutoModel(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
    >>> model(torch.tensor([[1, 2, 3]])).last_hidden_state.shape
    torch.Size([1, 3, 8])
    """

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: KeyValueCache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        global_attention_mask: Tensor | None = None,
        input_shape_ids: Tensor | None = None,
        input_pronunciation_ids: Tensor | None = None,
    ) -> Any:
        """Ids (r, t) to states (r, t, h).

        `attention_mask` (r, p + t) is 1 for tokens and 0 for padding. `global_attention_mask` (r, t) is 1 for tokens of
        a Longformer that see everything and that everything sees. `input_shape_ids` and `input_pronunciation_ids`
        (r, t) are a RoCBert's, the first of either where they are not given. `encoder_hidden_states` (b, s, h) with
        their mask (b, s) are what cross-attention reads, where the model has it; row i belongs to source i // (r / b).
        """
        arguments = self._common(locals())
        return self._returned(self.states(**arguments), return_dict, BaseModelOutputWithPastAndCrossAttentions)


class AutoModelForCausalLM(StackModel):
    """A decoder of any family: ids in, next-token logits out; with cross-attention where the configuration has it.

    >>> from warmstart import GPT2Config
    >>> config = GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1)
    >>> model = AutoModelForCausalLM(config)
    >>> model(torch.tensor([[1, 2, 3]])).logits.shape
    torch.Size([1, 3, 9])
    """

    kind = "causal"
    side = "decoder"
    can_generate_text = True
    generate = generate
    compute_transition_scores = compute_transition_scores

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: KeyValueCache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: int | Tensor | None = None,
        logits_to_keep: int = 0,
        input_shape_ids: Tensor | None = None,
        input_pronunciation_ids: Tensor | None = None,
    ) -> Any:
        """Ids (r, t) to logits (r, t, v); with `labels` (r, t), the same ids with -100 where ignored, the loss too.

        Labels are those of the input's own positions; each is predicted from the tokens before it. `logits_to_keep`
        gives the logits of the last so many positions only; 0 is all.
        """
        states = self.states(**self._common(locals()))
        logits = self.head(states.last[:, -logits_to_keep:] if logits_to_keep else states.last)
        loss = None
        if labels is not None:
            loss = cross_entropy(logits[:, :-1], labels[:, 1:], num_items_in_batch)
        return self._returned(states, return_dict, CausalLMOutputWithCrossAttentions, loss=loss, logits=logits)

    def encoder_attention_mask(self, input_ids: Tensor | None, attention_mask: Tensor | None = None) -> Tensor | None:
        """The mask of a prompt: as given; a decoder derives none, since padding may also be the start or the end."""
        return attention_mask

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        """The arguments of one step of `generate`, for tools that wrap a model."""
        return {"input_ids": input_ids, **kwargs}


class AutoModelForMaskedLM(StackModel):
    """An encoder of any family with its language model head: ids in, logits of each position out."""

    kind = "masked"

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: int | Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        input_shape_ids: Tensor | None = None,
        input_pronunciation_ids: Tensor | None = None,
    ) -> Any:
        """Ids (b, s) to logits (b, s, v); with `labels` (b, s), -100 where nothing is to be predicted, the loss too."""
        states = self.states(**self._common({**locals(), "past_key_values": None, "use_cache": False}))
        logits = self.head(states.last)
        loss = None if labels is None else cross_entropy(logits, labels, num_items_in_batch)
        return self._returned(states, return_dict, MaskedLMOutput, loss=loss, logits=logits)


def _or(value: bool | None, default: bool) -> bool:
    return default if value is None else value


_KINDS = {"base": AutoModel, "causal": AutoModelForCausalLM, "masked": AutoModelForMaskedLM}


def __getattr__(name: str) -> Any:
    """The familiar name of a family's model: one of the classes above, bound to that family's configuration."""
    if name.startswith("_"):  # the import machinery asks for `__path__`: no reason to import every family
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from warmstart.families import MODULES, family

    for model_type in MODULES:
        entry = family(model_type)
        for kind, architecture in entry.architectures.items():
            if architecture == name:
                parent = _KINDS[kind]
                doc = f"{parent.__name__} of the family {model_type!r}."
                body = {"config_class": entry.config, "__doc__": doc, "__module__": __name__}
                globals()[name] = type(name, (parent,), body)
                return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["AutoModel", "AutoModelForCausalLM", "AutoModelForMaskedLM"]
