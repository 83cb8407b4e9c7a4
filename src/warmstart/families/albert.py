"""ALBERT (Lan et al. 2020): BERT's stack with layers that share weights, and narrow embeddings; an encoder only."""

from __future__ import annotations

from dataclasses import replace

from warmstart.config import PretrainedConfig
from warmstart.families.bert import BERT_LEFT_OUT, OLD_NORMS, bert_spec
from warmstart.families.entry import Family, Stored
from warmstart.spec import StackSpec


class AlbertConfig(PretrainedConfig):
    """An ALBERT's configuration.

    >>> AlbertConfig().num_hidden_groups
    1
    """

    model_type = "albert"
    defaults = {
        "vocab_size": 30000,
        "embedding_size": 128,
        "hidden_size": 4096,
        "num_hidden_layers": 12,
        "num_hidden_groups": 1,
        "num_attention_heads": 64,
        "intermediate_size": 16384,
        "inner_group_num": 1,
        "hidden_act": "gelu_new",
        "hidden_dropout_prob": 0,
        "attention_probs_dropout_prob": 0,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "classifier_dropout_prob": 0.1,
        "position_embedding_type": "absolute",
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }


def albert_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """BERT's stack, its layers in groups of one set of weights each."""
    spec = bert_spec(config, headed)
    groups, layers = config.num_hidden_groups, config.num_hidden_layers
    if groups > layers:
        raise ValueError(f"albert config: num_hidden_groups={groups} is more than num_hidden_layers={layers}")
    if config.inner_group_num != 1:
        raise ValueError(f"albert config: inner_group_num={config.inner_group_num} is not supported; only 1")
    embedding = replace(spec.embedding, size=config.embedding_size, projected=True)
    return replace(spec, embedding=embedding, groups=groups, cross_attention=None, causal=False)


_LAYER = "encoder.albert_layer_groups.{}.albert_layers.0"
ALBERT_NAMES: dict[str, str | Stored] = {
    "embeddings.token": "embeddings.word_embeddings",
    "embeddings.position": "embeddings.position_embeddings",
    "embeddings.token_type": "embeddings.token_type_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
    "embeddings.projection": "encoder.embedding_hidden_mapping_in",
    **{f"layers.{{}}.attention.{name}": f"{_LAYER}.attention.{name}" for name in ("query", "key", "value")},
    "layers.{}.attention.output": f"{_LAYER}.attention.dense",
    "layers.{}.attention_norm": f"{_LAYER}.attention.LayerNorm",
    "layers.{}.mlp.up": f"{_LAYER}.ffn",
    "layers.{}.mlp.down": f"{_LAYER}.ffn_output",
    "layers.{}.mlp_norm": f"{_LAYER}.full_layer_layer_norm",
    "head.dense": "/predictions.dense",
    "head.norm": "/predictions.LayerNorm",
    "head.output.weight": "/predictions.decoder.weight",
    "head.output.bias": Stored("/predictions.bias", untied="/predictions.decoder.bias"),
}


FAMILIES = {
    "albert": Family(
        model_type="albert",
        config=AlbertConfig,
        spec=albert_spec,
        names=ALBERT_NAMES,
        head_prefix="albert.",
        architectures={"base": "AlbertModel", "masked": "AlbertForMaskedLM"},
        prefixes=("", "albert."),
        left_out=(*BERT_LEFT_OUT, r"^sop_classifier\.", r"(^|\.)pooler_activation\."),
        renamed=OLD_NORMS,
        decoder=False,
    )
}
