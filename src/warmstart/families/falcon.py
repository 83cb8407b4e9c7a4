"""Falcon (Almazrouei et al. 2023): heads that share keys, self-attention and MLP mostly in parallel, rotary or ALiBi.

Queries, keys and values lie in one matrix: for each key-value head its queries, its key, its value. Cross-attention is
added after self-attention and reads what that gave; in parallel layers the MLP goes on reading the layer's input.
"""

from __future__ import annotations

from collections.abc import Mapping

from warmstart.config import PretrainedConfig
from warmstart.families.checks import check
from warmstart.families.entry import Family, Stored, added_names, language_model
from warmstart.families.llama import LlamaConfig, head_size, rotary_of
from warmstart.spec import AttentionSpec, MLPSpec, NormSpec, StackSpec


class FalconConfig(LlamaConfig):
    """A Falcon's configuration; in some files `n_embed` is the hidden size.

    >>> FalconConfig(n_embed=142).hidden_size
    142
    """

    model_type = "falcon"
    defaults = {
        "vocab_size": 65024,
        "hidden_size": 4544,
        "num_hidden_layers": 32,
        "num_attention_heads": 71,
        "num_ln_in_parallel_attn": None,
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "use_cache": True,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "num_kv_heads": None,
        "alibi": False,
        "new_decoder_architecture": False,
        "multi_query": True,
        "parallel_attn": True,
        "bias": False,
        "max_position_embeddings": 2048,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "bos_token_id": 11,
        "eos_token_id": 11,
        "ffn_hidden_size": None,
        "activation": "gelu",
    }
    attribute_map = {"n_embed": "hidden_size"}

    num_kv_heads: int | None
    ffn_hidden_size: int | None

    def complete(self) -> None:
        if self.num_kv_heads is None:
            self.num_kv_heads = self.num_attention_heads
        if self.ffn_hidden_size is None:
            self.ffn_hidden_size = 4 * self.hidden_size


def _norms(config: PretrainedConfig) -> int:
    """How many norms stand before self-attention and MLP of a layer."""
    if config.new_decoder_architecture:
        return 1 if config.num_ln_in_parallel_attn == 1 else 2
    return 1 if config.parallel_attn else 2


def falcon_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """The stack of a Falcon."""
    check(config)
    heads, size = config.num_attention_heads, head_size(config)
    shared = 1 if config.multi_query else heads
    shared = config.num_kv_heads if config.new_decoder_architecture else shared
    if heads % shared:
        raise ValueError(f"falcon config: num_attention_heads={heads} is not a multiple of num_kv_heads={shared}")
    return language_model(
        config,
        headed,
        embedding={"padding_id": None},
        attention=AttentionSpec(
            heads=heads,
            key_value_heads=shared,
            head_size=size,
            bias=config.bias,
            output_bias=config.bias,
            dropout=config.attention_dropout,
            alibi=size**-0.5 if config.alibi else 0.0,  # scaled with the scores
            rotary=None if config.alibi else rotary_of(config),
        ),
        mlp=MLPSpec(config.ffn_hidden_size, config.activation, bias=config.bias),
        norm=NormSpec("layer", config.layer_norm_epsilon, before=True, shared=_norms(config) == 1, final=True),
        parallel=config.parallel_attn or config.new_decoder_architecture,
        dropout=config.hidden_dropout,
    )


FALCON_NAMES: dict[str, str | Stored] = {
    "embeddings.token": "word_embeddings",
    "layers.{}.attention_norm": Stored("h.{}.input_layernorm", aliases=("h.{}.ln_attn",)),
    "layers.{}.attention.query": Stored("h.{}.self_attention.query_key_value", part=0, by_head=True),
    "layers.{}.attention.key": Stored("h.{}.self_attention.query_key_value", part=1, by_head=True),
    "layers.{}.attention.value": Stored("h.{}.self_attention.query_key_value", part=2, by_head=True),
    "layers.{}.attention.output": "h.{}.self_attention.dense",
    **added_names("h.{}"),
    "layers.{}.mlp_norm": Stored("h.{}.post_attention_layernorm", aliases=("h.{}.ln_mlp",)),
    "layers.{}.mlp.up": "h.{}.mlp.dense_h_to_4h",
    "layers.{}.mlp.down": "h.{}.mlp.dense_4h_to_h",
    "final_norm": "ln_f",
    "head.output": "/lm_head",
}


def _variant(config: PretrainedConfig, spec: StackSpec) -> Mapping[str, str | Stored]:
    """The two norms of parallel layers have names of their own."""
    if not spec.parallel or spec.norm.shared:
        return {}
    return {"layers.{}.attention_norm": "h.{}.ln_attn", "layers.{}.mlp_norm": "h.{}.ln_mlp"}


FAMILIES = {
    "falcon": Family(
        model_type="falcon",
        config=FalconConfig,
        spec=falcon_spec,
        names=FALCON_NAMES,
        variant=_variant,
        head_prefix="transformer.",
        architectures={"base": "FalconModel", "causal": "FalconForCausalLM"},
        prefixes=("", "transformer."),
        left_out=(r"rotary(_emb)?\.inv_freq$", r"^(score|classifier|qa_outputs)\."),
        causal=True,
        adds_cross_attention=True,
    )
}
