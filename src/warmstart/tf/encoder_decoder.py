"""`TFEncoderDecoderModel`: an encoder and a decoder of any families as one sequence-to-sequence model.

Shapes: b sources, r target rows (r = b times beams), s source length, t target length, p cached tokens, h hidden size,
v the decoder's vocabulary, n labels that count.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from warmstart import warm_start
from warmstart.config import PretrainedConfig
from warmstart.families.encoder_decoder import EncoderDecoderConfig
from warmstart.fitting import Side
from warmstart.inputs import check_sources, refuse_no_target
from warmstart.outputs import as_encoded
from warmstart.pairing import load_pair
from warmstart.tf import surgery
from warmstart.tf.cache import KeyValueCache
from warmstart.tf.elements import linear
from warmstart.tf.generation.generate import compute_transition_scores, generate
from warmstart.tf.inputs import as_ids, as_tensor, eager
from warmstart.tf.loading import copy_weights, initialise, named_parameters, shared_names
from warmstart.tf.loss import counted_losses, label_mask, shift_labels, warn_of_unshifted
from warmstart.tf.models import TFAutoModel, TFAutoModelForCausalLM
from warmstart.tf.outputs import TFSeq2SeqLMOutput
from warmstart.tf.pretrained import PreTrainedModel
from warmstart.tf.serving import export
from warmstart.tf.tying import tie
from warmstart.tf.unfilled import is_unfilled
from warmstart.warm_start import PROJECTION


@keras.saving.register_keras_serializable(package="warmstart")
class TFEncoderDecoderModel(PreTrainedModel):
    """An encoder and a decoder, joined by the decoder's cross-attention, as a Keras model.

    Made at random from a configuration, of two models, or warm-started from two checkpoints with
    `from_encoder_decoder_pretrained`. Where hidden sizes differ, `enc_to_dec_proj` takes the encoder's states to the
    decoder's width; it starts normal with the decoder's `initializer_range`, its bias 0.

    >>> from warmstart import BertConfig
    >>> size = dict(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> config = EncoderDecoderConfig.from_encoder_decoder_configs(BertConfig(**size), BertConfig(**size))
    >>> model = TFEncoderDecoderModel(config=config)
    >>> model.config.decoder_start_token_id = 1
    >>> output = model(input_ids=[[4, 5]], labels=[[6, 7, 2]])
    >>> output.logits.shape, output.loss.shape
    (TensorShape([1, 3, 9]), TensorShape([3]))
    """

    base_model_prefix = "encoder_decoder"
    config_class = EncoderDecoderConfig
    can_generate_text = True
    generate = generate
    compute_transition_scores = compute_transition_scores
    export = export

    def __init__(
        self, config: PretrainedConfig | None = None, encoder: Any = None, decoder: Any = None, **kwargs: Any
    ) -> None:
        """From a configuration, from two models, or from all three.

        Raises:
            ValueError: neither a configuration nor two models are given, or a model is not fit for its side.
        """
        if config is None and (encoder is None or decoder is None):
            raise ValueError("TFEncoderDecoderModel needs a config, or an encoder and a decoder")
        if config is None:
            config = EncoderDecoderConfig.from_encoder_decoder_configs(encoder.config, decoder.config)
        if not isinstance(config, EncoderDecoderConfig):
            raise ValueError(
                f"config is a {type(config).__name__}; TFEncoderDecoderModel needs an EncoderDecoderConfig. To join "
                "two checkpoints use TFEncoderDecoderModel.from_encoder_decoder_pretrained(encoder, decoder)"
            )
        warm_start.check_decoder(config.decoder)
        super().__init__(config, **kwargs)
        self.encoder = TFAutoModel(config.encoder) if encoder is None else _fit_encoder(encoder)
        self.decoder = TFAutoModelForCausalLM(config.decoder) if decoder is None else _fit_decoder(decoder)
        self.encoder.adopt(config.encoder)
        self.decoder.adopt(config.decoder)
        if warm_start.needs_projection(config):
            self.enc_to_dec_proj = linear(config.encoder.hidden_size, config.decoder.hidden_size)
            if not is_unfilled():
                initialise(self, self.sides(), [f"{PROJECTION}.{leaf}" for leaf in ("weight", "bias")])
        if config.tie_encoder_decoder:
            shapes = [{name: x.shape for name, x in named_parameters(side)} for side in (self.encoder, self.decoder)]
            tie(self.encoder, self.decoder, warm_start.tied_weights(*shapes))
        elif getattr(config, "share_embeddings", False):
            tie(self.encoder, self.decoder, ["embeddings.token.weight"])
        warm_start.fill_settings(config)

    def sides(self) -> list[Side]:
        return [
            Side("encoder.", "encoder.", self.config.encoder, self.encoder.spec),
            Side("decoder.", "decoder.", self.config.decoder, self.decoder.spec),
        ]

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
        model comes with a `load_report`. `encoder_from_pt` and `decoder_from_pt` are accepted and not needed.

        Raises:
            FileNotFoundError: no such folder, repository or file.
            OSError: a file is corrupt.
            ValueError: a family is not supported, or weights do not fit.
        """
        pair = load_pair(
            encoder_pretrained_model_name_or_path,
            decoder_pretrained_model_name_or_path,
            kwargs,
            TFAutoModel,
            TFAutoModelForCausalLM,
        )
        model = cls(encoder=pair.encoder, decoder=pair.decoder, config=pair.config)
        if pair.config.tie_encoder_decoder:  # the shared self-attention is the encoder's
            copy_weights(pair.decoder, {name: name.replace(".cross_", ".") for name in pair.copied})
        model.load_report = pair.report(shared_names(model))
        return model

    # The model --------------------------------------------------------------------------------------------------

    def encoder_attention_mask(self, input_ids: Any, attention_mask: Any = None) -> Any:
        """The source's mask (b, s): as given, or derived from the encoder's own padding id; None without any.

        Where the encoder's padding id also ends or starts a text, padding cannot be told from text: nothing is masked,
        and a warning says so if a row ends in that id twice.
        """
        pad = self.config.encoder.pad_token_id
        if attention_mask is not None or input_ids is None or pad is None:
            return attention_mask
        ends = self.config.encoder.eos_token_id
        if pad in (ends if isinstance(ends, (list, tuple)) else [ends]):
            if (
                eager(input_ids)
                and input_ids.shape.rank == 2
                and input_ids.shape[1] > 1
                and (input_ids.numpy()[:, -2:] == pad).all(1).any()
            ):
                warnings.warn(
                    f"input_ids seem to end in padding, but the encoder's pad_token_id {pad} is also its eos_token_id: "
                    "pass attention_mask",
                    stacklevel=3,
                )
            return None
        return tf.cast(input_ids != pad, tf.int32)

    def encode(
        self, input_ids: Any = None, attention_mask: Any = None, inputs_embeds: Any = None, **kwargs: Any
    ) -> Any:
        """Run the encoder alone: ids (b, s) to an output whose `last_hidden_state` is (b, s, h of the encoder)."""
        input_ids = as_tensor(input_ids, "input_ids")
        mask = self.encoder_attention_mask(input_ids, attention_mask)
        kwargs = {"use_cache": False, **kwargs}  # a causal encoder's cache is of no use: the source never grows
        return self.encoder(input_ids, attention_mask=mask, inputs_embeds=inputs_embeds, **kwargs)

    def call(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        decoder_input_ids: Any = None,
        decoder_attention_mask: Any = None,
        encoder_outputs: Any = None,
        past_key_values: KeyValueCache | None = None,
        inputs_embeds: Any = None,
        decoder_inputs_embeds: Any = None,
        labels: Any = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Source ids (b, s) and target ids to logits (r, t, v), and losses where there are labels.

        The first argument may be a dict of all. With `labels` (b, t) alone the decoder's inputs are made from them,
        shifted once; `loss` (n,) has a value for each of the n labels that are not -100. Without `attention_mask` (b,
        s) the source's padding is masked by the encoder's padding id. `encoder_outputs`, what the encoder returned or a
        tuple, saves running it; its b sources may serve r = b * k target rows, row i belonging to source i // k.
        `decoder_attention_mask` is (r, p + t). Other keywords go to the encoder, with `decoder_` to the decoder.

        Raises:
            ValueError: ids outside the vocabulary, more tokens than positions, no start id ...
            TypeError: an input is no tensor, array or list.
        """
        arguments = {name: value for name, value in locals().items() if name not in ("self", "kwargs", "__class__")}
        kwargs.pop("num_items_in_batch", None)  # it is the loss's, in training
        decoder_kwargs = {name[8:]: kwargs.pop(name) for name in list(kwargs) if name.startswith("decoder_")}
        return self._forward(arguments, kwargs, decoder_kwargs)

    def _forward(self, given: dict[str, Any], encoder_kwargs: dict[str, Any], decoder_kwargs: dict[str, Any]) -> Any:
        config = self.config
        want = {
            name: getattr(config, name) if given[name] is None else given[name]
            for name in ("output_attentions", "output_hidden_states")
        } | {"training": given["training"]}
        ids, labels = as_tensor(given["input_ids"], "input_ids"), as_ids(given["labels"], "labels")
        mask = self.encoder_attention_mask(ids, given["attention_mask"])
        encoded = given["encoder_outputs"]
        if encoded is None:
            more = {"use_cache": False, "return_dict": True, **want, **encoder_kwargs}
            encoded = self.encoder(ids, attention_mask=mask, inputs_embeds=given["inputs_embeds"], **more)
        encoded = as_encoded(encoded)
        inputs = {
            name.removeprefix("decoder_"): given[name]
            for name in ("decoder_input_ids", "decoder_attention_mask", "decoder_inputs_embeds")
        }
        if labels is not None and inputs["input_ids"] is not None:
            start = config.decoder_start_token_id
            warn_of_unshifted(as_tensor(inputs["input_ids"], "decoder_input_ids"), labels, start)
        inputs = self._decoder_inputs(inputs, labels)
        decoded = self.decoder(
            **inputs,
            encoder_hidden_states=self.source(encoded[0], given["past_key_values"]),
            encoder_attention_mask=mask,
            past_key_values=given["past_key_values"],
            use_cache=given["use_cache"],
            return_dict=True,
            **want,
            **decoder_kwargs,
        )
        output = TFSeq2SeqLMOutput(
            loss=None if labels is None else counted_losses(decoded.logits, labels),
            logits=decoded.logits,
            past_key_values=decoded.past_key_values,
            decoder_hidden_states=decoded.hidden_states,
            decoder_attentions=decoded.attentions,
            cross_attentions=decoded.cross_attentions,
            encoder_last_hidden_state=encoded[0],
            encoder_hidden_states=encoded.hidden_states,
            encoder_attentions=encoded.attentions,
        )
        wants_record = config.use_return_dict if given["return_dict"] is None else given["return_dict"]
        return output if wants_record else output.to_tuple()

    def _decoder_inputs(self, inputs: dict[str, Any], labels: Any) -> dict[str, Any]:
        """What the decoder reads: as given, or made from the labels, with their mask."""
        if labels is not None and inputs["input_ids"] is None and inputs["inputs_embeds"] is None:
            mask = label_mask(labels) if inputs["attention_mask"] is None else inputs["attention_mask"]
            return inputs | {"input_ids": self.prepare_decoder_input_ids_from_labels(labels), "attention_mask": mask}
        if inputs["input_ids"] is None and inputs["inputs_embeds"] is None:
            refuse_no_target()
        return inputs

    def vocabularies(self) -> dict[str, tuple[int, str]]:
        """The encoder's vocabulary for the source, the decoder's for its inputs and for `labels`."""
        decoder = self.decoder.vocabularies()["input_ids"]
        return {**self.encoder.vocabularies(), "decoder_input_ids": decoder, "labels": decoder}

    def training_inputs(self, inputs: dict[str, Any], labels: Any) -> tuple[dict[str, Any], Any]:
        labels = as_ids(labels, "labels")
        names = ("input_ids", "attention_mask", "inputs_embeds")
        given = {name: inputs.get(f"decoder_{name}") for name in names} | {
            "inputs_embeds": inputs.get("decoder_inputs_embeds")
        }
        made = {f"decoder_{name}": x for name, x in self._decoder_inputs(given, labels).items() if x is not None}
        return {**inputs, **made}, labels

    def source(self, states: Any, cache: KeyValueCache | None = None) -> Any:
        """What cross-attention reads (b, s, h of the decoder); not needed once the cache holds its keys and values."""
        states = tf.cast(as_tensor(states, "encoder_outputs"), self.compute_dtype)
        held = isinstance(cache, KeyValueCache) and cache.layers[0].source is not None
        check_sources(states.shape[-1], self.config.encoder.hidden_size)
        return states if held or not hasattr(self, PROJECTION) else self.enc_to_dec_proj(states)

    def prepare_decoder_input_ids_from_labels(self, labels: Any) -> Any:
        """Decoder inputs (b, t) from labels (b, t): shifted once, the start id first, -100 become padding."""
        config = self.config
        return shift_labels(as_ids(labels, "labels"), config.pad_token_id, config.decoder_start_token_id)

    # Parts ------------------------------------------------------------------------------------------------------

    def get_encoder(self) -> Any:
        """The encoder."""
        return self.encoder

    def get_decoder(self) -> Any:
        """The decoder with its head."""
        return self.decoder

    def get_input_embeddings(self) -> keras.layers.Embedding:
        """The encoder's table of token embeddings."""
        return self.encoder.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        """The last layer of the decoder's head."""
        return self.decoder.get_output_embeddings()

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
        side: str | None = None,
    ) -> keras.layers.Embedding:
        """Change the vocabulary of one side ("encoder" or "decoder") or of "both"; the configurations follow.

        Without `side`, both are changed if they have one vocabulary size now. `compile` again after it.

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
        if self.config.tie_encoder_decoder and side != "both":
            raise ValueError(
                f"encoder and decoder share their weights, so side={side!r} alone cannot change; use 'both'"
            )
        for name in ("encoder", "decoder"):
            if side in (name, "both"):
                surgery.resize(getattr(self, name), new_num_tokens, pad_to_multiple_of, mean_resizing)
        if self.config.tie_encoder_decoder:
            tie(self.encoder, self.decoder, ["embeddings.token.weight"])
        if "vocab_size" in self.config.__dict__ and side != "encoder":
            self.config.vocab_size = self.config.decoder.vocab_size
        self.forget_traces()
        return (self.decoder if side == "decoder" else self.encoder).get_input_embeddings()

    def freeze_encoder(self) -> None:
        """Train the encoder no further; `compile` again after it."""
        self.encoder.trainable = False

    def freeze_decoder(self) -> None:
        """Train the decoder no further, its cross-attention included; `compile` again after it."""
        self.decoder.trainable = False

    def unfreeze(self) -> None:
        """Train everything; `compile` again after it."""
        self.encoder.trainable = self.decoder.trainable = True


def _fit_encoder(encoder: Any) -> Any:
    if encoder.spec.head is not None or encoder.spec.cross_attention is not None:
        raise ValueError(
            f"the encoder is a {type(encoder).__name__} with a language model head or cross-attention; load it with "
            "TFAutoModel.from_pretrained(...)"
        )
    return encoder


def _fit_decoder(decoder: Any) -> Any:
    if decoder.spec.head is None or decoder.spec.cross_attention is None:
        raise ValueError(
            f"the decoder is a {type(decoder).__name__} without a head or without cross-attention, so it would not see "
            "the source; load it with TFAutoModelForCausalLM.from_pretrained(..., is_decoder=True, "
            "add_cross_attention=True)"
        )
    return decoder
