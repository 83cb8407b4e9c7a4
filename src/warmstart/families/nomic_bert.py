"""Nomic-BERT (Nussbaum et al. 2024): BERT's post-norm stack with rotary positions, a gated MLP, no biases inside."""

from __future__ import annotations

from typing import Any

from warmstart.config import PretrainedConfig
from warmstart.families.bert import BERT_LEFT_OUT
from warmstart.families.checks import check
from warmstart.families.entry import Family, Stored
from warmstart.families.llama import LlamaConfig, rotary_of
from warmstart.spec import AttentionSpec, EmbeddingSpec, HeadSpec, MLPSpec, NormSpec, StackSpec

# Settings of the first files that no released checkpoint uses otherwise.
_UNUSED = ("prenorm", "qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias", "rotary_emb_interleaved", "causal")


class NomicBertConfig(LlamaConfig):
    """A Nomic-BERT's configuration; the first files say `n_embd`, `n_layer` and so on.

    >>> NomicBertConfig(n_embd=96, n_head=3, activation_function="swiglu").hidden_size
    96
    """

    model_type = "nomic_bert"
    defaults = {
        "vocab_size": 30528,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "silu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": 2048,
        "type_vocab_size": 2,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
        "classifier_dropout": None,
        "bos_token_id": None,
        "eos_token_id": None,
        "rope_theta": 1000.0,
        "rope_scaling": None,
        "head_dim": None,
    }
    attribute_map = {
        "n_embd": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_inner": "intermediate_size",
        "n_positions": "max_position_embeddings",
        "activation_function": "hidden_act",
        "layer_norm_epsilon": "layer_norm_eps",
        "rotary_emb_base": "rope_theta",
        "resid_pdrop": "hidden_dropout_prob",
        "attn_pdrop": "attention_probs_dropout_prob",
    }

    hidden_act: str

    def complete(self) -> None:
        if self.hidden_act == "swiglu":  # what is gated by what, and by which function
            self.hidden_act = "silu"


def nomic_bert_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """The stack of a Nomic-BERT."""
    check(config)
    for name in _UNUSED:
        if getattr(config, name, False):
            raise ValueError(f"{name}={getattr(config, name)} of a nomic_bert is not supported; only False")
    rotary: Any = rotary_of(config)
    return StackSpec(
        family=config.model_type,
        hidden_size=config.hidden_size,
        layers=config.num_hidden_layers,
        embedding=EmbeddingSpec(
            vocabulary=config.vocab_size,
            size=config.hidden_size,
            token_types=config.type_vocab_size,
            norm=True,
            padding_id=config.pad_token_id,
            dropout=config.hidden_dropout_prob,
        ),
        attention=AttentionSpec(
            heads=config.num_attention_heads,
            key_value_heads=config.num_attention_heads,
            head_size=rotary.size,
            bias=False,
            output_bias=False,
            dropout=config.attention_probs_dropout_prob,
            rotary=rotary,
            pruned=config.pruned_heads,
        ),
        mlp=MLPSpec(config.intermediate_size, config.hidden_act, gated=True, bias=False),
        norm=NormSpec("layer", config.layer_norm_eps),
        head=HeadSpec(config.hidden_act, bias=True, tied=config.tie_word_embeddings) if headed else None,
        dropout=config.hidden_dropout_prob,
        initializer_range=config.initializer_range,
    )


_PARTS = ("query", "key", "value")
NOMIC_BERT_NAMES: dict[str, str | Stored] = {
    "embeddings.token": "embeddings.word_embeddings",
    "embeddings.token_type": "embeddings.token_type_embeddings",
    "embeddings.norm": "emb_ln",
    **{
        f"layers.{{}}.attention.{part}": Stored("encoder.layers.{}.attn.Wqkv", part=place, parts=3)
        for place, part in enumerate(_PARTS)
    },
    "layers.{}.attention.output": "encoder.layers.{}.attn.out_proj",
    "layers.{}.attention_norm": "encoder.layers.{}.norm1",
    "layers.{}.mlp.up": "encoder.layers.{}.mlp.fc11",
    "layers.{}.mlp.gate": "encoder.layers.{}.mlp.fc12",
    "layers.{}.mlp.down": "encoder.layers.{}.mlp.fc2",
    "layers.{}.mlp_norm": "encoder.layers.{}.norm2",
    "head.dense": "/cls.predictions.transform.dense",
    "head.norm": "/cls.predictions.transform.layer_norm",
    "head.output.weight": "/cls.predictions.decoder.weight",
    "head.output.bias": Stored("/cls.predictions.bias", untied="/cls.predictions.decoder.bias"),
}


FAMILIES = {
    "nomic_bert": Family(
        model_type="nomic_bert",
        config=NomicBertConfig,
        spec=nomic_bert_spec,
        names=NOMIC_BERT_NAMES,
        head_prefix="nomic_bert.",
        architectures={"base": "NomicBertModel", "masked": "NomicBertForMaskedLM"},
        prefixes=("", "nomic_bert.", "bert."),
        left_out=(*BERT_LEFT_OUT, r"rotary_emb\.inv_freq$"),
        decoder=False,
    )
}
