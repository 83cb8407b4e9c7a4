"""Changes to a model that exists: another vocabulary, fewer attention heads, frozen halves."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from warmstart.torch.attention import Attention


def new_size(current: int, wanted: int | None, multiple: int | None) -> int:
    """The size of a vocabulary after resizing, rounded up to a multiple.

    >>> new_size(100, 103, 8)
    104
    """
    size = current if wanted is None else wanted
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"new_num_tokens {wanted!r} is not a vocabulary size; give len(tokenizer)")
    return -(-size // multiple) * multiple if multiple else size


@torch.no_grad()
def resize(model: Any, wanted: int | None, multiple: int | None, mean: bool) -> None:
    """Give a stack a vocabulary of another size; rows that both sizes have are kept.

    New rows start as the mean of the old ones, which leaves the logits of the old tokens nearly as they were (Hewitt
    2021, "Initializing New Word Embeddings for Pretrained Language Models"), or at random with `mean=False`.
    """
    old = model.spec.embedding.vocabulary
    size = new_size(old, wanted, multiple)
    if size == old:
        return
    deviation = model.spec.initializer_range

    def resized(table: Tensor) -> Tensor:
        grown = table.new_empty(size, *table.shape[1:])
        kept = min(size, old)
        grown[:kept] = table[:kept]
        if size > old and mean:
            grown[old:] = table.mean(0)
        elif size > old:
            grown[old:] = torch.empty_like(grown[old:]).normal_(0.0, deviation) if table.dim() > 1 else 0.0
        return grown

    table = model.embeddings.token
    padding = table.padding_idx if table.padding_idx is not None and table.padding_idx < size else None
    table.weight = _like(table.weight, resized(table.weight))
    table.num_embeddings, table.padding_idx = size, padding
    if (output := model.get_output_embeddings()) is not None:
        if not model.spec.head.tied:
            output.weight = _like(output.weight, resized(output.weight))
        if output.bias is not None:
            output.bias = _like(output.bias, resized(output.bias))
        output.out_features = size
    model.config.vocab_size = size
    model.adopt(model.config)
    model.tie_weights()


def prune_heads(model: Any, heads_to_prune: Mapping[int, list[int]]) -> None:
    """Take heads out of the self-attention of layers; a head's number is the one it had before any pruning.

    Raises:
        ValueError: a layer or head is not there, none would be left, or heads share keys and values.
    """
    spec = model.spec.attention
    if spec.heads != spec.key_value_heads:
        raise ValueError(
            f"{model.config.model_type} shares keys and values between heads, so that none can be taken out"
        )
    if spec.alibi or spec.relative:
        raise ValueError(f"{model.config.model_type} has a bias for each of its heads, so that none can be taken out")
    before = {int(layer): set(heads) for layer, heads in model.config.pruned_heads.items()}
    after = {layer: set(heads) for layer, heads in before.items()}
    for layer, heads in heads_to_prune.items():
        if not 0 <= layer < len(model.layers) or not all(0 <= head < spec.heads for head in heads):
            raise ValueError(
                f"layer {layer}, heads {list(heads)}: there are {len(model.layers)} layers of {spec.heads} heads"
            )
        after[layer] = after.get(layer, set()) | set(heads)
        if len(after[layer]) >= spec.heads:
            raise ValueError(f"layer {layer} would have none of its {spec.heads} heads left")
    for layer, gone in after.items():
        held = [head for head in range(spec.heads) if head not in before.get(layer, set())]
        kept = [place for place, head in enumerate(held) if head not in gone]
        _prune(model.layers[layer].attention, kept)
    model.config.pruned_heads = {layer: sorted(gone) for layer, gone in after.items() if gone}
    model.adopt(model.config)


@torch.no_grad()
def _prune(attention: Attention, kept: list[int]) -> None:
    size = attention.head_size
    device = attention.query.weight.device
    rows = torch.cat([torch.arange(head * size, (head + 1) * size, device=device) for head in kept])
    holders = (attention, attention.disentangled, attention.global_attention)
    for projection in (getattr(x, part, None) for x in holders for part in ("query", "key", "value")):
        if projection is None:
            continue
        projection.weight = _like(projection.weight, projection.weight[rows])
        if projection.bias is not None:
            projection.bias = _like(projection.bias, projection.bias[rows])
        projection.out_features = len(rows)
    attention.output.weight = _like(attention.output.weight, attention.output.weight[:, rows])
    attention.output.in_features = len(rows)


def _like(parameter: Tensor, value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone().contiguous(), requires_grad=parameter.requires_grad)


def set_trainable(model: nn.Module, wanted: str, trainable: bool) -> None:
    """Let the parameters whose names match a pattern be trained, or not."""
    pattern = re.compile(wanted)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if pattern.search(name):
            parameter.requires_grad_(trainable)
