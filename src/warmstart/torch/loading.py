"""Fills a model with a checkpoint's weights: named, checked against their shapes, and only then read.

The model is made without memory first; tensors that need no change are views of the mapped file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from warmstart import fitting
from warmstart.checkpoint.names import pack, unpack
from warmstart.checkpoint.readers import Weights
from warmstart.config import PretrainedConfig
from warmstart.families.entry import Stored
from warmstart.fitting import Fit, Side
from warmstart.spec import StackSpec
from warmstart.torch.engine.int8 import replace_all
from warmstart.warm_start import LoadReport, copies_of_self_attention

NUMBERS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


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
    is_int8: bool = False,
    cross_attention_init: str = "random",
    **options: Any,
) -> LoadReport:
    """Give every parameter of a model its value: the checkpoint's, or a new one where the plan allows it.

    `options` are those of `fitting.fit`. With `is_int8` linear layers become int8 one by one, as their values are
    there, so that no more than one of them is in memory as it is in the file.

    Raises:
        ValueError: weights are missing, unexpected or of another shape; nothing was read yet.
    """
    groups = shared_names(model)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    plan = fitting.fit(groups, shapes, sides, weights, **options)
    wanted = _type_of(dtype, weights, plan)
    for first, entry in plan.stored.items():
        tensor = _number(weights, entry.name)
        if is_int8 or tensor.dtype != wanted:  # pages that were read would stay until the end
            tensor = weights.read_alone(entry.name)
        tensor = unpack(entry, tensor)
        _assign(model, groups[first], _laid_out(tensor.to(wanted), is_part=entry.parts > 1))
        if is_int8 and cross_attention_init != "copy":  # which copies what is float
            replace_all(model, {name.rpartition(".")[0] for name in groups[first]})
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        straighten(model)  # `fully_shard` comes before `train`
    initialise(model, sides, plan.new, wanted)
    copied = copies_of_self_attention(plan.new, shapes) if cross_attention_init == "copy" else {}
    copy_weights(model, copied)
    if is_int8:
        replace_all(model)
    return plan.report(copied)


def broken_ties(model: Any, sides: list[Side], weights: Weights) -> dict[str, PretrainedConfig]:
    """Settings that tie weights of which the file holds several, different copies: name -> whose setting it is."""

    def read(entry: Stored) -> Tensor:
        return unpack(entry, _number(weights, entry.name))

    def equal(one: Tensor, other: Tensor) -> bool:
        return one.dtype == other.dtype and torch.equal(one, other)

    return fitting.broken_ties(shared_names(model), sides, weights, model.config, read, equal)


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
        return tensor.fill_(spec.norm.start if leaf == "weight" else 0.0)
    if leaf == "bias":
        return tensor.zero_()
    tensor.normal_(0.0, spec.initial_deviation(name))
    row = next((row for table, row in spec.embedding.zero_rows().items() if name.endswith(table)), None)
    if row is not None:
        tensor[row] = 0.0
    return tensor


@torch.no_grad()
def copy_weights(model: nn.Module, copies: Mapping[str, str]) -> None:
    """Give each parameter a copy of another's value."""
    parameters = dict(model.named_parameters())
    for name, source in copies.items():
        parameters[name].copy_(parameters[source])


def values(model: nn.Module, given: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Each parameter's value under each of its names: the model's own, or those of a `state_dict` gathered elsewhere.

    Raises:
        ValueError: the `state_dict` lacks a parameter, or holds one of another shape.
    """
    own = {name: parameter.detach() for name, parameter in model.named_parameters(remove_duplicate=False)}
    if given is None:
        return own
    found: dict[str, Tensor] = {}
    for names in shared_names(model).values():
        held = next((given[name] for name in names if name in given), None)
        if held is None or held.shape != own[names[0]].shape:
            says = "does not hold it" if held is None else f"has {tuple(held.shape)}"
            raise ValueError(
                f"state_dict is not this model's: {names[0]} is {tuple(own[names[0]].shape)}, and it {says}; give what "
                "model.state_dict() returns, or leave it out"
            )
        found |= dict.fromkeys(names, held.detach())
    return found


def saved(
    model: nn.Module, sides: list[Side], parameters: Mapping[str, Tensor]
) -> tuple[dict[str, int], dict[str, Stored]]:
    """The sizes in bytes of the tensors a checkpoint of this model holds, and where each parameter lies in them."""
    entries = fitting.written(shared_names(model), sides)
    sizes: dict[str, int] = {}
    for name, entry in entries.items():
        for key in filter(None, (entry.name, entry.untied)):
            sizes[key] = sizes.get(key, 0) + parameters[name].numel() * parameters[name].element_size()
    return sizes, entries


def write_tensors(parameters: Mapping[str, Tensor], entries: Mapping[str, Stored], keys: list[str], path: Path) -> None:
    """Write some of a checkpoint's tensors to one file, safetensors or (`.bin`) torch's own."""
    tensors = {key: pack(entries, parameters, key, torch.cat).contiguous().cpu() for key in keys}
    for key in tensors.keys() & {entry.untied for entry in entries.values()}:
        tensors[key] = tensors[key].clone()  # no two names may share memory in a file
    if path.suffix == ".bin":
        torch.save(tensors, path)
    else:
        from safetensors.torch import save_file

        save_file(tensors, path, metadata={"format": "pt"})


def _type_of(dtype: torch.dtype | str | None, weights: Weights, plan: Fit) -> torch.dtype:
    if dtype == "auto":
        return _number(weights, next(iter(plan.stored.values())).name).dtype
    return as_dtype(dtype)


def _laid_out(tensor: Tensor, is_part: bool) -> Tensor:
    """A tensor as the file has it: a matrix that is stored turned stays so, whole or a part, until `straighten`.

    It multiplies as fast, and stays a view of the mapped file. Rows of one stored tensor are copied apart: tools that
    save drop what shares memory, taking it for tied.
    """
    return tensor.clone() if is_part and tensor.is_contiguous() else tensor


@torch.inference_mode(False)
@torch.no_grad()
def straighten(model: nn.Module) -> None:
    """Lay every matrix out row by row in memory of its own; values stay.

    Optimizers, `fully_shard` and `safetensors` want it, and the engine, which reads weights where they lie.
    """
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
