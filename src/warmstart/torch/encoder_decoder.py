"""`EncoderDecoderModel`: an encoder and a decoder of any families as one sequence-to-sequence model.

Shapes: b sources, r target rows (r = b times beams), s source length, t target length, p cached tokens, h hidden size,
v the decoder's vocabulary.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from warmstart import warm_start
from warmstart.config import PretrainedConfig
from warmstart.families.encoder_decoder import EncoderDecoderConfig
from warmstart.fitting import Side
from warmstart.inputs import check_sources, refuse_no_target
from warmstart.outputs import Seq2SeqLMOutput, as_encoded
from warmstart.pairing import load_pair
from warmstart.torch import surgery
from warmstart.torch.attention_maps import plot_cross_attention
from warmstart.torch.cache import KeyValueCache
from warmstart.torch.generation.generate import compute_transition_scores, generate
from warmstart.torch.generation.many import generate_many, generate_stream
from warmstart.torch.loading import copy_weights, initialise
from warmstart.torch.loss import cross_entropy, label_mask, refuse_unshifted, shift_labels
from warmstart.torch.masks import eager
from warmstart.torch.models import AutoModel, AutoModelForCausalLM
from warmstart.torch.pretrained import PreTrainedModel
from warmstart.torch.stack import check_tensor
from warmstart.warm_start import PROJECTION


class EncoderDecoderModel(PreTrainedModel):
    """An encoder and a decoder, joined by the decoder's cross-attention.

    Made at random from a configuration, of two models, or warm-started from two checkpoints with
    `from_encoder_decoder_pretrained`. Where hidden sizes differ, `enc_to_dec_proj` takes the encoder's states to the
    decoder's width; it starts normal with the decoder's `initializer_range`, its bias 0.

    >>> import torch
    >>> from warmstart import BertConfig
    >>> size = dict(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> config = EncoderDecoderConfig.from_encoder_decoder_configs(BertConfig(**size), BertConfig(**size))
    >>> model = EncoderDecoderModel(config=config)
    >>> model.config.decoder_start_token_id = 1
    >>> output = model(input_ids=torch.tensor([[4, 5]]), labels=torch.tensor([[6, 7, 2]]))
    >>> output.logits.shape, output.loss.shape
    (torch.Size([1, 3, 9]), torch.Size([]))
    """

    base_model_prefix = "encoder_decoder"
    config_class = EncoderDecoderConfig
    can_generate_text = True
    generate = generate
    generate_many = generate_many
    generate_stream = generate_stream
    compute_transition_scores = compute_transition_scores
    plot_cross_attention = plot_cross_attention
    encoder: Any
    decoder: Any

    def __init__(
        self,
        config: PretrainedConfig | None = None,
        encoder: Any = None,
        decoder: Any = None,
    ):
        """From a configuration, from two models, or from all three.

        Raises:
            ValueError: neither a configuration nor two models are given, or a model is not fit for its side.
        """
        if config is None and (encoder is None or decoder is None):
            raise ValueError("EncoderDecoderModel needs a config, or an encoder and a decoder")
        if config is None:
            config = EncoderDecoderConfig.from_encoder_decoder_configs(encoder.config, decoder.config)
        if not isinstance(config, EncoderDecoderConfig):
            raise ValueError(
                f"config is a {type(config).__name__}; EncoderDecoderModel needs an EncoderDecoderConfig. To join two "
                "checkpoints use EncoderDecoderModel.from_encoder_decoder_pretrained(encoder, decoder)"
            )
        warm_start.check_decoder(config.decoder)
        super().__init__(config)
        self.encoder = AutoModel(config.encoder) if encoder is None else _fit_encoder(encoder)
        self.decoder = AutoModelForCausalLM(config.decoder) if decoder is None else _fit_decoder(decoder)
        self.encoder.adopt(config.encoder)
        self.decoder.adopt(config.decoder)
        if warm_start.needs_projection(config):
            place = {"device": self.decoder.device, "dtype": self.decoder.dtype}
            self.enc_to_dec_proj = nn.Linear(config.encoder.hidden_size, config.decoder.hidden_size, **place)
            initialise(self, self.sides(), [f"{PROJECTION}.{leaf}" for leaf in ("weight", "bias")], **place)
        self.tie_weights()
        warm_start.fill_settings(config)

    def sides(self) -> list[Side]:
        return [
            Side("encoder.", "encoder.", self.config.encoder, self.encoder.spec),
            Side("decoder.", "decoder.", self.config.decoder, self.decoder.spec),
        ]

    def tie_weights(self) -> None:
        """Tie the head to its embeddings and, with `config.tie_encoder_decoder`, the decoder to the encoder."""
        self.encoder.tie_weights()
        if getattr(self.config, "share_embeddings", False):
            self.decoder.embeddings.token.weight = self.encoder.embeddings.token.weight
        self.decoder.tie_weights()
        if self.config.tie_encoder_decoder:
            shapes = [
                {name: tuple(x.shape) for name, x in side.named_parameters()} for side in (self.encoder, self.decoder)
            ]
            for name in warm_start.tied_weights(*shapes):
                path, _, leaf = name.rpartition(".")
                setattr(self.decoder.get_submodule(path), leaf, self.encoder.get_parameter(name))
            self.decoder.tie_weights()

    @classmethod
    def part_of(cls, config: PretrainedConfig) -> tuple[PretrainedConfig, str | None]:
        return warm_start.pair_of(config)

    @classmethod
    def may_be_new(cls) -> bool:
        return False

    # Warm start -------------------------------------------------------------------------------------------------

    @classmethod
    def from_encoder_decoder_pretrained(
        cls,
        encoder_pretrained_model_name_or_path: str | Path | None = None,
        decoder_pretrained_model_name_or_path: str | Path | None = None,
        *model_args: Any,
        **kwargs: Any,
    ) -> Any:
        """Join two checkpoints; the decoder's cross-attention, a projection and a missing head start anew.

        Keywords with `encoder_` or `decoder_` before them go to that side's `from_pretrained` (`encoder_config`,
        `decoder_dtype` ...) or replace fields of its configuration (`decoder_num_hidden_layers=6`); `encoder_model` and
        `decoder_model` are models to use as they are. Others are fields of the joint configuration
        (`tie_encoder_decoder=True`), options of loading for both sides (`dtype`, `cache_dir`, `token` ...), or
        `cross_attention_init`: "random" (the default), or "copy" to start cross-attention from self-attention where
        the shapes agree. Token ids that the decoder's configuration leaves open are taken from its tokenizer. The
        model comes in eval mode, with a `load_report`.

        Raises:
            FileNotFoundError: no such folder, repository or file.
            OSError: a file is corrupt.
            ValueError: a family is not supported, or weights do not fit.
        """
        pair = load_pair(
            encoder_pretrained_model_name_or_path,
            decoder_pretrained_model_name_or_path,
            kwargs,
            AutoModel,
            AutoModelForCausalLM,
        )
        model = cls(encoder=pair.encoder, decoder=pair.decoder, config=pair.config)
        if pair.config.tie_encoder_decoder:  # the shared self-attention is the encoder's
            copy_weights(pair.decoder, {name: name.replace(".cross_", ".") for name in pair.copied})
        model.load_report = pair.report(name for name, _ in model.named_parameters())
        return model.eval()

    # The model --------------------------------------------------------------------------------------------------

    def encoder_attention_mask(self, input_ids: Tensor | None, attention_mask: Tensor | None = None) -> Tensor | None:
        """The source's mask (b, s): as given, or derived from the encoder's own padding id; None without any.

        Where the encoder's padding id also ends or starts a text, padding cannot be told from text: nothing is masked,
        and a warning says so if a row ends in that id twice.
        """
        if input_ids is not None:
            check_tensor(input_ids, "input_ids")
        pad = self.config.encoder.pad_token_id
        if attention_mask is not None or input_ids is None or pad is None:
            return attention_mask
        ends = self.config.encoder.eos_token_id
        if pad in (ends if isinstance(ends, (list, tuple)) else [ends]):
            if eager(input_ids) and input_ids.shape[1] > 1 and bool((input_ids[:, -2:] == pad).all(1).any()):
                warnings.warn(
                    f"input_ids seem to end in padding, but the encoder's pad_token_id {pad} is also its eos_token_id: "
                    "pass attention_mask",
                    stacklevel=3,
                )
            return None
        return (input_ids != pad).long()

    def encode(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the encoder alone: ids (b, s) to an output whose `last_hidden_state` is (b, s, h of the encoder)."""
        mask = self.encoder_attention_mask(input_ids, attention_mask)
        kwargs = {"use_cache": False, **kwargs}  # a causal encoder's cache is of no use: the source never grows
        return self.encoder(input_ids=input_ids, attention_mask=mask, inputs_embeds=inputs_embeds, **kwargs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: KeyValueCache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: int | Tensor | None = None,
        label_smoothing: float = 0.0,
        **kwargs: Any,
    ) -> Any:
        """Source ids (b, s) and target ids to logits (r, t, v), and a loss where there are labels.

        With `labels` (b, t) alone the decoder's inputs are made from them, shifted once; -100 is ignored by the loss.
        Without `attention_mask` (b, s) the source's padding is masked by the encoder's padding id. `encoder_outputs`,
        what the encoder returned, a tuple or the states alone, saves running it; its b sources may serve r = b * k
        target rows, row i belonging to source i // k. `decoder_attention_mask` is (r, p + t). `num_items_in_batch` is
        the count of labels over all parts of an accumulated batch. Other keywords go to the encoder, with `decoder_` to
        the decoder.

        Raises:
            ValueError: ids outside the vocabulary, more tokens than positions, no start id, unshifted labels ...
        """
        config = self.config
        want = {
            "output_attentions": config.output_attentions if output_attentions is None else output_attentions,
            "output_hidden_states": config.output_hidden_states
            if output_hidden_states is None
            else output_hidden_states,
        }
        decoder_kwargs = {name[8:]: kwargs.pop(name) for name in list(kwargs) if name.startswith("decoder_")}
        attention_mask = self.encoder_attention_mask(input_ids, attention_mask)
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                input_ids,
                attention_mask,
                inputs_embeds=inputs_embeds,
                use_cache=False,
                return_dict=True,
                **want,
                **kwargs,
            )
        encoder_outputs = as_encoded(encoder_outputs)
        if labels is not None:
            if decoder_input_ids is not None:
                refuse_unshifted(decoder_input_ids, labels, config.decoder_start_token_id)
            elif decoder_inputs_embeds is None:
                decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
                if decoder_attention_mask is None:
                    decoder_attention_mask = label_mask(labels)
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            refuse_no_target()
        decoded = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=self._source(encoder_outputs[0], past_key_values),
            encoder_attention_mask=attention_mask,
            inputs_embeds=decoder_inputs_embeds,
            past_key_values=past_key_values,
            use_cache=use_cache,
            return_dict=True,
            **want,
            **decoder_kwargs,
        )
        loss = None
        if labels is not None:
            loss = cross_entropy(decoded.logits, labels, num_items_in_batch, label_smoothing)
        output = Seq2SeqLMOutput(
            loss=loss,
            logits=decoded.logits,
            past_key_values=decoded.past_key_values,
            decoder_hidden_states=decoded.hidden_states,
            decoder_attentions=decoded.attentions,
            cross_attentions=decoded.cross_attentions,
            encoder_last_hidden_state=encoder_outputs[0],
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
        )
        return output if (config.use_return_dict if return_dict is None else return_dict) else output.to_tuple()

    def _source(self, states: Tensor, cache: KeyValueCache | None) -> Tensor:
        """What cross-attention reads (b, s, h of the decoder); not needed once the cache holds its keys and values."""
        held = isinstance(cache, KeyValueCache) and cache.layers[0].source is not None
        check_sources(states.shape[-1], self.config.encoder.hidden_size)
        return states if held or not hasattr(self, PROJECTION) else self.enc_to_dec_proj(states)

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Decoder inputs (b, t) from labels (b, t): shifted once, the start id first, -100 become padding."""
        return shift_labels(labels, self.config.pad_token_id, self.config.decoder_start_token_id)

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        """The arguments of one step of `generate`, for tools that wrap a model."""
        return {"decoder_input_ids": input_ids, **kwargs}

    # Parts ------------------------------------------------------------------------------------------------------

    def get_encoder(self) -> Any:
        """The encoder."""
        return self.encoder

    def get_decoder(self) -> Any:
        """The decoder with its head."""
        return self.decoder

    def get_input_embeddings(self) -> nn.Embedding:
        """The encoder's table of token embeddings."""
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the encoder's table of token embeddings."""
        self.encoder.set_input_embeddings(value)
        self.tie_weights()

    def get_output_embeddings(self) -> nn.Linear:
        """The last layer of the decoder's head."""
        return self.decoder.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the last layer of the decoder's head."""
        self.decoder.set_output_embeddings(new_embeddings)

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
        side: str | None = None,
    ) -> nn.Embedding:
        """Change the vocabulary of one side ("encoder" or "decoder") or of "both"; the configurations follow.

        Without `side`, both are changed if they have one vocabulary size now.

        Raises:
            ValueError: `side` is left out and the sizes differ, or one side alone is named of a tied model.
        """
        sizes = self.config.encoder.vocab_size, self.config.decoder.vocab_size
        if side is None and sizes[0] != sizes[1]:
            raise ValueError(
                f"the sides have vocabularies of {sizes[0]} and {sizes[1]}: say side='encoder' or 'decoder'"
            )
        side = side or "both"
        if side not in ("encoder", "decoder", "both"):
            raise ValueError(f"side {side!r} is not known; use 'encoder', 'decoder' or 'both'")
        if (self.config.tie_encoder_decoder or getattr(self.config, "share_embeddings", False)) and side != "both":
            raise ValueError(
                f"encoder and decoder share their weights, so side={side!r} alone cannot change; use 'both'"
            )
        for name in ("encoder", "decoder"):
            if side in (name, "both"):
                surgery.resize(getattr(self, name), new_num_tokens, pad_to_multiple_of, mean_resizing)
        self.tie_weights()
        if "vocab_size" in self.config.__dict__ and side != "encoder":
            self.config.vocab_size = self.config.decoder.vocab_size
        return (self.decoder if side == "decoder" else self.encoder).get_input_embeddings()

    def prune_heads(self, heads_to_prune: dict[int, list[int]], side: str = "encoder") -> None:
        """Take attention heads out of one side for good: {layer: [head, ...]}; the configuration follows."""
        if self.config.tie_encoder_decoder:
            raise ValueError("encoder and decoder share their weights; heads cannot be taken out of one of them")
        getattr(self, side).prune_heads(heads_to_prune)

    def freeze_encoder(self) -> None:
        """Train the encoder no further."""
        surgery.set_trainable(self, r"^encoder\.", False)

    def freeze_decoder(self) -> None:
        """Train the decoder no further, its cross-attention included."""
        surgery.set_trainable(self, r"^decoder\.", False)

    def freeze_all_but_cross_attention(self) -> None:
        """Train nothing but cross-attention and the projection (T5Gemma's first phase)."""
        surgery.set_trainable(self, "", False)
        surgery.set_trainable(self, rf"\.cross_attention(_output)?(_norm)?\.|^{PROJECTION}\.", True)

    def unfreeze(self) -> None:
        """Train everything."""
        surgery.set_trainable(self, "", True)


def _fit_encoder(encoder: Any) -> Any:
    if encoder.spec.head is not None or encoder.spec.cross_attention is not None:
        raise ValueError(
            f"the encoder is a {type(encoder).__name__} with a language model head or cross-attention; load it with "
            "AutoModel.from_pretrained(...)"
        )
    return encoder


def _fit_decoder(decoder: Any) -> Any:
    if decoder.spec.head is None or decoder.spec.cross_attention is None:
        raise ValueError(
            f"the decoder is a {type(decoder).__name__} without a head or without cross-attention, so it would not see "
            "the source; load it with AutoModelForCausalLM.from_pretrained(..., is_decoder=True, "
            "add_cross_attention=True)"
        )
    return decoder
