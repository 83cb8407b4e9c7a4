"""The families as rows of a table: which side each can be, where its cross-attention is from, in which frameworks."""

from __future__ import annotations

from textwrap import fill
from typing import NamedTuple

from warmstart.families import MODULES, family

FRAMEWORKS = ("PyTorch", "JAX", "TensorFlow")
# Families that were considered and are not here -> why.
LEFT_OUT = {
    "prophetnet": (
        "each layer of its decoder computes several streams at once, one of the tokens and one for each token ahead "
        "that it predicts, each with keys, masks and distances of its own; logits come from the first stream ahead, "
        "and a cache keeps that of the tokens alone. The common block, whose layers take one stream and give one, "
        "would have to be another in every framework, for one rare family"
    ),
    "xmod": (
        "each layer ends in an adapter for each language, and a row of a batch goes through that of its own: the "
        "common block, whose layers compute all rows alike, would need another argument in every framework, for one "
        "rare family"
    ),
}


class Row(NamedTuple):
    """What a family can be."""

    model_type: str
    encoder: bool
    decoder: bool
    cross_attention: str  # "own" or "added"; "" where it cannot be a decoder
    whole: bool  # a checkpoint of both sides opens as a pair
    frameworks: tuple[str, ...]


def rows() -> list[Row]:
    """Every family, by its `model_type`.

    >>> next(row for row in rows() if row.model_type == "llama").cross_attention
    'added'
    """
    return [_row(model_type) for model_type in sorted(MODULES)]


def _row(model_type: str) -> Row:
    entry = family(model_type)
    cross_attention = ("added" if entry.adds_cross_attention else "own") if entry.decoder else ""
    return Row(model_type, entry.encoder, entry.decoder, cross_attention, bool(entry.whole), FRAMEWORKS)


def as_markdown() -> str:
    """The table as Markdown.

    >>> as_markdown().splitlines()[0]
    '| `model_type` | encoder | decoder | cross-attention | whole | frameworks |'
    """
    head = ["`model_type`", "encoder", "decoder", "cross-attention", "whole", "frameworks"]
    lines = [head, ["---"] * len(head)]
    for row in rows():
        sides = ["yes" if side else "no" for side in (row.encoder, row.decoder)]
        lines.append(
            [f"`{row.model_type}`", *sides, row.cross_attention, "yes" if row.whole else "", ", ".join(row.frameworks)]
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def left_out_as_markdown() -> str:
    """What is left out, and why, as Markdown."""
    lines = [fill(f"**Left out**: `{name}`, because {why}.", 120) for name, why in LEFT_OUT.items()]
    return "\n\n".join(lines) + "\n"
