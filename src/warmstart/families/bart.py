"""BART (Lewis et al. 2020): its encoder, and its decoder with its own cross-attention."""

from __future__ import annotations

import math
from collections.abc import Callable

from warmstart.config import PretrainedConfig
from warmstart.families.checks import check
from warmstart.families.entry import Family, Stored
from warmstart.spec import AttentionSpec, EmbeddingSpec, HeadSpec, MLPSpec, NormSpec, StackSpec

POSITION_OFFSET = 2  # BART's position table has two rows before position 0


class BartConfig(PretrainedConfig):
    """A BART's configuration; `is_decoder` says which of its halves is meant.

    >>> BartConfig(d_model=64).hidden_size
    64
    """

    model_type = "bart"
    defaults = {
        "vocab_size": 50265,
        "max_position_embeddings": 1024,
        "encoder_layers": 12,
        "encoder_ffn_dim": 4096,
        "encoder_attention_heads": 16,
        "decoder_layers": 12,
        "decoder_ffn_dim": 4096,
        "decoder_attention_heads": 16,
        "encoder_layerdrop": 0.0,
        "decoder_layerdrop": 0.0,
        "activation_function": "gelu",
        "d_model": 1024,
        "dropout": 0.1,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "init_std": 0.02,
        "classifier_dropout": 0.0,
        "scale_embedding": False,
        "use_cache": True,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "is_encoder_decoder": True,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": 2,
    }
    attribute_map = {
        "hidden_size": "d_model",
        "num_attention_heads": "encoder_attention_heads",
        "initializer_range": "init_std",
    }

    def complete(self) -> None:
        self.__dict__.setdefault("num_hidden_layers", self.encoder_layers)


def bart_spec(
    config: PretrainedConfig,
    headed: bool,
    offset: int = POSITION_OFFSET,
    sinusoids: str | None = None,
    embedding_norm: bool = True,
    before: bool = False,
) -> StackSpec:
    """The stack of one half of a BART, or of a relative.

    `offset` rows of the table stand before position 0, or the positions are `sinusoids`; `embedding_norm` says whether
    there is one, and `before` that norms stand before each sub-layer, with one more after the last.
    """
    check(config)
    half = "decoder" if config.is_decoder or headed else "encoder"
    heads = getattr(config, f"{half}_attention_heads")
    bias = getattr(config, "use_bias", True)
    biased = bool(getattr(config, "logits_bias", False))  # the decoder of a whole; see EncoderDecoderConfig.from_whole
    attention = AttentionSpec(
        heads=heads,
        key_value_heads=heads,
        head_size=config.d_model // heads,
        bias=bias,
        output_bias=bias,
        dropout=config.attention_dropout,
        pruned=config.pruned_heads,
    )
    return StackSpec(
        family=config.model_type,
        hidden_size=config.d_model,
        layers=getattr(config, f"{half}_layers"),
        embedding=EmbeddingSpec(
            vocabulary=config.vocab_size,
            size=config.d_model,
            positions=config.max_position_embeddings,
            position_offset=offset,
            sinusoids=sinusoids,
            norm=embedding_norm,
            scale=math.sqrt(config.d_model) if config.scale_embedding else 1.0,
            padding_id=config.pad_token_id,
            dropout=config.dropout,
        ),
        attention=attention,
        cross_attention=attention if half == "decoder" and config.add_cross_attention else None,
        cross_attention_size=config.cross_attention_hidden_size or config.d_model,
        mlp=MLPSpec(getattr(config, f"{half}_ffn_dim"), config.activation_function, dropout=config.activation_dropout),
        norm=NormSpec("layer", 1e-5, before=before, final=before),
        head=HeadSpec(bias=biased, fixed_bias=biased, tied=config.tie_word_embeddings) if headed else None,
        causal=half == "decoder",
        dropout=config.dropout,
        layer_drop=getattr(config, f"{half}_layerdrop"),
        initializer_range=config.init_std,
        positions=config.max_position_embeddings,
    )


# A bias that only the whole has, other tasks' heads, computed positions, a number of early files.
BART_LEFT_OUT = (
    r"^final_logits_bias$",
    r"(^|\.)version$",
    r"^(classification_head|qa_outputs)\.",
)
BART_NAMES: dict[str, str | Stored] = {
    "embeddings.token.weight": Stored(
        "embed_tokens.weight", aliases=("/model.shared.weight", "/shared.weight"), alone="/shared.weight"
    ),
    "embeddings.position": "embed_positions",
    "embeddings.norm": "layernorm_embedding",
    "layers.{}.attention.query": "layers.{}.self_attn.q_proj",
    "layers.{}.attention.key": "layers.{}.self_attn.k_proj",
    "layers.{}.attention.value": "layers.{}.self_attn.v_proj",
    "layers.{}.attention.output": "layers.{}.self_attn.out_proj",
    "layers.{}.attention_norm": "layers.{}.self_attn_layer_norm",
    "layers.{}.cross_attention.query": "layers.{}.encoder_attn.q_proj",
    "layers.{}.cross_attention.key": "layers.{}.encoder_attn.k_proj",
    "layers.{}.cross_attention.value": "layers.{}.encoder_attn.v_proj",
    "layers.{}.cross_attention.output": "layers.{}.encoder_attn.out_proj",
    "layers.{}.cross_attention_norm": "layers.{}.encoder_attn_layer_norm",
    "layers.{}.mlp.up": "layers.{}.fc1",
    "layers.{}.mlp.down": "layers.{}.fc2",
    "layers.{}.mlp_norm": "layers.{}.final_layer_norm",
    "final_norm": "layer_norm",
    "head.output": "/lm_head",
    "head.output.bias": Stored("/final_logits_bias", row=True),
}


def bart_family(config: type[PretrainedConfig], name: str, spec: Callable[..., StackSpec] = bart_spec) -> Family:
    """The entry of a BART or of a relative, whose classes are called `name`."""
    return Family(
        model_type=config.model_type,
        config=config,
        spec=spec,
        names=BART_NAMES,
        head_prefix="model.decoder.",
        architectures={"base": f"{name}Model", "causal": f"{name}ForCausalLM"},
        prefixes=("", "encoder.", "model.encoder."),
        decoder_prefixes=("model.decoder.", "decoder.", ""),
        alone_prefix="encoder.",
        left_out=BART_LEFT_OUT,
        whole=f"{name}ForConditionalGeneration",
    )


FAMILIES = {"bart": bart_family(BartConfig, "Bart")}
