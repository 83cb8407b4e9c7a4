"""The surgery that makes one model of two checkpoints, as plain decisions about configurations and names.

It decides which half of a checkpoint is taken, what may be new, which weights are one, and where token ids come from;
each framework then moves its own arrays.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from warmstart.checkpoint.names import Shape
from warmstart.config import TOKEN_IDS, PretrainedConfig
from warmstart.families import MODULES, family, family_of
from warmstart.families.encoder_decoder import EncoderDecoderConfig
from warmstart.generation_config import GenerationConfig

PROJECTION = "enc_to_dec_proj"
# What a checkpoint may lack, as a whole, when a model is made from it: (what it is called, which names are its).
NEW_PARTS = {
    "cross-attention": re.compile(r"(^|\.)cross_attention(_output)?(_norm)?\."),
    "head": re.compile(r"(^|\.)head\."),
}
SOURCES = {"random", "copy"}  # where new cross-attention starts


@dataclass
class LoadReport:
    """What became of a checkpoint's weights; names are ours in `loaded` and `new`, the file's in `left_out`."""

    place: str = ""
    loaded: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)  # new cross-attention that starts as a copy of self-attention
    left_out: list[str] = field(default_factory=list)

    def under(self, prefix: str) -> LoadReport:
        """The same report, its own names prefixed."""
        ours = {name: [prefix + x for x in getattr(self, name)] for name in ("loaded", "new", "copied")}
        return LoadReport(self.place, left_out=self.left_out, **ours)


def half(config: PretrainedConfig, side: str) -> tuple[PretrainedConfig, str]:
    """The configuration of one side, and the prefix of its weights, where the checkpoint holds both sides."""
    if not isinstance(config, EncoderDecoderConfig):
        return config, ""
    return getattr(config, side), f"{side}." if config.joined() is config else ""


def pair_of(config: PretrainedConfig) -> tuple[PretrainedConfig, str | None]:
    """The pair's configuration, and the prefix of its weights; None where each half finds its own in a whole's file."""
    if isinstance(config, EncoderDecoderConfig):
        return config.joined(), "" if config.joined() is config else None
    return (EncoderDecoderConfig.from_whole(config), None) if family_of(config).whole else (config, "")


def whole_of(config: PretrainedConfig) -> str:
    """The reference's class of the whole that a configuration describes, or that a pair is; empty where it is none.

    >>> from warmstart import T5Config
    >>> whole_of(T5Config()), whole_of(pair_of(T5Config())[0])
    ('T5ForConditionalGeneration', 'T5ForConditionalGeneration')
    """
    if not isinstance(config, EncoderDecoderConfig):
        return family_of(config).whole
    try:
        config.joined().as_whole()
    except ValueError:
        return ""
    return family_of(config.decoder).whole


def check_whole(config: PretrainedConfig, name: str) -> None:
    """Refuse a configuration that is not that of the whole that is called so; an empty name takes any.

    Raises:
        ValueError: says what it is, and what opens it.
    """
    if name and (found := whole_of(config)) != name:
        raise ValueError(
            f"this {config.model_type} is {f'a {found}' if found else 'no whole of one family'} and no {name}; open it "
            "with EncoderDecoderModel or AutoModelForSeq2SeqLM, which take any"
        )


def wholes() -> frozenset[str]:
    """The reference's classes of wholes."""
    return frozenset(entry.whole for entry in map(family, MODULES) if entry.whole)


def name_in_file(prefix: str | None, side: str) -> str:
    """What stands before a side's names in a file: a prefix and the side, or in a whole's file nothing."""
    return "" if prefix is None else prefix + side


def sharing(config: PretrainedConfig) -> str:
    """The setting by which both sides of a pair have weights in common."""
    return "tie_encoder_decoder" if config.tie_encoder_decoder else "share_embeddings"


def new_parts(missing: Iterable[str], parameters: Iterable[str]) -> tuple[list[str], list[str]]:
    """Split missing names into those that may be new, because their whole part is missing, and those that may not."""
    missing, parameters = list(missing), list(parameters)
    absent = set(missing)
    fresh = [
        name
        for pattern in NEW_PARTS.values()
        if (part := [name for name in parameters if pattern.search(name)]) and absent.issuperset(part)
        for name in part
    ]
    return fresh, [name for name in missing if name not in set(fresh)]


def copies_of_self_attention(new: Iterable[str], shapes: Mapping[str, Shape]) -> dict[str, str]:
    """For each new cross-attention weight, the self-attention weight it can start from: where the shapes agree.

    T5Gemma (Zhang et al. 2025, section 2) starts cross-attention from the decoder's self-attention.

    >>> copies_of_self_attention(["layers.0.cross_attention.query.weight"], {
    ...     "layers.0.cross_attention.query.weight": (8, 8), "layers.0.attention.query.weight": (8, 8)})
    {'layers.0.cross_attention.query.weight': 'layers.0.attention.query.weight'}
    """
    pairs = {name: name.replace(".cross_attention", ".attention") for name in new if ".cross_attention" in name}
    return {ours: theirs for ours, theirs in pairs.items() if shapes.get(ours) == shapes.get(theirs)}


