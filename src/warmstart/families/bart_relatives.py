"""Relatives of BART: the same two halves, with other norms and positions.

mBART (Liu et al. 2020), PLBART (Ahmad et al. 2021), MVP (Tang et al. 2022), Blenderbot and its small form (Roller et
al. 2021), Pegasus (Zhang et al. 2020), BigBird-Pegasus (Zaheer et al. 2020), Marian (Junczys-Dowmunt et al. 2018).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from warmstart.config import PretrainedConfig
from warmstart.families.bart import BART_LEFT_OUT, BART_NAMES, BartConfig, bart_family, bart_spec
from warmstart.spec import StackSpec

_SIZES: dict[str, Any] = {
    name: BartConfig.defaults[name]
    for name in (
        "vocab_size",
        "max_position_embeddings",
        "encoder_layers",
        "encoder_ffn_dim",
        "encoder_attention_heads",
        "decoder_layers",
        "decoder_ffn_dim",
        "decoder_attention_heads",
        "encoder_layerdrop",
        "decoder_layerdrop",
        "use_cache",
        "is_encoder_decoder",
        "activation_function",
        "d_model",
        "dropout",
        "attention_dropout",
        "activation_dropout",
        "init_std",
    )
}


class MBartConfig(BartConfig):
    """An mBART's configuration."""

    model_type = "mbart"
    defaults = {
        **_SIZES,
        "classifier_dropout": 0.0,
        "scale_embedding": False,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "forced_eos_token_id": 2,
    }


class PLBartConfig(BartConfig):
    """A PLBART's configuration."""

    model_type = "plbart"
    defaults = {
        **MBartConfig.defaults,
        "vocab_size": 50005,
        "encoder_layers": 6,
        "encoder_ffn_dim": 3072,
        "encoder_attention_heads": 12,
        "decoder_layers": 6,
        "decoder_ffn_dim": 3072,
        "decoder_attention_heads": 12,
        "d_model": 768,
        "attention_dropout": 0.1,
        "scale_embedding": True,
    }


class MvpConfig(BartConfig):
    """An MVP's configuration."""

    model_type = "mvp"
    defaults = {
        **{name: value for name, value in _SIZES.items() if name not in ("use_cache", "is_encoder_decoder")},
        "vocab_size": 50267,
        "classifier_dropout": 0.0,
        "scale_embedding": False,
        "use_cache": True,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "is_encoder_decoder": True,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": 2,
        "use_prompt": False,
        "prompt_length": 100,
        "prompt_mid_dim": 800,
    }


class BlenderbotConfig(BartConfig):
    """A Blenderbot's configuration."""

    model_type = "blenderbot"
    defaults = {
        **_SIZES,
        "vocab_size": 8008,
        "max_position_embeddings": 128,
        "encoder_layers": 2,
        "encoder_ffn_dim": 10240,
        "encoder_attention_heads": 32,
        "decoder_layers": 24,
        "decoder_ffn_dim": 10240,
        "decoder_attention_heads": 32,
        "d_model": 2560,
        "decoder_start_token_id": 1,
        "scale_embedding": False,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "encoder_no_repeat_ngram_size": 3,
        "forced_eos_token_id": 2,
    }


class BlenderbotSmallConfig(BartConfig):
    """A small Blenderbot's configuration."""

    model_type = "blenderbot-small"
    defaults = {
        **_SIZES,
        "max_position_embeddings": 512,
        "encoder_layers": 8,
        "encoder_ffn_dim": 2048,
        "decoder_layers": 8,
        "decoder_ffn_dim": 2048,
        "d_model": 512,
        "decoder_start_token_id": 1,
        "scale_embedding": False,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "forced_eos_token_id": 2,
    }


class PegasusConfig(BartConfig):
    """A Pegasus's configuration."""

    model_type = "pegasus"
    defaults = {
        **_SIZES,
        "decoder_start_token_id": 0,
        "scale_embedding": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "forced_eos_token_id": 1,
    }


class BigBirdPegasusConfig(BartConfig):
    """A BigBird-Pegasus's configuration; its encoder attends to everything, whatever `attention_type` says."""

    model_type = "bigbird_pegasus"
    defaults = {
        **_SIZES,
        "vocab_size": 96103,
        "max_position_embeddings": 4096,
        "encoder_layers": 16,
        "decoder_layers": 16,
        "activation_function": "gelu_new",
        "decoder_start_token_id": 2,
        "classifier_dropout": 0.0,
        "scale_embedding": True,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "attention_type": "block_sparse",
        "block_size": 64,
        "num_random_blocks": 3,
        "use_bias": False,
    }
    attribute_map = {**BartConfig.attribute_map, "attention_probs_dropout_prob": "attention_dropout"}


class MarianConfig(BartConfig):
    """A Marian's configuration.

    >>> MarianConfig(vocab_size=60).decoder_vocab_size
    60
    """

    model_type = "marian"
    defaults = {
        "vocab_size": 58101,
        "decoder_vocab_size": None,
        **{name: value for name, value in _SIZES.items() if name != "vocab_size"},
        "decoder_start_token_id": 58100,
        "scale_embedding": False,
        "pad_token_id": 58100,
        "eos_token_id": 0,
        "forced_eos_token_id": 0,
        "share_encoder_decoder_embeddings": True,
    }

    decoder_vocab_size: int

    def complete(self) -> None:
        super().complete()
        self.decoder_vocab_size = self.decoder_vocab_size or self.vocab_size


def mvp_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """The stack of one half of an MVP."""
    if config.use_prompt:
        raise ValueError("mvp config: use_prompt=True is not supported; prompts before each layer are not made here")
    return bart_spec(config, headed)


def blenderbot_small_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """The stack of one half of a small Blenderbot; the decoder's tokens are not scaled, and normed by themselves."""
    spec = bart_spec(config, headed, offset=0)
    return (
        replace(spec, embedding=replace(spec.embedding, scale=1.0, norm_before_positions=True)) if spec.causal else spec
    )


_BEFORE = partial(bart_spec, offset=0, embedding_norm=False, before=True)
_POSITIONS = (r"(^|\.)embed_positions\.weight$",)  # computed here

FAMILIES = {
    "mbart": bart_family(MBartConfig, "MBart", partial(bart_spec, before=True)),
    "plbart": bart_family(PLBartConfig, "PLBart"),
    "mvp": bart_family(MvpConfig, "Mvp", mvp_spec),
    "blenderbot": bart_family(BlenderbotConfig, "Blenderbot", _BEFORE),
    "blenderbot-small": bart_family(BlenderbotSmallConfig, "BlenderbotSmall", blenderbot_small_spec),
    "pegasus": replace(
        bart_family(PegasusConfig, "Pegasus", partial(_BEFORE, sinusoids="plain")),
        left_out=BART_LEFT_OUT + _POSITIONS,
    ),
    "bigbird_pegasus": replace(
        bart_family(BigBirdPegasusConfig, "BigBirdPegasus", _BEFORE),
        names={**BART_NAMES, "final_norm": "layernorm_embedding"},
        encoder_names={
            **{
                f"layers.{{}}.attention.{part}": f"layers.{{}}.self_attn.self.{part}"
                for part in ("query", "key", "value")
            },
            "layers.{}.attention.output": "layers.{}.self_attn.output",
        },
    ),
    "marian": replace(
        bart_family(MarianConfig, "Marian", partial(bart_spec, offset=0, sinusoids="plain", embedding_norm=False)),
        left_out=BART_LEFT_OUT + _POSITIONS,
        whole="MarianMTModel",
    ),
}
