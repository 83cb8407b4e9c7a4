"""StarCoder 2 (Lozhkov et al. 2024): grouped heads, windows, rotary positions, layer norms and a plain MLP."""

from __future__ import annotations

from warmstart.config import PretrainedConfig
from warmstart.families.checks import check
from warmstart.families.entry import Stored, language_model
from warmstart.families.llama import LLAMA_NAMES, LlamaConfig, head_size, llama_like, rotary_of, windows_of
from warmstart.spec import AttentionSpec, MLPSpec, NormSpec, StackSpec


class Starcoder2Config(LlamaConfig):
    """A StarCoder 2's configuration."""

    model_type = "starcoder2"
    defaults = {
        "vocab_size": 49152,
        "hidden_size": 3072,
        "intermediate_size": 12288,
        "num_hidden_layers": 30,
        "num_attention_heads": 24,
        "num_key_value_heads": 2,
        "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 4096,
        "initializer_range": 0.018042,
        "norm_epsilon": 1e-5,
        "use_cache": True,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "sliding_window": None,
        "attention_dropout": 0.0,
        "residual_dropout": 0.0,
        "embedding_dropout": 0.0,
        "use_bias": True,
    }


def starcoder2_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """The stack of a StarCoder 2."""
    check(config)
    return language_model(
        config,
        headed,
        embedding={"dropout": config.embedding_dropout},
        attention=AttentionSpec(
            heads=config.num_attention_heads,
            key_value_heads=config.num_key_value_heads,
            head_size=head_size(config),
            bias=config.use_bias,
            output_bias=config.use_bias,
            dropout=config.attention_dropout,
            rotary=rotary_of(config),
            windows=windows_of(config),
        ),
        mlp=MLPSpec(config.intermediate_size, config.hidden_act, bias=config.use_bias),
        norm=NormSpec("layer", config.norm_epsilon, before=True, final=True),
        dropout=config.residual_dropout,
    )


STARCODER2_NAMES: dict[str, str | Stored] = LLAMA_NAMES | {
    "layers.{}.mlp.up": "layers.{}.mlp.c_fc",
    "layers.{}.mlp.down": "layers.{}.mlp.c_proj",
}


FAMILIES = {"starcoder2": llama_like(Starcoder2Config, "Starcoder2", spec=starcoder2_spec, names=STARCODER2_NAMES)}
