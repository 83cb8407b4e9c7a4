"""XGLM (Lin et al. 2022) and TrOCR's decoder (Li et al. 2023): BART's decoder without its encoder."""

from __future__ import annotations

import math
from dataclasses import replace

from warmstart.config import PretrainedConfig
from warmstart.families.bart import BART_LEFT_OUT, BART_NAMES, POSITION_OFFSET
from warmstart.families.checks import check
from warmstart.families.entry import Family, Stored
from warmstart.spec import AttentionSpec, EmbeddingSpec, HeadSpec, MLPSpec, NormSpec, StackSpec


class XGLMConfig(PretrainedConfig):
    """An XGLM's configuration.

    >>> XGLMConfig(d_model=64).hidden_size
    64
    """

    model_type = "xglm"
    defaults = {
        "vocab_size": 256008,
        "max_position_embeddings": 2048,
        "d_model": 1024,
        "ffn_dim": 4096,
        "num_layers": 24,
        "attention_heads": 16,
        "activation_function": "gelu",
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "activation_dropout": 0.0,
        "layerdrop": 0.0,
        "init_std": 0.02,
        "scale_embedding": True,
        "use_cache": True,
        "decoder_start_token_id": 2,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
    }
    attribute_map = {
        "num_attention_heads": "attention_heads",
        "hidden_size": "d_model",
        "num_hidden_layers": "num_layers",
        "intermediate_size": "ffn_dim",
        "initializer_range": "init_std",
    }


class TrOCRConfig(PretrainedConfig):
    """The configuration of a TrOCR's decoder.

    >>> TrOCRConfig(decoder_layers=2).num_hidden_layers
    2
    """

    model_type = "trocr"
    defaults = {
        "vocab_size": 50265,
        "d_model": 1024,
        "decoder_layers": 12,
        "decoder_attention_heads": 16,
        "decoder_ffn_dim": 4096,
        "activation_function": "gelu",
        "max_position_embeddings": 512,
        "dropout": 0.1,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "decoder_start_token_id": 2,
        "init_std": 0.02,
        "decoder_layerdrop": 0.0,
        "use_cache": True,
        "scale_embedding": False,
        "use_learned_position_embeddings": True,
        "layernorm_embedding": True,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
    }
    attribute_map = {
        "num_attention_heads": "decoder_attention_heads",
        "hidden_size": "d_model",
        "num_hidden_layers": "decoder_layers",
        "intermediate_size": "decoder_ffn_dim",
        "initializer_range": "init_std",
    }


def xglm_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """The stack of an XGLM: norms first, computed positions."""
    check(config)
    heads = config.num_attention_heads
    attention = AttentionSpec(heads, heads, config.d_model // heads, dropout=config.attention_dropout)
    return StackSpec(
        family=config.model_type,
        hidden_size=config.d_model,
        layers=config.num_hidden_layers,
        embedding=EmbeddingSpec(
            vocabulary=config.vocab_size,
            size=config.d_model,
            positions=config.max_position_embeddings,
            position_offset=POSITION_OFFSET,
            sinusoids="stretched",
            scale=math.sqrt(config.d_model) if config.scale_embedding else 1.0,
            padding_id=config.pad_token_id,
            dropout=config.dropout,
        ),
        attention=attention,
        cross_attention=attention if config.add_cross_attention else None,
        cross_attention_size=config.cross_attention_hidden_size or config.d_model,
        mlp=MLPSpec(config.intermediate_size, config.activation_function, dropout=config.activation_dropout),
        norm=NormSpec("layer", 1e-5, before=True, final=True),
        head=HeadSpec(tied=config.tie_word_embeddings) if headed else None,
        causal=config.is_decoder or config.is_causal is not False,
        dropout=config.dropout,
        layer_drop=getattr(config, "layerdrop", 0.0),
        initializer_range=config.init_std,
        positions=config.max_position_embeddings,
    )


def trocr_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """The stack of a TrOCR's decoder: norms last, learned positions or computed ones that leave padding out."""
    spec = xglm_spec(config, headed)
    if not (config.is_decoder or headed):
        raise ValueError("trocr is a decoder alone; it cannot be an encoder")
    learned = config.use_learned_position_embeddings
    embedding = replace(
        spec.embedding,
        position_offset=POSITION_OFFSET if learned else (config.pad_token_id or 0) + 1,
        positions_skip_padding=not learned,
        sinusoids=None if learned else "stretched",
        norm=config.layernorm_embedding,
    )
    norm = replace(spec.norm, before=False, final=False)
    return replace(spec, embedding=embedding, norm=norm, layer_drop=config.decoder_layerdrop)


# The table of embeddings has one name: no other half shares it.
XGLM_NAMES: dict[str, str | Stored] = {
    "embeddings.token": "embed_tokens",
    **{ours: theirs for ours, theirs in BART_NAMES.items() if ours != "embeddings.token.weight"},
}

FAMILIES = {
    "xglm": Family(
        model_type="xglm",
        config=XGLMConfig,
        spec=xglm_spec,
        names=XGLM_NAMES,
        head_prefix="model.",
        architectures={"base": "XGLMModel", "causal": "XGLMForCausalLM"},
        prefixes=("", "model."),
        left_out=(r"(^|\.)embed_positions\.weights$",),
        causal=True,
    ),
    "trocr": Family(
        model_type="trocr",
        config=TrOCRConfig,
        spec=trocr_spec,
        names={**XGLM_NAMES, "head.output": Stored("/output_projection", aliases=("/decoder.output_projection",))},
        head_prefix="model.decoder.",
        architectures={"causal": "TrOCRForCausalLM", "base": "TrOCRForCausalLM"},
        prefixes=(
            "",
            "model.decoder.",
            "decoder.model.decoder.",
        ),  # the last where it is half of a model that reads images
        left_out=(*BART_LEFT_OUT, r"(^|\.)embed_positions\._float_tensor$", r"^encoder\.", r"^enc_to_dec_proj\."),
        causal=True,
        encoder=False,
    ),
}
