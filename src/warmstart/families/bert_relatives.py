"""Relatives of BERT, each by what it does otherwise: ELECTRA, ERNIE, RemBERT, Megatron-BERT, BigBird ..."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from warmstart.config import PretrainedConfig
from warmstart.families.bert import (
    BERT_DEFAULTS,
    BERT_LEFT_OUT,
    BERT_NAMES,
    BERT_STACK,
    OLD_NORMS,
    bert_spec,
    inserted,
    with_ids,
)
from warmstart.families.checks import check
from warmstart.families.entry import Family, Stored
from warmstart.spec import HeadSpec, RotarySpec, StackSpec

_SUMMARY = {"type": "first", "use_proj": True, "activation": "gelu", "last_dropout": 0.1}


def _without(*names: str) -> dict[str, object]:
    return {name: value for name, value in BERT_DEFAULTS.items() if name not in names}


class ElectraConfig(PretrainedConfig):
    """An ELECTRA's configuration (Clark et al. 2020).

    >>> ElectraConfig().embedding_size
    128
    """

    model_type = "electra"
    defaults = {
        **inserted(
            inserted(BERT_DEFAULTS, "hidden_size", {"embedding_size": 128}),
            "pad_token_id",
            {f"summary_{name}": value for name, value in _SUMMARY.items()},
        ),
        "hidden_size": 256,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
    }


class ErnieConfig(PretrainedConfig):
    """An ERNIE's configuration (Sun et al. 2021); with `use_task_id` every token gets the vector of task 0."""

    model_type = "ernie"
    defaults = inserted(BERT_DEFAULTS, "initializer_range", {"task_type_vocab_size": 3, "use_task_id": False})


class RemBertConfig(PretrainedConfig):
    """A RemBERT's configuration (Chung et al. 2021): narrow embeddings, and a wide head of its own."""

    model_type = "rembert"
    defaults = {
        "vocab_size": 250300,
        "hidden_size": 1152,
        "num_hidden_layers": 32,
        "num_attention_heads": 18,
        "input_embedding_size": 256,
        "output_embedding_size": 1664,
        "intermediate_size": 4608,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "classifier_dropout_prob": 0.1,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "use_cache": True,
        "pad_token_id": 0,
        "bos_token_id": 312,
        "eos_token_id": 313,
    }

    def complete(self) -> None:
        self.tie_word_embeddings = False


class MegatronBertConfig(PretrainedConfig):
    """A Megatron-BERT's configuration (Shoeybi et al. 2019)."""

    model_type = "megatron-bert"
    defaults = {
        **_without("classifier_dropout"),
        "vocab_size": 29056,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    }


class BigBirdConfig(PretrainedConfig):
    """A BigBird's configuration (Zaheer et al. 2020); whatever its `attention_type`, every token sees every other."""

    model_type = "big_bird"
    defaults = {
        **with_ids(_without("position_embedding_type", "use_cache", "classifier_dropout"), pad=0, start=1, end=2),
        "vocab_size": 50358,
        "hidden_act": "gelu_new",
        "max_position_embeddings": 4096,
        "sep_token_id": 66,
        "attention_type": "block_sparse",
        "use_bias": True,
        "rescale_embeddings": False,
        "block_size": 64,
        "num_random_blocks": 3,
        "classifier_dropout": None,
    }
    defaults = inserted(defaults, "pad_token_id", {"use_cache": True})


class RoCBertConfig(PretrainedConfig):
    """A RoCBert's configuration (Su et al. 2022)."""

    model_type = "roc_bert"
    defaults = {
        **inserted(_without("use_cache"), "pad_token_id", {"use_cache": True}),
        "enable_pronunciation": True,
        "enable_shape": True,
        "pronunciation_embed_dim": 768,
        "pronunciation_vocab_size": 910,
        "shape_embed_dim": 512,
        "shape_vocab_size": 24858,
        "concat_input": True,
    }


class RoFormerConfig(PretrainedConfig):
    """A RoFormer's configuration (Su et al. 2021).

    >>> RoFormerConfig(hidden_size=384).embedding_size
    384
    """

    model_type = "roformer"
    defaults = {
        **inserted(_without("position_embedding_type", "use_cache", "classifier_dropout"), "", {"rotary_value": False}),
        "use_cache": True,
        "vocab_size": 50000,
        "max_position_embeddings": 1536,
    }
    defaults = inserted(defaults, "hidden_size", {"embedding_size": None})

    embedding_size: int

    def complete(self) -> None:
        if self.embedding_size is None:
            self.embedding_size = self.hidden_size


def electra_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """BERT's stack, and embeddings of a width of their own, which the head has too."""
    spec = bert_spec(config, headed)
    head = HeadSpec("gelu", bias=True, tied=config.tie_word_embeddings) if headed else None  # whatever hidden_act is
    size = config.embedding_size
    embedding = replace(spec.embedding, size=size, projected=size != config.hidden_size)
    return replace(spec, embedding=embedding, head=head)


def ernie_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """BERT's stack, and the vector of the task."""
    spec = bert_spec(config, headed)
    tasks = config.task_type_vocab_size if config.use_task_id else 0
    return replace(spec, embedding=replace(spec.embedding, task_types=tasks))


def rembert_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """BERT's stack between embeddings of one width and a head of another."""
    spec = bert_spec(config, headed)
    head = replace(spec.head, tied=False, size=config.output_embedding_size) if spec.head else None
    embedding = replace(spec.embedding, size=config.input_embedding_size, projected=True)
    return replace(spec, embedding=embedding, head=head)


