"""What a checkpoint is, gathered from its configuration files and the heads of its weights."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from typing import Any

from warmstart.checkpoint.readers import folder_of
from warmstart.checkpoint.writer import TARGET_TOKENIZER
from warmstart.cli.headers import Tensor, file_sizes, read_headers
from warmstart.cli.parts import PARTS, places
from warmstart.cli.rendering import patterns
from warmstart.cli.token_ids import missing, token_ids
from warmstart.config import TOKEN_IDS, PretrainedConfig
from warmstart.families import family_of
from warmstart.families.auto import AutoConfig
from warmstart.families.encoder_decoder import EncoderDecoderConfig, set_side
from warmstart.generation_config import GenerationConfig
from warmstart.hub import find_file, read_json
from warmstart.spec import StackSpec
from warmstart.tokenization.auto import IDS, AutoTokenizer, has_tokenizer
from warmstart.warm_start import fill_settings, half, needs_projection

SIDES = ("encoder", "decoder")


def facts_of(place: str, hub: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that `inspect` tells, as plain data.

    Raises:
        FileNotFoundError: no such folder or repository, or one without a configuration or weights.
        OSError: a file is corrupt.
        ValueError: the family is not supported, or the configuration does not make sense.
    """
    place = str(folder_of(place))
    config = AutoConfig.from_pretrained(place, **hub)
    raw = {name: _read(place, name, hub) for name in ("generation_config.json", "config.json")}
    if raw["generation_config.json"]:
        config.merge_settings(GenerationConfig.from_pretrained(place, **hub))
    is_pair = isinstance(config, EncoderDecoderConfig)
    if is_pair:
        fill_settings(config)
    tokenizers = {
        name: found
        for name, inner in (("tokenizer", ""), *[(TARGET_TOKENIZER, TARGET_TOKENIZER)] * is_pair)
        if (found := read_tokenizer(place, inner, hub)) is not None
    }
    facts: dict[str, Any] = {
        "place": place,
        "model_type": config.model_type,
        "architectures": config.architectures or [],
        "is_pair": is_pair,
        "stacks": _stacks(config),
    }
    if is_pair:
        facts["projection"] = [config.encoder.hidden_size, config.decoder.hidden_size] * needs_projection(config)
        facts["tied"] = bool(config.tie_encoder_decoder)
    writer = tokenizers.get(TARGET_TOKENIZER) or tokenizers.get("tokenizer")
    facts["token_ids"] = _token_ids(config, raw, writer)
    settings = config.generation_config.to_diff_dict()
    facts["generation"] = {name: value for name, value in settings.items() if name not in TOKEN_IDS}
    facts["tokenizers"] = {
        name: {"class": type(found).__name__, "size": len(found), "max_length": _bounded(found.model_max_length)}
        for name, found in tokenizers.items()
    }
    tensors = read_headers(place, hub)
    facts["weights"] = None if tensors is None else _weights(config, tensors)
    if not is_pair:
        facts["serves"] = _serves(config, facts["weights"])
    facts["files"] = file_sizes(place, hub)
    facts["notes"] = _notes(config, facts)
    return facts


def read_tokenizer(place: str, inner: str, hub: Mapping[str, Any]) -> Any:
    """The tokenizer of a folder or hub id, or of a folder in it; None where there is none."""
    options = {**hub, "subfolder": inner} if inner else hub
    try:
        return AutoTokenizer.from_pretrained(place, **options) if has_tokenizer(place, options) else None
    except (FileNotFoundError, ImportError):  # ImportError: a SentencePiece model without what reads it
        return None


def _stacks(config: PretrainedConfig) -> dict[str, dict[str, Any]]:
    """The stacks by their side; "" is the only one."""
    if isinstance(config, EncoderDecoderConfig):
        return {side: _stack(own := getattr(config, side), _spec(own, side == "decoder")) for side in SIDES}
    if not family_of(config).decoder_prefixes:
        return {"": _stack(config, _spec(config, config.is_decoder))}
    halves = {side: _as_side(config, side) for side in SIDES}
    return {side: _stack(own, _spec(own, side == "decoder")) for side, own in halves.items()}


def _as_side(config: PretrainedConfig, side: str) -> PretrainedConfig:
    config = copy.deepcopy(config)
    set_side(config, side)
    return config


def _spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    return family_of(config).spec(config, bool(headed))


def _stack(config: PretrainedConfig, spec: StackSpec) -> dict[str, Any]:
    attention, cross = spec.attention, spec.cross_attention
    rotary = attention.rotary
    return {
        "family": config.model_type,
        "layers": spec.layers,
        "hidden_size": spec.hidden_size,
        "heads": attention.heads,
        "key_value_heads": attention.key_value_heads,
        "head_size": attention.head_size,
        "mlp_size": spec.mlp.size,
        "activation": spec.mlp.activation,
        "gated": spec.mlp.gated,
        "vocabulary": spec.embedding.vocabulary,
        "positions": rotary.positions if rotary else spec.positions,
        "position_kind": "rotary" if rotary else "learned",
        "causal": spec.causal,
        "cross_attention": cross
        and {
            "added": family_of(config).adds_cross_attention,
            "hidden_size": spec.cross_attention_size,
        },
        "head": spec.head and ("tied" if spec.head.tied else "own"),
    }


