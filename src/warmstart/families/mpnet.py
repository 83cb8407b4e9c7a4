"""MPNet (Song et al. 2020): RoBERTa's stack, and distances in buckets beside its positions; an encoder."""

from __future__ import annotations

from dataclasses import replace

from warmstart.config import PretrainedConfig
from warmstart.families.bert import BERT_LEFT_OUT, BERT_STACK
from warmstart.families.entry import Family, Stored
from warmstart.families.roberta import roberta_spec
from warmstart.spec import RelativeSpec, StackSpec


class MPNetConfig(PretrainedConfig):
    """An MPNet's configuration.

    >>> MPNetConfig().relative_attention_num_buckets
    32
    """

    model_type = "mpnet"
    defaults = {
        "vocab_size": 30527,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "max_position_embeddings": 512,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "relative_attention_num_buckets": 32,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
    }


def mpnet_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """The stack of an MPNet; the reference looks distances up in 32 buckets to 128, whatever its configuration says."""
    spec = roberta_spec(config, headed)
    relative = RelativeSpec(config.relative_attention_num_buckets, 128, both_ways=True)
    return replace(spec, attention=replace(spec.attention, relative=relative))


_PARTS = {"query": "q", "key": "k", "value": "v", "output": "o"}
MPNET_NAMES: dict[str, str | Stored] = {
    **{ours: stored for ours, stored in BERT_STACK.items() if "cross_attention" not in ours},
    **{f"layers.{{}}.attention.{ours}": f"encoder.layer.{{}}.attention.attn.{name}" for ours, name in _PARTS.items()},
    "layers.{}.attention_norm": "encoder.layer.{}.attention.LayerNorm",
    "relative_bias": "encoder.relative_attention_bias",
    "head.dense": "/lm_head.dense",
    "head.norm": "/lm_head.layer_norm",
    "head.output.weight": "/lm_head.decoder.weight",
    "head.output.bias": Stored("/lm_head.bias", untied="/lm_head.decoder.bias"),
}

FAMILIES = {
    "mpnet": Family(
        model_type="mpnet",
        config=MPNetConfig,
        spec=mpnet_spec,
        names=MPNET_NAMES,
        head_prefix="mpnet.",
        architectures={"base": "MPNetModel", "masked": "MPNetForMaskedLM"},
        prefixes=("", "mpnet."),
        left_out=BERT_LEFT_OUT,
        decoder=False,
    )
}
