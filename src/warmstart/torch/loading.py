"""Fills a model with a checkpoint's weights: named, checked against their shapes, and only then read.

The model is made without memory first; tensors that need no change are views of the mapped file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from warmstart.checkpoint.names import Located, Shape, locate, pack, stored_shape, unpack, written_as
from warmstart.checkpoint.readers import Weights
from warmstart.config import PretrainedConfig
from warmstart.families.entry import Stored
from warmstart.spec import StackSpec
from warmstart.warm_start import PROJECTION, LoadReport, copies_of_self_attention, new_parts

NUMBERS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


@dataclass(frozen=True)
class Side:
    """One stack of a model: the prefix of its names in the model and in the file, and what it is."""

    ours: str
    theirs: str
    config: PretrainedConfig
    spec: StackSpec


def shared_names(model: nn.Module) -> dict[str, list[str]]:
    """Each parameter's first name -> all of its names; tied weights have several."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return {names[0]: names for names in groups.values()}


def fill(
    model: nn.Module,
    sides: list[Side],
    weights: Weights,
    *,
    dtype: torch.dtype | str | None = None,
    may_be_new: bool = False,
    strict: bool = True,
    ignore_mismatched_sizes: bool = False,
    cross_attention_init: str = "random",
    fewer_layers: bool = False,
) -> LoadReport:
    """Give every parameter of a model its value: the checkpoint's, or a new one where the plan allows it.

    With `fewer_layers` those of the checkpoint that the model has not are left out.

    Raises:
        ValueError: weights are missing, unexpected or of another shape; nothing was read yet.
    """
    groups = shared_names(model)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    located = _locate(groups, sides, weights, fewer_layers)
    chosen = {first: found for first, names in groups.items() if (found := _first(names, located.found)) is not None}
    missing = [first for first in groups if first not in chosen]
    unequal = _unequal(chosen, shapes, weights)
    if unequal and not ignore_mismatched_sizes:
        raise ValueError(_shapes_differ(weights.place, unequal))
    missing += list(unequal)
    fresh, lost = new_parts(missing, groups) if may_be_new else ([], missing)
    fresh, lost = fresh + [name for name in lost if name in unequal], [name for name in lost if name not in unequal]
    if strict and (lost or located.unexpected):
        raise ValueError(_does_not_fit(weights, lost, located.unexpected))
    if not chosen:
        raise ValueError(f"{weights.place} holds none of this model's weights; is it of another family?")
    wanted = _type_of(dtype, weights, chosen)
    for first, entry in chosen.items():
        if first not in unequal:
            tensor = unpack(entry, _number(weights, entry.name))
            _assign(model, groups[first], _laid_out(tensor.to(wanted), is_part=entry.parts > 1))
    initialise(model, sides, fresh + lost, wanted)
    copied = copies_of_self_attention(fresh, shapes) if cross_attention_init == "copy" else {}
    copy_weights(model, copied)
    loaded = [name for name in chosen if name not in unequal]
    return LoadReport(weights.place, loaded, fresh + lost, list(copied), located.left_out + located.unexpected)


def broken_ties(model: Any, sides: list[Side], weights: Weights) -> dict[str, PretrainedConfig]:
    """Settings that tie weights of which the file holds several copies, and not the same: name -> whose setting it is.

    Version 5 of the reference writes such files: it keeps `tie_encoder_decoder` in the configuration and ties nothing.
    """
    groups = [names for names in shared_names(model).values() if len(names) > 1]
    found = _locate({names[0]: names for names in groups}, sides, weights).found
    broken: dict[str, PretrainedConfig] = {}
    for names in groups:
        for one, other in pairwise(name for name in names if name in found):
            values = [unpack(found[name], _number(weights, found[name].name)) for name in (one, other)]
            if values[0].dtype != values[1].dtype or not torch.equal(*values):
                side = next(side for side in sides if other.startswith(side.ours))
                same = one.startswith(side.ours)
                broken["tie_word_embeddings" if same else "tie_encoder_decoder"] = side.config if same else model.config
    return broken


