"""GPT-J (Wang & Komatsuzaki 2021): self-attention and MLP in parallel behind one norm, neighbours rotated together.

Cross-attention is added after self-attention and reads what that gave; the MLP goes on reading the layer's input.
"""

from __future__ import annotations

from warmstart.config import PretrainedConfig
from warmstart.families.checks import check
from warmstart.families.entry import Family, Stored, added_names, language_model
from warmstart.spec import AttentionSpec, MLPSpec, NormSpec, RotarySpec, StackSpec


class GPTJConfig(PretrainedConfig):
    """A GPT-J's configuration."""

    model_type = "gptj"
    defaults = {
        "vocab_size": 50400,
        "n_positions": 2048,
        "n_embd": 4096,
        "n_layer": 28,
        "n_head": 16,
        "rotary_dim": 64,
        "n_inner": None,
        "activation_function": "gelu_new",
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
        "tie_word_embeddings": False,
    }
    attribute_map = {
        "max_position_embeddings": "n_positions",
        "hidden_size": "n_embd",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }


def gptj_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """The stack of a GPT-J."""
    check(config)
    size = config.n_embd // config.n_head
    return language_model(
        config,
        headed,
        embedding={"padding_id": None, "dropout": config.embd_pdrop},
        head_bias=True,
        attention=AttentionSpec(
            heads=config.n_head,
            key_value_heads=config.n_head,
            head_size=size,
            bias=False,
            output_bias=False,
            dropout=config.attn_pdrop,
            rotary=RotarySpec(config.rotary_dim or size, interleaved=True),
        ),
        mlp=MLPSpec(config.n_inner or 4 * config.n_embd, config.activation_function),
        norm=NormSpec("layer", config.layer_norm_epsilon, before=True, shared=True, final=True),
        parallel=True,
        dropout=config.resid_pdrop,
        positions=config.n_positions,
    )


GPTJ_NAMES: dict[str, str | Stored] = {
    "embeddings.token": "wte",
    "layers.{}.attention_norm": "h.{}.ln_1",
    "layers.{}.attention.query": "h.{}.attn.q_proj",
    "layers.{}.attention.key": "h.{}.attn.k_proj",
    "layers.{}.attention.value": "h.{}.attn.v_proj",
    "layers.{}.attention.output": "h.{}.attn.out_proj",
    **added_names("h.{}"),
    "layers.{}.mlp.up": "h.{}.mlp.fc_in",
    "layers.{}.mlp.down": "h.{}.mlp.fc_out",
    "final_norm": "ln_f",
    "head.output": "/lm_head",
}


FAMILIES = {
    "gptj": Family(
        model_type="gptj",
        config=GPTJConfig,
        spec=gptj_spec,
        names=GPTJ_NAMES,
        head_prefix="transformer.",
        architectures={"base": "GPTJModel", "causal": "GPTJForCausalLM"},
        prefixes=("", "transformer."),
        left_out=(r"\.attn\.(bias|masked_bias|embed_positions)$", r"^(score|qa_outputs)\."),
        causal=True,
        adds_cross_attention=True,
    )
}
