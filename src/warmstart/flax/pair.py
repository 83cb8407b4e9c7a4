"""The Linen module of an encoder-decoder: two stacks, and a projection between them where their widths differ.

Shapes: b sources, r target rows (r = b times beams), s source length, t target length, l a cache's capacity, h hidden
size, v the decoder's vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from warmstart.flax.cache import KeyValueCache
from warmstart.flax.elements import Linear, normal
from warmstart.flax.stack import Stack, States
from warmstart.outputs import FlaxSeq2SeqLMOutput
from warmstart.spec import StackSpec


class EncoderDecoder(nn.Module):
    """An encoder and a decoder with its head; `tied` gives both the parameters that both have, `shares` one table."""

    encoder_spec: StackSpec
    decoder_spec: StackSpec
    projects: bool = False
    tied: bool = False
    dtype: Any = jnp.float32
    remat: bool = False
    shares: bool = False

    def setup(self) -> None:
        self.encoder = Stack(self.encoder_spec, self.dtype, self.remat)
        shared, tokens = (self.encoder if tie else None for tie in (self.tied, self.shares and not self.tied))
        self.decoder = Stack(self.decoder_spec, self.dtype, self.remat, shared, tokens)
        if self.projects:
            start = normal(self.decoder_spec.initializer_range)
            self.enc_to_dec_proj = Linear(self.decoder_spec.hidden_size, dtype=self.dtype, kernel_init=start)

    def encode(
        self,
        input_ids: Array | None = None,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        token_type_ids: Array | None = None,
        inputs_embeds: Array | None = None,
        beside: Mapping[str, Array] | None = None,
        want_attentions: bool = False,
        want_hidden: bool = False,
        train: bool = False,
    ) -> States:
        """Run the encoder over ids (b, s)."""
        wants: dict[str, Any] = {"want_attentions": want_attentions, "want_hidden": want_hidden, "train": train}
        wants["beside"] = beside
        return self.encoder(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **wants)

    def project(self, states: Array) -> Array:
        """What cross-attention reads (b, s, h of the decoder)."""
        return self.enc_to_dec_proj(states) if self.projects else states

    def with_source(self, cache: KeyValueCache, states: Array) -> KeyValueCache:
        """A cache with the keys and values of the encoder's states (b, s, h) in every layer."""
        return self.decoder.with_source(cache, self.project(states))

    def decode(
        self,
        decoder_input_ids: Array | None = None,
        encoder_hidden_states: Array | None = None,
        encoder_attention_mask: Array | None = None,
        decoder_attention_mask: Array | None = None,
        decoder_position_ids: Array | None = None,
        decoder_inputs_embeds: Array | None = None,
        cache: KeyValueCache | None = None,
        want_attentions: bool = False,
        want_hidden: bool = False,
        want_logits: bool = True,
        train: bool = False,
        beside: Mapping[str, Array] | None = None,
    ) -> States:
        """Run the decoder over ids (r, t); with a cache that holds the source, the encoder's states are not read."""
        held = cache is not None and cache.layers[0].source is not None
        source = None if held or encoder_hidden_states is None else self.project(encoder_hidden_states)
        return self.decoder(
            decoder_input_ids,
            decoder_attention_mask,
            None,
            decoder_position_ids,
            decoder_inputs_embeds,
            source,
            encoder_attention_mask,
            cache,
            want_attentions,
            want_hidden,
            want_logits,
            train,
            beside,
        )

    def __call__(
        self,
        input_ids: Array | None = None,
        attention_mask: Array | None = None,
        decoder_input_ids: Array | None = None,
        decoder_attention_mask: Array | None = None,
        position_ids: Array | None = None,
        decoder_position_ids: Array | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool = True,
        deterministic: bool = True,
        inputs_embeds: Array | None = None,
        decoder_inputs_embeds: Array | None = None,
        beside: Mapping[str, Array] | None = None,
        decoder_beside: Mapping[str, Array] | None = None,
    ) -> Any:
        """Source ids (b, s) and target ids (r, t) to logits (r, t, v)."""
        wants: dict[str, Any] = {
            "want_attentions": output_attentions,
            "want_hidden": output_hidden_states,
            "train": not deterministic,
        }
        encoded = self.encode(input_ids, attention_mask, position_ids, None, inputs_embeds, beside, **wants)
        decoded = self.decode(
            decoder_input_ids,
            encoded.last,
            attention_mask,
            decoder_attention_mask,
            decoder_position_ids,
            decoder_inputs_embeds,
            **wants,
            beside=decoder_beside,
        )
        output = FlaxSeq2SeqLMOutput(
            logits=decoded.logits,
            decoder_hidden_states=decoded.hidden,
            decoder_attentions=decoded.attentions,
            cross_attentions=decoded.cross_attentions,
            encoder_last_hidden_state=encoded.last,
            encoder_hidden_states=encoded.hidden,
            encoder_attentions=encoded.attentions,
        )
        return output if return_dict else output.to_tuple()


def check_sides(encoder: Any, decoder: Any) -> None:
    """Refuse models, where they are given, that cannot be a pair's encoder or its decoder.

    Raises:
        ValueError: the encoder has a head or cross-attention, or the decoder lacks one of them.
    """
    if encoder is not None and (encoder.spec.head is not None or encoder.spec.cross_attention is not None):
        raise ValueError(
            f"the encoder is a {type(encoder).__name__} with a language model head or cross-attention; load it with "
            "FlaxAutoModel.from_pretrained(...)"
        )
    if decoder is not None and (decoder.spec.head is None or decoder.spec.cross_attention is None):
        raise ValueError(
            f"the decoder is a {type(decoder).__name__} without a head or without cross-attention, so it would not "
            "see the source; load it with FlaxAutoModelForCausalLM.from_pretrained(..., is_decoder=True, "
            "add_cross_attention=True)"
        )
