"""`FlaxEncoderDecoderModel`: an encoder and a decoder of any families as one sequence-to-sequence model, in JAX.

Shapes: b sources, r target rows (r = b times beams), s source length, t target length, l a cache's capacity, h hidden
size, v the decoder's vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from warmstart import warm_start
from warmstart.config import PretrainedConfig
from warmstart.families import spec_of
from warmstart.families.encoder_decoder import EncoderDecoderConfig
from warmstart.fitting import Side
from warmstart.flax import loading
from warmstart.flax.cache import KeyValueCache, new_cache
from warmstart.flax.generation.generate import compute_transition_scores, generate
from warmstart.flax.loading import as_dtype
from warmstart.flax.loss import shift_labels
from warmstart.flax.masks import eager, with_global
from warmstart.flax.models import FlaxAutoModel, FlaxAutoModelForCausalLM, either
from warmstart.flax.pair import EncoderDecoder, check_sides
from warmstart.flax.pretrained import FlaxPreTrainedModel
from warmstart.flax.stack import beside_of, check_array, check_input, check_mask
from warmstart.inputs import check_sources, check_target_rows
from warmstart.outputs import (
    FlaxBaseModelOutputWithPastAndCrossAttentions,
    FlaxCausalLMOutputWithCrossAttentions,
)
from warmstart.pairing import load_pair


class FlaxEncoderDecoderModel(FlaxPreTrainedModel):
    """An encoder and a decoder, joined by the decoder's cross-attention.

    Made at random from a configuration, or warm-started from two checkpoints with `from_encoder_decoder_pretrained`.
    `model.params` is a tree of arrays by our names (`params["encoder"]["layers"]["0"]["mlp"]["up"]["kernel"]`),
    `model.module` the Linen module that it belongs to. `dtype` is the type of computation. Nothing here is changed by a
    call: dropout is on with `train=True`, which takes a `dropout_rng`.

    >>> from warmstart import BertConfig
    >>> size = dict(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> config = EncoderDecoderConfig.from_encoder_decoder_configs(BertConfig(**size), BertConfig(**size))
    >>> model = FlaxEncoderDecoderModel(config)
    >>> output = model(input_ids=jnp.array([[4, 5]]), decoder_input_ids=jnp.array([[1, 6, 7]]))
    >>> output.logits.shape
    (1, 3, 9)
    """

    base_model_prefix = "encoder_decoder"
    config_class = EncoderDecoderConfig
    can_generate_text = True
    generate = generate
    compute_transition_scores = compute_transition_scores
    module: EncoderDecoder

    def __init__(
        self,
        config: PretrainedConfig,
        input_shape: Any = None,
        seed: int = 0,
        dtype: Any = jnp.float32,
        _do_init: bool = True,
    ):
        """From a configuration; `input_shape` is a pair of shapes, of the encoder's and the decoder's example ids.

        Raises:
            ValueError: the configuration is no pair's, or a side cannot serve.
        """
        if not isinstance(config, EncoderDecoderConfig):
            raise ValueError(
                f"config is a {type(config).__name__}; FlaxEncoderDecoderModel needs an EncoderDecoderConfig. To join "
                "two checkpoints use FlaxEncoderDecoderModel.from_encoder_decoder_pretrained(encoder, decoder)"
            )
        warm_start.check_decoder(config.decoder)
        dtype = as_dtype(dtype)
        shares = bool(getattr(config, "share_embeddings", False))
        module = EncoderDecoder(*_specs(config), warm_start.needs_projection(config), shares=shares, dtype=dtype)
        self.config = config
        if config.tie_encoder_decoder:
            module = self._tied(module)
        super().__init__(config, module, input_shape, seed, dtype, _do_init)
        warm_start.fill_settings(config)

    def _tied(self, module: EncoderDecoder) -> EncoderDecoder:
        """The module whose sides share parameters, if they can."""
        untied = FlaxPreTrainedModel.__new__(type(self))
        untied.config, untied.module, untied.key = self.config, module, _example_key()
        leaves = loading.our_shapes(loading.flat(untied.params_shape_tree))
        shapes = [
            {name.removeprefix(side): shape for name, shape in leaves.items() if name.startswith(side)}
            for side in ("encoder.", "decoder.")
        ]
        warm_start.tied_weights(*shapes)
        return module.clone(tied=True)

    def sides(self) -> list[Side]:
        encoder, decoder = _specs(self.config)
        return [
            Side("encoder.", "encoder.", self.config.encoder, encoder),
            Side("decoder.", "decoder.", self.config.decoder, decoder),
        ]

    def example_inputs(self, input_shape: Any = None) -> tuple[Any, ...]:
        source, target = input_shape or ((1, 1), (1, 1))
        if source[0] != target[0]:
            raise ValueError(
                f"input_shape is {input_shape}: encoder and decoder are shown {source[0]} and {target[0]} rows; "
                "give both the same number"
            )
        return jnp.zeros(source, jnp.int32), None, jnp.zeros(target, jnp.int32)

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

        Keywords with `encoder_` or `decoder_` before them go to that side's `from_pretrained` (`encoder_config` ...) or
        replace fields of its configuration (`decoder_num_hidden_layers=6`); `encoder_model` and `decoder_model` are
        models to use as they are. Others are fields of the joint configuration (`tie_encoder_decoder=True`), options of
        loading for both sides (`cache_dir`, `token` ...), `dtype` and `seed` of the new model, `input_shape`, or
        `cross_attention_init`: "random" (the default), or "copy" to start cross-attention from self-attention where
        the shapes agree. Token ids that the decoder's configuration leaves open are taken from its tokenizer. The
        model has a `load_report`.

        Raises:
            FileNotFoundError: no such folder, repository or file.
            OSError: a file is corrupt.
            ValueError: a family is not supported, or weights do not fit.
        """
        own: dict[str, Any] = {name: kwargs.pop(name) for name in ("dtype", "seed", "input_shape") if name in kwargs}
        check_sides(kwargs.get("encoder_model"), kwargs.get("decoder_model"))
        pair = load_pair(
            encoder_pretrained_model_name_or_path,
            decoder_pretrained_model_name_or_path,
            kwargs | {name: own[name] for name in ("dtype", "seed") if name in own},
            FlaxAutoModel,
            FlaxAutoModelForCausalLM,
        )
        model = cls(pair.config, **own, _do_init=False)
        leaves = loading.flat({"encoder": pair.encoder.params, "decoder": pair.decoder.params})
        held = loading.flat(model.params_shape_tree)
        leaves = {name: value for name, value in leaves.items() if name in held}
        params = loading.nested(leaves | dict(model.new_values([name for name in held if name not in leaves])))
        if pair.config.tie_encoder_decoder:  # the shared self-attention is the encoder's
            params = loading.copied(
                params, {f"decoder.{x}": f"encoder.{x.replace('.cross_', '.')}" for x in pair.copied}
            )
        model.params = params
        model.load_report = pair.report(held)
        return model

    # The model --------------------------------------------------------------------------------------------------

    def encoder_attention_mask(self, input_ids: Any, attention_mask: Any = None) -> Any:
        """The source's mask (b, s): as given, or derived from the encoder's own padding id; None without any.

        Where the encoder's padding id also ends or starts a text, padding cannot be told from text: nothing is masked,
        and a warning says so if a row ends in that id twice.
        """
        if input_ids is not None:
            check_array(input_ids, "input_ids")
        pad = self.config.encoder.pad_token_id
        if attention_mask is not None or input_ids is None or pad is None:
            return attention_mask
        ends = self.config.encoder.eos_token_id
        if pad in (ends if isinstance(ends, (list, tuple)) else [ends]):
            if (
                eager(input_ids)
                and input_ids.shape[1] > 1
                and bool((np.asarray(input_ids)[:, -2:] == pad).all(1).any())
            ):
                warnings.warn(
                    f"input_ids seem to end in padding, but the encoder's pad_token_id {pad} is also its eos_token_id: "
                    "pass attention_mask",
                    stacklevel=3,
                )
            return None
        return (input_ids != pad).astype(jnp.int32)

    def encode(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        train: bool = False,
        params: Any = None,
        dropout_rng: Any = None,
        token_type_ids: Any = None,
        inputs_embeds: Any = None,
        global_attention_mask: Any = None,
        **beside: Any,
    ) -> Any:
        """Run the encoder alone: ids (b, s) to an output whose `last_hidden_state` is (b, s, h of the encoder).

        `beside` are the ids of a RoCBert's other tables, `input_shape_ids` and `input_pronunciation_ids`.
        """
        spec = self.module.encoder_spec
        (of_encoder,) = beside_of(beside, {"": spec})
        mask = self.encoder_attention_mask(input_ids, attention_mask)
        mask = with_global(mask, global_attention_mask, spec)
        check_input(spec, input_ids, inputs_embeds, mask, None, position_ids, token_type_ids, of_encoder)
        arrays = {
            "input_ids": input_ids,
            "attention_mask": mask,
            "position_ids": position_ids,
            "token_type_ids": token_type_ids,
            "inputs_embeds": inputs_embeds,
            "beside": of_encoder,
        }
        flags = self._flags(output_attentions, output_hidden_states, train)
        states = self.run("encode", arrays, flags, params, dropout_rng)
        output = FlaxBaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=states.last, hidden_states=states.hidden, attentions=states.attentions
        )
        return output if either(return_dict, self.config.use_return_dict) else output.to_tuple()

    def init_cache(self, batch_size: int, max_length: int, encoder_outputs: Any, params: Any = None) -> KeyValueCache:
        """A cache for so many rows of at most so many tokens, which holds the source's keys and values."""
        states = encoder_outputs[0]
        if batch_size % states.shape[0]:
            raise ValueError(f"a cache of {batch_size} rows does not fit {states.shape[0]} sources; give a multiple")
        cache = new_cache(self.module.decoder_spec, batch_size, max_length, self.dtype)
        return self.run("with_source", {"states": states}, {}, params, cache=cache)

    def decode(
        self,
        decoder_input_ids: Any = None,
        encoder_outputs: Any = None,
        encoder_attention_mask: Any = None,
        decoder_attention_mask: Any = None,
        decoder_position_ids: Any = None,
        past_key_values: KeyValueCache | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        train: bool = False,
        params: Any = None,
        dropout_rng: Any = None,
        decoder_inputs_embeds: Any = None,
        **beside: Any,
    ) -> Any:
        """Run the decoder: target ids (r, t) to logits (r, t, v), with the encoder's outputs or a cache that has them.

        With `past_key_values`, which `init_cache` makes, the ids are those that come next, and `decoder_attention_mask`
        covers the whole cache (r, l); the output holds the cache with the new tokens in it. `beside` are the ids of a
        RoCBert's other tables, `decoder_input_shape_ids` and `decoder_input_pronunciation_ids`.
        """
        (of_decoder,) = beside_of(beside, {"decoder_": self.module.decoder_spec})
        states = None if encoder_outputs is None else encoder_outputs[0]
        self._check_decoder(
            decoder_input_ids,
            decoder_inputs_embeds,
            decoder_attention_mask,
            decoder_position_ids,
            states,
            encoder_attention_mask,
            past_key_values,
            of_decoder,
        )
        arrays = {
            "decoder_input_ids": decoder_input_ids,
            "encoder_hidden_states": states,
            "encoder_attention_mask": encoder_attention_mask,
            "decoder_attention_mask": decoder_attention_mask,
            "decoder_position_ids": decoder_position_ids,
            "decoder_inputs_embeds": decoder_inputs_embeds,
            "beside": of_decoder,
        }
        flags = self._flags(output_attentions, output_hidden_states, train)
        states = self.run("decode", arrays, flags, params, dropout_rng, cache=past_key_values)
        output = FlaxCausalLMOutputWithCrossAttentions(
            logits=states.logits,
            past_key_values=states.cache,
            hidden_states=states.hidden,
            attentions=states.attentions,
            cross_attentions=states.cross_attentions,
        )
        return output if either(return_dict, self.config.use_return_dict) else output.to_tuple()

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        decoder_input_ids: Any = None,
        decoder_attention_mask: Any = None,
        position_ids: Any = None,
        decoder_position_ids: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        train: bool = False,
        params: Any = None,
        dropout_rng: Any = None,
        inputs_embeds: Any = None,
        decoder_inputs_embeds: Any = None,
        global_attention_mask: Any = None,
        **beside: Any,
    ) -> Any:
        """Source ids (b, s) and target ids (r, t) to logits (r, t, v), as a `FlaxSeq2SeqLMOutput`.

        Without `attention_mask` (b, s) the source's padding is masked by the encoder's padding id. Decoder inputs are
        made from labels by `prepare_decoder_input_ids_from_labels`, their mask by `loss.label_mask`. `params` are used
        in place of the model's own; with `train=True` dropout is drawn from `dropout_rng`. `beside` are the ids of a
        RoCBert's other tables, `input_shape_ids` and `input_pronunciation_ids`, with `decoder_` before them the
        decoder's.

        Raises:
            ValueError: ids outside the vocabulary, more tokens than positions, shapes that do not fit ...
        """
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            raise ValueError(
                "the decoder has nothing to read: give decoder_input_ids, which "
                "model.prepare_decoder_input_ids_from_labels(labels) makes from labels"
            )
        mask, spec = self.encoder_attention_mask(input_ids, attention_mask), self.module.encoder_spec
        mask = with_global(mask, global_attention_mask, spec)
        of_encoder, of_decoder = beside_of(beside, {"": spec, "decoder_": self.module.decoder_spec})
        check_input(spec, input_ids, inputs_embeds, mask, None, position_ids, None, of_encoder)
        source = input_ids if input_ids is not None else inputs_embeds
        self._check_decoder(
            decoder_input_ids,
            decoder_inputs_embeds,
            decoder_attention_mask,
            decoder_position_ids,
            source,
            mask,
            beside=of_decoder,
        )
        arrays = {
            "input_ids": input_ids,
            "attention_mask": mask,
            "decoder_input_ids": decoder_input_ids,
            "decoder_attention_mask": decoder_attention_mask,
            "position_ids": position_ids,
            "decoder_position_ids": decoder_position_ids,
            "inputs_embeds": inputs_embeds,
            "decoder_inputs_embeds": decoder_inputs_embeds,
            "beside": of_encoder,
            "decoder_beside": of_decoder,
        }
        flags = {
            "output_attentions": either(output_attentions, self.config.output_attentions),
            "output_hidden_states": either(output_hidden_states, self.config.output_hidden_states),
            "deterministic": not train,
        }
        output = self.run("__call__", arrays, flags, params, dropout_rng)
        return output if either(return_dict, self.config.use_return_dict) else output.to_tuple()

    def prepare_decoder_input_ids_from_labels(self, labels: Any) -> Array:
        """Decoder inputs (b, t) from labels (b, t): shifted once, the start id first, -100 become padding."""
        return shift_labels(labels, self.config.pad_token_id, self.config.decoder_start_token_id)

    def _flags(self, attentions: bool | None, hidden: bool | None, train: bool) -> dict[str, bool]:
        return {
            "want_attentions": either(attentions, self.config.output_attentions),
            "want_hidden": either(hidden, self.config.output_hidden_states),
            "train": train,
        }

    def _check_decoder(
        self,
        ids: Any,
        vectors: Any,
        mask: Any,
        position_ids: Any,
        source: Any,
        source_mask: Any,
        cache: KeyValueCache | None = None,
        beside: Mapping[str, Any] | None = None,
    ) -> None:
        check_input(self.module.decoder_spec, ids, vectors, mask, cache, position_ids, None, beside)
        rows = (ids if ids is not None else vectors).shape[0]
        if source is None:
            if cache is None:
                raise ValueError("give encoder_outputs, what model.encode(...) returned, or past_key_values")
            return
        check_target_rows(rows, source.shape[0])
        if source.ndim == 3 and ids is not None and cache is None:
            check_sources(source.shape[-1], self.config.encoder.hidden_size)
        if source_mask is not None:
            check_mask(source_mask, source.shape[0], 0, source.shape[1])


def _specs(config: EncoderDecoderConfig | PretrainedConfig) -> tuple[Any, Any]:
    encoder, decoder = config.encoder, config.decoder
    return spec_of(encoder, "base"), spec_of(decoder, "causal")


def _example_key() -> Any:
    import jax

    return jax.random.key(0)
