"""Which tokens see which, and at which position each token stands: written once, for every stack.

Shapes: r rows, t new tokens, p tokens in the cache, s = p + t (or the source's length).
"""

from __future__ import annotations

import torch
from torch import Tensor

from warmstart.spec import EmbeddingSpec, StackSpec
from warmstart.torch.attention import Mask, biased


def eager(tensor: Tensor) -> bool:
    """Whether a tensor's values can be looked at for free: on the CPU, and nothing traces, fakes or maps over it."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return False
    mapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)  # inside vmap or grad
    return type(tensor) is Tensor and not mapped and tensor.device.type == "cpu"


def source_mask(attention_mask: Tensor | None) -> Mask:
    """The mask of whoever reads a padded source: (b, s) with 1 for tokens, to (b, 1, 1, s)."""
    if attention_mask is None or attention_mask.dim() > 3:
        return Mask(attention_mask)
    allowed = attention_mask.bool()
    if eager(allowed) and bool(allowed.all()):
        return Mask()
    return Mask(allowed[:, None] if allowed.dim() == 3 else allowed[:, None, None])


def self_mask(
    attention_mask: Tensor | None, length: int, past: int, causal: bool, window: int | None, device: torch.device
) -> Mask:
    """The mask of a stack over its own tokens; `attention_mask` is (r, s), or (r, t, s) for one of your own."""
    padding = source_mask(attention_mask).allowed
    total = past + length
    near = window is not None and total > window
    if not near and padding is None:
        return (
            Mask(causal=causal and length > 1 and past == 0)
            if not (causal and past and length > 1)
            else Mask(_order(length, past, causal, None, device))
        )
    if not near and (not causal or length == 1):
        return Mask(padding)
    order = _order(length, past, causal, window, device)
    return Mask(order if padding is None else order & padding)


def _order(length: int, past: int, causal: bool, window: int | None, device: torch.device) -> Tensor:
    """(1, 1, t, s): what order and distance allow."""
    key = torch.arange(past + length, device=device)
    back = key[past:, None] - key  # how far behind the query a key stands
    allowed = back >= 0 if causal else torch.ones_like(back, dtype=torch.bool)
    if window is not None:
        allowed = allowed & (back < window) & (back > -window)
    return allowed[None, None]


def with_global(attention_mask: Tensor | None, global_attention_mask: Tensor | None, spec: StackSpec) -> Tensor | None:
    """A mask (r, t) that is 2 for tokens which see everything and which everything sees, else 1, and 0 for padding.

    Raises:
        ValueError: the family has no such tokens, or the masks do not fit each other.
    """
    if global_attention_mask is None:
        return attention_mask
    if not spec.attention.global_tokens:
        raise ValueError(f"a {spec.family} stack has no global attention; leave global_attention_mask out")
    shape = tuple(global_attention_mask.shape)
    if len(shape) != 2 or (attention_mask is not None and tuple(attention_mask.shape) != shape):
        raise ValueError(f"global_attention_mask of shape {shape} must be (batch, length), as attention_mask is")
    reach = global_attention_mask.bool().long() + 1
    return reach if attention_mask is None else attention_mask.long() * reach


def reach_of(attention_mask: Tensor | None) -> Tensor | None:
    """A mask (r, t) that says of some tokens that they see everything, see `with_global`; else None."""
    if attention_mask is None or attention_mask.dim() != 2:
        return None
    return None if eager(attention_mask) and not bool((attention_mask > 1).any()) else attention_mask


def reaching(mask: Mask, reach: Tensor) -> Mask:
    """The mask of a window, where everything sees the tokens whose reach (r, t) is 2."""
    return mask if mask.allowed is None else Mask(mask.allowed | (reach > 1)[:, None, None])


def leaning(mask: Mask, slopes: Tensor, length: int, past: int, dtype: torch.dtype) -> Mask:
    """A mask whose bias (r or 1, n, t, s) lowers scores by the distance times the head's slope (n,), either way."""
    key = torch.arange(past + length, device=slopes.device)
    distance = (key[past:, None] - key).abs()
    return _biased(mask, (-slopes[:, None, None] * distance)[None].to(dtype), length, past)


def leaning_by(mask: Mask, table: torch.nn.Embedding, buckets: Tensor, length: int, past: int) -> Mask:
    """A mask whose bias (r or 1, n, t, s) is what a table says of each distance's bucket; see `relative_buckets`."""
    key = torch.arange(past + length, device=buckets.device)
    most = len(buckets) // 2
    rows = buckets[(key - key[past:, None]).clamp(-most, most) + most]
    return _biased(mask, table(rows).permute(2, 0, 1)[None], length, past)


def _biased(mask: Mask, bias: Tensor, length: int, past: int) -> Mask:
    allowed = _order(length, past, True, None, bias.device) if mask.causal else mask.allowed
    return biased(bias, allowed)


def position_rows(
    ids: Tensor | None,
    attention_mask: Tensor | None,
    shape: tuple[int, int],
    past: int,
    causal: bool,
    spec: EmbeddingSpec,
) -> Tensor:
    """The row of the position table for each new token: (r, t), or (1, t) where all rows agree.

    Positions count from the first token that is not masked, so that padding on the left changes nothing. Where a
    family gives padding no position (`positions_skip_padding`), an encoder knows padding by its id, as it was trained;
    a decoder by its mask alone, because there the padding id may also be the start or the end.
    """
    offset = spec.position_offset
    if spec.positions_skip_padding and not causal and ids is not None and spec.padding_id is not None:
        kept = ids.ne(spec.padding_id).long()
        return kept.cumsum(1) * kept + spec.padding_id
    positions = counted(attention_mask, shape, past, ids)
    rows = positions + offset
    if spec.positions_skip_padding and attention_mask is not None and attention_mask.dim() == 2:
        rows = torch.where(attention_mask[:, -shape[1] :].bool(), rows, offset - 1)
    return rows


def counted(attention_mask: Tensor | None, shape: tuple[int, int], past: int, like: Tensor | None = None) -> Tensor:
    """Positions of the new tokens, counted from the first that is not masked: (r, t) or (1, t)."""
    device = attention_mask.device if attention_mask is not None else like.device if like is not None else None
    positions = torch.arange(past, past + shape[1], device=device)[None]
    if attention_mask is None or attention_mask.dim() != 2:
        return positions
    first = attention_mask.bool().int().argmax(1, keepdim=True)
    if eager(first) and not bool(first.any()):
        return positions
    return (positions - first).clamp_min(0)
