"""Labels and losses: the one place where labels are shifted, and the cross-entropy over them.

Shapes: b batch, t target length, v vocabulary.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from warmstart.flax.masks import eager
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


def shift_labels(labels: Array, pad_token_id: int | None, decoder_start_token_id: int | None) -> Array:
    """Decoder inputs (b, t) from labels (b, t): one step to the right, the start id first, -100 become padding.

    Raises:
        ValueError: an id is not set; the message says how to set it.

    >>> shift_labels(jnp.array([[5, 6, -100]]), pad_token_id=0, decoder_start_token_id=1).tolist()
    [[1, 5, 6]]
    """
    is_array = isinstance(labels, (np.ndarray, Array))
    if not is_array or labels.ndim != 2 or labels.dtype.kind not in "iu":
        given = f"{tuple(labels.shape)} of {labels.dtype}" if is_array else type(labels).__name__
        refuse_labels(given, "an array")
    check_labels_shape(tuple(labels.shape))
    start, pad = needed("decoder_start_token_id", decoder_start_token_id), needed("pad_token_id", pad_token_id)
    shifted = jnp.pad(labels[:, :-1], ((0, 0), (1, 0)), constant_values=start)
    return jnp.where(shifted == IGNORED, pad, shifted)


def label_mask(labels: Array) -> Array:
    """Which decoder inputs made from labels are real (b, t): the start, and every label up to the last that counts.

    >>> label_mask(jnp.array([[5, -100, -100]])).tolist()
    [[1, 1, 0]]
    """
    places = jnp.arange(labels.shape[1])
    count = jnp.where(labels != IGNORED, places + 1, 0).max(1, keepdims=True)
    return (places <= count).astype(jnp.int32)


def cross_entropy(
    logits: Array,
    labels: Array,
    num_items_in_batch: int | Array | None = None,
    label_smoothing: float = 0.0,
    axis_name: Any = None,
) -> Array:
    """Mean cross-entropy of logits (b, t, v) over the labels (b, t) that are not -100.

    With `num_items_in_batch`, the count of such labels in a whole accumulated batch, the sum is divided by that: the
    losses of its parts then add up to the loss of the whole. Inside `pmap` or `shard_map`, `axis_name` names the axes
    over which the batch is spread: every device gets the mean over all its tokens. Arrays that are sharded over a mesh
    need none of it. Label smoothing as in Szegedy et al. 2016, section 7.

    Raises:
        ValueError: shapes do not fit, or a label is outside the vocabulary (where its value can be seen).

    >>> round(float(cross_entropy(jnp.zeros((1, 3, 4)), jnp.array([[1, 2, -100]]))), 4)
    1.3863
    """
    if tuple(labels.shape) != tuple(logits.shape[:-1]):
        refuse_places(tuple(labels.shape), tuple(logits.shape[:-1]))
    check_count(num_items_in_batch)
    check_labels(labels, logits.shape[-1])
    counted = labels != IGNORED
    scores = jax.nn.log_softmax(logits.astype(jnp.float32), -1)
    losses = -jnp.take_along_axis(scores, jnp.where(counted, labels, 0)[..., None], -1)[..., 0]
    if label_smoothing:
        losses = (1 - label_smoothing) * losses - label_smoothing * scores.mean(-1)
    total, count = jnp.where(counted, losses, 0.0).sum(), counted.sum()
    if axis_name is not None:
        total, count = jax.lax.psum(total, axis_name), jax.lax.psum(count, axis_name)
    return total / (count if num_items_in_batch is None else num_items_in_batch)


def check_labels(labels: Array, vocabulary: int) -> None:
    """Refuse labels that are neither -100 nor in the vocabulary, where looking costs nothing."""
    if not eager(labels):
        return
    values = np.asarray(labels)
    if values.size == 0:
        refuse_nothing()
    wrong = values[((values < 0) & (values != IGNORED)) | (values >= vocabulary)]
    if wrong.size:
        refuse_label(int(wrong[0]), vocabulary)
