"""The reference for cross-attention added from outside: the reference's decoder layers, and attention written plainly.

Between a layer's self-attention and its MLP stands: x + output(softmax(q k / sqrt(d)) v), where q is read from norm(x)
and k and v from the source, with the heads, biases and head norms of the self-attention, and no positions.
Shapes: b batch, s source length, t target length, n query heads, m key-value heads, d head size, h hidden size.
"""

import copy
import math
import operator
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from torch import nn
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.models.encoder_decoder.modeling_encoder_decoder import shift_tokens_right


@dataclass(frozen=True)
class Place:
    """Where a family's decoder has its layers, and in them what cross-attention is made like and comes after."""

    layers: str = "model.layers"
    attention: str = "self_attn"
    norm: str = "input_layernorm"  # before self-attention
    output_norm: str = ""  # on what self-attention gives, before it is added to its input
    output: str = "o_proj"
    residual: bool = False  # what self-attention gives has its input added already


FUSED = ("query_key_value", "qkv_proj", "c_attn")  # what makes queries, keys and values in one
PLACES = {
    "gptj": Place("transformer.h", "attn", "ln_1", output="out_proj"),
    "gpt_neox": Place("gpt_neox.layers", "attention", output="dense"),
    "phi": Place(output="dense"),
    "gpt_bigcode": Place("transformer.h", "attn", "ln_1", output="c_proj"),
    "olmo2": Place(norm="", output_norm="post_attention_layernorm"),
    "olmo3": Place(norm="", output_norm="post_attention_layernorm"),
    "glm4": Place(output_norm="post_self_attn_layernorm"),
    "opt": Place("model.decoder.layers", norm="self_attn_layer_norm", output="out_proj"),
    "gpt_neo": Place("transformer.h", "attn.attention", "ln_1", output="out_proj"),
    "bloom": Place("transformer.h", "self_attention", output="dense", residual=True),
    "falcon": Place("transformer.h", "self_attention", output="dense"),
    "gemma2": Place(output_norm="post_attention_layernorm"),
    "gemma3_text": Place(output_norm="post_attention_layernorm"),
}


