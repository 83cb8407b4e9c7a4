"""Granite 3 (IBM 2024): Llama's layers with four multipliers, of embeddings, scores, sub-layers' outputs and logits.

The scores of cross-attention, which is added, are multiplied as those of self-attention are.
"""

from __future__ import annotations

from dataclasses import replace

from warmstart.config import PretrainedConfig
from warmstart.families.llama import LlamaConfig, llama_like, llama_spec
from warmstart.spec import StackSpec


class GraniteConfig(LlamaConfig):
    """A Granite's configuration."""

    model_type = "granite"
    defaults = {
        **{name: value for name, value in LlamaConfig.defaults.items() if name not in ("pretraining_tp", "head_dim")},
        "embedding_multiplier": 1.0,
        "logits_scaling": 1.0,
        "residual_multiplier": 1.0,
        "attention_multiplier": 1.0,
    }


def granite_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """The stack of a Granite."""
    spec = llama_spec(config, headed)
    size = config.attention_multiplier**-2.0  # of which the scale is one over the square root
    return replace(
        spec,
        embedding=replace(spec.embedding, scale=config.embedding_multiplier, scales_given=True),
        attention=replace(spec.attention, scale_size=size),
        cross_attention=spec.cross_attention and replace(spec.cross_attention, scale_size=size),
        head=spec.head and replace(spec.head, scale=1.0 / config.logits_scaling),
        residual_scale=config.residual_multiplier,
    )


FAMILIES = {"granite": llama_like(GraniteConfig, "Granite", spec=granite_spec)}
