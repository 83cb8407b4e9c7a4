"""Where a pair looks while it writes: cross-attention as numbers, and as a figure.

Shapes: b batch, s source length, t target length, l layers, n heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def cross_attention(
    model: Any, input_ids: Tensor, decoder_input_ids: Tensor, attention_mask: Tensor | None = None, **more: Tensor
) -> Tensor:
    """The weights (l, b, n, t, s) with which each position of a target looks at its source; each row sums to 1.

    `more` is what else the encoder reads.
    """
    was_training = model.training
    model.eval()
    with torch.no_grad():
        output = model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            output_attentions=True,
            **more,
        )
    model.train(was_training)
    return torch.stack(output.cross_attentions)


def plot_cross_attention(
    model: Any,
    input_ids: Tensor,
    decoder_input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    *,
    tokenizer: Any = None,
    decoder_tokenizer: Any = None,
    layer: int | None = None,
    head: int | None = None,
) -> Any:
    """A matplotlib figure of where the model looks in one source (1, s) while it writes each token.

    Rows are the tokens of `decoder_input_ids` (1, t) after the first, each with the weights by which it was chosen;
    without them the model writes. The mean over all layers and heads is shown, or that of one `layer` or `head`.
    Tokenizers name the tokens (the target's is the source's if only one is given); else their ids do.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there are several sources, or no such layer or head.

    >>> from warmstart import BertConfig, EncoderDecoderConfig, EncoderDecoderModel
    >>> size = dict(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> sides = BertConfig(**size), BertConfig(**size)
    >>> model = EncoderDecoderModel(config=EncoderDecoderConfig.from_encoder_decoder_configs(*sides)).eval()
    >>> figure = model.plot_cross_attention(torch.tensor([[4, 5, 6]]), torch.tensor([[1, 7, 8]]))
    >>> figure.axes[0].images[0].get_array().shape
    (2, 3)
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ImportError(
            'matplotlib is not installed, and a plot cannot do without it: pip install "warmstart[train]"'
        ) from error
    if len(input_ids) != 1:
        raise ValueError(f"{len(input_ids)} sources are given; plot one at a time, such as input_ids[:1]")
    if decoder_input_ids is None:
        decoder_input_ids = model.generate(input_ids=input_ids, attention_mask=attention_mask, num_return_sequences=1)
    read = decoder_input_ids[:, : max(1, decoder_input_ids.shape[1] - 1)]  # nothing is chosen after the last token
    weights = cross_attention(model, input_ids, read, attention_mask)[:, 0]
    for name, chosen, count in (("layer", layer, weights.shape[0]), ("head", head, weights.shape[1])):
        if chosen is not None and not -count <= chosen < count:
            raise ValueError(f"{name} {chosen}: the decoder has {count}, counted from 0")
    weights = weights.mean(0) if layer is None else weights[layer]
    weights = weights.mean(0) if head is None else weights[head]
    columns = names(tokenizer, input_ids[0])
    rows = names(decoder_tokenizer or tokenizer, decoder_input_ids[0, 1:])
    shown = weights[: len(rows)].float().cpu().numpy()
    size = 2 + 0.22 * len(columns), 1.2 + 0.22 * len(rows)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shown, cmap="Blues", vmin=0, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=90)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(labelsize=8)
    axes.set_xlabel("source")
    axes.set_ylabel("written")
    figure.colorbar(image, ax=axes, label="cross-attention")
    return figure


def names(tokenizer: Any, ids: Tensor) -> list[str]:
    """A name for each token."""
    numbers = [int(number) for number in ids]
    return list(map(str, numbers)) if tokenizer is None else [str(x) for x in tokenizer.convert_ids_to_tokens(numbers)]
