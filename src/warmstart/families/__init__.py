"""The table of families: which `model_type` is described in which file."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from warmstart.config import PretrainedConfig
    from warmstart.families.entry import Family

# model_type -> the module that describes it; the module's FAMILIES holds the entry
MODULES = {
    "bart": "bart",
    "bert": "bert",
    "bert-generation": "bert_generation",
    "bigbird_pegasus": "bart_relatives",
    "blenderbot": "bart_relatives",
    "blenderbot-small": "bart_relatives",
    "camembert": "roberta",
    "gemma": "gemma",
    "gemma2": "gemma",
    "gemma3_text": "gemma",
    "gpt2": "gpt2",
    "llama": "llama",
    "marian": "bart_relatives",
    "mbart": "bart_relatives",
    "mistral": "llama",
    "mvp": "bart_relatives",
    "pegasus": "bart_relatives",
    "plbart": "bart_relatives",
    "qwen2": "llama",
    "qwen3": "llama",
    "roberta": "roberta",
    "trocr": "xglm",
    "xglm": "xglm",
    "xlm-roberta": "roberta",
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


def family_of(config: PretrainedConfig) -> Family:
    """The family that a configuration belongs to."""
    return family(config.model_type)
