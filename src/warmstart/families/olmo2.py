"""OLMo 2 (OLMo Team 2024): Llama's layers with norms on what sub-layers give, and on all queries and all keys."""

from __future__ import annotations

from dataclasses import replace

from warmstart.config import PretrainedConfig
from warmstart.families.entry import Stored
from warmstart.families.llama import LLAMA_NAMES, LlamaConfig, llama_like, llama_spec
from warmstart.spec import NormSpec, StackSpec


class Olmo2Config(LlamaConfig):
    """An OLMo 2's configuration."""

    model_type = "olmo2"
    defaults = {
        "vocab_size": 50304,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "initializer_range": 0.02,
        "use_cache": True,
        "pad_token_id": 1,
        "bos_token_id": None,
        "eos_token_id": 50279,
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "rms_norm_eps": 1e-5,
    }


def olmo2_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """The stack of an OLMo 2."""
    spec = llama_spec(config, headed)
    return replace(
        spec,
        attention=replace(spec.attention, whole_norm=True),
        cross_attention=spec.cross_attention and replace(spec.cross_attention, whole_norm=True),
        norm=NormSpec("rms", config.rms_norm_eps, output=True, final=True),
    )


_GONE = ("layers.{}.attention_norm", "layers.{}.cross_attention_norm", "layers.{}.mlp_norm")
OLMO2_NAMES: dict[str, str | Stored] = {name: entry for name, entry in LLAMA_NAMES.items() if name not in _GONE} | {
    "layers.{}.attention_output_norm": "layers.{}.post_attention_layernorm",
    "layers.{}.mlp_output_norm": "layers.{}.post_feedforward_layernorm",
}


FAMILIES = {"olmo2": llama_like(Olmo2Config, "Olmo2", spec=olmo2_spec, names=OLMO2_NAMES)}