def initialise(
    model: nn.Module, sides: list[Side], names: Iterable[str], dtype: torch.dtype, device: Any = "cpu"
) -> None:
    """Make new values for these parameters: norms 1 and 0, biases 0, the rest normal with the config's deviation."""
    groups = shared_names(model)
    parameters = dict(model.named_parameters())
    for name in names:
        side = max(
            (side for side in sides if name.startswith(side.ours)), key=lambda side: len(side.ours), default=sides[-1]
        )
        tensor = torch.empty(parameters[name].shape, dtype=dtype, device=device)
        _assign(model, groups[name], tensor if tensor.is_meta else initial_value(name, tensor, side.spec))


@torch.no_grad()
def initial_value(name: str, tensor: Tensor, spec: StackSpec) -> Tensor:
    """Fill a tensor with the value that a new parameter of this name starts with."""
    if tensor.is_meta:  # there is nothing to fill, and a draw without memory imports torch's compiler
        return tensor
    *_, module, leaf = ("", *name.split("."))
    if module.endswith("norm"):
        return tensor.fill_(1.0 if leaf == "weight" else 0.0)
    if leaf == "bias":
        return tensor.zero_()
    tensor.normal_(0.0, spec.initial_deviation(name))
    if name.endswith("embeddings.token.weight") and spec.embedding.padding_id is not None:
        tensor[spec.embedding.padding_id] = 0.0
    if name.endswith("embeddings.position.weight") and spec.embedding.positions_skip_padding:
        tensor[spec.embedding.position_offset - 1] = 0.0
    return tensor


@torch.no_grad()
def copy_weights(model: nn.Module, copies: Mapping[str, str]) -> None:
    """Give each parameter a copy of another's value."""
    parameters = dict(model.named_parameters())
    for name, source in copies.items():
        parameters[name].copy_(parameters[source])


def saved(model: nn.Module, sides: list[Side]) -> tuple[dict[str, int], dict[str, Stored]]:
    """The sizes in bytes of the tensors a checkpoint of this model holds, and where each parameter lies in them.

    What both sides share is written as the decoder's: the reference (version 4) ties the encoder to the decoder.
    """
    once = [
        next((name for side in sides[::-1] for name in names if name.startswith(side.ours)), names[0])
        for names in shared_names(model).values()
    ]
    entries: dict[str, Stored] = {name: Stored(name) for name in once if name.startswith(PROJECTION)}
    for side in sides:
        own = [name[len(side.ours) :] for name in once if name.startswith(side.ours) and name not in entries]
        written = written_as(own, side.config, side.spec, side.theirs, alone=not side.ours)
        entries.update({side.ours + name: entry for name, entry in written.items()})
    parameters = dict(model.named_parameters(remove_duplicate=False))
    sizes: dict[str, int] = {}
    for name, entry in entries.items():
        for key in filter(None, (entry.name, entry.untied)):
            sizes[key] = sizes.get(key, 0) + parameters[name].numel() * parameters[name].element_size()
    return sizes, entries


def write_tensors(model: nn.Module, entries: Mapping[str, Stored], keys: list[str], path: Path) -> None:
    """Write some of a checkpoint's tensors to one file, safetensors or (`.bin`) torch's own."""
    named = model.named_parameters(remove_duplicate=False)
    parameters = {name: parameter.detach() for name, parameter in named}
    tensors = {key: pack(entries, parameters, key, torch.cat).contiguous().cpu() for key in keys}
    for key in tensors.keys() & {entry.untied for entry in entries.values()}:
        tensors[key] = tensors[key].clone()  # no two names may share memory in a file
    if path.suffix == ".bin":
        torch.save(tensors, path)
    else:
        from safetensors.torch import save_file

        save_file(tensors, path, metadata={"format": "pt"})


def _locate(
    groups: Mapping[str, list[str]], sides: list[Side], weights: Weights, fewer_layers: bool = False
) -> Located:
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
    return result


