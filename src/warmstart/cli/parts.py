"""Which part of a model a weight belongs to, by its name here or by its name in a file."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from warmstart.config import PretrainedConfig
from warmstart.families import family_of
from warmstart.warm_start import PROJECTION

# part -> the names that are its, as they are in memory; in the order in which parts are shown
PARTS = {
    "embeddings": r"(embeddings\.|relative_bias\b|distances\.|convolution\.)",
    "self-attention": r"layers\.\S+?\.attention(_output)?(_norm)?\b",
    "cross-attention": r"layers\.\S+?\.cross_attention(_output)?(_norm)?\b",
    "MLP": r"layers\.\S+?\.mlp(_output)?(_norm)?\b",
    "final norm": r"final_norm\b",
    "head": r"head\.",
    "projection": PROJECTION,
}


class Place(NamedTuple):
    """Where a tensor of a file belongs; the part is "left out" for what no model here wants, None for the unknown."""

    side: str  # "encoder", "decoder", or "" in a file of one stack
    part: str | None
    name: str = ""  # the name here, with `{}` for the layer


def part_of(name: str) -> str:
    """The part that a parameter belongs to.

    >>> part_of("layers.3.cross_attention_norm.weight"), part_of("encoder.embeddings.token.weight")
    ('cross-attention', 'embeddings')
    """
    name = re.sub(r"^(encoder|decoder)\.", "", name)
    return next(part for part, pattern in PARTS.items() if re.match(pattern, name))


def places(config: PretrainedConfig) -> Callable[[str], Place]:
    """A function from a tensor's name in a file to its place, for a checkpoint with this configuration."""
    if config.model_type != "encoder-decoder":
        return _places_of_stack(getattr(config, "decoder", config))  # a whole's halves have the same names
    sides = {side: _places_of_stack(getattr(config, side)) for side in ("encoder", "decoder")}

    def place(key: str) -> Place:
        side, _, rest = key.partition(".")
        if side in sides:
            return sides[side](rest)._replace(side=side)
        return Place("", "projection" if side == PROJECTION else None)

    return place


def _places_of_stack(config: PretrainedConfig) -> Callable[[str], Place]:
    family = family_of(config)
    own: list[tuple[re.Pattern[str], str]] = []  # names under a prefix, and those that stand outside any
    outside: list[tuple[re.Pattern[str], str]] = []
    special = family.names_of(config, family.spec(config, False))
    for ours, stored in (*family.names.items(), *family.encoder_names.items(), *special.items()):
        names = (stored,) if isinstance(stored, str) else (stored.name, stored.ungated, *stored.aliases)
        for name in filter(None, names):
            pattern = re.escape(name.lstrip("/")).replace(r"\{\}", r"\d+") + r"(\.weight|\.bias)?"
            (outside if name.startswith("/") else own).append((re.compile(pattern), ours))
    left_out = [re.compile(pattern) for pattern in family.left_out]
    prefixes = sorted({"", *family.prefixes, *family.decoder_prefixes, family.head_prefix}, key=len, reverse=True)

    def place(key: str) -> Place:
        for old, new in family.renamed.items():
            key = re.sub(old, new, key)
        if any(pattern.search(key) for pattern in left_out):
            return Place("", "left out")
        for prefix in prefixes:
            if key.startswith(prefix) and (ours := _match(own, key[len(prefix) :])):
                half = re.search(r"(encoder|decoder)\.$", prefix)
                return Place(half[1] if half else "", part_of(ours), ours)
        ours = _match(outside, key)
        return Place("", part_of(ours) if ours else None, ours)

    return place


def _match(patterns: list[tuple[re.Pattern[str], str]], key: str) -> str:
    return next((ours for pattern, ours in patterns if pattern.fullmatch(key)), "")
