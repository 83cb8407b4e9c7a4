"""GPT-Neo (Black et al. 2021): learned positions, unscaled scores, and a window in the layers that are "local".

Cross-attention is added between self-attention and MLP, with its heads and biases, unscaled, too, and without a window.
"""

from __future__ import annotations

from warmstart.config import PretrainedConfig
from warmstart.families.checks import check
from warmstart.families.entry import Family, Stored, added_names, language_model
from warmstart.spec import AttentionSpec, MLPSpec, NormSpec, StackSpec


class GPTNeoConfig(PretrainedConfig):
    """A GPT-Neo's configuration; `attention_types` are groups of kinds, each with how often it repeats.

    >>> GPTNeoConfig(attention_types=[[["global", "local"], 2]], num_layers=4).attention_layers
    ['global', 'local', 'global', 'local']
    """

    model_type = "gpt_neo"
    defaults = {
        "vocab_size": 50257,
        "max_position_embeddings": 2048,
        "hidden_size": 2048,
        "num_layers": 24,
        "attention_types": [[["global", "local"], 12]],
        "num_heads": 16,
        "intermediate_size": None,
        "window_size": 256,
        "activation_function": "gelu_new",
        "resid_dropout": 0.0,
        "embed_dropout": 0.0,
        "attention_dropout": 0.0,
        "classifier_dropout": 0.1,
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
    }
    attribute_map = {"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"}

    def complete(self) -> None:
        try:
            self.attention_layers = [
                kind for kinds, times in self.attention_types for _ in range(times) for kind in kinds
            ]
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"gpt_neo config: attention_types={self.attention_types} must be pairs of a list of kinds and how "
                f"often it repeats, such as [[['global', 'local'], 12]] ({error})"
            ) from error


def gpt_neo_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """The stack of a GPT-Neo."""
    check(config)
    kinds = config.attention_layers
    if len(kinds) < config.num_layers or not set(kinds) <= {"global", "local"}:
        raise ValueError(
            f"gpt_neo config: attention_types={config.attention_types} must name 'global' or 'local' for each of "
            f"num_layers={config.num_layers}"
        )
    return language_model(
        config,
        headed,
        embedding={
            "padding_id": None,
            "positions": config.max_position_embeddings,
            "dropout": config.embed_dropout,
        },
        attention=AttentionSpec(
            heads=config.num_heads,
            key_value_heads=config.num_heads,
            head_size=config.hidden_size // config.num_heads,
            bias=False,
            dropout=config.attention_dropout,
            scaled=False,
            windows=tuple(config.window_size if kind == "local" else None for kind in kinds[: config.num_layers]),
        ),
        mlp=MLPSpec(config.intermediate_size or 4 * config.hidden_size, config.activation_function),
        norm=NormSpec("layer", config.layer_norm_epsilon, before=True, final=True),
        dropout=config.resid_dropout,
        positions=config.max_position_embeddings,
    )


GPT_NEO_NAMES: dict[str, str | Stored] = {
    "embeddings.token": "wte",
    "embeddings.position": "wpe",
    "layers.{}.attention_norm": "h.{}.ln_1",
    "layers.{}.attention.query": "h.{}.attn.attention.q_proj",
    "layers.{}.attention.key": "h.{}.attn.attention.k_proj",
    "layers.{}.attention.value": "h.{}.attn.attention.v_proj",
    "layers.{}.attention.output": "h.{}.attn.attention.out_proj",
    **added_names("h.{}"),
    "layers.{}.mlp_norm": "h.{}.ln_2",
    "layers.{}.mlp.up": "h.{}.mlp.c_fc",
    "layers.{}.mlp.down": "h.{}.mlp.c_proj",
    "final_norm": "ln_f",
    "head.output": "/lm_head",
}


FAMILIES = {
    "gpt_neo": Family(
        model_type="gpt_neo",
        config=GPTNeoConfig,
        spec=gpt_neo_spec,
        names=GPT_NEO_NAMES,
        head_prefix="transformer.",
        architectures={"base": "GPTNeoModel", "causal": "GPTNeoForCausalLM"},
        prefixes=("", "transformer."),
        left_out=(r"\.attention\.(bias|masked_bias)$", r"^(score|classifier|qa_outputs)\."),
        causal=True,
        adds_cross_attention=True,
    )
}
