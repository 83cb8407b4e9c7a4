"""DistilBERT (Sanh et al. 2019): BERT's stack without token types, an encoder only."""

from __future__ import annotations

from warmstart.config import PretrainedConfig
from warmstart.families.bert import OLD_NORMS
from warmstart.families.checks import check
from warmstart.families.entry import Family, Stored
from warmstart.spec import AttentionSpec, EmbeddingSpec, HeadSpec, MLPSpec, NormSpec, StackSpec


class DistilBertConfig(PretrainedConfig):
    """A DistilBERT's configuration.

    >>> DistilBertConfig(dim=64, n_heads=4).hidden_size
    64
    """

    model_type = "distilbert"
    defaults = {
        "vocab_size": 30522,
        "max_position_embeddings": 512,
        "sinusoidal_pos_embds": False,
        "n_layers": 6,
        "n_heads": 12,
        "dim": 768,
        "hidden_dim": 4 * 768,
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "activation": "gelu",
        "initializer_range": 0.02,
        "qa_dropout": 0.1,
        "seq_classif_dropout": 0.2,
        "pad_token_id": 0,
    }
    attribute_map = {"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"}


def distilbert_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """The stack of a DistilBERT; sinusoidal positions are a table in its files like any other."""
    check(config)
    return StackSpec(
        family=config.model_type,
        hidden_size=config.dim,
        layers=config.n_layers,
        embedding=EmbeddingSpec(
            vocabulary=config.vocab_size,
            size=config.dim,
            positions=config.max_position_embeddings,
            norm=True,
            padding_id=config.pad_token_id,
            dropout=config.dropout,
        ),
        attention=AttentionSpec(
            heads=config.n_heads,
            key_value_heads=config.n_heads,
            head_size=config.dim // config.n_heads,
            dropout=config.attention_dropout,
            pruned=config.pruned_heads,
        ),
        mlp=MLPSpec(config.hidden_dim, config.activation),
        norm=NormSpec("layer", 1e-12),
        head=HeadSpec(config.activation, bias=True, tied=config.tie_word_embeddings) if headed else None,
        dropout=config.dropout,
        initializer_range=config.initializer_range,
        positions=config.max_position_embeddings,
    )


DISTILBERT_NAMES: dict[str, str | Stored] = {
    "embeddings.token": "embeddings.word_embeddings",
    "embeddings.position": "embeddings.position_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
    "layers.{}.attention.query": "transformer.layer.{}.attention.q_lin",
    "layers.{}.attention.key": "transformer.layer.{}.attention.k_lin",
    "layers.{}.attention.value": "transformer.layer.{}.attention.v_lin",
    "layers.{}.attention.output": "transformer.layer.{}.attention.out_lin",
    "layers.{}.attention_norm": "transformer.layer.{}.sa_layer_norm",
    "layers.{}.mlp.up": "transformer.layer.{}.ffn.lin1",
    "layers.{}.mlp.down": "transformer.layer.{}.ffn.lin2",
    "layers.{}.mlp_norm": "transformer.layer.{}.output_layer_norm",
    "head.dense": "/vocab_transform",
    "head.norm": "/vocab_layer_norm",
    "head.output": "/vocab_projector",
}


FAMILIES = {
    "distilbert": Family(
        model_type="distilbert",
        config=DistilBertConfig,
        spec=distilbert_spec,
        names=DISTILBERT_NAMES,
        head_prefix="distilbert.",
        architectures={"base": "DistilBertModel", "masked": "DistilBertForMaskedLM"},
        prefixes=("", "distilbert."),
        left_out=(r"embeddings\.position_ids$", r"^(pre_classifier|classifier|qa_outputs)\."),
        renamed=OLD_NORMS,
        decoder=False,
    )
}
