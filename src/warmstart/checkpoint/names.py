"""Renames, splits, joins and transposes weights between a checkpoint's layout and ours, both ways."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from warmstart.config import PretrainedConfig
from warmstart.families import family_of
from warmstart.families.entry import Family, Stored
from warmstart.spec import StackSpec

Shape = tuple[int, ...]


@dataclass
class Located:
    """Where a stack's parameters were found in a file, and what else of that file is whose."""

    found: dict[str, Stored] = field(default_factory=dict)  # our parameter -> where it is, under the file's full name
    missing: list[str] = field(default_factory=list)  # our parameters that are not there
    left_out: list[str] = field(default_factory=list)  # keys known and not wanted: other heads, the other half, buffers
    unexpected: list[str] = field(default_factory=list)  # keys that nothing accounts for


def locate(
    parameters: Iterable[str],
    keys: Iterable[str],
    config: PretrainedConfig,
    spec: StackSpec,
    side: str = "",
    fewer_layers: bool = False,
) -> Located:
    """Find a stack's parameters among a file's keys.

    `side` is "encoder." or "decoder." where the file holds both; other keys than the side's are not looked at. The
    prefix before the stack's own names (`bert.`, `model.decoder.` ...) is the one under which most of them are found.
    With `fewer_layers` the file's further layers are left out; otherwise they are unexpected.
    """
    family = family_of(config)
    names = family.names_of(config, spec)
    known = {_modern(key[len(side) :], family): key for key in keys if key.startswith(side)}
    stored = {name: stored_as(name, names, spec) for name in parameters}
    prefixes = _prefixes(family, spec)

    def keys_of(entry: Stored, prefix: str) -> Iterator[str]:
        return (_absolute(name, prefix) for name in (entry.untied, entry.name, *entry.aliases) if name)

    def hits(prefix: str) -> int:
        return sum(any(key in known for key in keys_of(entry, prefix)) for entry in stored.values())

    prefix = max(prefixes, key=hits)
    result = Located()
    for name, entry in stored.items():
        key = next((key for key in keys_of(entry, prefix) if key in known), None)
        if key is None:
            result.missing.append(name)
        else:
            result.found[name] = replace(entry, name=known[key], aliases=(), untied="")
    layers = math.inf if fewer_layers else spec.layers
    _sort_rest(result, known, family, names, layers, prefix)
    return result


def stored_as(parameter: str, names: Mapping[str, str | Stored], spec: StackSpec) -> Stored:
    """How one parameter of ours is stored, under a family's own names (no prefix)."""
    template = re.sub(r"\.\d+\.", ".{}.", parameter, count=1)
    layer = found[1] if (found := re.search(r"\.(\d+)\.", parameter)) else ""
    module, _, leaf = template.rpartition(".")
    entry = names.get(template)
    suffix = ""
    if entry is None:
        entry, suffix = names.get(module), f".{leaf}"
    if entry is None:
        raise KeyError(f"the parameter {parameter!r} has no name on disk; add it to the family's names")
    entry = Stored(entry) if isinstance(entry, str) else entry
    full, *aliases = (name.format(layer) + suffix for name in (entry.name, *entry.aliases))
    transposed = entry.transposed and leaf == "weight"
    entry = _shared_out(entry, spec) if entry.by_head else entry
    return replace(entry, name=full, aliases=tuple(aliases), transposed=transposed)


def _shared_out(entry: Stored, spec: StackSpec) -> Stored:
    """Where part 0, 1 or 2 (queries, keys, values) lies in a tensor with a row of heads for each key-value head."""
    queries = spec.attention.heads // spec.attention.key_value_heads
    part, size = ((0, queries), (queries, 1), (queries + 1, 1))[entry.part]
    groups = spec.attention.key_value_heads
    return replace(entry, part=part, size=size, parts=queries + 2, groups=groups, by_head=False)


