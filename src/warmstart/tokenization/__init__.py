"""Tokenizers: a thin coat over the `tokenizers` library, with the classes and options that users know.

The public names stand in `public_names.py`, each under its room; here they are found when they are asked for.
"""

import importlib
from typing import Any

from warmstart.public_names import NAMES_BY_MODULE

_ROOM_OF = {name: room for room, names in NAMES_BY_MODULE.items() if room.startswith("tokenization.") for name in names}

__all__ = list(_ROOM_OF)


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"warmstart.{_ROOM_OF[name]}"), name)