def megatron_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """BERT's stack with its norms before the sub-layers, and none on the embeddings."""
    spec = bert_spec(config, headed)
    embedding = replace(spec.embedding, norm=False)
    return replace(spec, embedding=embedding, norm=replace(spec.norm, before=True, final=True))


def big_bird_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """BERT's stack with full attention."""
    spec = bert_spec(config, headed)
    attention = replace(spec.attention, bias=config.use_bias)
    scale = math.sqrt(config.hidden_size) if config.rescale_embeddings else 1.0
    cross = attention if spec.cross_attention is not None else None
    embedding = replace(spec.embedding, scale=scale)
    return replace(spec, embedding=embedding, attention=attention, cross_attention=cross)


def roc_bert_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """BERT's stack; beside each token's vector stand those of its shape and pronunciation, here always the first."""
    check(config)
    if not config.concat_input:
        raise ValueError(f"concat_input={config.concat_input} of a roc_bert is not supported; only True")
    spec = bert_spec(config, headed)
    tables = {"shape": config.enable_shape, "pronunciation": config.enable_pronunciation}
    beside = tuple(
        (name, getattr(config, f"{name}_vocab_size"), getattr(config, f"{name}_embed_dim"))
        for name, enabled in tables.items()
        if enabled
    )
    return replace(spec, embedding=replace(spec.embedding, beside=beside))


def roformer_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """BERT's stack with rotary positions in its self-attention, and embeddings that may be narrow."""
    if config.rotary_value:
        raise ValueError(f"rotary_value={config.rotary_value} of a roformer is not supported; only False")
    spec = bert_spec(config, headed)
    size, attention = config.embedding_size, spec.attention
    embedding = replace(spec.embedding, size=size, projected=size != config.hidden_size, positions=0)
    rotary = RotarySpec(attention.head_size, interleaved=True)
    return replace(spec, embedding=embedding, attention=replace(attention, rotary=rotary))


ELECTRA_NAMES: dict[str, str | Stored] = {
    **BERT_STACK,
    "embeddings.projection": "embeddings_project",
    "head.dense": "/generator_predictions.dense",
    "head.norm": "/generator_predictions.LayerNorm",
    "head.output": "/generator_lm_head",
}
ERNIE_NAMES = {**BERT_NAMES, "embeddings.task_type": "embeddings.task_type_embeddings"}
REMBERT_NAMES: dict[str, str | Stored] = {
    **BERT_STACK,
    "embeddings.projection": "encoder.embedding_hidden_mapping_in",
    "head.dense": "/cls.predictions.dense",
    "head.norm": "/cls.predictions.LayerNorm",
    "head.output": "/cls.predictions.decoder",
}
MEGATRON_NAMES = {
    **BERT_NAMES,
    "layers.{}.attention_norm": "encoder.layer.{}.attention.ln",
    "layers.{}.cross_attention_norm": "encoder.layer.{}.crossattention.ln",
    "layers.{}.mlp_norm": "encoder.layer.{}.ln",
    "final_norm": "encoder.ln",
}
ROC_BERT_NAMES = {
    **BERT_NAMES,
    "embeddings.beside.shape": "embeddings.shape_embed",
    "embeddings.beside.pronunciation": "embeddings.pronunciation_embed",
    "embeddings.joined_projection": "embeddings.map_inputs_layer",
}
ROFORMER_NAMES = {**BERT_NAMES, "embeddings.projection": "embeddings_project"}
# RoFormer's positions are computed; ELECTRA's discriminator has a head that says which tokens were replaced.
_LEFT_OUT = (*BERT_LEFT_OUT, r"^discriminator_predictions\.", r"encoder\.embed_positions\.")


def _family(
    config: type[PretrainedConfig],
    spec: Callable[[PretrainedConfig, bool], StackSpec],
    names: Mapping[str, str | Stored],
    prefix: str,
    name: str,
) -> Family:
    architectures = {"base": f"{name}Model", "causal": f"{name}ForCausalLM", "masked": f"{name}ForMaskedLM"}
    return Family(
        model_type=config.model_type,
        config=config,
        spec=spec,
        names=names,
        head_prefix=prefix,
        architectures=architectures,
        prefixes=("", prefix),
        left_out=_LEFT_OUT,
        renamed=OLD_NORMS,
    )


FAMILIES = {
    "electra": _family(ElectraConfig, electra_spec, ELECTRA_NAMES, "electra.", "Electra"),
    "ernie": _family(ErnieConfig, ernie_spec, ERNIE_NAMES, "ernie.", "Ernie"),
    "rembert": _family(RemBertConfig, rembert_spec, REMBERT_NAMES, "rembert.", "RemBert"),
    "megatron-bert": _family(MegatronBertConfig, megatron_spec, MEGATRON_NAMES, "bert.", "MegatronBert"),
    "big_bird": _family(BigBirdConfig, big_bird_spec, BERT_NAMES, "bert.", "BigBird"),
    "roformer": _family(RoFormerConfig, roformer_spec, ROFORMER_NAMES, "roformer.", "RoFormer"),
    "roc_bert": _family(RoCBertConfig, roc_bert_spec, ROC_BERT_NAMES, "roc_bert.", "RoCBert"),
}
