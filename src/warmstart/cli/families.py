"""`warmstart families`: which families there are, and what each can be."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from warmstart.cli.rendering import console, table


def families(
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List the families: which can encode, which can decode, which open whole, in which frameworks."""
    from warmstart.families.listing import rows

    if as_json:
        typer.echo(json.dumps([row._asdict() for row in rows()], indent=2))
        return
    shown = table("model_type", "encoder", "decoder", "cross-attention", "whole", "frameworks")
    for row in rows():
        sides = ("yes" if side else "no" for side in (row.encoder, row.decoder))
        shown.add_row(
            row.model_type, *sides, row.cross_attention, "yes" if row.whole else "", ", ".join(row.frameworks)
        )
    console().print(shown)
