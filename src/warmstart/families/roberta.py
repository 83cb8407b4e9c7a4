"""RoBERTa (Liu et al. 2019) and its relatives: BERT's stack, positions counted from the padding id on.

XLM-RoBERTa, CamemBERT and data2vec (text) are the same but for their names. RoBERTa-PreLayerNorm and XLM-RoBERTa-XL put
the norms before the sub-layers, the latter without one on the embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from warmstart.config import PretrainedConfig
from warmstart.families.bert import BERT_DEFAULTS, BERT_LEFT_OUT, BERT_STACK, OLD_NORMS, bert_spec, with_ids
from warmstart.families.entry import Family, Stored
from warmstart.spec import HeadSpec, StackSpec


class RobertaConfig(PretrainedConfig):
    """A RoBERTa's configuration.

    >>> RobertaConfig().pad_token_id
    1
    """

    model_type = "roberta"
    defaults = with_ids(BERT_DEFAULTS, pad=1, start=0, end=2) | {"vocab_size": 50265}


class XLMRobertaConfig(RobertaConfig):
    """An XLM-RoBERTa's configuration."""

    model_type = "xlm-roberta"
    defaults = {**RobertaConfig.defaults, "vocab_size": 30522}


class CamembertConfig(RobertaConfig):
    """A CamemBERT's configuration."""

    model_type = "camembert"
    defaults = {**RobertaConfig.defaults, "vocab_size": 30522}


class Data2VecTextConfig(RobertaConfig):
    """A data2vec text model's configuration."""

    model_type = "data2vec-text"
    defaults = {**RobertaConfig.defaults, "vocab_size": 30522}


class RobertaPreLayerNormConfig(RobertaConfig):
    """A RoBERTa-PreLayerNorm's configuration."""

    model_type = "roberta-prelayernorm"


class XLMRobertaXLConfig(RobertaConfig):
    """An XLM-RoBERTa-XL's configuration."""

    model_type = "xlm-roberta-xl"
    defaults = {
        **RobertaConfig.defaults,
        "vocab_size": 250880,
        "hidden_size": 2560,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "intermediate_size": 10240,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
    }


def roberta_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """BERT's stack; the first token stands at position `pad_token_id + 1`, and padding is not counted."""
    spec = bert_spec(config, headed)
    offset = (0 if config.pad_token_id is None else config.pad_token_id) + 1
    positions = config.max_position_embeddings - offset
    if positions < 1:
        raise ValueError(
            f"{config.model_type} config: max_position_embeddings={config.max_position_embeddings} leaves no position "
            f"after those up to pad_token_id={config.pad_token_id}; it must be larger by 2 at least"
        )
    embedding = replace(spec.embedding, positions=positions, position_offset=offset, positions_skip_padding=True)
    head = HeadSpec("gelu", bias=True, tied=config.tie_word_embeddings) if headed else None  # whatever hidden_act is
    return replace(spec, embedding=embedding, positions=positions, head=head)


def before_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """RoBERTa's stack with its norms before the sub-layers."""
    spec = roberta_spec(config, headed)
    is_xl = config.model_type == "xlm-roberta-xl"
    norm = replace(spec.norm, before=True, final=True)
    return replace(spec, embedding=replace(spec.embedding, norm=not is_xl), norm=norm)


ROBERTA_NAMES: dict[str, str | Stored] = {
    **BERT_STACK,
    "head.dense": "/lm_head.dense",
    "head.norm": "/lm_head.layer_norm",
    "head.output.weight": "/lm_head.decoder.weight",
    "head.output.bias": Stored("/lm_head.bias", untied="/lm_head.decoder.bias"),
}


PRE_LAYER_NORM_NAMES: dict[str, str | Stored] = {
    **ROBERTA_NAMES,
    "layers.{}.attention_norm": "encoder.layer.{}.attention.LayerNorm",
    "layers.{}.cross_attention_norm": "encoder.layer.{}.crossattention.LayerNorm",
    "layers.{}.mlp_norm": "encoder.layer.{}.intermediate.LayerNorm",
    "final_norm": "LayerNorm",
}
XL_NAMES: dict[str, str | Stored] = {
    **ROBERTA_NAMES,
    "layers.{}.attention_norm": "encoder.layer.{}.attention.self_attn_layer_norm",
    "layers.{}.cross_attention_norm": "encoder.layer.{}.crossattention.self_attn_layer_norm",
    "layers.{}.mlp_norm": "encoder.layer.{}.LayerNorm",
    "final_norm": "encoder.LayerNorm",
}


def _family(
    config: type[PretrainedConfig],
    name: str,
    prefix: str = "roberta.",
    spec: Callable[[PretrainedConfig, bool], StackSpec] = roberta_spec,
    names: Mapping[str, str | Stored] = ROBERTA_NAMES,
) -> Family:
    return Family(
        model_type=config.model_type,
        config=config,
        spec=spec,
        names=names,
        head_prefix=prefix,
        architectures={"base": f"{name}Model", "causal": f"{name}ForCausalLM", "masked": f"{name}ForMaskedLM"},
        prefixes=("", prefix),
        left_out=BERT_LEFT_OUT,
        renamed=OLD_NORMS,
    )


FAMILIES = {
    "roberta": _family(RobertaConfig, "Roberta"),
    "xlm-roberta": _family(XLMRobertaConfig, "XLMRoberta"),
    "camembert": _family(CamembertConfig, "Camembert"),
    "data2vec-text": _family(Data2VecTextConfig, "Data2VecText", "data2vec_text."),
    "roberta-prelayernorm": _family(
        RobertaPreLayerNormConfig, "RobertaPreLayerNorm", "roberta_prelayernorm.", before_spec, PRE_LAYER_NORM_NAMES
    ),
    "xlm-roberta-xl": _family(XLMRobertaXLConfig, "XLMRobertaXL", "roberta.", before_spec, XL_NAMES),
}
