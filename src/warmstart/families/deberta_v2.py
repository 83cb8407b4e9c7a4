"""DeBERTa versions 2 and 3 (He et al. 2021, 2023): BERT's stack with scores by distance and content; an encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from warmstart.config import PretrainedConfig
from warmstart.families.bert import BERT_LEFT_OUT, BERT_STACK, OLD_NORMS, bert_spec
from warmstart.families.entry import Family, Stored
from warmstart.spec import ACTIVATIONS, ConvolutionSpec, DisentangledSpec, StackSpec


class DebertaV2Config(PretrainedConfig):
    """A DeBERTa's configuration, of version 2 or 3.

    Its files say more, which has no place in the order: `position_buckets`, `share_att_key`, `norm_rel_ebd`,
    `conv_kernel_size`, `conv_act`, `embedding_size`.

    >>> DebertaV2Config(pos_att_type="p2c|c2p").pos_att_type
    ['p2c', 'c2p']
    """

    model_type = "deberta-v2"
    defaults = {
        "vocab_size": 128100,
        "hidden_size": 1536,
        "num_hidden_layers": 24,
        "num_attention_heads": 24,
        "intermediate_size": 6144,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "max_position_embeddings": 512,
        "type_vocab_size": 0,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-7,
        "relative_attention": False,
        "max_relative_positions": -1,
        "pad_token_id": 0,
        "position_biased_input": True,
        "pos_att_type": None,
        "pooler_dropout": 0,
        "pooler_hidden_act": "gelu",
        "legacy": True,
    }

    pos_att_type: Any

    def complete(self) -> None:
        if isinstance(self.pos_att_type, str):
            self.pos_att_type = [kind.strip() for kind in self.pos_att_type.lower().split("|")]
        if not self.has("pooler_hidden_size"):
            self.pooler_hidden_size = self.hidden_size


def deberta_v2_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """BERT's stack; scores have up to three parts, and shrink as if heads were that many times as large."""
    spec = bert_spec(config, headed)
    kinds = config.pos_att_type or []
    if unknown := set(kinds) - {"c2p", "p2c"}:
        raise _refusal(config, "pos_att_type", f"knows only 'c2p' and 'p2c', not {sorted(unknown)}")
    width = getattr(config, "embedding_size", config.hidden_size)
    is_biased = config.position_biased_input
    embedding = replace(
        spec.embedding,
        size=width,
        positions=config.max_position_embeddings if is_biased else 0,
        projected=width != config.hidden_size,
        projected_first=width != config.hidden_size,
    )
    if not config.legacy and embedding.projected:
        raise _refusal(config, "legacy", f"has no head for embedding_size={width}, which is not the hidden size")
    attention = replace(
        spec.attention,
        scale_size=spec.attention.head_size * (1 + len(set(kinds))),
        disentangled=_disentangled(config, kinds) if config.relative_attention and kinds else None,
    )
    head = replace(spec.head, tied=spec.head.tied or not config.legacy) if spec.head else None
    return replace(
        spec,
        embedding=embedding,
        attention=attention,
        convolution=_convolution(config),
        positions=config.max_position_embeddings if is_biased else None,
        head=head,
        cross_attention=None,
        causal=False,
    )


def _disentangled(config: PretrainedConfig, kinds: list[str]) -> DisentangledSpec:
    distance = config.max_relative_positions
    distance = config.max_position_embeddings if distance < 1 else distance
    buckets = max(getattr(config, "position_buckets", -1), 0)
    if buckets % 2 or buckets // 2 >= max(distance - 1, 1):
        raise _refusal(config, "position_buckets", f"must be even, and half of it less than {distance - 1}, or -1")
    return DisentangledSpec(
        distance=distance,
        buckets=buckets,
        content_to_position="c2p" in kinds,
        position_to_content="p2c" in kinds,
        shared=getattr(config, "share_att_key", False),
        norm="layer_norm" in getattr(config, "norm_rel_ebd", "none").lower(),
        dropout=config.hidden_dropout_prob,
    )


def _convolution(config: PretrainedConfig) -> ConvolutionSpec | None:
    width = getattr(config, "conv_kernel_size", 0)
    if width <= 0:
        return None
    if width % 2 == 0:
        raise _refusal(config, "conv_kernel_size", "must be odd")
    if (groups := getattr(config, "conv_groups", 1)) != 1:
        raise _refusal(config, "conv_groups", f"of {groups} are not supported; only 1")
    if (activation := getattr(config, "conv_act", "tanh")) not in ACTIVATIONS:
        raise _refusal(config, "conv_act", f"is not supported; use one of {', '.join(sorted(ACTIVATIONS))}")
    return ConvolutionSpec(width, activation)


def _refusal(config: PretrainedConfig, name: str, why: str) -> ValueError:
    return ValueError(f"{config.model_type} config: {name}={getattr(config, name)} {why}")


_ATTENTION = "encoder.layer.{}.attention.self"
DEBERTA_V2_NAMES: dict[str, str | Stored] = {
    **{ours: stored for ours, stored in BERT_STACK.items() if "cross_attention" not in ours},
    **{f"layers.{{}}.attention.{part}": f"{_ATTENTION}.{part}_proj" for part in ("query", "key", "value")},
    **{f"layers.{{}}.attention.disentangled.{part}": f"{_ATTENTION}.pos_{part}_proj" for part in ("query", "key")},
    "embeddings.projection": "embeddings.embed_proj",
    "distances.table": "encoder.rel_embeddings",
    "distances.norm": "encoder.LayerNorm",
    "convolution.conv": "encoder.conv.conv",
    "convolution.norm": "encoder.conv.LayerNorm",
    # Version 3's files have the head that the reference calls new, and do not say so.
    "head.dense": Stored("/cls.predictions.transform.dense", aliases=("/lm_predictions.lm_head.dense",)),
    "head.norm": Stored("/cls.predictions.transform.LayerNorm", aliases=("/lm_predictions.lm_head.LayerNorm",)),
    "head.output.weight": "/cls.predictions.decoder.weight",
    "head.output.bias": Stored(
        "/cls.predictions.bias", untied="/cls.predictions.decoder.bias", aliases=("/lm_predictions.lm_head.bias",)
    ),
}


def _variant(config: PretrainedConfig, spec: StackSpec) -> Mapping[str, str | Stored]:
    """The head that is not the legacy one has names of its own."""
    if config.legacy:
        return {}
    head = "/lm_predictions.lm_head"
    return {"head.dense": f"{head}.dense", "head.norm": f"{head}.LayerNorm", "head.output.bias": f"{head}.bias"}


FAMILIES = {
    "deberta-v2": Family(
        model_type="deberta-v2",
        config=DebertaV2Config,
        spec=deberta_v2_spec,
        names=DEBERTA_V2_NAMES,
        variant=_variant,
        head_prefix="deberta.",
        architectures={"base": "DebertaV2Model", "masked": "DebertaV2ForMaskedLM"},
        prefixes=("", "deberta."),
        left_out=(*BERT_LEFT_OUT, r"^mask_predictions\."),
        renamed=OLD_NORMS,
        decoder=False,
    )
}
