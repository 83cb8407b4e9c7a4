"""Fits a checkpoint to a model by names and shapes alone, before anything is read: what fills which parameter.

Every framework has its parameters under our names; what shares memory is one group of names, the first of them first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from warmstart.checkpoint.names import Located, Shape, locate, stored_shape, written_as
from warmstart.checkpoint.readers import Weights
from warmstart.config import PretrainedConfig
from warmstart.families import family_of
from warmstart.families.encoder_decoder import EncoderDecoderConfig
from warmstart.families.entry import Stored
from warmstart.spec import StackSpec
from warmstart.warm_start import PROJECTION, LoadReport, new_parts, sharing

Groups = Mapping[str, list[str]]


@dataclass(frozen=True)
class Side:
    """One stack of a model: the prefix of its names in the model and in the file, and what it is."""

    ours: str
    theirs: str
    config: PretrainedConfig
    spec: StackSpec


@dataclass
class Fit:
    """The plan: where each group's value is stored, and which values are to be made anew."""

    stored: dict[str, Stored] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    place: str = ""

    def report(self, copied: Iterable[str] = ()) -> LoadReport:
        """What becomes of the checkpoint's weights."""
        return LoadReport(self.place, list(self.stored), self.new, list(copied), self.left_out)


def fit(
    groups: Groups,
    shapes: Mapping[str, Shape],
    sides: list[Side],
    weights: Weights,
    *,
    may_be_new: bool = False,
    strict: bool = True,
    ignore_mismatched_sizes: bool = False,
    fewer_layers: bool = False,
) -> Fit:
    """Say of every group of parameters where its value comes from: the checkpoint, or nowhere where that may be.

    With `fewer_layers` those of the checkpoint that the model has not are left out.

    Raises:
        ValueError: weights are missing, unexpected or of another shape; nothing was read yet.
    """
    located = locate_all(groups, sides, weights, fewer_layers)
    found = {first: _first(names, located.found) for first, names in groups.items()}
    chosen = {first: entry for first, entry in found.items() if entry is not None}
    missing = [first for first in groups if first not in chosen]
    given = weights.shapes
    pairs = {name: (given[entry.name], stored_shape(entry, shapes[name])) for name, entry in chosen.items()}
    unequal = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    if unequal and not ignore_mismatched_sizes:
        raise ValueError(_shapes_differ(weights.place, unequal))
    missing += list(unequal)
    fresh, lost = new_parts(missing, groups) if may_be_new else ([], missing)
    lost, zero = [name for name in lost if not may_be_zero(name, sides)], [x for x in lost if may_be_zero(x, sides)]
    fresh, lost = (
        fresh + zero + [name for name in lost if name in unequal],
        [name for name in lost if name not in unequal],
    )
    if strict and (lost or located.unexpected):
        raise ValueError(_does_not_fit(weights, lost, located.unexpected))
    if not chosen:
        raise ValueError(f"{weights.place} holds none of this model's weights; is it of another family?")
    stored = {name: entry for name, entry in chosen.items() if name not in unequal}
    return Fit(stored, fresh + lost, located.left_out + located.unexpected, weights.place)


def locate_all(groups: Groups, sides: list[Side], weights: Weights, fewer_layers: bool = False) -> Located:
    """Find the parameters of all sides among a file's keys."""
    names = [name for group in groups.values() for name in group]
    result = Located(
        found={name: Stored(name) for name in names if name.startswith(PROJECTION) and name in weights.files}
    )
    accounted = {entry.name for entry in result.found.values()}
    for side in sides:
        own = [
            name[len(side.ours) :] for name in names if name.startswith(side.ours) and not name.startswith(PROJECTION)
        ]
        part = locate(own, weights.files, side.config, side.spec, side.theirs, fewer_layers)
        result.found.update({side.ours + name: entry for name, entry in part.found.items()})
        result.left_out += part.left_out
        result.unexpected += part.unexpected
        accounted.update(key for key in weights.files if key.startswith(side.theirs))
    if len(sides) > 1:  # a file of both sides: nothing may stand beside them
        result.unexpected += [key for key in weights.files if key not in accounted]
    return without_taken(result)


def without_taken(located: Located) -> Located:
    """The same, each key once, and none left out that one of the sides has: in a whole's file both see all keys."""
    taken = {entry.name for entry in located.found.values()}
    located.left_out = [key for key in dict.fromkeys(located.left_out) if key not in taken]
    located.unexpected = [key for key in dict.fromkeys(located.unexpected) if key not in taken]
    return located