class CrossAttention(nn.Module):
    def __init__(self, attention, place, config):
        super().__init__()
        self.size = config.hidden_size // config.num_attention_heads
        self.size = getattr(config, "head_dim", None) or self.size
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            self.add_module(name, self._like(attention, place.output if name == "o_proj" else name, config))
        for name in ("q_norm", "k_norm"):
            self.add_module(name, copy.deepcopy(getattr(attention, name, None)))
        self.scale = getattr(attention, "scaling", 1 / math.sqrt(self.size))
        self.scale = 1.0 if config.model_type == "gpt_neo" else self.scale
        self.cap = getattr(config, "attn_logit_softcapping", None)
        self.source = self.allowed = self.weights = None

    def _like(self, attention, name, config):
        """A projection like that of self-attention, or like its part of one that makes all three."""
        if hasattr(attention, name):
            like = getattr(attention, name)
            return nn.Linear(like.in_features, like.out_features, like.bias is not None)
        like = next(x for fused in FUSED if (x := getattr(attention, fused, None)) is not None)
        shared = (like.out_features // self.size - config.num_attention_heads) // 2
        heads = config.num_attention_heads if name == "q_proj" else shared
        return nn.Linear(like.in_features, heads * self.size, like.bias is not None)

    def forward(self, x):
        query, key = self._heads(self.q_proj(x), self.q_norm), self._heads(self.k_proj(self.source), self.k_norm)
        value = self._heads(self.v_proj(self.source))
        groups = query.shape[2] // key.shape[2]
        key, value = (torch.stack([y] * groups, 3).flatten(2, 3) for y in (key, value))
        scores = torch.einsum("btnd,bsnd->bnts", query, key) * self.scale
        scores = scores if self.cap is None else torch.tanh(scores / self.cap) * self.cap
        self.weights = scores.masked_fill(self.allowed[:, None, None] == 0, -math.inf).softmax(-1)
        return self.o_proj(torch.einsum("bnts,bsnd->btnd", self.weights, value).flatten(2))

    def _heads(self, x, norm=None):
        if norm is not None and norm.weight.shape[0] != self.size:  # it is over all heads
            x, norm = norm(x), None
        x = x.unflatten(-1, (-1, self.size))
        return x if norm is None else norm(x)


def graft(layer, place, config):
    """Give a decoder layer cross-attention: it acts on what comes out of self-attention and its residual.

    In a layer whose MLP stands beside self-attention the MLP goes on reading what it read.
    """
    attention = operator.attrgetter(place.attention)(layer)
    layer.cross_attention = CrossAttention(attention, place, config)
    layer.cross_attention_layernorm = copy.deepcopy(getattr(layer, place.norm)) if place.norm else nn.Identity()
    output_norm = getattr(layer, place.output_norm) if place.output_norm else None
    layer.cross_attention_output_layernorm = copy.deepcopy(output_norm)
    held, share = {}, getattr(config, "residual_multiplier", 1.0)

    def hold(_, arguments, keywords):
        held["x"] = arguments[0] if arguments else keywords["hidden_states"]

    def add(_, arguments, output):
        own, rest = (output[0], output[1:]) if isinstance(output, tuple) else (output, None)
        x = own if place.residual else held["x"] + share * own
        y = layer.cross_attention(layer.cross_attention_layernorm(x))
        y = own + (y if output_norm is None else layer.cross_attention_output_layernorm(y))
        return y if rest is None else (y, *rest)

    layer.register_forward_pre_hook(hold, with_kwargs=True)
    (attention if output_norm is None else output_norm).register_forward_hook(add)


class GraftedEncoderDecoder(nn.Module):
    """The reference's `EncoderDecoderModel`, for decoders that it does not take."""

    def __init__(self, encoder, decoder):
        super().__init__()
        self.config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(encoder.config, decoder.config)
        decoder.config.add_cross_attention = False  # it is not the decoder's own: GPT-BigCode would look for it
        self.encoder, self.decoder = encoder, decoder
        widths = self.config.encoder.hidden_size, self.config.decoder.hidden_size
        if widths[0] != widths[1]:
            self.enc_to_dec_proj = nn.Linear(*widths)
        place = PLACES.get(decoder.config.model_type, Place())
        self.layers = [*operator.attrgetter(place.layers)(decoder)]
        for layer in self.layers:
            graft(layer, place, decoder.config)

    def forward(self, input_ids, attention_mask, labels=None, decoder_input_ids=None, **want):
        decoder_mask = None
        if labels is not None:
            decoder_input_ids = shift_tokens_right(labels, self.config.pad_token_id, self.config.decoder_start_token_id)
            decoder_mask = (decoder_input_ids != self.config.pad_token_id).long()
        encoded = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **want)
        source = encoded.last_hidden_state
        source = self.enc_to_dec_proj(source) if hasattr(self, "enc_to_dec_proj") else source
        added = [layer.cross_attention for layer in self.layers]
        for attention in added:
            attention.source, attention.allowed = source, attention_mask
        decoded = self.decoder(input_ids=decoder_input_ids, attention_mask=decoder_mask, **want)
        loss = None if labels is None else nn.functional.cross_entropy(decoded.logits.flatten(0, 1), labels.flatten())
        return Seq2SeqLMOutput(
            loss=loss,
            logits=decoded.logits,
            decoder_hidden_states=decoded.hidden_states,
            decoder_attentions=decoded.attentions,
            cross_attentions=tuple(attention.weights for attention in added),
            encoder_last_hidden_state=encoded.last_hidden_state,
            encoder_hidden_states=encoded.hidden_states,
            encoder_attentions=encoded.attentions,
        )

    def save_pretrained(self, folder):
        Path(folder).mkdir(exist_ok=True)
        self.config.save_pretrained(folder)
        once = {parameter.data_ptr(): name for name, parameter in reversed(list(self.named_parameters()))}
        save_file({name: self.get_parameter(name).data for name in once.values()}, Path(folder, "model.safetensors"))
