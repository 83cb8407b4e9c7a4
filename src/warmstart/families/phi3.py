"""Phi-3 and Phi-4 (Abdin et al. 2024) and GLM-4 (GLM Team 2024): Llama's layers with matrices that are joined on disk.

Phi-3 holds queries, keys and values in one; all hold the MLP's gate and its other half in one. Cross-attention is
added with matrices of its own. GLM-4-0414 (`glm4`) has norms on what sub-layers give, too.
"""

from __future__ import annotations

from dataclasses import replace

from warmstart.config import PretrainedConfig
from warmstart.families.entry import Stored
from warmstart.families.llama import LLAMA_NAMES, LlamaConfig, llama_like, llama_spec
from warmstart.spec import StackSpec


class Phi3Config(LlamaConfig):
    """A Phi-3's configuration; the first files call `longrope` by other names.

    >>> factors = {"short_factor": [1.0], "long_factor": [2.0]}
    >>> Phi3Config(rope_scaling={"type": "su", **factors}).rope_scaling["type"]
    'longrope'
    """

    model_type = "phi3"
    defaults = {
        "vocab_size": 32064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-5,
        "use_cache": True,
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "partial_rotary_factor": 1.0,
        "bos_token_id": 1,
        "eos_token_id": 32000,
        "pad_token_id": 32000,
        "sliding_window": None,
    }

    rope_scaling: dict[str, object] | None

    def complete(self) -> None:
        super().complete()
        if (self.rope_scaling or {}).get("type") in ("su", "yarn"):
            self.rope_scaling = {**(self.rope_scaling or {}), "type": "longrope"}


class GlmConfig(LlamaConfig):
    """A GLM-4's configuration."""

    model_type = "glm"
    defaults = {
        "vocab_size": 151552,
        "hidden_size": 4096,
        "intermediate_size": 13696,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "partial_rotary_factor": 0.5,
        "head_dim": 128,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "max_position_embeddings": 131072,
        "initializer_range": 0.02,
        "rms_norm_eps": 0.00000015625,
        "use_cache": True,
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
        "pad_token_id": 151329,
        "eos_token_id": [151329, 151336, 151338],
        "bos_token_id": None,
        "attention_bias": True,
    }


class Glm4Config(GlmConfig):
    """The configuration of a GLM-4-0414."""

    model_type = "glm4"


def phi3_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """The stack of a Phi-3."""
    return replace(llama_spec(config, headed), dropout=config.resid_pdrop)


def glm_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """The stack of a GLM-4: the numbers that turn together are neighbours, and attention's output has no bias."""
    spec = llama_spec(config, headed)
    rotary = spec.attention.rotary and replace(spec.attention.rotary, interleaved=True)
    return replace(
        spec,
        attention=replace(spec.attention, output_bias=False, rotary=rotary),
        cross_attention=spec.cross_attention and replace(spec.cross_attention, output_bias=False),
    )


def glm4_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """The stack of a GLM-4-0414."""
    spec = glm_spec(config, headed)
    return replace(spec, norm=replace(spec.norm, output=True))


GLM_NAMES: dict[str, str | Stored] = LLAMA_NAMES | {
    "layers.{}.mlp.gate": Stored("layers.{}.mlp.gate_up_proj", part=0, parts=2),
    "layers.{}.mlp.up": Stored("layers.{}.mlp.gate_up_proj", part=1, parts=2),
}


GLM4_NAMES: dict[str, str | Stored] = GLM_NAMES | {
    "layers.{}.attention_output_norm": "layers.{}.post_self_attn_layernorm",
    "layers.{}.mlp_output_norm": "layers.{}.post_mlp_layernorm",
}


def _joined(config: PretrainedConfig, spec: StackSpec) -> dict[str, str | Stored]:
    """Where queries, keys and values lie in one matrix: all heads of each, one after another."""
    heads, shared = spec.attention.heads, spec.attention.key_value_heads
    places = {"query": (0, heads), "key": (heads, shared), "value": (heads + shared, shared)}
    return {
        f"layers.{{}}.attention.{part}": Stored(
            "layers.{}.self_attn.qkv_proj", part=start, size=size, parts=heads + 2 * shared
        )
        for part, (start, size) in places.items()
    }


FAMILIES = {
    "glm": llama_like(GlmConfig, "Glm", spec=glm_spec, names=GLM_NAMES),
    "glm4": llama_like(Glm4Config, "Glm4", spec=glm4_spec, names=GLM4_NAMES),
    "phi3": llama_like(Phi3Config, "Phi3", spec=phi3_spec, names=GLM_NAMES, variant=_joined),
}