def _first(names: list[str], found: Mapping[str, Stored]) -> Stored | None:
    return next((found[name] for name in names if name in found), None)


def _unequal(
    chosen: Mapping[str, Stored], shapes: Mapping[str, Shape], weights: Weights
) -> dict[str, tuple[Shape, Shape]]:
    given = weights.shapes
    pairs = {name: (given[entry.name], stored_shape(entry, shapes[name])) for name, entry in chosen.items()}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _type_of(dtype: torch.dtype | str | None, weights: Weights, chosen: Mapping[str, Stored]) -> torch.dtype:
    if dtype == "auto":
        return _number(weights, next(iter(chosen.values())).name).dtype
    return as_dtype(dtype)


def _laid_out(tensor: Tensor, is_part: bool) -> Tensor:
    """A tensor in one piece, laid out row by row or, where its matrix is stored turned, column by column.

    A turned matrix multiplies as fast, and a whole one stays a view of the mapped file, until `straighten`. Where
    processes work together it is turned at once: `fully_shard` takes rows alone. Parts of one stored tensor are copied
    apart: tools that save drop what shares memory, taking it for tied.
    """
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    if alone and tensor.dim() == 2 and tensor.stride(0) == 1:
        return tensor.T.contiguous().T
    return tensor.clone() if is_part and tensor.is_contiguous() else tensor.contiguous()


def straighten(model: nn.Module) -> None:
    """Lay every matrix out row by row, as optimizers, `fully_shard` and `safetensors` want it; values stay."""
    for parameter in model.parameters():
        if type(parameter) is nn.Parameter and not parameter.is_contiguous():  # not what a quantiser put in its place
            parameter.data = parameter.data.contiguous()


def _number(weights: Weights, name: str) -> Tensor:
    """A stored tensor of real numbers."""
    tensor = weights.read(name)
    if tensor.dtype not in NUMBERS:
        raise ValueError(
            f"{weights.place}: {name} is of type {tensor.dtype}; weights are read as float32, bfloat16, float16 or "
            "float64: use a checkpoint that is not quantised"
        )
    return tensor


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    """A floating-point type from its name; None is torch's default.

    >>> as_dtype("bfloat16")
    torch.bfloat16
    """
    if dtype is None:
        return torch.get_default_dtype()
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(
            f"dtype {dtype!r} is not a floating-point type; use 'float32', 'bfloat16', 'float16', 'int8' or 'auto'"
        )
    return found


def _assign(model: nn.Module, names: list[str], tensor: Tensor) -> None:
    """Put one tensor in the place of a parameter, under all of its names."""
    parameter = nn.Parameter(tensor)
    for name in names:
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        parameter.requires_grad_(getattr(module, leaf).requires_grad)
        setattr(module, leaf, parameter)


def _shapes_differ(place: str, unequal: Mapping[str, tuple[Shape, Shape]]) -> str:
    lines = [f"  {name}: {given} in the file, {wanted} by the config" for name, (given, wanted) in unequal.items()]
    return (
        f"{place} does not fit its config.json, {len(unequal)} weights have another shape:\n"
        + "\n".join(lines[:8] + ["  ..."] * (len(lines) > 8))
        + "\nMend config.json, or pass ignore_mismatched_sizes=True to make these weights anew"
    )


def _does_not_fit(weights: Weights, lost: list[str], unexpected: list[str]) -> str:
    def listed(names: list[str]) -> str:
        return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")

    parts = [f"{len(lost)} weights are missing: {listed(lost)}"] if lost else []
    parts += [f"{len(unexpected)} weights are not known to this model: {listed(unexpected)}"] if unexpected else []
    if lost and weights.unlisted:
        parts += [f"its shards hold {len(weights.unlisted)} more that it does not name: {listed(weights.unlisted)}"]
    return (
        f"{weights.place}: " + "; ".join(parts) + ". Check that config.json is this checkpoint's, or pass strict=False"
    )