def may_be_zero(name: str, sides: Iterable[Any]) -> bool:
    """Whether a parameter is a bias that is not trained: files may leave it out where it is zero."""
    heads = (side.spec.head for side in sides if name == f"{side.ours}head.output.bias")
    return any(head is not None and head.fixed_bias for head in heads)


def broken_ties(
    groups: Groups,
    sides: list[Side],
    weights: Weights,
    joint: PretrainedConfig,
    read: Callable[[Stored], Any],
    equal: Callable[[Any, Any], bool],
) -> dict[str, PretrainedConfig]:
    """Settings that tie weights of which the file holds several copies, and not the same: name -> whose setting it is.

    Version 5 of the reference writes such files: it keeps `tie_encoder_decoder` in the configuration and ties nothing.
    """
    shared = {names[0]: names for names in groups.values() if len(names) > 1}
    found = locate_all(shared, sides, weights).found
    broken: dict[str, PretrainedConfig] = {}
    for names in shared.values():
        for one, other in pairwise(name for name in names if name in found):
            if found[one] != found[other] and not equal(read(found[one]), read(found[other])):
                side = next(side for side in sides if other.startswith(side.ours))
                same = one.startswith(side.ours)
                broken["tie_word_embeddings" if same else sharing(joint)] = side.config if same else joint
    return broken


def in_file(
    config: PretrainedConfig, sides: list[Side], as_whole: bool, named_as_torch: bool = True
) -> tuple[PretrainedConfig, list[Side], str]:
    """A model as it is written: its configuration, its stacks, and the name of its class where it is another.

    With `as_whole` a pair becomes the whole of one family again; nothing then stands before a side's own names.

    Raises:
        ValueError: it is no such whole, or the file's names are not those of the reference's classes in PyTorch.
    """
    if not as_whole:
        return config, sides, ""
    if not isinstance(config, EncoderDecoderConfig):
        raise ValueError(f"a {config.model_type} is no encoder-decoder; save it without as_whole=True")
    if not named_as_torch:
        raise ValueError("as_whole=True writes safetensors; leave safe_serialization=False out")
    whole = config.as_whole()
    return whole, [replace(side, theirs="") for side in sides], family_of(config.decoder).whole


def written(groups: Groups, sides: list[Side]) -> dict[str, Stored]:
    """Where each group of parameters lies in the tensors of a checkpoint: our name -> the place.

    What both sides share is written as the decoder's: the reference (version 4) ties the encoder to the decoder.
    """
    once = [
        next((name for side in sides[::-1] for name in names if name.startswith(side.ours)), names[0])
        for names in groups.values()
    ]
    entries: dict[str, Stored] = {name: Stored(name) for name in once if name.startswith(PROJECTION)}
    shared = {
        one
        for one, names in zip(once, groups.values(), strict=True)
        if all(any(name.startswith(side.ours) for name in names) for side in sides)
    }
    for side in sides:
        own = [name[len(side.ours) :] for name in once if name.startswith(side.ours) and name not in entries]
        of_both = {name[len(side.ours) :] for name in shared if name.startswith(side.ours)}
        whole = of_both if side.ours and not side.theirs else None
        places = written_as(own, side.config, side.spec, side.theirs, alone=not side.ours, whole=whole)
        entries.update({side.ours + name: entry for name, entry in places.items()})
    return entries


def _first(names: list[str], found: Mapping[str, Stored]) -> Stored | None:
    return next((found[name] for name in names if name in found), None)


def _shapes_differ(place: str, unequal: Mapping[str, tuple[Shape, Shape]]) -> str:
    lines = [f"  {name}: {given} in the file, {wanted} by the config" for name, (given, wanted) in unequal.items()]
    return (
        f"{place} does not fit its config.json, {len(unequal)} weights have another shape:\n"
        + "\n".join(lines[:8] + ["  ..."] * (len(lines) > 8))
        + "\nMend config.json, or pass ignore_mismatched_sizes=True to make these weights anew"
    )


def _does_not_fit(weights: Weights, lost: list[str], unexpected: list[str]) -> str:
    parts = [f"{len(lost)} weights are missing: {listed(lost)}"] if lost else []
    parts += [f"{len(unexpected)} weights are not known to this model: {listed(unexpected)}"] if unexpected else []
    if lost and weights.unlisted:
        parts += [f"its shards hold {len(weights.unlisted)} more that it does not name: {listed(weights.unlisted)}"]
    return (
        f"{weights.place}: " + "; ".join(parts) + ". Check that config.json is this checkpoint's, or pass strict=False"
    )


def listed(names: list[str]) -> str:
    """The first of these names, and how many more there are."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
