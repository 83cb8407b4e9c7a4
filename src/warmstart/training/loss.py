"""The training loss of a pair, without the logits of a whole batch ever standing in memory.

Shapes: b batch, s source length, t target length, n labels that count, h width before the last layer, v vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from warmstart.inputs import IGNORED
from warmstart.torch.loss import label_mask
from warmstart.torch.masks import eager
from warmstart.torch.widened import is_wanted, widened
from warmstart.warm_start import PROJECTION

_LOGITS_AT_ONCE = {"cpu": 2**23, "cuda": 2**27}  # numbers; more at once is no faster


class LinearCrossEntropy(torch.autograd.Function):
    """The last layer and the sum of its cross-entropy, some rows at a time; labels of -100 are left out.

    The gradient of cross-entropy is known as soon as the logits are (softmax minus target), so each chunk's is put to
    use in the forward pass and its logits dropped: nothing is computed twice. Label smoothing as in Szegedy et al.
    2016, section 7.
    """

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, smoothing: float, train: bool
    ) -> Tensor:
        kind = states.device.type
        is_cast = torch.is_autocast_enabled(kind) and not (kind == "cpu" and is_wanted())
        dtype = torch.get_autocast_dtype(kind) if is_cast else weight.dtype
        wants = ctx.needs_input_grad if train else (False,) * 6
        rows = max(1, _LOGITS_AT_ONCE.get(kind, 2**25) // weight.shape[0])
        total = torch.zeros((), device=states.device)
        state_gradient = torch.empty_like(states) if wants[0] else None
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if wants[1] else None
        bias_gradient = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and wants[2] else None
        with torch.autocast(kind, enabled=False):
            matrix, vector = weight.to(dtype), None if bias is None else bias.to(dtype)
            for start in range(0, len(states), rows):
                x, wanted = states[start : start + rows].to(dtype), labels[start : start + rows]
                logits = F.linear(x, matrix, vector).float()
                total += _loss(logits, wanted, smoothing)
                if not any(wants):
                    continue
                gradient = _gradient(logits, wanted, smoothing).to(dtype)
                if state_gradient is not None:
                    state_gradient[start : start + rows] = gradient @ matrix
                if weight_gradient is not None:
                    if dtype == torch.float32:
                        weight_gradient.addmm_(gradient.t(), x)
                    else:
                        weight_gradient += gradient.t() @ x
                if bias_gradient is not None:
                    bias_gradient += gradient.sum(0, dtype=torch.float32)
        ctx.gradients = state_gradient, weight_gradient, bias_gradient
        ctx.dtypes = weight.dtype, weight.dtype if bias is None else bias.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Any) -> Any:
        if ctx.gradients is None:
            raise RuntimeError("the gradients of this loss were used already; compute the loss again")
        states, weight, bias = (None if x is None else x.mul_(upstream[0]) for x in ctx.gradients)
        ctx.gradients = None  # so that a parameter takes its gradient as it is, not a copy
        weight = None if weight is None else weight.to(ctx.dtypes[0])
        bias = None if bias is None else bias.to(ctx.dtypes[1])
        return states, weight, bias, None, None, None


def _loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """The sum of the cross-entropy of logits (n, v) in fp32."""
    return F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)


def _gradient(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """The gradient of that by the logits (n, v), in their place."""
    gradient = torch.softmax(logits, -1, out=logits)
    if smoothing:
        gradient -= smoothing / logits.shape[1]
    target = torch.full_like(labels, -(1 - smoothing), dtype=gradient.dtype)
    gradient.scatter_add_(1, labels.clamp_min(0)[:, None], target[:, None])
    return gradient if eager(labels) else gradient.mul_((labels != IGNORED)[:, None])  # there, all of them count


class PairLoss(nn.Module):
    """A pair as a function from a batch to its loss: what is wrapped for many devices.

    >>> from warmstart import BertConfig, EncoderDecoderConfig, EncoderDecoderModel
    >>> size = dict(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> sides = BertConfig(**size), BertConfig(**size)
    >>> model = EncoderDecoderModel(config=EncoderDecoderConfig.from_encoder_decoder_configs(*sides)).eval()
    >>> model.config.decoder_start_token_id = 1
    >>> batch = {"input_ids": torch.tensor([[4, 5]]), "labels": torch.tensor([[6, 7, -100]])}
    >>> batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    >>> bool((PairLoss(model)(**batch, count=2) - model(**batch).loss).abs() < 1e-6)
    True
    """

    def __init__(self, model: Any, label_smoothing: float = 0.0):
        super().__init__()
        self.model, self.label_smoothing = model, label_smoothing

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, count: float, **beside: Tensor
    ) -> Tensor:
        """Cross-entropy over the labels (b, t) that are not -100, summed and divided by `count`.

        With the count of a whole step's labels, the losses of its parts add up to the loss of the step. `beside` is
        what a batch has of each source token beside its id; an encoder without tables for it leaves it out.
        """
        model = self.model
        is_plain = all(stack.is_plain() and not stack.checkpoint_layers for stack in model.stacks())
        with widened() if is_plain else contextlib.nullcontext():
            return self._summed(input_ids, attention_mask, labels, beside) / count

    def _summed(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, beside: Mapping[str, Tensor]
    ) -> Tensor:
        """The same, not divided."""
        model = self.model
        spec = model.encoder.spec
        beside = spec.beside({name: beside[name] for name in spec.beside_names if name in beside})
        source = model.encoder.states(input_ids, attention_mask, beside=beside, packed=True).last
        if hasattr(model, PROJECTION):
            source = model.enc_to_dec_proj(source)
        states = model.decoder.states(
            input_ids=model.prepare_decoder_input_ids_from_labels(labels),
            attention_mask=label_mask(labels),
            source=source,
            source_attention_mask=attention_mask,
            packed=True,
        )
        wanted, labels = states.last.flatten(0, 1), labels.flatten()
        if eager(labels):  # elsewhere, which labels count is not known before they have been computed
            places = (labels != IGNORED).nonzero()[:, 0]
            wanted, labels = wanted.index_select(0, places), labels[places]
        head = model.decoder.head
        smoothing = self.label_smoothing if model.training else 0.0
        if head.soft_cap is not None:
            return _loss(head(wanted).float(), labels, smoothing)
        last = head.transformed(wanted)
        output = head.output
        summed: Tensor = LinearCrossEntropy.apply(
            last, output.weight, output.bias, labels, smoothing, torch.is_grad_enabled()
        )
        return summed
