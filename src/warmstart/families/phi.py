"""Phi (Gunasekar et al. 2023; Li et al. 2023): GPT-J's parallel layers with biases, where a part of each head rotates.

Cross-attention is added after self-attention and reads what that gave; the MLP goes on reading the layer's input.
"""

from __future__ import annotations

from warmstart.config import PretrainedConfig
from warmstart.families.checks import check
from warmstart.families.entry import Stored, language_model
from warmstart.families.llama import LLAMA_NAMES, LlamaConfig, head_size, llama_like, rotary_of
from warmstart.spec import AttentionSpec, MLPSpec, NormSpec, StackSpec


class PhiConfig(LlamaConfig):
    """A Phi's configuration."""

    model_type = "phi"
    defaults = {
        "vocab_size": 51200,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attention_dropout": 0.0,
        "hidden_act": "gelu_new",
        "max_position_embeddings": 2048,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-5,
        "use_cache": True,
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "partial_rotary_factor": 0.5,
        "qk_layernorm": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def phi_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """The stack of a Phi."""
    check(config)
    return language_model(
        config,
        headed,
        embedding={"dropout": config.embd_pdrop},
        head_bias=True,
        attention=AttentionSpec(
            heads=config.num_attention_heads,
            key_value_heads=config.num_key_value_heads,
            head_size=head_size(config),
            dropout=config.attention_dropout,
            head_norm=config.qk_layernorm,
            rotary=rotary_of(config),
        ),
        mlp=MLPSpec(config.intermediate_size, config.hidden_act),
        norm=NormSpec("layer", config.layer_norm_eps, before=True, shared=True, final=True),
        parallel=True,
        dropout=config.resid_pdrop,
    )


PHI_NAMES: dict[str, str | Stored] = LLAMA_NAMES | {
    "layers.{}.attention.output": "layers.{}.self_attn.dense",
    "layers.{}.attention.query_norm": "layers.{}.self_attn.q_layernorm",
    "layers.{}.attention.key_norm": "layers.{}.self_attn.k_layernorm",
    "layers.{}.mlp.up": "layers.{}.mlp.fc1",
    "layers.{}.mlp.down": "layers.{}.mlp.fc2",
    "final_norm": "final_layernorm",
}


FAMILIES = {"phi": llama_like(PhiConfig, "Phi", spec=phi_spec, names=PHI_NAMES)}
