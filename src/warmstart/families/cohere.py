"""Command R and Aya (Cohere 2024): GPT-J's parallel layers with a gated MLP, a norm without bias, and scaled logits.

Cross-attention is added after self-attention and reads what that gave; the MLP goes on reading the layer's input.
Command R7B and A (`cohere2`, Cohere 2024) look at a window in three of four layers; the others have no positions.
"""

from __future__ import annotations

from dataclasses import replace

from warmstart.config import PretrainedConfig
from warmstart.families.checks import check
from warmstart.families.entry import Stored, language_model
from warmstart.families.llama import (
    LlamaConfig,
    head_size,
    layers_between,
    llama_like,
    mixed_types,
    rotary_of,
    windows_of,
)
from warmstart.spec import AttentionSpec, MLPSpec, NormSpec, StackSpec


class CohereConfig(LlamaConfig):
    """A Command R's configuration."""

    model_type = "cohere"
    defaults = {
        "vocab_size": 256000,
        "hidden_size": 8192,
        "intermediate_size": 22528,
        "logit_scale": 0.0625,
        "num_hidden_layers": 40,
        "num_attention_heads": 64,
        "num_key_value_heads": None,
        "hidden_act": "silu",
        "max_position_embeddings": 8192,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-5,
        "use_cache": True,
        "pad_token_id": 0,
        "bos_token_id": 5,
        "eos_token_id": 255001,
        "tie_word_embeddings": True,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_qk_norm": False,
    }


class Cohere2Config(CohereConfig):
    """A Command R7B's configuration; older files have `sliding_window_pattern`: of how many layers one sees everything.

    >>> Cohere2Config(num_hidden_layers=4).layer_types
    ['sliding_attention', 'sliding_attention', 'sliding_attention', 'full_attention']
    """

    model_type = "cohere2"
    defaults = {
        **{name: value for name, value in CohereConfig.defaults.items() if name != "use_qk_norm"},
        "sliding_window": 4096,
        "layer_types": None,
    }

    layer_types: list[str]

    def complete(self) -> None:
        super().complete()
        self.head_dim = head_size(self)
        every = layers_between(self, 4)
        if self.layer_types is None:
            self.layer_types = mixed_types(self, every)


def cohere_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """The stack of a Command R."""
    check(config)
    spec = language_model(
        config,
        headed,
        attention=AttentionSpec(
            heads=config.num_attention_heads,
            key_value_heads=config.num_key_value_heads,
            head_size=head_size(config),
            bias=config.attention_bias,
            output_bias=config.attention_bias,
            dropout=config.attention_dropout,
            head_norms_apart=getattr(config, "use_qk_norm", False),
            rotary=replace(rotary_of(config), interleaved=True),
            windows=windows_of(config),
        ),
        mlp=MLPSpec(config.intermediate_size, config.hidden_act, gated=True, bias=False),
        norm=NormSpec("layer", config.layer_norm_eps, before=True, shared=True, bias=False, final=True),
        parallel=True,
    )
    return replace(spec, head=spec.head and replace(spec.head, scale=config.logit_scale))


def cohere2_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """The stack of a Command R7B."""
    spec = cohere_spec(config, headed)
    turns = [spec.attention.window(layer) is not None for layer in range(spec.layers)]
    rotaries = tuple(spec.attention.rotary if one else None for one in turns)
    return replace(spec, attention=replace(spec.attention, rotaries=rotaries))


def _head_norms(config: PretrainedConfig, spec: StackSpec) -> dict[str, str | Stored]:
    """The names of the norms that each head of queries and keys has (Command R+): rows of one matrix."""
    counts = {"query": spec.attention.heads, "key": spec.attention.key_value_heads}
    kinds = {"attention": "self_attn", "cross_attention": "cross_attention"}
    return {
        f"layers.{{}}.{kind}.{part}_norm.head_{head}_norm": Stored(
            f"layers.{{}}.{theirs}.{part[0]}_norm", part=head, parts=count, row=True
        )
        for part, count in counts.items()
        for kind, theirs in kinds.items()
        for head in range(count if spec.attention.head_norms_apart else 0)
    }


FAMILIES = {
    "cohere": llama_like(CohereConfig, "Cohere", spec=cohere_spec, variant=_head_norms),
    "cohere2": llama_like(Cohere2Config, "Cohere2", spec=cohere2_spec),
}
