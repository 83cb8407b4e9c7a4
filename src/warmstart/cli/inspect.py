"""`warmstart inspect`: what a checkpoint is, from its configuration and the heads of its weight files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from warmstart.cli.rendering import busy, console, count, patterns, size, table
from warmstart.cli.token_ids import rows

SHOWN_FILES = 20


def inspect(
    checkpoint: Annotated[str, typer.Argument(metavar="DIR|ID", help="A folder or a hub id.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False,
    revision: Annotated[str | None, typer.Option(metavar="NAME", help="Branch, tag or commit on the hub.")] = None,
    cache_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="Where downloads are kept.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Ask no hub; use what was downloaded.")] = False,
) -> None:
    """Tell what a checkpoint is: sizes, families, tying, token ids, files and parameters.

    Reads configurations and the heads of weight files: no weights are loaded,
    and none are downloaded from a hub.
    """
    from warmstart.cli.facts import facts_of

    with busy(f"reading {checkpoint}"):
        facts = facts_of(checkpoint, {"revision": revision, "cache_dir": cache_dir, "local_files_only": offline})
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        show(facts)


def show(facts: Mapping[str, Any]) -> None:
    """Print the facts as tables."""
    out = console()
    names = ", ".join(facts["architectures"])
    total = f", {count(facts['weights']['parameters'])} parameters" if facts["weights"] else ""
    out.print(f"{facts['place']}: {facts['model_type']}{f' ({names})' * bool(names)}{total}", soft_wrap=True)
    for block in (_stacks, _parameters, _token_ids, _tokenizers, _files):
        if (shown := block(facts)) is not None:
            out.print()
            out.print(shown)
    lines = [*_serves(facts), *_more(facts), *(f"Note: {note}." for note in facts["notes"])]
    if lines:
        out.print()
    for line in lines:
        out.print(line)


def _stacks(facts: Mapping[str, Any]) -> Any:
    stacks = list(facts["stacks"].values())
    shown = table("", *facts["stacks"])
    shown.show_header = len(stacks) > 1
    for name, tell in _TOLD.items():
        cells = [tell(stack) for stack in stacks]
        if any(cells):
            shown.add_row(name, *(cell or "-" for cell in cells))
    return shown


def _heads(stack: Mapping[str, Any]) -> str:
    heads, shared = stack["heads"], stack["key_value_heads"]
    return f"{heads} of {stack['head_size']}" + f", {shared} for keys and values" * (heads != shared)


def _positions(stack: Mapping[str, Any]) -> str:
    number = f"{stack['positions']:,}" if stack["positions"] else "without bound"
    return number + ", rotary" * (stack["position_kind"] == "rotary")


def _cross_attention(stack: Mapping[str, Any]) -> str:
    cross = stack["cross_attention"]
    return f"{'added' if cross['added'] else 'its own'}, reads {cross['hidden_size']:,}" if cross else ""


_TOLD = {
    "family": lambda stack: stack["family"],
    "layers": lambda stack: str(stack["layers"]),
    "hidden size": lambda stack: f"{stack['hidden_size']:,}",
    "heads": _heads,
    "MLP": lambda stack: f"{stack['mlp_size']:,}, {'gated ' * stack['gated']}{stack['activation']}",
    "vocabulary": lambda stack: f"{stack['vocabulary']:,}",
    "positions": _positions,
    "attends": lambda stack: "backwards" if stack["causal"] else "both ways",
    "cross-attention": _cross_attention,
    "head": lambda stack: {"tied": "tied to the embeddings", "own": "a matrix of its own", None: ""}[stack["head"]],
}


def _parameters(facts: Mapping[str, Any]) -> Any:
    weights = facts["weights"]
    if weights is None:
        return None
    sides = sorted(weights["parts"], key=["encoder", "decoder", ""].index)
    of_both = "between" if facts["is_pair"] else "both" * (len(sides) > 1)
    shown = table("parameters", *(side or of_both for side in sides))
    for column in shown.columns[1:]:
        column.justify = "right"
    parts = list(dict.fromkeys(part for counts in weights["parts"].values() for part in counts))
    for part in parts:
        numbers = (weights["parts"][side].get(part) for side in sides)
        shown.add_row(part, *(count(number) if number else "-" for number in numbers))
    if len(parts) > 1:
        shown.add_row("together", *(count(sum(weights["parts"][side].values())) for side in sides), style="bold")
    return shown


def _token_ids(facts: Mapping[str, Any]) -> Any:
    shown = table("token" if facts["is_pair"] else "as decoder", "id", "text", "from")
    for row in rows(facts["token_ids"]):
        shown.add_row(*row)
    return shown


def _tokenizers(facts: Mapping[str, Any]) -> Any:
    if not facts["tokenizers"]:
        return None
    shown = table("tokenizer", "class", "tokens", "longest text")
    for name, found in facts["tokenizers"].items():
        longest = f"{found['max_length']:,}" if found["max_length"] else "-"
        shown.add_row("decoder's" if name != "tokenizer" else "", found["class"], f"{found['size']:,}", longest)
    return shown


def _files(facts: Mapping[str, Any]) -> Any:
    files = list(facts["files"].items())
    if not files:
        return None
    types = (facts["weights"] or {"files": {}})["files"]
    shown = table("file", "size", "type")
    shown.columns[1].justify = "right"
    for name, number in files[:SHOWN_FILES]:
        shown.add_row(name, size(number), ", ".join(types.get(name, [])))
    if len(files) > SHOWN_FILES:
        shown.add_row(f"and {len(files) - SHOWN_FILES} more", size(sum(number for _, number in files[SHOWN_FILES:])))
    return shown


def _serves(facts: Mapping[str, Any]) -> list[str]:
    if "serves" not in facts:
        return []
    new = facts["serves"]["decoder"]["new"]
    was_causal = ", attending both ways unless told otherwise" * facts["serves"]["encoder"]["was_causal"]
    return [
        f"Serves as encoder{was_causal}.",
        f"Serves as decoder; new would be: {', '.join(new)}." if new else "Serves as decoder; nothing would be new.",
    ]


def _more(facts: Mapping[str, Any]) -> list[str]:
    lines = []
    if facts.get("projection"):
        wide, narrow = facts["projection"]
        lines.append(f"A projection takes the encoder's states from {wide:,} to the decoder's {narrow:,}.")
    if facts.get("tied"):
        lines.append("Encoder and decoder share their weights.")
    if facts["generation"]:
        settings = ", ".join(f"{name}={value}" for name, value in facts["generation"].items())
        lines.append(f"Generates with {settings}.")
    if facts["weights"] and facts["weights"]["left_out"]:
        lines.append(f"In the files, and not wanted here: {patterns(facts['weights']['left_out'])}.")
    return lines