def _token_ids(config: PretrainedConfig, raw: Mapping[str, Mapping[str, Any]], tokenizer: Any) -> dict[str, Any]:
    """The ids of a pair; of one stack, those that a pair would have whose decoder it is."""
    settings, own = raw["generation_config.json"], raw["config.json"]
    if isinstance(config, EncoderDecoderConfig):
        default = f"default of {config.decoder.model_type}", config.decoder.defaults
        found = [("config.json", own), ("generation_config.json", settings)]
        return token_ids(config, [*found, ("config.json, decoder", own.get("decoder") or {}), default], tokenizer)
    pair = EncoderDecoderConfig.from_encoder_decoder_configs(_as_side(config, "encoder"), _as_side(config, "decoder"))
    ids = {name: getattr(tokenizer, name) for name in IDS} if tokenizer is not None else {}
    fill_settings(pair, ids)
    found = [("generation_config.json", settings), ("config.json", own), ("tokenizer", ids)]
    return token_ids(pair, [*found, (f"default of {config.model_type}", config.defaults)], tokenizer)


def _weights(config: PretrainedConfig, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Parameters by side and part; a tensor that repeats a tied one, a buffer or another task's head is not counted."""
    place_of = places(config)
    parts: dict[str, Counter[str]] = {}
    left_out, unknown = [], []
    files: dict[str, list[str]] = {}
    found = {name: place_of(name) for name in tensors}
    encoder_has = {place.name for place in found.values() if place.side == "encoder"}
    for name, tensor in tensors.items():
        side, part, ours = found[name]
        types = files.setdefault(tensor.file, [])
        if tensor.dtype not in types:
            types.append(tensor.dtype)
        if part is None:
            unknown.append(name)
        elif part == "left out":
            left_out.append(name)
        else:
            if not _repeats(config, side, ours, encoder_has):
                parts.setdefault(side, Counter())[part] += tensor.numbers
    return {
        "tensors": len(tensors),
        "files": files,
        "parameters": sum(sum(counts.values()) for counts in parts.values()),
        "parts": {side: {part: counts[part] for part in PARTS if part in counts} for side, counts in parts.items()},
        "left_out": left_out,
        "unknown": unknown,
    }


def _repeats(config: PretrainedConfig, side: str, ours: str, encoder_has: set[str]) -> bool:
    """Whether a tensor is another name of one that is counted already."""
    own, _ = half(config, side or "decoder")
    if ours == "head.output.weight" and own.tie_word_embeddings:
        return True
    return side == "decoder" and config.tie_encoder_decoder and ours in encoder_has


def _serves(config: PretrainedConfig, weights: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a checkpoint of one stack brings to each side of a pair, and what would be new."""
    held = {part for parts in (weights or {"parts": {}})["parts"].values() for part in parts}
    head = _spec(_as_side(config, "decoder"), True).head
    has_weights = head is not None and bool(head.transform or head.bias or not head.tied)
    wanted = ["cross-attention", *["head"] * has_weights]
    return {
        "encoder": {"was_causal": family_of(config).causal},
        "decoder": {"new": [part for part in wanted if weights is not None and part not in held]},
    }


def _notes(config: PretrainedConfig, facts: Mapping[str, Any]) -> list[str]:
    notes = []
    if facts["is_pair"]:
        for name in missing(facts["token_ids"]):
            notes.append(f"{name} is not set: training and generate will ask for it")
        if not (config.decoder.is_decoder and config.decoder.add_cross_attention):
            notes.append("the decoder's configuration has no is_decoder or add_cross_attention: it cannot be loaded")
    if facts["weights"] is None:
        notes.append("the weights were not looked into: they are not safetensors on the hub, or it did not answer")
    elif facts["weights"]["unknown"]:
        notes.append(f"no {config.model_type} has the weights {patterns(facts['weights']['unknown'])}")
    if not facts["tokenizers"]:
        notes.append("there is no tokenizer that can be read here")
    for name, found in facts["tokenizers"].items():
        stacks = facts["stacks"]
        stack = stacks["decoder"] if name == TARGET_TOKENIZER else next(iter(stacks.values()))
        if found["size"] > stack["vocabulary"]:
            notes.append(f"the {name} has {found['size']} tokens, more than the {stack['vocabulary']} of the model")
    return notes


def _bounded(length: int) -> int | None:
    return length if length < 10**9 else None


def _read(place: str, name: str, hub: Mapping[str, Any]) -> dict[str, Any]:
    path = find_file(place, name, required=False, **hub)
    return read_json(path) if path is not None else {}
