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
    "big_bird": "bert_relatives",
    "bigbird_pegasus": "bart_relatives",
    "blenderbot": "bart_relatives",
    "blenderbot-small": "bart_relatives",
    "bloom": "bloom",
    "camembert": "roberta",
    "cohere": "cohere",
    "cohere2": "cohere",
    "data2vec-text": "roberta",
    "deberta-v2": "deberta_v2",
    "distilbert": "distilbert",
    "electra": "bert_relatives",
    "ernie": "bert_relatives",
    "eurobert": "eurobert",
    "falcon": "falcon",
    "gemma": "gemma",
    "gemma2": "gemma",
    "gemma3_text": "gemma",
    "glm": "phi3",
    "glm4": "phi3",
    "gpt-sw3": "gpt2",
    "gpt2": "gpt2",
    "gpt_bigcode": "gpt2",
    "gpt_neo": "gpt_neo",
    "gpt_neox": "gpt_neox",
    "gptj": "gptj",
    "granite": "granite",
    "llama": "llama",
    "longformer": "longformer",
    "marian": "bart_relatives",
    "mbart": "bart_relatives",
    "megatron-bert": "bert_relatives",
    "mistral": "llama",
    "modernbert": "modernbert",
    "modernbert-decoder": "modernbert",
    "mpnet": "mpnet",
    "mt5": "t5",
    "mvp": "bart_relatives",
    "nomic_bert": "nomic_bert",
    "olmo2": "olmo2",
    "olmo3": "olmo2",
    "opt": "opt",
    "pegasus": "bart_relatives",
    "phi": "phi",
    "phi3": "phi3",
    "plbart": "bart_relatives",
    "qwen2": "llama",
    "qwen3": "llama",
    "rembert": "bert_relatives",
    "roberta": "roberta",
    "roberta-prelayernorm": "roberta",
    "roc_bert": "bert_relatives",
    "roformer": "bert_relatives",
    "smollm3": "smollm3",
    "stablelm": "stablelm",
    "starcoder2": "starcoder2",
    "t5": "t5",
    "t5_gemma_module": "t5gemma",
    "trocr": "xglm",
    "xglm": "xglm",
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
