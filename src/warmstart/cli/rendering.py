"""How numbers, names and messages look on the terminal."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_UNITS = ((10**9, "B"), (10**6, "M"))
_BYTES = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"), (1, "B"))


def say(message: str) -> None:
    """A line to the user beside the results: on stderr, after the name of the program."""
    with suppress(BrokenPipeError):  # nobody listens
        sys.stderr.write(f"warmstart: {message}\n")
        sys.stderr.flush()


def console(**options: Any) -> Console:
    """Where tables are printed: standard output, names of files and weights left as they are."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False, soft_wrap=False, **options)


def error_console() -> Console:
    """Where progress is shown: standard error."""
    return console(stderr=True)


def is_terminal(name: str) -> bool:
    """Whether "stdout" or "stderr" is a terminal."""
    return bool(getattr(sys, name).isatty())


def table(*columns: str, title: str | None = None) -> Table:
    """A table without lines; the first column is text, the others are what `add_row` gives them."""
    from rich.table import Table

    made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for column in columns:
        made.add_column(column, header_style="dim", overflow="fold")
    return made


def count(number: int) -> str:
    """A number of parameters: exact when short, rounded when long.

    >>> count(1234), count(108_891_648), count(7_000_000_000)
    ('1,234', '108.9 M', '7.0 B')
    """
    for size, unit in _UNITS:
        if number >= size:
            return f"{number / size:,.1f} {unit}"
    return f"{number:,}"


def size(number: int) -> str:
    """A size in bytes.

    >>> size(437_951_328), size(539)
    ('438.0 MB', '539 B')
    """
    for least, unit in _BYTES:
        if number >= least:
            return f"{number / least:,.{0 if least == 1 else 1}f} {unit}"
    return "0 B"


def patterns(names: Iterable[str], shown: int = 4) -> str:
    """Names of weights told in few words: layers and the last part left away.

    >>> patterns(["bert.pooler.dense.weight", "bert.pooler.dense.bias", "h.0.attn.bias", "h.1.attn.bias"])
    'bert.pooler.dense, h.*.attn'
    """
    stems = dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".*", name).rpartition(".")[0] or name for name in names)
    kinds = [stem for stem in stems if not any(stem.startswith(f"{other}.") for other in stems)]
    more = f" and {len(kinds) - shown} more" if len(kinds) > shown else ""
    return ", ".join(kinds[:shown]) + more


@contextmanager
def busy(message: str) -> Iterator[None]:
    """Say what is being done while it is, on a terminal."""
    if not is_terminal("stderr"):
        yield
        return
    with error_console().status(message):
        yield
