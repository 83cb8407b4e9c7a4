"""The ids that a model starts, ends and pads its texts with, and where they stand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# role -> the setting, and the names under which its value may stand in a configuration or a tokenizer
ROLES = {
    "start": ("decoder_start_token_id", ("decoder_start_token_id", "cls_token_id", "bos_token_id")),
    "end": ("eos_token_id", ("eos_token_id", "sep_token_id")),
    "padding": ("pad_token_id", ("pad_token_id", "eos_token_id", "sep_token_id")),
}


def token_ids(
    config: Any, places: Iterable[tuple[str, Mapping[str, Any]]], tokenizer: Any = None
) -> dict[str, dict[str, Any]]:
    """For each role its setting, its id (or ids, or None), the token's text, and the first place that has that id.

    `places` are pairs of a description and the values that stand there, the most particular first.

    >>> from warmstart import GPT2Config
    >>> found = token_ids(GPT2Config(), [("config.json", {"eos_token_id": 50256})])
    >>> found["end"]["id"], found["end"]["from"], found["padding"]["id"]
    (50256, 'config.json, eos_token_id', None)
    """
    places = list(places)
    found = {}
    for role, (setting, names) in ROLES.items():
        value = getattr(config, setting)
        sources = (
            f"{place}, {name}"
            for place, values in places
            for name in names
            if value is not None and values.get(name) == value
        )
        found[role] = {"setting": setting, "id": value, "token": _token(tokenizer, value), "from": next(sources, None)}
    return found


def missing(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The settings that have no id."""
    return [facts["setting"] for facts in found.values() if facts["id"] is None]


def rows(found: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, str, str]]:
    """The same as rows of a table: role, id, token, source."""
    return [
        (role, _listed(facts["id"]) or "missing", _listed(facts["token"]), facts["from"] or "")
        for role, facts in found.items()
    ]


def _token(tokenizer: Any, value: Any) -> Any:
    if tokenizer is None or value is None:
        return None
    return tokenizer.convert_ids_to_tokens(value)


def _listed(value: Any) -> str:
    if value is None:
        return ""
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
