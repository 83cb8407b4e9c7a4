"""SmolLM 3 (Bakouch et al. 2025): Llama's layers, of which every fourth has no positions (NoPE, Yang et al. 2025)."""

from __future__ import annotations

from dataclasses import replace

from warmstart.config import PretrainedConfig
from warmstart.families.checks import check_count
from warmstart.families.llama import LlamaConfig, llama_like, llama_spec
from warmstart.spec import StackSpec


class SmolLM3Config(LlamaConfig):
    """A SmolLM 3's configuration; in `no_rope_layers` a 1 is a layer with rotary positions.

    >>> SmolLM3Config(num_hidden_layers=5).no_rope_layers
    [1, 1, 1, 0, 1]
    """

    model_type = "smollm3"
    defaults = {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-6,
        "use_cache": True,
        "pad_token_id": 128004,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        "rope_theta": 2000000.0,
        "rope_scaling": None,
        "use_sliding_window": False,
        "sliding_window": None,
        "no_rope_layers": None,
        "no_rope_layer_interval": 4,
        "layer_types": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
    }

    no_rope_layers: list[int]
    layer_types: list[str]

    def complete(self) -> None:
        super().complete()
        check_count(self, "num_hidden_layers")
        check_count(self, "no_rope_layer_interval")
        if self.no_rope_layers is None:
            every = self.no_rope_layer_interval
            self.no_rope_layers = [int((layer + 1) % every != 0) for layer in range(self.num_hidden_layers)]
        if self.layer_types is None:
            slides = bool(self.use_sliding_window and self.sliding_window is not None)
            self.layer_types = [
                "sliding_attention" if slides and not turns else "full_attention" for turns in self.no_rope_layers
            ]


def smollm3_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """The stack of a SmolLM 3."""
    spec = llama_spec(config, headed)
    turns = config.no_rope_layers
    if not isinstance(turns, (list, tuple)) or len(turns) != config.num_hidden_layers:
        raise ValueError(
            f"smollm3 config: no_rope_layers={turns} must have a 0 or 1 for each of "
            f"num_hidden_layers={config.num_hidden_layers}; leave it out to have it made"
        )
    rotaries = tuple(spec.attention.rotary if one else None for one in turns)
    return replace(spec, attention=replace(spec.attention, rotaries=rotaries))


FAMILIES = {"smollm3": llama_like(SmolLM3Config, "SmolLM3", spec=smollm3_spec)}
