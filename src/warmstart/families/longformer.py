"""Longformer (Beltagy et al. 2020): RoBERTa's stack in windows, with tokens that see everything; an encoder."""

from __future__ import annotations

from dataclasses import replace

from warmstart.config import PretrainedConfig
from warmstart.families.bert import BERT_LEFT_OUT, OLD_NORMS
from warmstart.families.entry import Family, Stored
from warmstart.families.roberta import ROBERTA_NAMES, roberta_spec
from warmstart.spec import StackSpec


class LongformerConfig(PretrainedConfig):
    """A Longformer's configuration; `attention_window` is one even number, or one for each layer.

    >>> LongformerConfig().attention_window
    512
    """

    model_type = "longformer"
    defaults = {
        "attention_window": 512,
        "sep_token_id": 2,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
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
        "onnx_export": False,
    }


def longformer_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """RoBERTa's stack, where a token sees half of its window on either side, and tokens with a reach everything."""
    spec = roberta_spec(config, headed)
    given, layers = config.attention_window, config.num_hidden_layers
    windows = list(given) if isinstance(given, (list, tuple)) else [given] * layers
    if len(windows) != layers or any(not isinstance(x, int) or x < 2 or x % 2 for x in windows):
        raise ValueError(
            f"longformer config: attention_window={given} must be an even number above 0, or {layers} of them, one "
            "for each layer"
        )
    attention = replace(spec.attention, windows=tuple(x // 2 + 1 for x in windows), global_tokens=True)
    return replace(spec, attention=attention, cross_attention=None, causal=False)


_PARTS = ("query", "key", "value")
LONGFORMER_NAMES: dict[str, str | Stored] = {
    **{ours: stored for ours, stored in ROBERTA_NAMES.items() if "cross_attention" not in ours},
    **{
        f"layers.{{}}.attention.global_attention.{part}": f"encoder.layer.{{}}.attention.self.{part}_global"
        for part in _PARTS
    },
}


FAMILIES = {
    "longformer": Family(
        model_type="longformer",
        config=LongformerConfig,
        spec=longformer_spec,
        names=LONGFORMER_NAMES,
        head_prefix="longformer.",
        architectures={"base": "LongformerModel", "masked": "LongformerForMaskedLM"},
        prefixes=("", "longformer."),
        left_out=BERT_LEFT_OUT,
        renamed=OLD_NORMS,
        decoder=False,
    )
}
