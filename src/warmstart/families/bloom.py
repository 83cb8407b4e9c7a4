"""BLOOM (BigScience 2022): no positions but ALiBi's, a norm on the embeddings, and each head's parts in one matrix.

Cross-attention is added between self-attention and MLP, with its heads and biases, and minds no distance. Made
bidirectional, a score falls with the distance either way.
"""

from __future__ import annotations

from warmstart.config import PretrainedConfig
from warmstart.families.checks import check
from warmstart.families.entry import Family, Stored, added_names, language_model
from warmstart.spec import AttentionSpec, MLPSpec, NormSpec, StackSpec


class BloomConfig(PretrainedConfig):
    """A BLOOM's configuration; in some files `n_embed` is the hidden size.

    >>> BloomConfig(n_embed=32).hidden_size
    32
    """

    model_type = "bloom"
    defaults = {
        "vocab_size": 250880,
        "hidden_size": 64,
        "n_layer": 2,
        "n_head": 8,
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "apply_residual_connection_post_layernorm": False,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "pretraining_tp": 1,
        "slow_but_exact": False,
    }
    attribute_map = {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "n_embed": "hidden_size"}


def bloom_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """The stack of a BLOOM."""
    check(config)
    return language_model(
        config,
        headed,
        embedding={"padding_id": None, "norm": True},
        attention=AttentionSpec(
            heads=config.n_head,
            key_value_heads=config.n_head,
            head_size=config.hidden_size // config.n_head,
            dropout=config.attention_dropout,
            alibi=1.0,
        ),
        mlp=MLPSpec(4 * config.hidden_size, "gelu_new"),
        norm=NormSpec("layer", config.layer_norm_epsilon, before=True, final=True),
        dropout=config.hidden_dropout,
    )


BLOOM_NAMES: dict[str, str | Stored] = {
    "embeddings.token": "word_embeddings",
    "embeddings.norm": "word_embeddings_layernorm",
    "layers.{}.attention_norm": "h.{}.input_layernorm",
    "layers.{}.attention.query": Stored("h.{}.self_attention.query_key_value", part=0, by_head=True),
    "layers.{}.attention.key": Stored("h.{}.self_attention.query_key_value", part=1, by_head=True),
    "layers.{}.attention.value": Stored("h.{}.self_attention.query_key_value", part=2, by_head=True),
    "layers.{}.attention.output": "h.{}.self_attention.dense",
    **added_names("h.{}"),
    "layers.{}.mlp_norm": "h.{}.post_attention_layernorm",
    "layers.{}.mlp.up": "h.{}.mlp.dense_h_to_4h",
    "layers.{}.mlp.down": "h.{}.mlp.dense_4h_to_h",
    "final_norm": "ln_f",
    "head.output": "/lm_head",
}


FAMILIES = {
    "bloom": Family(
        model_type="bloom",
        config=BloomConfig,
        spec=bloom_spec,
        names=BLOOM_NAMES,
        head_prefix="transformer.",
        architectures={"base": "BloomModel", "causal": "BloomForCausalLM"},
        prefixes=("", "transformer."),
        left_out=(r"^(score|classifier|qa_outputs)\.",),
        causal=True,
        adds_cross_attention=True,
    )
}
