"""BERT (Devlin et al. 2019): post-norm, learned positions, token types, and a head with a dense layer of its own."""

from __future__ import annotations

from typing import Any

from warmstart.config import PretrainedConfig
from warmstart.families.checks import check
from warmstart.families.entry import Family, Stored
from warmstart.spec import AttentionSpec, EmbeddingSpec, HeadSpec, MLPSpec, NormSpec, StackSpec

BERT_DEFAULTS = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "use_cache": True,
    "classifier_dropout": None,
}


def inserted(defaults: dict[str, Any], before: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The same defaults with more fields in front of one: their order is that of positional arguments."""
    items = list(defaults.items())
    at = list(defaults).index(before) if before in defaults else len(items)
    return dict(items[:at]) | fields | dict(items[at:])


def with_ids(defaults: dict[str, Any], pad: int, start: int, end: int) -> dict[str, Any]:
    """The same defaults with token ids, start and end right after padding."""
    names = list(defaults)
    following = names[names.index("pad_token_id") + 1 :]
    ids = {"bos_token_id": start, "eos_token_id": end}
    return inserted({**defaults, "pad_token_id": pad}, following[0] if following else "", ids)


class BertConfig(PretrainedConfig):
    """A BERT's configuration.

    >>> BertConfig(hidden_size=128, num_attention_heads=2).num_hidden_layers
    12
    """

    model_type = "bert"
    defaults = BERT_DEFAULTS


def bert_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """The stack of a BERT-like configuration."""
    check(config)
    if (kind := getattr(config, "position_embedding_type", "absolute")) != "absolute":
        raise ValueError(f"position_embedding_type {kind!r} of a {config.model_type} is not supported; only 'absolute'")
    attention = AttentionSpec(
        heads=config.num_attention_heads,
        key_value_heads=config.num_attention_heads,
        head_size=config.hidden_size // config.num_attention_heads,
        dropout=config.attention_probs_dropout_prob,
        pruned=config.pruned_heads,
    )
    return StackSpec(
        family=config.model_type,
        hidden_size=config.hidden_size,
        layers=config.num_hidden_layers,
        embedding=EmbeddingSpec(
            vocabulary=config.vocab_size,
            size=config.hidden_size,
            positions=config.max_position_embeddings,
            token_types=getattr(config, "type_vocab_size", 0),
            norm=True,
            padding_id=config.pad_token_id,
            dropout=config.hidden_dropout_prob,
        ),
        attention=attention,
        cross_attention=attention if config.add_cross_attention else None,
        cross_attention_size=config.cross_attention_hidden_size or config.hidden_size,
        mlp=MLPSpec(config.intermediate_size, config.hidden_act),
        norm=NormSpec("layer", config.layer_norm_eps),
        head=HeadSpec(config.hidden_act, bias=True, tied=config.tie_word_embeddings) if headed else None,
        causal=config.is_decoder,
        dropout=config.hidden_dropout_prob,
        initializer_range=config.initializer_range,
        positions=config.max_position_embeddings,
    )


BERT_STACK: dict[str, str | Stored] = {
    "embeddings.token": "embeddings.word_embeddings",
    "embeddings.position": "embeddings.position_embeddings",
    "embeddings.token_type": "embeddings.token_type_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
    "layers.{}.attention.query": "encoder.layer.{}.attention.self.query",
    "layers.{}.attention.key": "encoder.layer.{}.attention.self.key",
    "layers.{}.attention.value": "encoder.layer.{}.attention.self.value",
    "layers.{}.attention.output": "encoder.layer.{}.attention.output.dense",
    "layers.{}.attention_norm": "encoder.layer.{}.attention.output.LayerNorm",
    "layers.{}.cross_attention.query": "encoder.layer.{}.crossattention.self.query",
    "layers.{}.cross_attention.key": "encoder.layer.{}.crossattention.self.key",
    "layers.{}.cross_attention.value": "encoder.layer.{}.crossattention.self.value",
    "layers.{}.cross_attention.output": "encoder.layer.{}.crossattention.output.dense",
    "layers.{}.cross_attention_norm": "encoder.layer.{}.crossattention.output.LayerNorm",
    "layers.{}.mlp.up": "encoder.layer.{}.intermediate.dense",
    "layers.{}.mlp.down": "encoder.layer.{}.output.dense",
    "layers.{}.mlp_norm": "encoder.layer.{}.output.LayerNorm",
}
BERT_NAMES: dict[str, str | Stored] = {
    **BERT_STACK,
    "head.dense": "/cls.predictions.transform.dense",
    "head.norm": "/cls.predictions.transform.LayerNorm",
    "head.output.weight": "/cls.predictions.decoder.weight",
    "head.output.bias": Stored("/cls.predictions.bias", untied="/cls.predictions.decoder.bias"),
}
# The TensorFlow names of layer norms, in files made from the first releases.
OLD_NORMS = {r"LayerNorm\.gamma$": "LayerNorm.weight", r"LayerNorm\.beta$": "LayerNorm.bias"}
# Heads of other tasks, poolers, and buffers that some releases saved.
BERT_LEFT_OUT = (
    r"(^|\.)pooler\.",
    r"embeddings\.position_ids$",
    r"embeddings\.token_type_ids$",
    r"^cls\.seq_relationship\.",
    r"^(classifier|qa_outputs|dropout)\.",
)


FAMILIES = {
    "bert": Family(
        model_type="bert",
        config=BertConfig,
        spec=bert_spec,
        names=BERT_NAMES,
        head_prefix="bert.",
        architectures={"base": "BertModel", "causal": "BertLMHeadModel", "masked": "BertForMaskedLM"},
        prefixes=("", "bert."),
        left_out=BERT_LEFT_OUT,
        renamed=OLD_NORMS,
    )
}
