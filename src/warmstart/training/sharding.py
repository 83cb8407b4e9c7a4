"""A model in shards over processes (FSDP2): each holds a part of every weight, its gradient and the optimizer's state.

What is evaluated and saved is a plain model, gathered on the way; so any number of processes goes on from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from warmstart.torch.unfilled import unfilled
from warmstart.training.loss import PairLoss


def shard(loss: PairLoss) -> Any:
    """Each layer in shards that are gathered when it computes, and the rest as one; gives the loss, which is called.

    Weights lie row by row, as `model.train()` lays them: shards may not be turned.
    Where both sides share their weights these are one group, since no two layers may hold the same ones.
    """
    from torch.distributed.fsdp import fully_shard

    if not loss.model.config.tie_encoder_decoder:
        for stack in loss.model.stacks():
            for layer in stack.layers:
                fully_shard(layer)
    return fully_shard(loss)


def whole(value: Any) -> Any:
    """A tensor as it would be on one process; every process asks for it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def gathered(model: Any) -> Any:
    """A plain model with the weights of one in shards, in eval mode."""
    with unfilled():
        plain = type(model)(model.config)
    values = {name: whole(value.detach()).clone() for name, value in model.named_parameters(remove_duplicate=False)}
    plain.load_state_dict(values, assign=True)
    plain.tie_weights()
    return plain.to(model.device).eval()


def fill(model: Any, plain: Any) -> None:
    """Give a model in shards the weights of a plain one."""
    values = dict(plain.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_as(parameter, values[name].detach()))


def gathered_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's state as one process has it."""
    moments = {number: {name: whole(x) for name, x in one.items()} for number, one in state["state"].items()}
    return {**state, "state": moments}


def scattered_state(state: Mapping[str, Any], parameters: list[Tensor]) -> dict[str, Any]:
    """That state in shards, for the parameters in the optimizer's order."""
    moments = {
        number: {name: _as(parameters[number], x) if x.dim() else x for name, x in one.items()}
        for number, one in state["state"].items()
    }
    return {**state, "state": moments}


def _as(parameter: Tensor, value: Tensor) -> Tensor:
    if not isinstance(parameter, DTensor):
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
