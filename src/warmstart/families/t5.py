"""T5 (Raffel et al. 2020), its version 1.1 and mT5 (Xue et al. 2021): distances in buckets, RMS norms first."""

from __future__ import annotations

from dataclasses import replace

from warmstart.config import PretrainedConfig
from warmstart.families.checks import check
from warmstart.families.entry import Family, Stored
from warmstart.spec import AttentionSpec, EmbeddingSpec, HeadSpec, MLPSpec, NormSpec, RelativeSpec, StackSpec


class T5Config(PretrainedConfig):
    """A T5's configuration; `is_decoder` says which of its halves is meant.

    >>> config = T5Config(feed_forward_proj="gated-gelu")
    >>> config.num_decoder_layers, config.is_gated_act, config.dense_act_fn
    (6, True, 'gelu_new')
    """

    model_type = "t5"
    defaults = {
        "vocab_size": 32128,
        "d_model": 512,
        "d_kv": 64,
        "d_ff": 2048,
        "num_layers": 6,
        "num_decoder_layers": None,
        "num_heads": 8,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "dropout_rate": 0.1,
        "layer_norm_epsilon": 1e-6,
        "initializer_factor": 1.0,
        "feed_forward_proj": "relu",
        "is_encoder_decoder": True,
        "use_cache": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "classifier_dropout": 0.0,
    }
    attribute_map = {
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
        "head_dim": "d_kv",
    }

    num_decoder_layers: int

    def complete(self) -> None:
        if self.num_decoder_layers is None:
            self.num_decoder_layers = self.num_layers
        gate, _, activation = str(self.feed_forward_proj).rpartition("-")
        if gate not in ("", "gated"):
            raise ValueError(
                f"{self.model_type} config: feed_forward_proj={self.feed_forward_proj!r}: it must be an activation, or "
                "'gated-' and one"
            )
        self.is_gated_act = gate == "gated"
        self.dense_act_fn = "gelu_new" if self.feed_forward_proj == "gated-gelu" else activation


class MT5Config(T5Config):
    """An mT5's configuration.

    Version 5 of the reference says of every mT5 that its head is tied, and multiplies nothing: such a file gets the
    field that newer T5 have for it, `scale_decoder_outputs`.
    """

    model_type = "mt5"
    defaults = {
        **{name: value for name, value in T5Config.defaults.items() if not name.endswith(("_token_id", "_dropout"))},
        "vocab_size": 250112,
        "d_ff": 1024,
        "num_layers": 8,
        "num_heads": 6,
        "feed_forward_proj": "gated-gelu",
        "tokenizer_class": "T5Tokenizer",
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        "classifier_dropout": 0.0,
    }

    def complete(self) -> None:
        super().complete()
        major = str(self.transformers_version or "").partition(".")[0]
        if major.isdecimal() and int(major) >= 5:
            self.__dict__.setdefault("scale_decoder_outputs", False)


def t5_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """The stack of one half of a T5."""
    check(config)
    causal = config.is_decoder or headed
    attention = AttentionSpec(
        heads=config.num_heads,
        key_value_heads=config.num_heads,
        head_size=config.d_kv,
        bias=False,
        output_bias=False,
        dropout=config.dropout_rate,
        scaled=False,
        relative=RelativeSpec(
            config.relative_attention_num_buckets, config.relative_attention_max_distance, both_ways=not causal
        ),
    )
    tied = config.tie_word_embeddings
    scaled = getattr(config, "scale_decoder_outputs", tied)  # newer files say it beside
    return StackSpec(
        family=config.model_type,
        hidden_size=config.d_model,
        layers=config.num_decoder_layers if causal else config.num_layers,
        embedding=EmbeddingSpec(
            config.vocab_size, config.d_model, padding_id=config.pad_token_id, dropout=config.dropout_rate
        ),
        attention=attention,
        cross_attention=replace(attention, relative=None) if causal and config.add_cross_attention else None,
        cross_attention_size=config.cross_attention_hidden_size or config.d_model,
        mlp=MLPSpec(config.d_ff, config.dense_act_fn, config.is_gated_act, bias=False, dropout=config.dropout_rate),
        norm=NormSpec("rms", config.layer_norm_epsilon, before=True, final=True),
        head=HeadSpec(tied=tied, scale=config.d_model**-0.5 if scaled else 1.0) if headed else None,
        causal=causal,
        dropout=config.dropout_rate,
    )


def _layer_names(mlp: int) -> dict[str, str | Stored]:
    """The names of a layer whose MLP is the sub-layer of this number."""
    parts = {"query": "q", "key": "k", "value": "v", "output": "o"}
    inner = f"block.{{}}.layer.{mlp}"
    return {
        **{f"layers.{{}}.attention.{ours}": f"block.{{}}.layer.0.SelfAttention.{name}" for ours, name in parts.items()},
        "layers.{}.attention_norm": "block.{}.layer.0.layer_norm",
        **{
            f"layers.{{}}.cross_attention.{ours}": f"block.{{}}.layer.1.EncDecAttention.{name}"
            for ours, name in parts.items()
        },
        "layers.{}.cross_attention_norm": "block.{}.layer.1.layer_norm",
        "layers.{}.mlp.gate": f"{inner}.DenseReluDense.wi_0",
        "layers.{}.mlp.up": Stored(f"{inner}.DenseReluDense.wi_1", ungated=f"{inner}.DenseReluDense.wi"),
        "layers.{}.mlp.down": f"{inner}.DenseReluDense.wo",
        "layers.{}.mlp_norm": f"{inner}.layer_norm",
    }


T5_NAMES: dict[str, str | Stored] = {
    "embeddings.token.weight": Stored("embed_tokens.weight", aliases=("/shared.weight",), alone="/shared.weight"),
    "relative_bias": "block.0.layer.0.SelfAttention.relative_attention_bias",
    **_layer_names(2),
    "final_norm": "final_layer_norm",
    "head.output": "/lm_head",
}


def _family(config: type[PretrainedConfig], name: str) -> Family:
    return Family(
        model_type=config.model_type,
        config=config,
        spec=t5_spec,
        names=T5_NAMES,
        encoder_names={ours: stored for ours, stored in _layer_names(1).items() if ".mlp" in ours},
        head_prefix="decoder.",
        architectures={"base": f"{name}EncoderModel"},
        prefixes=("", "encoder."),
        decoder_prefixes=("decoder.", ""),
        alone_prefix="encoder.",
        left_out=(
            r"EncDecAttention\.relative_attention_bias\.weight$",
            r"^(classification_head|qa_outputs|classifier)\.",
        ),
        whole=f"{name}ForConditionalGeneration",
    )


FAMILIES = {"t5": _family(T5Config, "T5"), "mt5": _family(MT5Config, "MT5")}
