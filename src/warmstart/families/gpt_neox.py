"""GPT-NeoX (Black et al. 2022) and Pythia: self-attention and MLP in parallel, each behind its norm.

A part of each head rotates.
Queries, keys and values of each head lie together in one matrix. Cross-attention is added after self-attention and
reads what that gave; in parallel layers the MLP goes on reading the layer's input.
"""

from __future__ import annotations

from warmstart.config import PretrainedConfig
from warmstart.families.checks import check
from warmstart.families.entry import Family, Stored, added_names, language_model
from warmstart.families.llama import LlamaConfig, rotary_of
from warmstart.spec import AttentionSpec, MLPSpec, NormSpec, StackSpec


class GPTNeoXConfig(LlamaConfig):
    """A GPT-NeoX's configuration.

    >>> GPTNeoXConfig(rotary_pct=0.5).partial_rotary_factor
    0.5
    """

    model_type = "gpt_neox"
    defaults = {
        "vocab_size": 50432,
        "hidden_size": 6144,
        "num_hidden_layers": 44,
        "num_attention_heads": 64,
        "intermediate_size": 24576,
        "hidden_act": "gelu",
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "classifier_dropout": 0.1,
        "max_position_embeddings": 2048,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-5,
        "use_cache": True,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "use_parallel_residual": True,
        "rope_scaling": None,
        "attention_bias": True,
    }
    attribute_map = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}

    def complete(self) -> None:
        pass


def gpt_neox_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """The stack of a GPT-NeoX."""
    check(config)
    return language_model(
        config,
        headed,
        embedding={"padding_id": None, "dropout": config.hidden_dropout},
        attention=AttentionSpec(
            heads=config.num_attention_heads,
            key_value_heads=config.num_attention_heads,
            head_size=config.hidden_size // config.num_attention_heads,
            bias=config.attention_bias,
            output_bias=config.attention_bias,
            dropout=config.attention_dropout,
            rotary=rotary_of(config),
        ),
        mlp=MLPSpec(config.intermediate_size, config.hidden_act),
        norm=NormSpec("layer", config.layer_norm_eps, before=True, final=True),
        parallel=config.use_parallel_residual,
        dropout=config.hidden_dropout,
    )


GPT_NEOX_NAMES: dict[str, str | Stored] = {
    "embeddings.token": "embed_in",
    "layers.{}.attention_norm": "layers.{}.input_layernorm",
    "layers.{}.attention.query": Stored("layers.{}.attention.query_key_value", part=0, by_head=True),
    "layers.{}.attention.key": Stored("layers.{}.attention.query_key_value", part=1, by_head=True),
    "layers.{}.attention.value": Stored("layers.{}.attention.query_key_value", part=2, by_head=True),
    "layers.{}.attention.output": "layers.{}.attention.dense",
    **added_names("layers.{}"),
    "layers.{}.mlp_norm": "layers.{}.post_attention_layernorm",
    "layers.{}.mlp.up": "layers.{}.mlp.dense_h_to_4h",
    "layers.{}.mlp.down": "layers.{}.mlp.dense_4h_to_h",
    "final_norm": "final_layer_norm",
    "head.output": Stored("/embed_out", aliases=("/lm_head",)),
}


FAMILIES = {
    "gpt_neox": Family(
        model_type="gpt_neox",
        config=GPTNeoXConfig,
        spec=gpt_neox_spec,
        names=GPT_NEOX_NAMES,
        head_prefix="gpt_neox.",
        architectures={"base": "GPTNeoXModel", "causal": "GPTNeoXForCausalLM"},
        prefixes=("", "gpt_neox."),
        left_out=(r"\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$", r"rotary_emb\.inv_freq$", r"^score\."),
        causal=True,
        adds_cross_attention=True,
    )
}
