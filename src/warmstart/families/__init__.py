"""The table of families: which `model_type` is described in which file."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from warmstart.config import PretrainedConfig
    from warmstart.families.entry import Family
    from warmstart.spec import StackSpec

# model_type -> the module that describes it; the module's FAMILIES holds the entry
MODULES = {
    "albert": "albert",
    "bart": "bart",
    "bert": "bert",
    "bert-generation": "bert_generation",
    "bigbird_pegasus": "bart_relatives",
    "blenderbot": "bart_relatives",
    "blenderbot-small": "bart_relatives",
    "big_bird": "bert_relatives",
    "camembert": "roberta",
    "data2vec-text": "roberta",
    "distilbert": "distilbert",
    "electra": "bert_relatives",
    "ernie": "bert_relatives",
    "gemma": "gemma",
    "gemma2": "gemma",
    "gemma3_text": "gemma",
    "gpt2": "gpt2",
    "llama": "llama",
    "marian": "bart_relatives",
    "mbart": "bart_relatives",
    "megatron-bert": "bert_relatives",
    "mistral": "llama",
    "mpnet": "mpnet",
    "mt5": "t5",
    "mvp": "bart_relatives",
    "pegasus": "bart_relatives",
    "plbart": "bart_relatives",
    "qwen2": "llama",
    "qwen3": "llama",
    "rembert": "bert_relatives",
    "roberta": "roberta",
    "t5": "t5",
    "trocr": "xglm",
    "xglm": "xglm",
    "roberta-prelayernorm": "roberta",
    "roc_bert": "bert_relatives",
    "xlm-roberta": "roberta",
    "xlm-roberta-xl": "roberta",
}


def family(model_type: str) -> Family:
    """The family of a `model_type`.

    Raises:
        ValueError: it is not supported; the message lists those that are.

    >>> family("gpt2").causal
    True
    """
    if not isinstance(model_type, str) or model_type not in MODULES:
        raise ValueError(f"model_type {model_type!r} is not supported; the families are {', '.join(sorted(MODULES))}")
    return import_module(f"warmstart.families.{MODULES[model_type]}").FAMILIES[model_type]


def spec_of(config: PretrainedConfig, kind: str) -> StackSpec:
    """What a model of this kind ("base", "causal" or "masked") is made of.

    Raises:
        ValueError: the family has no decoder and one is asked for, or the configuration contradicts itself.
    """
    if kind == "causal" and not family_of(config).decoder:
        raise ValueError(f"{config.model_type} can only be the encoder; `warmstart families` lists what can be what")
    return family_of(config).spec(config, kind != "base")


def family_of(config: PretrainedConfig) -> Family:
    """The family that a configuration belongs to."""
    return family(config.model_type)
