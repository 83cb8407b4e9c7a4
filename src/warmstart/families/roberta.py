"""RoBERTa (Liu et al. 2019), XLM-RoBERTa and CamemBERT: BERT's stack, positions counted from the padding id on."""

from __future__ import annotations

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


ROBERTA_NAMES: dict[str, str | Stored] = {
    **BERT_STACK,
    "head.dense": "/lm_head.dense",
    "head.norm": "/lm_head.layer_norm",
    "head.output.weight": "/lm_head.decoder.weight",
    "head.output.bias": Stored("/lm_head.bias", untied="/lm_head.decoder.bias"),
}


def _family(config: type[PretrainedConfig], name: str) -> Family:
    return Family(
        model_type=config.model_type,
        config=config,
        spec=roberta_spec,
        names=ROBERTA_NAMES,
        head_prefix="roberta.",
        architectures={"base": f"{name}Model", "causal": f"{name}ForCausalLM", "masked": f"{name}ForMaskedLM"},
        prefixes=("", "roberta."),
        left_out=BERT_LEFT_OUT,
        renamed=OLD_NORMS,
    )


FAMILIES = {
    "roberta": _family(RobertaConfig, "Roberta"),
    "xlm-roberta": _family(XLMRobertaConfig, "XLMRoberta"),
    "camembert": _family(CamembertConfig, "Camembert"),
}
