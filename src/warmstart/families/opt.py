"""OPT (Zhang et al. 2022): BART's decoder by itself, with its norms before the sub-layers.

Cross-attention is added between self-attention and MLP, with its heads, biases and norm.
"""

from __future__ import annotations

from dataclasses import replace

from warmstart.config import PretrainedConfig
from warmstart.families.bart import POSITION_OFFSET
from warmstart.families.checks import check
from warmstart.families.entry import Family, Stored, added_names, language_model
from warmstart.spec import AttentionSpec, MLPSpec, NormSpec, StackSpec


class OPTConfig(PretrainedConfig):
    """An OPT's configuration."""

    model_type = "opt"
    defaults = {
        "vocab_size": 50272,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "ffn_dim": 3072,
        "max_position_embeddings": 2048,
        "do_layer_norm_before": True,
        "_remove_final_layer_norm": False,
        "word_embed_proj_dim": None,
        "dropout": 0.1,
        "attention_dropout": 0.0,
        "num_attention_heads": 12,
        "activation_function": "relu",
        "layerdrop": 0.0,
        "init_std": 0.02,
        "use_cache": True,
        "pad_token_id": 1,
        "bos_token_id": 2,
        "eos_token_id": 2,
        "enable_bias": True,
        "layer_norm_elementwise_affine": True,
    }

    attribute_map = {"initializer_range": "init_std"}

    word_embed_proj_dim: int | None

    def complete(self) -> None:
        if self.word_embed_proj_dim is None:
            self.word_embed_proj_dim = self.hidden_size


def opt_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """The stack of an OPT; in the one of 350 million parameters, tokens and logits have another width than states."""
    check(config)
    before = config.do_layer_norm_before
    narrow = config.word_embed_proj_dim != config.hidden_size
    spec = language_model(
        config,
        headed,
        embedding={"positions": config.max_position_embeddings, "position_offset": POSITION_OFFSET},
        attention=AttentionSpec(
            heads=config.num_attention_heads,
            key_value_heads=config.num_attention_heads,
            head_size=config.hidden_size // config.num_attention_heads,
            bias=config.enable_bias,
            output_bias=config.enable_bias,
            dropout=config.attention_dropout,
        ),
        mlp=MLPSpec(config.ffn_dim, config.activation_function, bias=config.enable_bias),
        norm=NormSpec("layer", 1e-5, before=before, final=before and not config._remove_final_layer_norm),
        dropout=config.dropout,
        layer_drop=config.layerdrop,
        positions=config.max_position_embeddings,
    )
    if not narrow:
        return spec
    embedding = replace(spec.embedding, size=config.word_embed_proj_dim, tokens_projected=True)
    head = spec.head and replace(spec.head, transform="linear", transform_bias=False, transform_norm=False)
    return replace(spec, embedding=embedding, head=head)


OPT_NAMES: dict[str, str | Stored] = {
    "embeddings.token": "decoder.embed_tokens",
    "embeddings.token_projection": "decoder.project_in",
    "embeddings.position": "decoder.embed_positions",
    "layers.{}.attention_norm": "decoder.layers.{}.self_attn_layer_norm",
    "layers.{}.attention.query": "decoder.layers.{}.self_attn.q_proj",
    "layers.{}.attention.key": "decoder.layers.{}.self_attn.k_proj",
    "layers.{}.attention.value": "decoder.layers.{}.self_attn.v_proj",
    "layers.{}.attention.output": "decoder.layers.{}.self_attn.out_proj",
    **added_names("decoder.layers.{}"),
    "layers.{}.mlp_norm": "decoder.layers.{}.final_layer_norm",
    "layers.{}.mlp.up": "decoder.layers.{}.fc1",
    "layers.{}.mlp.down": "decoder.layers.{}.fc2",
    "final_norm": "decoder.final_layer_norm",
    "head.dense": "decoder.project_out",
    "head.output": "/lm_head",
}


FAMILIES = {
    "opt": Family(
        model_type="opt",
        config=OPTConfig,
        spec=opt_spec,
        names=OPT_NAMES,
        head_prefix="model.",
        architectures={"base": "OPTModel", "causal": "OPTForCausalLM"},
        prefixes=("", "model."),
        left_out=(r"(^|\.)version$", r"^(score|qa_outputs)\."),
        causal=True,
        adds_cross_attention=True,
    )
}
