"""GPT-2 (Radford et al. 2019): pre-norm, learned positions; queries, keys and values in one matrix stored (in, out).

GPT-BigCode (Ben Allal et al. 2023, "SantaCoder") is a GPT-2 whose heads share one key and one value; its matrices are
stored (out, in). Cross-attention is added to it: the reference's class makes one that it cannot compute.
"""

from __future__ import annotations

from dataclasses import replace

from warmstart.config import PretrainedConfig
from warmstart.families.checks import check
from warmstart.families.entry import Family, Stored, added_names
from warmstart.spec import AttentionSpec, EmbeddingSpec, HeadSpec, MLPSpec, NormSpec, StackSpec


class GPT2Config(PretrainedConfig):
    """A GPT-2's configuration.

    >>> config = GPT2Config(n_embd=64, n_head=4)
    >>> config.hidden_size, config.num_attention_heads
    (64, 4)
    """

    model_type = "gpt2"
    defaults = {
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_inner": None,
        "activation_function": "gelu_new",
        "resid_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "attn_pdrop": 0.1,
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "summary_type": "cls_index",
        "summary_use_proj": True,
        "summary_activation": None,
        "summary_proj_to_labels": True,
        "summary_first_dropout": 0.1,
        "scale_attn_weights": True,
        "use_cache": True,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
    }
    attribute_map = {
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }


_NOT_OF_BIGCODE = {"scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"}
_NOT_OF_BIGCODE |= {name for name in GPT2Config.defaults if name.startswith("summary_")}


class GPTBigCodeConfig(PretrainedConfig):
    """A GPT-BigCode's configuration.

    >>> [GPTBigCodeConfig(n_head=8, multi_query=shared).num_key_value_heads for shared in (True, False)]
    [1, 8]
    """

    model_type = "gpt_bigcode"
    defaults = {
        **{name: value for name, value in GPT2Config.defaults.items() if name not in _NOT_OF_BIGCODE},
        "activation_function": "gelu_pytorch_tanh",
        "attention_softmax_in_fp32": True,
        "scale_attention_softmax_in_fp32": True,
        "multi_query": True,
    }
    attribute_map = GPT2Config.attribute_map

    num_key_value_heads: int

    def complete(self) -> None:
        self.num_key_value_heads = 1 if self.multi_query else self.n_head


def gpt2_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """The stack of a GPT-2."""
    check(config)
    attention = AttentionSpec(
        heads=config.n_head,
        key_value_heads=getattr(config, "num_key_value_heads", config.n_head),
        head_size=config.n_embd // config.n_head,
        dropout=config.attn_pdrop,
        scaled=config.scale_attn_weights,
        scaled_by_layer=getattr(config, "scale_attn_by_inverse_layer_idx", False),
        pruned=config.pruned_heads,
    )
    return StackSpec(
        family=config.model_type,
        hidden_size=config.n_embd,
        layers=config.n_layer,
        embedding=EmbeddingSpec(
            vocabulary=config.vocab_size, size=config.n_embd, positions=config.n_positions, dropout=config.embd_pdrop
        ),
        attention=attention,
        cross_attention=attention if config.add_cross_attention else None,
        cross_attention_size=config.cross_attention_hidden_size or config.n_embd,
        mlp=MLPSpec(config.n_inner or 4 * config.n_embd, config.activation_function),
        norm=NormSpec("layer", config.layer_norm_epsilon, before=True, final=True),
        head=HeadSpec(tied=config.tie_word_embeddings) if headed else None,
        causal=config.is_decoder or config.is_causal is not False,
        dropout=config.resid_pdrop,
        initializer_range=config.initializer_range,
        residual_shrink=True,
        positions=config.n_positions,
    )


GPT2_NAMES: dict[str, str | Stored] = {
    "embeddings.token": "wte",
    "embeddings.position": "wpe",
    "layers.{}.attention_norm": "h.{}.ln_1",
    "layers.{}.attention.query": Stored("h.{}.attn.c_attn", part=0, parts=3, transposed=True),
    "layers.{}.attention.key": Stored("h.{}.attn.c_attn", part=1, parts=3, transposed=True),
    "layers.{}.attention.value": Stored("h.{}.attn.c_attn", part=2, parts=3, transposed=True),
    "layers.{}.attention.output": Stored("h.{}.attn.c_proj", transposed=True),
    "layers.{}.cross_attention_norm": "h.{}.ln_cross_attn",
    "layers.{}.cross_attention.query": Stored("h.{}.crossattention.q_attn", transposed=True),
    "layers.{}.cross_attention.key": Stored("h.{}.crossattention.c_attn", part=0, parts=2, transposed=True),
    "layers.{}.cross_attention.value": Stored("h.{}.crossattention.c_attn", part=1, parts=2, transposed=True),
    "layers.{}.cross_attention.output": Stored("h.{}.crossattention.c_proj", transposed=True),
    "layers.{}.mlp_norm": "h.{}.ln_2",
    "layers.{}.mlp.up": Stored("h.{}.mlp.c_fc", transposed=True),
    "layers.{}.mlp.down": Stored("h.{}.mlp.c_proj", transposed=True),
    "final_norm": "ln_f",
    "head.output": "/lm_head",
}


GPT_BIGCODE_NAMES: dict[str, str | Stored] = {
    **{
        name: replace(entry, transposed=False) if isinstance(entry, Stored) else entry
        for name, entry in GPT2_NAMES.items()
    },
    **{
        f"layers.{{}}.attention.{part}": Stored("h.{}.attn.c_attn", part=place, by_head=True)
        for place, part in enumerate(("query", "key", "value"))
    },
    **added_names("h.{}"),
}


GPT2 = Family(
    model_type="gpt2",
    config=GPT2Config,
    spec=gpt2_spec,
    names=GPT2_NAMES,
    head_prefix="transformer.",
    architectures={"base": "GPT2Model", "causal": "GPT2LMHeadModel"},
    prefixes=("", "transformer."),
    left_out=(r"\.(attn|crossattention)\.(bias|masked_bias)$", r"^(score|multiple_choice_head)\."),
    causal=True,
)
FAMILIES = {
    "gpt2": GPT2,
    "gpt-sw3": GPT2,  # a GPT-2 with another tokenizer, which says "gpt2" in its files
    "gpt_bigcode": replace(
        GPT2,
        model_type="gpt_bigcode",
        config=GPTBigCodeConfig,
        names=GPT_BIGCODE_NAMES,
        architectures={"base": "GPTBigCodeModel", "causal": "GPTBigCodeForCausalLM"},
        adds_cross_attention=True,
    ),
}
