"""Labels and losses: the one place where labels are shifted, and the cross-entropy over them.

Shapes: b batch, t target length, v vocabulary.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from warmstart.inputs import (
    IGNORED,
    check_count,
    check_labels_shape,
    needed,
    refuse_label,
    refuse_labels,
    refuse_nothing,
    refuse_places,
)
from warmstart.torch.masks import eager

ROWS = 32  # of logits at a time, where there is no backward pass


def shift_labels(labels: Tensor, pad_token_id: int | None, decoder_start_token_id: int | None) -> Tensor:
    """Decoder inputs (b, t) from labels (b, t): one step to the right, the start id first, -100 become padding.

    Raises:
        ValueError: an id is not set; the message says how to set it.

    >>> shift_labels(torch.tensor([[5, 6, -100]]), pad_token_id=0, decoder_start_token_id=1)
    tensor([[1, 5, 6]])
    """
    if not isinstance(labels, Tensor) or labels.dim() != 2 or labels.is_floating_point():
        given = f"{tuple(labels.shape)} of {labels.dtype}" if isinstance(labels, Tensor) else type(labels).__name__
        refuse_labels(given)
    check_labels_shape(tuple(labels.shape))
    start, pad = needed("decoder_start_token_id", decoder_start_token_id), needed("pad_token_id", pad_token_id)
    shifted = F.pad(labels, (1, -1), value=start)
    return shifted.masked_fill(shifted == IGNORED, pad)


def label_mask(labels: Tensor) -> Tensor:
    """Which decoder inputs made from labels are real (b, t): the start, and every label up to the last that counts."""
    places = torch.arange(labels.shape[1], device=labels.device)
    count = torch.where(labels != IGNORED, places + 1, 0).amax(1, keepdim=True)
    return places <= count


def refuse_unshifted(decoder_input_ids: Tensor, labels: Tensor, start: int | None) -> None:
    """Refuse decoder inputs that are the labels themselves: the model would learn to copy them from its input.

    Raises:
        ValueError: they equal the labels wherever those count, and differ somewhere from the label before.
    """
    if not (eager(labels) and eager(decoder_input_ids)) or decoder_input_ids.shape != labels.shape:
        return
    counted = labels != IGNORED
    if not bool((decoder_input_ids == labels)[counted].all()):
        return
    # Shifted inputs equal the labels too where a token repeats; a label that is ignored says nothing of the input.
    before = F.pad(labels, (1, -1), value=IGNORED if start is None else start)
    if bool((counted & (before != IGNORED) & (decoder_input_ids != before)).any()):
        raise ValueError(
            "decoder_input_ids are equal to labels: each position would see the token that it must predict. Leave "
            "decoder_input_ids out (they are made from the labels), or pass model.prepare_decoder_input_ids_from_labels"
            "(labels)"
        )


def cross_entropy(
    logits: Tensor, labels: Tensor, num_items_in_batch: int | Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Mean cross-entropy of logits (b, t, v) over the labels (b, t) that are not -100.

    With `num_items_in_batch`, the count of such labels in a whole accumulated batch, the sum is divided by that: the
    losses of its parts then add up to the loss of the whole. Label smoothing as in Szegedy et al. 2016, section 7.
    """
    if eager(labels) and labels.shape != logits.shape[:-1]:
        refuse_places(tuple(labels.shape), tuple(logits.shape[:-1]))
    check_count(num_items_in_batch)
    check_labels(labels, logits.shape[-1])
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    labels = labels.to(logits.device, torch.long).reshape(-1)
    flat = logits.reshape(-1, logits.shape[-1])
    summed = partial(F.cross_entropy, ignore_index=IGNORED, reduction="sum", label_smoothing=label_smoothing)
    if torch.is_grad_enabled() or not eager(flat):
        total = summed(flat, labels)
    else:  # nothing is kept for a backward pass: as many rows at a time as stay in the caches
        total = torch.stack([summed(x, y) for x, y in zip(flat.split(ROWS), labels.split(ROWS), strict=True)]).sum()
    count = (labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
    return total / (count.to(total.device) if isinstance(count, Tensor) else count)


def check_labels(labels: Tensor, vocabulary: int) -> None:
    """Refuse labels that are neither -100 nor in the vocabulary, where looking costs nothing."""
    if not eager(labels):
        return
    if labels.numel() == 0:
        refuse_nothing()
    low, high = (int(x) for x in labels.aminmax())
    odd = labels[(labels < 0) & (labels != IGNORED)] if low < 0 else labels[:0]
    if high >= vocabulary or odd.numel():
        refuse_label(high if high >= vocabulary else int(odd.flatten()[0]), vocabulary)
