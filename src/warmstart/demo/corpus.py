"""The demo's corpus: functions of the standard library and of the installed packages, with the summary line of each.

Files are read and parsed with `ast`; nothing is imported, so no foreign code runs.
"""

from __future__ import annotations

import ast
import random
import re
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "testing", "_vendor", "vendor", "__pycache__"}
LARGEST_FILE = 400_000  # bytes; larger ones are tables and generated code
SUMMARY_WORDS = (4, 20)
SOURCE_CHARACTERS = 400  # more than the model reads
Function = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Pair:
    """One example: `source` is a function without its docstring, on one line; `summary` is the docstring's first."""

    package: str
    name: str
    source: str
    summary: str


def package_folders() -> list[tuple[str, Path]]:
    """The standard library's top-level modules and every installed package, as (name, file or folder)."""
    paths = sysconfig.get_paths()
    found: dict[str, Path] = {}
    for root in dict.fromkeys(Path(paths[key]) for key in ("stdlib", "purelib", "platlib")):
        for entry in sorted(root.iterdir()) if root.is_dir() else []:
            is_code = entry.suffix == ".py" or (entry.is_dir() and entry.name.isidentifier())
            if is_code and entry.name not in SKIPPED_FOLDERS:
                found.setdefault(entry.stem, entry)
    return sorted(found.items())


def read_package(name: str, path: Path, limit: int, seed: int = 0) -> list[Pair]:
    """Up to `limit` pairs of one package, from its files in a random order that `seed` fixes."""
    files = [path] if path.is_file() else sorted(path.rglob("*.py"))
    files = [file for file in files if not SKIPPED_FOLDERS & set(file.relative_to(path).parts)]
    random.Random(f"{seed}/{name}").shuffle(files)
    pairs: list[Pair] = []
    for file in files:
        pairs.extend(read_file(name, file))
        if len(pairs) >= limit:
            break
    return pairs[:limit]


def read_file(package: str, file: Path) -> Iterator[Pair]:
    """The pairs of one Python file; a file that cannot be read or parsed has none."""
    try:
        if file.stat().st_size > LARGEST_FILE:
            return
        text = file.read_text(encoding="utf-8")
        if '"""' not in text and "'''" not in text:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes such as "\d" in other people's strings
            tree = ast.parse(text)
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return
    lines = text.splitlines()
    for function in functions(tree):
        pair = pair_of(package, function, lines)
        if pair is not None:
            yield pair


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Functions and methods in the order of the file, not those inside other functions."""
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, Function):
            yield node
        else:
            inner = [*getattr(node, "body", []), *getattr(node, "orelse", [])]
            todo.extend(
                part for part in reversed(inner) if isinstance(part, (*Function, ast.ClassDef, ast.If, ast.Try))
            )


def pair_of(package: str, node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> Pair | None:
    """The pair of one function, or None where it has no docstring, no fit summary or no body."""
    docstring = ast.get_docstring(node)
    summary = summary_of(docstring) if docstring else None
    if summary is None or len(node.body) < 2:
        return None
    header = lines[node.lineno - 1 : node.body[0].lineno - 1]
    body = lines[node.body[1].lineno - 1 : node.end_lineno]
    code = [line for line in header + body if not line.lstrip().startswith("#")]
    source = " ".join(" ".join(code).split())
    return Pair(package, node.name, source[:SOURCE_CHARACTERS], summary) if source else None


def summary_of(docstring: str) -> str | None:
    """The first sentence of a docstring as plain text, or None where it is not one line of English prose.

    >>> summary_of("Return the :class:`Path` of ``name``, if any. Slow.")
    'Return the Path of name, if any.'
    >>> summary_of("x : int") is None
    True
    """
    paragraph = " ".join(docstring.strip().split("\n\n")[0].split())
    sentence = re.split(r"(?<=[a-z)'\"][.!?:])\s(?=[A-Z])", plain(paragraph), maxsplit=1)[0].rstrip(".:; ")
    letters = sum(character.isascii() and (character.isalpha() or character == " ") for character in sentence)
    fits = SUMMARY_WORDS[0] <= len(sentence.split()) <= SUMMARY_WORDS[1]
    prose = sentence[:1].isupper() and letters >= 0.9 * len(sentence)
    return f"{sentence}." if fits and prose else None


def plain(text: str) -> str:
    """`text` without the marks of reStructuredText: roles, backquotes, emphasis."""
    text = re.sub(r":[\w:+.-]+:`~?([^`<]*)(?:<[^`]*>)?`", r"\1", text)
    return re.sub(r"`+|\*\*", "", text)