def stored_shape(entry: Stored, shape: Shape) -> Shape:
    """The shape of the stored tensor that holds a parameter of this shape."""
    whole = (entry.parts, *shape) if entry.row else (shape[0] * entry.parts // entry.size, *shape[1:])
    return whole[::-1] if entry.transposed else whole


def unpack(entry: Stored, tensor: Any) -> Any:
    """Our parameter: a view of the stored tensor, but where it is spread over groups."""
    if entry.row:
        return tensor[entry.part]
    tensor = tensor.T if entry.transposed else tensor
    if entry.parts == 1:
        return tensor
    rows, one = tensor.shape[0] // entry.groups, tensor.shape[0] // (entry.groups * entry.parts)
    span = slice(entry.part * one, (entry.part + entry.size) * one)
    if entry.groups == 1:
        return tensor[span]
    return tensor.reshape(entry.groups, rows, *tensor.shape[1:])[:, span].reshape(-1, *tensor.shape[1:])


def pack(entries: Mapping[str, Stored], tensors: Mapping[str, Any], key: str, join: Callable[..., Any]) -> Any:
    """The tensor stored under `key`, from our parameters; `join` concatenates along an axis, the first unless told."""
    parts = sorted((entry.part, name) for name, entry in entries.items() if key in (entry.name, entry.untied))
    entry, first = entries[parts[0][1]], tensors[parts[0][1]]
    if entry.row:
        return join([tensors[name][None] for _, name in parts])
    if len(parts) == 1:
        tensor = first
    elif entry.groups == 1:
        tensor = join([tensors[name] for _, name in parts])
    else:
        rows = [tensors[name].reshape(entry.groups, -1, *first.shape[1:]) for _, name in parts]
        tensor = join(rows, 1).reshape(-1, *first.shape[1:])
    return tensor.T if entry.transposed else tensor


def written_as(
    parameters: Iterable[str],
    config: PretrainedConfig,
    spec: StackSpec,
    side: str = "",
    alone: bool = True,
    whole: Collection[str] | None = None,
) -> dict[str, Stored]:
    """Under which names a stack's parameters are written: the names that the reference's classes have.

    `whole` says that it is half of a whole's file, and which of its parameters are both halves'.
    """
    family = family_of(config)
    prefix = family.head_prefix if spec.head is not None else family.alone_prefix if alone else ""
    names = family.names_of(config, spec)
    if whole is not None and spec.head is None:
        prefix = family.prefixes[-1]
    by_itself = alone and spec.head is None
    own_head = spec.head is not None and not spec.head.tied

    def full(entry: Stored) -> Stored:
        first = entry.alone if entry.alone and by_itself else entry.name
        second = side + _absolute(entry.untied, prefix) if entry.untied and own_head else ""
        return replace(entry, name=side + _absolute(first, prefix), untied=second)

    stored = {name: stored_as(name, names, spec) for name in parameters}
    both = {name: replace(entry, name=entry.aliases[0]) for name, entry in stored.items() if name in (whole or ())}
    return {name: full(entry) for name, entry in (stored | both).items()}


def _absolute(name: str, prefix: str) -> str:
    return name[1:] if name.startswith("/") else prefix + name


def _prefixes(family: Family, spec: StackSpec) -> tuple[str, ...]:
    own = family.decoder_prefixes if spec.causal and family.decoder_prefixes else family.prefixes
    return own if family.head_prefix in own or not spec.head else (family.head_prefix, *own)


def _modern(key: str, family: Family) -> str:
    for old, new in family.renamed.items():
        key = re.sub(old, new, key)
    return key


def _sort_rest(
    result: Located,
    known: Mapping[str, str],
    family: Family,
    names: Mapping[str, str | Stored],
    layers: float,
    prefix: str,
) -> None:
    """Say of each key that was not taken whether the family knows it."""
    taken = {entry.name for entry in result.found.values()}
    unwanted = [re.compile(pattern) for pattern in family.left_out]
    own = _family_keys(family, names)
    prefixes = sorted({*family.prefixes, *family.decoder_prefixes, family.head_prefix}, key=len, reverse=True)
    for modern, key in known.items():
        if key in taken:
            continue
        is_known = any(pattern.search(modern) for pattern in unwanted) or any(
            (layer := own(modern, other)) is not None and (other != prefix or layer < layers) for other in prefixes
        )
        (result.left_out if is_known else result.unexpected).append(key)


def _family_keys(family: Family, names: Mapping[str, str | Stored]) -> Callable[[str, str], int | None]:
    """A function that gives the layer of a key which is the family's under a prefix (-1: of no layer), else None."""
    relative: list[str] = []
    absolute: list[str] = []
    for entry in (*family.names.values(), *family.encoder_names.values(), *names.values()):
        spellings = (entry,) if isinstance(entry, str) else (entry.name, entry.untied, entry.ungated, *entry.aliases)
        for name in filter(None, spellings):
            target = absolute if name.startswith("/") else relative
            target.append(re.escape(name.lstrip("/")).replace(r"\{\}", r"(\d+)"))
    inner, outer = (
        re.compile(rf"(?:{'|'.join(some)})(?:\.(?:weight|bias))?") for some in (relative, absolute or ["$^"])
    )

    def layer(key: str, prefix: str) -> int | None:
        found = inner.fullmatch(key[len(prefix) :]) if key.startswith(prefix) else None
        found = found or outer.fullmatch(key)
        if found is None:
            return None
        return next((int(group) for group in found.groups() if group is not None), -1)

    return layer
