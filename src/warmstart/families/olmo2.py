"""OLMo 2 (OLMo Team 2024): Llama's layers with norms on what sub-layers give, and on all queries and all keys.

OLMo 3 (OLMo Team 2025) looks at a window in three of four layers; positions are scaled in the others alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from warmstart.config import PretrainedConfig
from warmstart.families.entry import Stored
from warmstart.families.llama import LLAMA_NAMES, LlamaConfig, llama_like, llama_spec, mixed_types
from warmstart.spec import NormSpec, RotarySpec, StackSpec


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


class Olmo3Config(Olmo2Config):
    """An OLMo 3's configuration; newer files have `rope_parameters` for each type of layer.

    >>> Olmo3Config(num_hidden_layers=4).layer_types
    ['sliding_attention', 'sliding_attention', 'sliding_attention', 'full_attention']
    """

    model_type = "olmo3"
    defaults = {**Olmo2Config.defaults, "sliding_window": 4096, "layer_types": None}

    layer_types: list[str]
    sliding_rope_theta: float | None

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "rope_parameters" and value and "full_attention" in value:
            local = value.get("sliding_attention") or {}
            if local.get("rope_type", "default") != "default":
                raise ValueError(f"rope_parameters={value} of an olmo3: only its full attention can be scaled")
            value = value["full_attention"]
            super().__setattr__("sliding_rope_theta", local.get("rope_theta"))
        super().__setattr__(name, value)

    @property
    def rope_parameters(self) -> dict[str, Any]:
        """Base and scaling of the rotary positions of each type of layer."""
        theta = getattr(self, "sliding_rope_theta", None) or self.rope_theta
        local = {"rope_type": "default", "rope_theta": theta}
        return {"sliding_attention": local, "full_attention": LlamaConfig.rope_parameters.fget(self)}  # type: ignore[attr-defined]

    def complete(self) -> None:
        super().complete()
        if self.layer_types is None:
            self.layer_types = mixed_types(self, 4)


def olmo2_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """The stack of an OLMo 2."""
    spec = llama_spec(config, headed)
    return replace(
        spec,
        attention=replace(spec.attention, whole_norm=True),
        cross_attention=spec.cross_attention and replace(spec.cross_attention, whole_norm=True),
        norm=NormSpec("rms", config.rms_norm_eps, output=True, final=True),
    )


def olmo3_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """The stack of an OLMo 3."""
    spec = olmo2_spec(config, headed)
    local = RotarySpec(spec.attention.head_size, config.rope_parameters["sliding_attention"]["rope_theta"])
    kinds = {"full_attention": spec.attention.rotary, "sliding_attention": local}
    return replace(spec, attention=replace(spec.attention, rotaries=tuple(kinds[kind] for kind in config.layer_types)))


_GONE = ("layers.{}.attention_norm", "layers.{}.cross_attention_norm", "layers.{}.mlp_norm")
OLMO2_NAMES: dict[str, str | Stored] = {name: entry for name, entry in LLAMA_NAMES.items() if name not in _GONE} | {
    "layers.{}.attention_output_norm": "layers.{}.post_attention_layernorm",
    "layers.{}.mlp_output_norm": "layers.{}.post_feedforward_layernorm",
}


FAMILIES = {
    "olmo2": llama_like(Olmo2Config, "Olmo2", spec=olmo2_spec, names=OLMO2_NAMES),
    "olmo3": llama_like(Olmo3Config, "Olmo3", spec=olmo3_spec, names=OLMO2_NAMES),
}
