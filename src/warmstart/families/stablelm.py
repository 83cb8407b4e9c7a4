"""StableLM (Bellagente et al. 2024): Llama's layers with layer norms, where a part of each head rotates.

Cross-attention is added after self-attention and reads what that gave, in parallel layers, too.
"""

from __future__ import annotations

from warmstart.config import PretrainedConfig
from warmstart.families.checks import check
from warmstart.families.entry import Stored, language_model
from warmstart.families.llama import LlamaConfig, head_size, llama_like, rotary_of
from warmstart.spec import AttentionSpec, MLPSpec, NormSpec, StackSpec


class StableLmConfig(LlamaConfig):
    """A StableLM's configuration."""

    model_type = "stablelm"
    defaults = {
        "vocab_size": 50304,
        "intermediate_size": 6912,
        "hidden_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-5,
        "use_cache": True,
        "tie_word_embeddings": False,
        "rope_theta": 10000,
        "rope_scaling": None,
        "use_qkv_bias": False,
        "qk_layernorm": False,
        "use_parallel_residual": False,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "partial_rotary_factor": 0.25,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }


def stablelm_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """The stack of a StableLM."""
    check(config)
    parallel = config.use_parallel_residual
    return language_model(
        config,
        headed,
        attention=AttentionSpec(
            heads=config.num_attention_heads,
            key_value_heads=config.num_key_value_heads,
            head_size=head_size(config),
            bias=config.use_qkv_bias,
            output_bias=False,
            dropout=config.attention_dropout,
            head_norms_apart=config.qk_layernorm,
            rotary=rotary_of(config),
        ),
        mlp=MLPSpec(config.intermediate_size, config.hidden_act, gated=True, bias=False),
        norm=NormSpec("layer", config.layer_norm_eps, before=True, shared=parallel, final=True),
        parallel=parallel,
        dropout=config.hidden_dropout,
    )


def names_of_head_norms(config: PretrainedConfig, spec: StackSpec) -> dict[str, str | Stored]:
    """The names of the norms that each head of queries and keys has (StableLM 2 12B)."""
    counts = {"query": spec.attention.heads, "key": spec.attention.key_value_heads}
    kinds = {"attention": "self_attn.{}_layernorm.norms", "cross_attention": "cross_attention.{}_norm"}
    return {
        f"layers.{{}}.{kind}.{part}_norm.head_{head}_norm": f"layers.{{}}.{theirs.format(part[0])}.{head}"
        for part, count in counts.items()
        for kind, theirs in kinds.items()
        for head in range(count if spec.attention.head_norms_apart else 0)
    }


FAMILIES = {
    "stablelm": llama_like(StableLmConfig, "StableLm", spec=stablelm_spec, variant=names_of_head_norms),
}
