"""T5Gemma (Zhang et al. 2025): an encoder-decoder of two Gemma 2 stacks, the first of which reads both ways.

Its decoder has cross-attention of its own, with the heads, cap and norms of the self-attention and without positions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from warmstart.config import TOKEN_IDS, PretrainedConfig
from warmstart.families.encoder_decoder import EncoderDecoderConfig
from warmstart.families.entry import Stored
from warmstart.families.gemma import Gemma2Config, gemma2_spec
from warmstart.families.llama import LLAMA_NAMES, llama_like
from warmstart.spec import StackSpec


class T5GemmaModuleConfig(Gemma2Config):
    """The configuration of one half of a T5Gemma; `is_decoder` says which."""

    model_type = "t5_gemma_module"


class T5GemmaConfig(EncoderDecoderConfig):
    """The configuration of a whole T5Gemma: its halves, and what the whole says of both.

    >>> config = T5GemmaConfig(encoder={"hidden_size": 64}, decoder={"hidden_size": 32}, dropout_rate=0.1)
    >>> config.decoder.cross_attention_hidden_size, config.encoder.dropout_rate
    (64, 0.1)
    """

    model_type = "t5gemma"

    def __init__(self, **kwargs: Any) -> None:
        given = kwargs.get("encoder"), kwargs.get("decoder") or kwargs.get("encoder")
        encoder, decoder = (_half(side) for side in given)
        for side in (encoder, decoder):
            side.dropout_rate = kwargs.get("dropout_rate", 0.0)
            side.attention_dropout = kwargs.get("attention_dropout", 0.0)
        encoder.is_decoder, decoder.is_decoder, decoder.add_cross_attention = False, True, True
        decoder.tie_word_embeddings = decoder.tie_word_embeddings or kwargs.get("tie_word_embeddings", True)
        same = encoder.hidden_size == decoder.hidden_size
        decoder.cross_attention_hidden_size = None if same else encoder.hidden_size
        ids = {name: getattr(decoder, name) for name in TOKEN_IDS}
        super().__init__(**{**ids, **kwargs, "encoder": encoder, "decoder": decoder})

    def joined(self) -> EncoderDecoderConfig:
        return EncoderDecoderConfig(encoder=self.encoder, decoder=self.decoder, **self.generation_config.explicit())


def joined(pair: PretrainedConfig) -> T5GemmaConfig:
    """The configuration of the whole that a pair of two halves is."""
    both = {name: getattr(pair.decoder, name, 0.0) for name in ("dropout_rate", "attention_dropout")}
    both |= {"tie_word_embeddings": pair.decoder.tie_word_embeddings, "vocab_size": pair.decoder.vocab_size}
    sides = {"encoder": pair.encoder, "decoder": pair.decoder}
    return T5GemmaConfig(**sides, **both, **pair.generation_config.explicit())


def _half(given: Any) -> T5GemmaModuleConfig:
    values = given.to_dict() if isinstance(given, PretrainedConfig) else dict(given or {})
    return T5GemmaModuleConfig(**values)


def t5gemma_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """The stack of one half of a T5Gemma."""
    spec = gemma2_spec(config, headed)
    dropout = getattr(config, "dropout_rate", 0.0)
    return replace(
        spec,
        causal=config.is_decoder or headed,
        embedding=replace(spec.embedding, dropout=dropout),
        mlp=replace(spec.mlp, dropout=dropout),
        dropout=dropout,
    )


_PARTS = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
_KINDS = {"attention": "self_attn", "cross_attention": "cross_attn"}
T5GEMMA_NAMES: dict[str, str | Stored] = {
    **{ours: stored for ours, stored in LLAMA_NAMES.items() if "attention" not in ours},
    **{
        f"layers.{{}}.{kind}.{part}": f"layers.{{}}.{theirs}.{name}"
        for kind, theirs in _KINDS.items()
        for part, name in _PARTS.items()
    },
    **{
        f"layers.{{}}.{kind}{place}": f"layers.{{}}.{when}_{theirs}_layernorm"
        for kind, theirs in {**_KINDS, "mlp": "feedforward"}.items()
        for place, when in {"_norm": "pre", "_output_norm": "post"}.items()
    },
    "head.output": "/lm_head.out_proj",
}


FAMILIES = {
    "t5_gemma_module": llama_like(
        T5GemmaModuleConfig,
        "T5Gemma",
        spec=t5gemma_spec,
        names=T5GEMMA_NAMES,
        head_prefix="model.decoder.",
        architectures={"base": "T5GemmaEncoderModel"},
        prefixes=("", "encoder.", "model.encoder."),
        decoder_prefixes=("model.decoder.", "decoder.", ""),
        alone_prefix="encoder.",
        causal=False,
        adds_cross_attention=False,
        whole="T5GemmaForConditionalGeneration",
        join=joined,
    ),
}
