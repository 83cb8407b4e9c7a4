"""Options that several commands have: settings given as NAME=VALUE, the type of the weights."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterable
from enum import Enum
from typing import Any


class DataType(str, Enum):
    """The type of a model's weights."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    auto = "auto"


def parse_settings(given: Iterable[str], known: Collection[str]) -> dict[str, Any]:
    """Names and values of settings; a value is read as JSON where it is that, else it is text.

    Raises:
        ValueError: no `=`, a name that is not known, or one that is given twice.

    >>> parse_settings(["num-beams=4", "early_stopping=never"], ["num_beams", "early_stopping"])
    {'num_beams': 4, 'early_stopping': 'never'}
    """
    settings: dict[str, Any] = {}
    for item in given:
        name, equals, text = item.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise ValueError(f"--set {item}: give a name and a value, such as num_beams=4")
        if name not in known:
            near = "".join(difflib.get_close_matches(name, known, n=1))
            hint = f"; did you mean {near!r}?" if near else ""
            raise ValueError(f"--set {item}: there is no setting {name!r}{hint}")
        if name in settings:
            raise ValueError(f"--set {item}: {name} is set twice")
        try:
            settings[name] = json.loads(text)
        except json.JSONDecodeError:
            settings[name] = {"True": True, "False": False, "None": None}.get(text, text)
    return settings


def at_least_one(name: str, number: int | None) -> None:
    """Refuse a count below one."""
    if number is not None and number < 1:
        raise ValueError(f"{name} {number}: give a whole number, 1 or more")


def prepare_torch(seed: int, device: str | None = None, threads: int | None = None) -> str:
    """Set torch's random numbers and threads; gives the device to use, which is checked.

    Raises:
        ValueError: there is no such device here.
    """
    import torch

    torch.manual_seed(seed)
    if threads is not None:
        torch.set_num_threads(threads)
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from error
    return device