def check_cross_attention_init(value: str) -> str:
    """Give back where new cross-attention starts: "random" or "copy".

    Raises:
        ValueError: it is neither.
    """
    if value not in SOURCES:
        raise ValueError(f"cross_attention_init {value!r} is not known; use 'random' or 'copy'")
    return value


def tied_weights(encoder: Mapping[str, Shape], decoder: Mapping[str, Shape]) -> list[str]:
    """Names of the weights that both sides hold and may share (BERTSHARE, Rothe et al. 2020, section 4).

    Raises:
        ValueError: they cannot share: the shapes differ, or the encoder has weights that the decoder has not.
    """
    lone = [name for name in encoder if name not in decoder]
    unequal = [name for name in encoder if name in decoder and encoder[name] != decoder[name]]
    if lone or unequal:
        wrong = [f"{name} {encoder[name]} against {decoder.get(name, 'none')}" for name in (*unequal, *lone)[:3]]
        raise ValueError(
            f"tie_encoder_decoder needs an encoder and a decoder of one shape, and {len(lone) + len(unequal)} weights "
            f"differ: {', '.join(wrong)}; use the same checkpoint for both sides, or do not tie"
        )
    return list(encoder)


def needs_projection(config: PretrainedConfig) -> bool:
    """Whether the encoder's states must be projected to the decoder's width."""
    given = config.decoder.cross_attention_hidden_size
    if given is not None and given != config.encoder.hidden_size:
        raise ValueError(
            f"the decoder's cross_attention_hidden_size {given} is not the encoder's hidden_size "
            f"{config.encoder.hidden_size}; leave it None to have the encoder's states projected"
        )
    return given is None and config.encoder.hidden_size != config.decoder.hidden_size


def settings_to_keep(found: PretrainedConfig, loaded: PretrainedConfig) -> GenerationConfig:
    """What a decoder brings into a pair: the settings of its `config.json`, and the token ids of all its files.

    How a language model of its own was meant to be sampled (its `generation_config.json`) says nothing about the pair.
    """
    ids = {name: value for name in TOKEN_IDS if (value := getattr(loaded, name)) is not None}
    return GenerationConfig(**found.generation_config.explicit() | ids)


def fill_settings(config: PretrainedConfig, tokenizer_ids: Mapping[str, int | None] = {}) -> None:
    """Fill the token ids and generation settings that a pair leaves open, from the decoder's side.

    An id that is set is never changed. The start is the decoder's own start id, else its tokenizer's [CLS] or
    beginning-of-text token; the end is its end id, else its tokenizer's end or [SEP]; padding is its padding id, else
    its tokenizer's, else the end. Other settings are those that the decoder's configuration sets.
    """
    decoder = config.decoder
    for name, value in decoder.generation_config.to_diff_dict().items():
        if name not in TOKEN_IDS and name not in config.generation_config.explicit():
            setattr(config.generation_config, name, value)

    def first(*candidates: Any) -> Any:
        return next((value for value in candidates if value is not None), None)

    token = tokenizer_ids.get
    own = {
        "bos_token_id": first(decoder.bos_token_id, token("bos_token_id")),
        "eos_token_id": first(decoder.eos_token_id, token("eos_token_id"), token("sep_token_id")),
        "decoder_start_token_id": first(
            decoder.decoder_start_token_id, token("cls_token_id"), decoder.bos_token_id, token("bos_token_id")
        ),
    }
    end = own["eos_token_id"]
    end = end[0] if isinstance(end, (list, tuple)) else end
    own["pad_token_id"] = first(decoder.pad_token_id, token("pad_token_id"), end)
    for name, value in own.items():
        if getattr(config, name) is None and _in_vocabulary(value, decoder.vocab_size):
            setattr(config, name, value)


def _in_vocabulary(value: Any, size: int) -> bool:
    ids = value if isinstance(value, (list, tuple)) else [value]
    return value is not None and all(0 <= id < size for id in ids)


def check_decoder(config: PretrainedConfig) -> None:
    """Refuse what cannot decode, by name.

    Raises:
        ValueError: the family is not supported, or the configuration is not a decoder's with cross-attention.
    """
    family_of(config)
    if not config.is_decoder or not config.add_cross_attention:
        raise ValueError(
            f"the decoder's configuration ({config.model_type}) has is_decoder={config.is_decoder} and "
            f"add_cross_attention={config.add_cross_attention}, so it would not see the source; set both to True"
        )
