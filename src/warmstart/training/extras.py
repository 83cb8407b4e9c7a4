"""Packages of the extra `train`, named where they are missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs(package: str, what: str) -> Iterator[None]:
    """Imports of a package that may be missing.

    Raises:
        ImportError: it is; the message says what needs it and how to install it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise ImportError(
            f'{package} is not installed, and {what} cannot do without it: pip install "warmstart[train]"', name=package
        ) from error
