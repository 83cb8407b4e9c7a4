"""Llama (Touvron et al. 2023), Mistral, Qwen2 and Qwen3: RMSNorm first, rotary positions, a gated MLP, grouped heads.

None of them has cross-attention; it is added between self-attention and MLP, with the heads, biases and head norms of
the self-attention and without positions.
"""

from __future__ import annotations

from typing import Any

from warmstart.config import PretrainedConfig
from warmstart.families.checks import check, check_count
from warmstart.families.entry import Family, Stored, added_names, language_model
from warmstart.spec import AttentionSpec, MLPSpec, NormSpec, RotarySpec, StackSpec

_IDS: dict[str, Any] = {"pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2}


class LlamaConfig(PretrainedConfig):
    """A Llama's configuration. `rope_parameters`, as newer files have it, is `rope_theta` and `rope_scaling` in one.

    >>> config = LlamaConfig(hidden_size=64, num_attention_heads=4)
    >>> config.num_key_value_heads, config.head_dim
    (4, 16)
    >>> config.rope_parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}
    >>> config.rope_theta, config.rope_scaling
    (500.0, {'rope_type': 'linear', 'factor': 2.0})
    """

    model_type = "llama"
    defaults = {
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
        **_IDS,
        "pretraining_tp": 1,
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "head_dim": None,
    }

    num_key_value_heads: int
    rope_theta: float
    head_dim: int | None
    partial_rotary_factor: float

    def complete(self) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.model_type == "llama" and self.head_dim is None:  # the others' files leave it open
            self.head_dim = head_size(self)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "rope_parameters":
            value = dict(value or {})
            self.rope_theta = value.pop("rope_theta", self.rope_theta)
            if self.has("partial_rotary_factor"):
                self.partial_rotary_factor = value.pop("partial_rotary_factor", self.partial_rotary_factor)
            name, value = "rope_scaling", None if value in ({}, {"rope_type": "default"}) else value
        super().__setattr__(name, value)

    @property
    def rope_parameters(self) -> dict[str, Any]:
        """Base and scaling of the rotary positions in one."""
        scaling = getattr(self, "rope_scaling", None) or {"rope_type": "default"}
        return {**scaling, "rope_theta": self.rope_theta}


class MistralConfig(LlamaConfig):
    """A Mistral's configuration."""

    model_type = "mistral"
    defaults = {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": None,
        "hidden_act": "silu",
        "max_position_embeddings": 4096 * 32,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-6,
        "use_cache": True,
        **_IDS,
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "attention_dropout": 0.0,
    }


class Qwen2Config(LlamaConfig):
    """A Qwen2's configuration."""

    model_type = "qwen2"
    defaults = {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-6,
        "use_cache": True,
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "layer_types": None,
        "attention_dropout": 0.0,
    }

    layer_types: list[str]
    sliding_window: int | None

    def complete(self) -> None:
        super().complete()
        if not self.use_sliding_window:
            self.sliding_window = None
        if self.layer_types is None:
            check_count(self, "num_hidden_layers")
            slides = [
                self.sliding_window and layer >= self.max_window_layers for layer in range(self.num_hidden_layers)
            ]
            self.layer_types = ["sliding_attention" if slide else "full_attention" for slide in slides]


class Qwen3Config(Qwen2Config):
    """A Qwen3's configuration."""

    model_type = "qwen3"
    defaults = {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-6,
        "use_cache": True,
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "layer_types": None,
        "attention_dropout": 0.0,
    }


def head_size(config: PretrainedConfig) -> int:
    """The size of a head: given, or an equal share of the hidden size."""
    if (given := getattr(config, "head_dim", None)) is not None:
        return given
    check_count(config, "hidden_size")
    check_count(config, "num_attention_heads")
    return config.hidden_size // config.num_attention_heads


def rotary_of(config: PretrainedConfig) -> RotarySpec:
    """The rotary positions of a configuration."""
    scaling = getattr(config, "rope_scaling", None) or {}
    if (trained := getattr(config, "original_max_position_embeddings", None)) is not None:
        # The two lengths then say how much longer texts may be, whatever `factor` says.
        scaling = {
            name: value for name, value in scaling.items() if name != "factor" or scaling.get("rope_type") != "longrope"
        }
        scaling = {**scaling, "original_max_position_embeddings": trained}
    share = scaling.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", 1.0))
    size = int(head_size(config) * share)
    return RotarySpec(size, config.rope_theta, scaling, config.max_position_embeddings)


def windows_of(config: PretrainedConfig) -> tuple[int | None, ...]:
    """How far each layer sees back, by `sliding_window` and `layer_types`."""
    window = getattr(config, "sliding_window", None)
    if window is None:
        return ()
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def layers_between(config: PretrainedConfig, usual: int) -> int:
    """Of how many layers one sees everything: `sliding_window_pattern`, which older files have, or as usual."""
    if config.has("sliding_window_pattern"):
        check_count(config, "sliding_window_pattern")
    every: int = getattr(config, "sliding_window_pattern", usual)
    config.__dict__.setdefault("_sliding_window_pattern", every)  # as the reference writes it
    return every


def mixed_types(config: PretrainedConfig, every: int) -> list[str]:
    """The types of layers that see a window, but for each `every`-th, which sees everything."""
    check_count(config, "num_hidden_layers")
    places = range(1, config.num_hidden_layers + 1)
    return ["sliding_attention" if place % every else "full_attention" for place in places]


def llama_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """The stack of a Llama-like configuration."""
    check(config)
    bias = config.model_type == "qwen2" or getattr(config, "attention_bias", False)
    activation = getattr(config, "hidden_act", None) or config.hidden_activation
    attention = AttentionSpec(
        heads=config.num_attention_heads,
        key_value_heads=config.num_key_value_heads,
        head_size=head_size(config),
        bias=bias,
        output_bias=getattr(config, "attention_bias", False),
        dropout=config.attention_dropout,
        head_norm=config.model_type in ("qwen3", "gemma3_text"),
        rotary=rotary_of(config),
        windows=windows_of(config),
        pruned=config.pruned_heads,
    )
    return language_model(
        config,
        headed,
        attention=attention,
        mlp=MLPSpec(config.intermediate_size, activation, gated=True, bias=getattr(config, "mlp_bias", False)),
        norm=NormSpec("rms", config.rms_norm_eps, before=True, final=True),
    )


LLAMA_NAMES: dict[str, str | Stored] = {
    "embeddings.token": "embed_tokens",
    "layers.{}.attention_norm": "layers.{}.input_layernorm",
    "layers.{}.attention.query": "layers.{}.self_attn.q_proj",
    "layers.{}.attention.key": "layers.{}.self_attn.k_proj",
    "layers.{}.attention.value": "layers.{}.self_attn.v_proj",
    "layers.{}.attention.output": "layers.{}.self_attn.o_proj",
    "layers.{}.attention.query_norm": "layers.{}.self_attn.q_norm",
    "layers.{}.attention.key_norm": "layers.{}.self_attn.k_norm",
    **added_names("layers.{}"),
    "layers.{}.mlp_norm": "layers.{}.post_attention_layernorm",
    "layers.{}.mlp.gate": "layers.{}.mlp.gate_proj",
    "layers.{}.mlp.up": "layers.{}.mlp.up_proj",
    "layers.{}.mlp.down": "layers.{}.mlp.down_proj",
    "final_norm": "norm",
    "head.output": "/lm_head",
}


def llama_like(config: type[PretrainedConfig], name: str, **more: Any) -> Family:
    """The entry of a family whose classes and files are named as Llama's; `more` is what differs."""
    return Family(
        **{
            "model_type": config.model_type,
            "config": config,
            "spec": llama_spec,
            "names": LLAMA_NAMES,
            "head_prefix": "model.",
            "architectures": {"base": f"{name}Model", "causal": f"{name}ForCausalLM"},
            "prefixes": ("", "model."),
            "left_out": (r"rotary_emb\.inv_freq$", r"^(score|classifier|qa_outputs)\."),
            "causal": True,
            "adds_cross_attention": True,
            **more,
        }
    )


FAMILIES = {
    "llama": llama_like(LlamaConfig, "Llama"),
    "mistral": llama_like(MistralConfig, "Mistral"),
    "qwen2": llama_like(Qwen2Config, "Qwen2"),
    "qwen3": llama_like(Qwen3Config, "Qwen3"),
}
