"""Changes to a model that exists: another vocabulary."""

from __future__ import annotations

from typing import Any

import numpy as np

from warmstart.tf.elements import Output, table
from warmstart.tf.pretrained import policy
from warmstart.tf.tying import replace


def new_size(current: int, wanted: int | None, multiple: int | None) -> int:
    """The size of a vocabulary after resizing, rounded up to a multiple.

    >>> new_size(100, 103, 8)
    104
    """
    size = current if wanted is None else wanted
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"new_num_tokens {wanted!r} is not a vocabulary size; give len(tokenizer)")
    return -(-size // multiple) * multiple if multiple else size


def resize(model: Any, wanted: int | None, multiple: int | None, mean: bool) -> None:
    """Give a stack a vocabulary of another size; rows that both sizes have are kept. `compile` again after it.

    New rows start as the mean of the old ones, which leaves the logits of the old tokens nearly as they were (Hewitt
    2021, "Initializing New Word Embeddings for Pretrained Language Models"), or at random with `mean=False`.
    """
    spec = model.spec
    old = spec.embedding.vocabulary
    size = new_size(old, wanted, multiple)
    if size == old:
        return

    def resized(variable: Any) -> np.ndarray:
        values = variable.numpy()
        kept = values[:size]
        shape = (size - len(kept), *values.shape[1:])
        if mean:
            new = np.broadcast_to(values.astype(np.float32).mean(0), shape)
        else:
            deviation = spec.initializer_range if values.ndim > 1 else 0.0
            new = np.random.default_rng().normal(0.0, deviation, shape)
        return np.concatenate([kept, new.astype(values.dtype)])

    with policy(model.dtype_policy.name):
        tokens = table(size, spec.embedding.size)
        tokens._embeddings.assign(resized(model.embeddings.token._embeddings))
        replace(model.embeddings, "token", tokens)
        if spec.head is not None:
            held = model.head.output_layer
            output = Output(
                tokens if spec.head.tied else None, spec.head_width, size, spec.head.bias, spec.head.fixed_bias
            )
            for name in ("own", "bias"):
                if getattr(held, name) is not None:
                    getattr(output, name).assign(resized(getattr(held, name)))
            replace(model.head, "output_layer", output)
    model.config.vocab_size = size
    model.adopt(model.config)
    model.forget_traces()
