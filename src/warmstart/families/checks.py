"""Refuses a configuration that contradicts itself, before anything is built from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from warmstart.config import PretrainedConfig
from warmstart.spec import ACTIVATIONS

# Whole numbers from 1 on, and the most that is believed. Sizes above it would multiply to what is no size any more;
# layers and head sizes above it would fill the memory before a checkpoint could be found not to fit.
_SIZE, _FEW = 10**9, 10**4
_COUNTS = {
    "vocab_size": _SIZE,
    "hidden_size": _SIZE,
    "intermediate_size": _SIZE,
    "n_inner": _SIZE,
    "encoder_ffn_dim": _SIZE,
    "decoder_ffn_dim": _SIZE,
    "d_ff": _SIZE,
    "ffn_dim": _SIZE,
    "ffn_hidden_size": _SIZE,
    "window_size": _SIZE,
    "num_kv_heads": _FEW,
    "no_rope_layer_interval": _FEW,
    "rotary_dim": _FEW,
    "max_position_embeddings": _SIZE,
    "sliding_window": _SIZE,
    "sliding_window_pattern": _FEW,
    "embedding_size": _SIZE,
    "input_embedding_size": _SIZE,
    "output_embedding_size": _SIZE,
    "hidden_dim": _SIZE,
    "local_attention": _SIZE,
    "num_hidden_layers": _FEW,
    "num_hidden_groups": _FEW,
    "global_attn_every_n_layers": _FEW,
    "encoder_layers": _FEW,
    "decoder_layers": _FEW,
    "num_decoder_layers": _FEW,
    "relative_attention_num_buckets": _FEW,
    "relative_attention_max_distance": _SIZE,
    "num_attention_heads": _FEW,
    "encoder_attention_heads": _FEW,
    "decoder_attention_heads": _FEW,
    "num_key_value_heads": _FEW,
    "head_dim": _FEW,
}
_OPTIONAL = ("sliding_window", "n_inner", "head_dim", "intermediate_size", "rotary_dim")
# Options that no released checkpoint needs -> the one value that is supported.
_ONLY = {
    "apply_residual_connection_post_layernorm": False,
    "layer_norm_elementwise_affine": True,
}
_HEADS = ("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads")
_SHARES = ("dropout", "dropout_prob", "pdrop", "layerdrop")  # how the names of probabilities end
_POSITIVE = (
    *("layer_norm_eps", "layer_norm_epsilon", "rms_norm_eps", "norm_epsilon", "norm_eps", "global_rope_theta"),
    *("rope_theta", "rope_local_base_freq", "rotary_emb_base", "partial_rotary_factor", "rotary_pct"),
    *("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"),
)
_POSITIVE_OR_NONE = ("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping")
_NOT_NEGATIVE = ("initializer_range", "init_std", "type_vocab_size")
_ACTIVATIONS = ("hidden_act", "activation_function", "hidden_activation", "activation", "classifier_activation")
_LAYER_TYPES = ("full_attention", "sliding_attention")


def check(config: PretrainedConfig) -> None:
    """Check the fields that a stack is built from, one by one and against each other.

    Raises:
        ValueError: names the family, the field, its value, and what it may be.

    >>> from warmstart import BertConfig
    >>> check(BertConfig(hidden_size=10, num_attention_heads=3))
    Traceback (most recent call last):
    ...
    ValueError: bert config: hidden_size=10 is not a multiple of num_attention_heads=3; make it one
    """
    for name in _COUNTS:
        if config.has(name):
            check_count(config, name)
    for name in config.defaults:
        value = getattr(config, name)
        if name.endswith(_SHARES) and value is not None and not (_is_number(value) and 0 <= value <= 1):
            _refuse(config, name, ": it must be a number from 0 to 1")
        needed = name in _POSITIVE or (name in _POSITIVE_OR_NONE and value is not None)
        if needed and not (_is_number(value) and value > 0):
            _refuse(config, name, ": it must be a number above 0")
        if name in _NOT_NEGATIVE and not (_is_number(value) and value >= 0):
            _refuse(config, name, ": it must be a number, 0 or more")
        if name in _ONLY and value != _ONLY[name]:
            _refuse(config, name, f" is not supported; only {_ONLY[name]} is")
        is_open = name == "hidden_activation" and value is None  # Gemma's `hidden_act` then counts
        if name in _ACTIVATIONS and not is_open and not (isinstance(value, str) and value in ACTIVATIONS):
            _refuse(config, name, f" is not supported; use one of {', '.join(sorted(ACTIVATIONS))}")
    _check_heads(config)
    _check_padding(config)
    _check_layer_types(config)
    if not isinstance(getattr(config, "rope_scaling", None), (Mapping, type(None))):
        _refuse(config, "rope_scaling", ": it must be an object with a rope_type, or None")


def check_count(config: PretrainedConfig, name: str) -> None:
    """Check one field that is a count.

    Raises:
        ValueError: it is no whole number, or out of range.
    """
    value, most = getattr(config, name), _COUNTS[name]
    if value is None and name in _OPTIONAL:
        return
    if not (_is_whole(value) and 1 <= value <= most):
        _refuse(config, name, f": it must be a whole number from 1 to {most}")


def _check_heads(config: PretrainedConfig) -> None:
    size, own_size = config.hidden_size, getattr(config, "head_dim", None)
    for name in _HEADS:
        heads = getattr(config, name, None)
        if heads is not None and size % heads and own_size in (None, size // heads):
            _refuse(config, "hidden_size", f" is not a multiple of {config.field_name(name)}={heads}; make it one")
    heads, shared = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
    if shared is not None and heads % shared:
        _refuse(config, "num_attention_heads", f" is not a multiple of num_key_value_heads={shared}; make it one")
    pruned, layers = config.pruned_heads, config.num_hidden_layers
    for layer, gone in pruned.items():
        if not 0 <= layer < layers or not set(gone) < set(range(heads)):
            _refuse(config, "pruned_heads", f": there are {layers} layers of {heads} heads, and one of them must stay")


def _check_padding(config: PretrainedConfig) -> None:
    pad, size = config.pad_token_id, config.vocab_size
    least = -1 if config.has("rms_norm_eps") else 0  # the first Llama files say -1 for none
    if pad is not None and not (_is_whole(pad) and least <= pad < size):
        _refuse(config, "pad_token_id", f" is not in the vocabulary of vocab_size={size}; give another, or None")


def _check_layer_types(config: PretrainedConfig) -> None:
    types = getattr(config, "layer_types", None)
    if types is None:
        return
    if not isinstance(types, (list, tuple)) or len(types) != config.num_hidden_layers:
        layers = f"num_hidden_layers={config.num_hidden_layers}"
        _refuse(config, "layer_types", f": it must name a type for each of {layers}; leave it out to have it made")
    for kind in types:
        if kind not in _LAYER_TYPES:
            _refuse(config, "layer_types", f": {kind!r} is not supported; use {' and '.join(_LAYER_TYPES)}")


def _refuse(config: PretrainedConfig, name: str, why: str) -> NoReturn:
    value = repr(getattr(config, name))
    value = value if len(value) <= 60 else f"{value[:60]}..."
    raise ValueError(f"{config.model_type} config: {config.field_name(name)}={value}{why}")


def _is_whole(value: Any) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return hasattr(value, "__float__") and not isinstance(value, bool)
