"""Makes models whose weights stay 0, because they are given their values by name later."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_waiting: ContextVar[bool] = ContextVar("waiting", default=False)


@contextmanager
def unfilled() -> Iterator[None]:
    """Inside it, new models draw no random values."""
    token = _waiting.set(True)
    try:
        yield
    finally:
        _waiting.reset(token)


def is_unfilled() -> bool:
    """Whether a model that is being made will be given its values later."""
    return _waiting.get()
