"""LoRA (Hu et al. 2021, arXiv:2106.09685): small matrices learn beside frozen ones; PEFT makes the layers.

Cross-attention and the projection begin at random, so they are trained in full; norms, embeddings and the head stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from warmstart.torch.unfilled import unfilled
from warmstart.training.extras import needs

ALPHA = 32  # Hu et al. 2021, table 11; what an adapter adds is scaled by this over its rank
MARK = ".lora_"  # in the names of an adapter's parameters
_ADAPTED = r"(encoder|decoder)\.layers\.\d+\.(attention|mlp)\.\w+"


def add(model: Any, rank: int) -> None:
    """Give every matrix of both sides' self-attention and MLP an adapter; it starts as nothing.

    Raises:
        ImportError: PEFT is not installed.
        ValueError: the sides share their weights, which would then have two adapters.
    """
    if model.config.tie_encoder_decoder:
        raise ValueError("lora: encoder and decoder share their weights, and an adapter belongs to one; train in full")
    with needs("peft", "LoRA"):
        from peft import LoraConfig, inject_adapter_in_model
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and re.fullmatch(_ADAPTED, name) and ".cross_attention." not in name
    ]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=ALPHA, target_modules=names), model)


def layers(model: Any) -> dict[str, Any]:
    """The layers with an adapter, by the name of the layer that each stands for."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


def is_frozen(model: Any) -> bool:
    """Whether what both sides had before is frozen, because it has adapters."""
    return bool(layers(model))


def adapters(model: Any) -> dict[str, Tensor]:
    """The adapters' parameters by name."""
    return {name: x.detach() for name, x in model.named_parameters() if MARK in name}


@contextmanager
def merged(model: Any) -> Iterator[Any]:
    """The model as if it had never had adapters: plain layers, each matrix with what its adapter adds.

    So it is generated with and saved; afterwards the layers with adapters are back, bit for bit.
    """
    held = layers(model)
    for name, layer in held.items():
        _put(model, name, _plain(layer))
    try:
        yield model
    finally:
        for name, layer in held.items():
            _put(model, name, layer)


def fold(model: Any) -> None:
    """Add each adapter into its matrix for good."""
    for name, layer in layers(model).items():
        _put(model, name, _plain(layer))


def load(model: Any, values: Mapping[str, Tensor], learnt: Mapping[str, Tensor]) -> None:
    """Give a model with adapters those that were learnt, and all else its values.

    Raises:
        ValueError: a matrix with its adapter is not what `values` says: it is another model.
    """
    here = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in learnt.items():
            here[name].copy_(value)
        for name in here.keys() & values.keys():
            here[name].copy_(values[name])
    with merged(model):
        differ = [name for name, x in model.state_dict().items() if not torch.equal(x.cpu(), values[name].cpu())]
    if differ:
        raise ValueError(
            f"the checkpoint's adapters were learnt beside other weights ({differ[0]} and {len(differ) - 1} more); "
            "give the model that this training began with"
        )


def _plain(layer: Any) -> nn.Linear:
    base, name = layer.base_layer, layer.active_adapters[0]
    with unfilled():
        plain = nn.Linear(base.in_features, base.out_features, base.bias is not None)
    with torch.no_grad():
        weight = base.weight + layer.get_delta_weight(name).to(base.weight.dtype)
    plain.weight, plain.bias = nn.Parameter(weight), base.bias
    return plain.train(layer.training)


def _put(model: Any, name: str, layer: Any) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(path), leaf, layer)
