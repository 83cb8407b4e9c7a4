"""Llama (Touvron et al. 2023), Mistral, Qwen2 and Qwen3: RMSNorm first, rotary positions, a gated MLP, grouped heads.

None of them has cross-attention; it is added between self-attention and MLP, with the heads, biases and head norms of
the self-attention and without positions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from warmstart.config import PretrainedConfig
from warmstart.families.entry import Family, Stored
from warmstart.spec import AttentionSpec, EmbeddingSpec, HeadSpec, MLPSpec, NormSpec, RotarySpec, StackSpec

_SHARED: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "use_cache": True,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "attention_dropout": 0.0,
}


class LlamaConfig(PretrainedConfig):
    """A Llama's configuration.

    >>> config = LlamaConfig(hidden_size=64, num_attention_heads=4)
    >>> config.num_key_value_heads, config.head_dim
    (4, 16)
    """

    model_type = "llama"
    defaults = {**_SHARED, "pretraining_tp": 1, "attention_bias": False, "mlp_bias": False, "head_dim": None}

    num_key_value_heads: int
    head_dim: int
    rope_theta: float

    def complete(self) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if getattr(self, "head_dim", None) is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if (rotary := getattr(self, "rope_parameters", None)) and "rope_theta" in rotary:  # where newer files keep it
            self.rope_theta = rotary["rope_theta"]


class MistralConfig(LlamaConfig):
    """A Mistral's configuration."""

    model_type = "mistral"
    defaults = {
        **{name: value for name, value in _SHARED.items() if name != "rope_scaling"},
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "head_dim": None,
        "max_position_embeddings": 4096 * 32,
        "sliding_window": 4096,
    }


class Qwen2Config(LlamaConfig):
    """A Qwen2's configuration."""

    model_type = "qwen2"
    defaults = {
        **_SHARED,
        "vocab_size": 151936,
        "intermediate_size": 22016,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "bos_token_id": None,
        "eos_token_id": None,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "layer_types": None,
    }

    layer_types: list[str]
    sliding_window: int | None

    def complete(self) -> None:
        super().complete()
        if not self.use_sliding_window:
            self.sliding_window = None
        if self.layer_types is None:
            slides = [
                self.sliding_window and layer >= self.max_window_layers for layer in range(self.num_hidden_layers)
            ]
            self.layer_types = ["sliding_attention" if slide else "full_attention" for slide in slides]


class Qwen3Config(Qwen2Config):
    """A Qwen3's configuration."""

    model_type = "qwen3"
    defaults = {**Qwen2Config.defaults, "head_dim": 128, "attention_bias": False}


def _rotary(config: PretrainedConfig) -> RotarySpec:
    scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    size = int(config.head_dim * scaling.get("partial_rotary_factor", 1.0))
    return RotarySpec(size, config.rope_theta, scaling, config.max_position_embeddings)


def _windows(config: PretrainedConfig) -> tuple[int | None, ...]:
    window = getattr(config, "sliding_window", None)
    if window is None:
        return ()
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def llama_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """The stack of a Llama-like configuration."""
    bias = config.model_type == "qwen2" or getattr(config, "attention_bias", False)
    attention = AttentionSpec(
        heads=config.num_attention_heads,
        key_value_heads=config.num_key_value_heads,
        head_size=config.head_dim,
        bias=bias,
        output_bias=getattr(config, "attention_bias", False),
        dropout=config.attention_dropout,
        head_norm=config.model_type == "qwen3",
        rotary=_rotary(config),
        windows=_windows(config),
        pruned=config.pruned_heads,
    )
    return StackSpec(
        family=config.model_type,
        hidden_size=config.hidden_size,
        layers=config.num_hidden_layers,
        embedding=EmbeddingSpec(config.vocab_size, config.hidden_size, padding_id=config.pad_token_id),
        attention=attention,
        cross_attention=replace(attention, rotary=None, windows=()) if config.add_cross_attention else None,
        cross_attention_size=config.cross_attention_hidden_size or config.hidden_size,
        mlp=MLPSpec(config.intermediate_size, config.hidden_act, gated=True, bias=getattr(config, "mlp_bias", False)),
        norm=NormSpec("rms", config.rms_norm_eps, before=True, final=True),
        head=HeadSpec(tied=config.tie_word_embeddings) if headed else None,
        causal=config.is_decoder or config.is_causal is not False,
        initializer_range=config.initializer_range,
    )


def _attention_names(ours: str, theirs: str) -> dict[str, str | Stored]:
    parts = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
    norms = {"query_norm": "q_norm", "key_norm": "k_norm"}
    return {f"layers.{{}}.{ours}.{part}": f"layers.{{}}.{theirs}.{name}" for part, name in (parts | norms).items()}


LLAMA_NAMES: dict[str, str | Stored] = {
    "embeddings.token": "embed_tokens",
    "layers.{}.attention_norm": "layers.{}.input_layernorm",
    **_attention_names("attention", "self_attn"),
    "layers.{}.cross_attention_norm": "layers.{}.cross_attention_layernorm",
    **_attention_names("cross_attention", "cross_attention"),
    "layers.{}.mlp_norm": "layers.{}.post_attention_layernorm",
    "layers.{}.mlp.gate": "layers.{}.mlp.gate_proj",
    "layers.{}.mlp.up": "layers.{}.mlp.up_proj",
    "layers.{}.mlp.down": "layers.{}.mlp.down_proj",
    "final_norm": "norm",
    "head.output": "/lm_head",
}


def _family(config: type[PretrainedConfig], name: str) -> Family:
    return Family(
        model_type=config.model_type,
        config=config,
        spec=llama_spec,
        names=LLAMA_NAMES,
        head_prefix="model.",
        architectures={"base": f"{name}Model", "causal": f"{name}ForCausalLM"},
        prefixes=("", "model."),
        left_out=(r"rotary_emb\.inv_freq$", r"^(score|classifier|qa_outputs)\."),
        causal=True,
        adds_cross_attention=True,
    )


FAMILIES = {
    "llama": _family(LlamaConfig, "Llama"),
    "mistral": _family(MistralConfig, "Mistral"),
    "qwen2": _family(Qwen2Config, "Qwen2"),
    "qwen3": _family(Qwen3Config, "Qwen3"),
}
