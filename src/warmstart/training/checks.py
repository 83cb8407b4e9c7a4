"""What is checked before training: one batch looked at and run, and a handful of pairs learnt by heart.

Shapes: b batch, s source length, t target length.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from warmstart.inputs import IGNORED, needed
from warmstart.torch.loss import check_labels
from warmstart.torch.stack import check_ids
from warmstart.training.batches import collate, source_of
from warmstart.training.examples import Examples
from warmstart.training.loss import PairLoss

_ROWS = 8  # of a batch that are run: enough to see a mistake, few enough to cost nothing
_SMALL = 0.01  # nats per token: a loss near zero
_LOOKED = 250  # steps in which a loss that still falls has fallen by a tenth
_PLAIN = {
    "num_beams": 1,
    "do_sample": False,
    "min_length": 0,
    "min_new_tokens": None,
    "no_repeat_ngram_size": 0,
    "repetition_penalty": 1.0,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "num_return_sequences": 1,
}


def check_batch(model: Any, batch: dict[str, Tensor]) -> dict[str, str]:
    """Check one batch of `input_ids`, `attention_mask` (b, s) and `labels` (b, t); gives what was seen, by check.

    The model is left as it was; its gradients are dropped.

    Raises:
        ValueError: ids are out of range, there is no start id, every label is ignored, labels are shifted already,
            the logits do not depend on the source, or a parameter that is to be trained has no gradient.
    """
    batch = {name: value[:_ROWS] for name, value in batch.items()}
    was_training = model.training
    try:
        seen = _check_ids(model, batch)
        seen["source"] = _check_source(model.eval(), batch)
        seen["gradients"] = _check_gradients(model.train(), batch)
    finally:
        model.zero_grad(set_to_none=True)
        model.train(was_training)
    return seen


def _check_ids(model: Any, batch: dict[str, Tensor]) -> dict[str, str]:
    config, labels = model.config, batch["labels"]
    check_ids(batch["input_ids"], config.encoder.vocab_size, "encoder")
    check_labels(labels, config.decoder.vocab_size)
    start = needed("decoder_start_token_id", config.decoder_start_token_id)
    counted = labels != IGNORED
    if not bool(counted.any()):
        raise ValueError("every label is -100, so there is nothing to learn; are all targets empty?")
    inputs = model.prepare_decoder_input_ids_from_labels(labels)
    if bool((labels[:, 0] == start).all()) and labels.shape[1] > 1:
        raise ValueError(
            f"every target begins with the start id {start}, which the model puts before it by itself; leave it out of "
            "the labels"
        )
    if bool((inputs == labels)[counted].all()):
        raise ValueError("the decoder's inputs are its labels: each position would see the token that it must predict")
    share = 1 - counted.float().mean().item()
    highest = int(batch["input_ids"].max()), int(labels.max())
    return {
        "ids": f"source up to {highest[0]} of {config.encoder.vocab_size}, target up to {highest[1]} of "
        f"{config.decoder.vocab_size}",
        "labels": f"{int(counted.sum())} count, {share:.0%} are padding and do not",
        "start": f"id {start}; decoder inputs are the labels shifted once",
    }


def _check_source(model: Any, batch: dict[str, Tensor]) -> str:
    """Another source must give other logits."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    other = torch.where(mask.bool(), ids.roll(1, 1), ids) if len(ids) == 1 else ids.roll(1, 0)
    other_mask = mask if len(ids) == 1 else mask.roll(1, 0)
    if torch.equal(other, ids):
        return "not looked at: the batch holds one source"
    inputs = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    with torch.no_grad():
        one, two = (
            model(input_ids=x, attention_mask=seen, decoder_input_ids=inputs).logits
            for x, seen in ((ids, mask), (other, other_mask))
        )
    change = (one - two).abs().amax().item()
    if not change > 0:
        raise ValueError(
            "another source gives the same logits: the decoder does not see the encoder (is its cross-attention zero?)"
        )
    return f"another one moves the logits by up to {change:.2g}"


def _check_gradients(model: Any, batch: dict[str, Tensor]) -> str:
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trained:
        raise ValueError("no parameter is to be trained: everything is frozen")
    model.zero_grad(set_to_none=True)
    PairLoss(model)(**batch, count=int((batch["labels"] != IGNORED).sum())).backward()
    without = [name for name, parameter in trained.items() if parameter.grad is None]
    if without:
        raise ValueError(
            f"{len(without)} of {len(trained)} parameters that are to be trained have no gradient: "
            f"{', '.join(without[:3])}; freeze them, or use them"
        )
    bad = [name for name, parameter in trained.items() if not bool(parameter.grad.isfinite().all())]
    if bad:
        raise ValueError(f"the gradients of {len(bad)} parameters are not finite: {', '.join(bad[:3])}")
    return f"all {len(trained)} tensors that are trained have one"


def overfit(
    model: Any,
    examples: Examples,
    count: int = 8,
    *,
    steps: int = 3000,
    rate: float | None = None,
    watch: Callable[[int, float], None] = lambda step, loss: None,
) -> float:
    """Learn the first `count` pairs by heart; gives the last loss in nats per token.

    A model that is put together right can: without dropout its loss comes near zero and greedy search writes the
    targets. It has `steps` for that, as long as the loss falls. Without a `rate` it is 5e-4 for a decoder of width 768,
    and for others that by the root of their widths' ratio. The model is changed. `watch` is told each step and loss.

    Raises:
        ValueError: the loss stays up, or a target is not reproduced.
    """
    rows = np.arange(min(count, len(examples)))
    pad = model.config.encoder.pad_token_id
    batch = collate(examples, rows, 0 if pad is None else pad)
    batch = {name: value.to(model.device) for name, value in batch.items()}
    labels = int((batch["labels"] != IGNORED).sum())
    model.eval()  # without dropout
    rate = 5e-4 * math.sqrt(768 / model.decoder.config.hidden_size) if rate is None else rate
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    value = lowest = before = float("inf")
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 20)
        loss = PairLoss(model)(**batch, count=labels)
        value = loss.item()
        watch(step, value)
        lowest = min(lowest, value)
        if value < _SMALL or (step and step % _LOOKED == 0 and lowest > 0.9 * before):
            break
        before = lowest if step % _LOOKED == 0 else before
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    if not value < _SMALL:
        raise ValueError(
            f"{len(rows)} pairs were not learnt by heart: after {step + 1} steps the loss is {value:.3f}, not below "
            f"{_SMALL}; have two of them one source and different targets? If not, look at the model's weights"
        )
    wrong = [row for row in rows if not _reproduced(model, batch, int(row), examples.labels(int(row)))]
    if wrong:
        raise ValueError(
            f"the loss is {value:.3f}, but {len(wrong)} of {len(rows)} targets are not written by greedy search (rows "
            f"{', '.join(map(str, wrong))}): training and generation do not agree; are the end and start ids right?"
        )
    return value


def _reproduced(model: Any, batch: dict[str, Tensor], row: int, labels: np.ndarray) -> bool:
    source = source_of(model, {name: rows[row : row + 1] for name, rows in batch.items()})
    written = model.generate(**source, max_new_tokens=len(labels), **_PLAIN)[0, 1:].tolist()
    return bool(written == labels.tolist())
