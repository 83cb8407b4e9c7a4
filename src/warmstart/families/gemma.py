"""Gemma (Gemma Team 2024), Gemma 2 (2024) and Gemma 3 (2025): Llama's layout, scaled embeddings, norms around 1.

From Gemma 2 on each sub-layer's output has a norm, too, every other layer sees a window alone, and scores and logits
are softly capped; Gemma 3 puts norms on heads in the place of the cap, and turns full layers more slowly.
Cross-attention is added between self-attention and MLP, with the heads, cap and norms of the self-attention.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from warmstart.config import PretrainedConfig
from warmstart.families.entry import Stored
from warmstart.families.llama import LLAMA_NAMES, LlamaConfig, layers_between, llama_like, llama_spec, mixed_types
from warmstart.spec import RotarySpec, StackSpec

_IDS: dict[str, Any] = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "tie_word_embeddings": True}


class GemmaConfig(LlamaConfig):
    """A Gemma's configuration."""

    model_type = "gemma"
    defaults = {
        "vocab_size": 256000,
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": None,
        "max_position_embeddings": 8192,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-6,
        "use_cache": True,
        **_IDS,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "attention_dropout": 0.0,
    }


class Gemma2Config(LlamaConfig):
    """A Gemma 2's configuration.

    >>> Gemma2Config(num_hidden_layers=3).layer_types
    ['sliding_attention', 'full_attention', 'sliding_attention']
    """

    model_type = "gemma2"
    defaults = {
        "vocab_size": 256000,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-6,
        "use_cache": True,
        **_IDS,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "layer_types": None,
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
    }

    layer_types: list[str]

    def complete(self) -> None:
        super().complete()
        if self.layer_types is None:
            self.layer_types = mixed_types(self, self.layers_between())

    def layers_between(self) -> int:
        """Of how many layers one sees everything."""
        return 2


class Gemma3TextConfig(Gemma2Config):
    """The configuration of a Gemma 3's language model; newer files have `rope_parameters` for each type of layer.

    >>> config = Gemma3TextConfig()
    >>> config.rope_parameters = {"full_attention": {"rope_theta": 500.0}, "sliding_attention": {"rope_theta": 50.0}}
    >>> config.rope_theta, config.rope_local_base_freq
    (500.0, 50.0)
    """

    model_type = "gemma3_text"
    defaults = {
        **Gemma2Config.defaults,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "rope_theta": 1000000.0,
        "final_logit_softcapping": None,
        "attn_logit_softcapping": None,
        "rope_scaling": None,
        "rope_local_base_freq": 10000.0,
        "use_bidirectional_attention": False,
    }

    rope_local_base_freq: float

    def layers_between(self) -> int:
        return layers_between(self, 6)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "rope_parameters" and value and "full_attention" in value:
            local = value.get("sliding_attention") or {}
            self.rope_local_base_freq = local.get("rope_theta", self.rope_local_base_freq)
            value = value["full_attention"]
        super().__setattr__(name, value)

    @property
    def rope_parameters(self) -> dict[str, Any]:
        """Base and scaling of the rotary positions of each type of layer."""
        local = {"rope_type": "default", "rope_theta": self.rope_local_base_freq}
        return {"sliding_attention": local, "full_attention": LlamaConfig.rope_parameters.fget(self)}  # type: ignore[attr-defined]


def gemma_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """The stack of a Gemma."""
    spec = llama_spec(config, headed)
    return replace(
        spec,
        embedding=replace(spec.embedding, scale=math.sqrt(config.hidden_size)),
        norm=replace(spec.norm, from_one=True),
    )


def gemma2_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """The stack of a Gemma 2, or of a Gemma 3's language model."""
    spec = gemma_spec(config, headed)
    words: dict[str, Any] = {
        "scale_size": config.query_pre_attn_scalar,
        "soft_cap": config.attn_logit_softcapping,
    }
    cross = spec.cross_attention and replace(spec.cross_attention, **words)
    if config.model_type == "gemma3_text":
        local = RotarySpec(spec.attention.head_size, config.rope_local_base_freq)
        kinds = {"sliding_attention": local, "full_attention": spec.attention.rotary}
        words["rotaries"] = tuple(kinds[kind] for kind in config.layer_types)
    return replace(
        spec,
        attention=replace(spec.attention, **words),
        cross_attention=cross,
        norm=replace(spec.norm, output=True),
        head=spec.head and replace(spec.head, soft_cap=config.final_logit_softcapping),
    )


def gemma3_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """The stack of a Gemma 3's language model; one that was trained to read both ways (EmbeddingGemma) does."""
    spec = gemma2_spec(config, headed)
    if not config.use_bidirectional_attention:
        return spec
    windows = tuple(size and size // 2 + 1 for size in spec.attention.windows)  # the file's reach counts both sides
    return replace(
        spec, attention=replace(spec.attention, windows=windows), causal=config.is_decoder or bool(config.is_causal)
    )


GEMMA2_NAMES: dict[str, str | Stored] = LLAMA_NAMES | {
    "layers.{}.attention_output_norm": "layers.{}.post_attention_layernorm",
    "layers.{}.cross_attention_output_norm": "layers.{}.cross_attention_output_layernorm",
    "layers.{}.mlp_norm": "layers.{}.pre_feedforward_layernorm",
    "layers.{}.mlp_output_norm": "layers.{}.post_feedforward_layernorm",
}


FAMILIES = {
    "gemma": llama_like(GemmaConfig, "Gemma", spec=gemma_spec),
    "gemma2": llama_like(Gemma2Config, "Gemma2", spec=gemma2_spec, names=GEMMA2_NAMES),
    "gemma3_text": llama_like(
        Gemma3TextConfig,
        "Gemma3",
        spec=gemma3_spec,
        names=GEMMA2_NAMES | {"head.output": Stored("/lm_head", aliases=("/language_model.lm_head",))},
        architectures={"base": "Gemma3TextModel", "causal": "Gemma3ForCausalLM"},
        prefixes=("", "model.", "model.language_model.", "language_model.model."),
        left_out=(r"rotary_emb\.inv_freq$", r"^(score|(model\.)?(vision_tower|multi_modal_projector))\."),
    ),
}
