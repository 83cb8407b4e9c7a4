"""ModernBERT (Warner et al. 2024) and its decoder twin (Weller et al. 2025, "Ettin"): norms first, rotary positions.

Of every few layers one sees all, the others what is near, with a base of the rotary positions for either kind. The
first layer reads the embeddings, which have a norm, without one of its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from warmstart.config import PretrainedConfig
from warmstart.families.checks import check, check_count
from warmstart.families.entry import Family, Stored
from warmstart.spec import AttentionSpec, EmbeddingSpec, HeadSpec, MLPSpec, NormSpec, RotarySpec, StackSpec

_DEFAULTS: dict[str, Any] = {
    "vocab_size": 50368,
    "hidden_size": 768,
    "intermediate_size": 1152,
    "num_hidden_layers": 22,
    "num_attention_heads": 12,
    "hidden_activation": "gelu",
    "max_position_embeddings": 8192,
    "initializer_range": 0.02,
    "initializer_cutoff_factor": 2.0,
    "norm_eps": 1e-5,
    "norm_bias": False,
    "pad_token_id": 50283,
    "eos_token_id": 50282,
    "bos_token_id": 50281,
    "cls_token_id": 50281,
    "sep_token_id": 50282,
    "global_rope_theta": 160000.0,
    "attention_bias": False,
    "attention_dropout": 0.0,
}


class ModernBertConfig(PretrainedConfig):
    """A ModernBERT's configuration; newer files have `rope_parameters` and `layer_types`, which are read, too.

    >>> config = ModernBertConfig()
    >>> config.rope_parameters = {"full_attention": {"rope_theta": 500.0}, "sliding_attention": {"rope_theta": 50.0}}
    >>> config.global_rope_theta, config.local_rope_theta
    (500.0, 50.0)
    """

    model_type = "modernbert"
    defaults = {
        **_DEFAULTS,
        "global_attn_every_n_layers": 3,
        "local_attention": 128,
        "local_rope_theta": 10000.0,
        "embedding_dropout": 0.0,
        "mlp_bias": False,
        "mlp_dropout": 0.0,
        "decoder_bias": True,
        "classifier_pooling": "cls",
        "classifier_dropout": 0.0,
        "classifier_bias": False,
        "classifier_activation": "gelu",
        "deterministic_flash_attn": False,
        "sparse_prediction": False,
        "sparse_pred_ignore_index": -100,
        "repad_logits_with_grad": False,
    }
    attribute_map = {"rope_theta": "global_rope_theta"}

    global_rope_theta: float
    local_rope_theta: float | None

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "rope_parameters":
            super().__setattr__(name, value)
            return
        value = value or {}
        for kind, field in (("full_attention", "global_rope_theta"), ("sliding_attention", "local_rope_theta")):
            given = value.get(kind) or {}
            if given.get("rope_type", "default") != "default":
                raise ValueError(
                    f"rope_parameters={value} of a {self.model_type}: only rope_type 'default' is supported"
                )
            setattr(self, field, given.get("rope_theta", getattr(self, field)))

    @property
    def rope_parameters(self) -> dict[str, Any]:
        """The base of the rotary positions of each kind of layer."""
        thetas = {"full_attention": self.global_rope_theta, "sliding_attention": self.local_rope_theta}
        return {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in thetas.items()}


class ModernBertDecoderConfig(ModernBertConfig):
    """The configuration of a ModernBERT decoder."""

    model_type = "modernbert-decoder"
    defaults = {
        **_DEFAULTS,
        "embedding_dropout": 0.0,
        "mlp_bias": False,
        "mlp_dropout": 0.0,
        "decoder_bias": True,
        "classifier_dropout": 0.0,
        "classifier_bias": False,
        "classifier_activation": "gelu",
        "use_cache": True,
        "local_attention": 128,
        "global_attn_every_n_layers": 3,
        "local_rope_theta": 160000.0,
        "layer_types": None,
    }

    layer_types: list[str] | None

    def complete(self) -> None:
        if self.layer_types is None:
            self.layer_types = layer_types(self)
        self.__dict__.setdefault("sliding_window", self.local_attention // 2)


def layer_types(config: PretrainedConfig) -> list[str]:
    """What each layer sees: as the file says, or of every few layers one everything."""
    if (given := getattr(config, "layer_types", None)) is not None:
        return given
    check_count(config, "num_hidden_layers")
    check_count(config, "global_attn_every_n_layers")
    every = config.global_attn_every_n_layers
    return ["sliding_attention" if layer % every else "full_attention" for layer in range(config.num_hidden_layers)]


def modernbert_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """The stack of a ModernBERT, which reads both ways."""
    check(config)
    types = layer_types(config)
    size = config.hidden_size // config.num_attention_heads
    local = config.global_rope_theta if config.local_rope_theta is None else config.local_rope_theta
    kinds = {"full_attention": RotarySpec(size, config.global_rope_theta), "sliding_attention": RotarySpec(size, local)}
    head = HeadSpec(
        config.classifier_activation,
        bias=config.decoder_bias,
        tied=config.tie_word_embeddings,
        transform_bias=config.classifier_bias,
    )
    return StackSpec(
        family=config.model_type,
        hidden_size=config.hidden_size,
        layers=config.num_hidden_layers,
        embedding=EmbeddingSpec(
            vocabulary=config.vocab_size,
            size=config.hidden_size,
            norm=True,
            padding_id=config.pad_token_id,
            dropout=config.embedding_dropout,
        ),
        attention=AttentionSpec(
            heads=config.num_attention_heads,
            key_value_heads=config.num_attention_heads,
            head_size=size,
            bias=config.attention_bias,
            output_bias=config.attention_bias,
            dropout=config.attention_dropout,
            rotaries=tuple(kinds[kind] for kind in types),
            # half of it on either side, and the token itself
            windows=tuple(config.local_attention // 2 + 1 if kind == "sliding_attention" else None for kind in types),
            pruned=config.pruned_heads,
        ),
        mlp=MLPSpec(
            config.intermediate_size,
            config.hidden_activation,
            gated=True,
            bias=config.mlp_bias,
            dropout=config.mlp_dropout,
        ),
        norm=NormSpec("layer", config.norm_eps, before=True, bias=config.norm_bias, first=False, final=True),
        head=head if headed else None,
        initializer_range=config.initializer_range,
    )


def modernbert_decoder_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """The stack of a ModernBERT decoder, to which cross-attention is added."""
    spec = modernbert_spec(config, headed)
    windows = tuple(config.sliding_window if kind == "sliding_attention" else None for kind in config.layer_types)
    attention = replace(spec.attention, windows=windows)
    return replace(
        spec,
        attention=attention,
        cross_attention=replace(attention, rotaries=(), windows=()) if config.add_cross_attention else None,
        cross_attention_size=config.cross_attention_hidden_size or config.hidden_size,
        causal=config.is_decoder or config.is_causal is not False,
    )


def _names(head: str, attention: dict[str, str | Stored]) -> dict[str, str | Stored]:
    return {
        "embeddings.token": "embeddings.tok_embeddings",
        "embeddings.norm": "embeddings.norm",
        "layers.{}.attention_norm": "layers.{}.attn_norm",
        **attention,
        "layers.{}.attention.output": "layers.{}.attn.Wo",
        "layers.{}.mlp_norm": "layers.{}.mlp_norm",
        "layers.{}.mlp.gate": Stored("layers.{}.mlp.Wi", part=0, parts=2),
        "layers.{}.mlp.up": Stored("layers.{}.mlp.Wi", part=1, parts=2),
        "layers.{}.mlp.down": "layers.{}.mlp.Wo",
        "final_norm": "final_norm",
        "head.dense": f"/{head}.dense",
        "head.norm": f"/{head}.norm",
        "head.output": "/decoder",
    }


_PARTS = ("query", "key", "value")
MODERNBERT_NAMES = _names(
    "head",
    {
        f"layers.{{}}.attention.{part}": Stored("layers.{}.attn.Wqkv", part=place, parts=3)
        for place, part in enumerate(_PARTS)
    },
)
MODERNBERT_DECODER_NAMES = _names(
    "lm_head",
    {
        **{f"layers.{{}}.attention.{part}": f"layers.{{}}.attn.{part[0]}_proj" for part in _PARTS},
        "layers.{}.cross_attention_norm": "layers.{}.cross_attn_norm",
        **{f"layers.{{}}.cross_attention.{part}": f"layers.{{}}.cross_attn.{part[0]}_proj" for part in _PARTS},
        "layers.{}.cross_attention.output": "layers.{}.cross_attn.Wo",
    },
)
_LEFT_OUT = (r"^classifier\.", r"rotary_emb\.inv_freq$")


FAMILIES = {
    "modernbert": Family(
        model_type="modernbert",
        config=ModernBertConfig,
        spec=modernbert_spec,
        names=MODERNBERT_NAMES,
        head_prefix="model.",
        architectures={"base": "ModernBertModel", "masked": "ModernBertForMaskedLM"},
        prefixes=("", "model."),
        left_out=_LEFT_OUT,
        decoder=False,
    ),
    "modernbert-decoder": Family(
        model_type="modernbert-decoder",
        config=ModernBertDecoderConfig,
        spec=modernbert_decoder_spec,
        names=MODERNBERT_DECODER_NAMES,
        head_prefix="model.",
        architectures={"base": "ModernBertDecoderModel", "causal": "ModernBertDecoderForCausalLM"},
        prefixes=("", "model."),
        left_out=_LEFT_OUT,
        causal=True,
        adds_cross_attention=True,
    ),
}
