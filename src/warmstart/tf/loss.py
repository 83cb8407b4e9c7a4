"""Labels and losses: the one place where labels are shifted, and the cross-entropy over them.

Shapes: b batch, t target length, v vocabulary, n labels that count.
"""

from __future__ import annotations

import warnings
from typing import Any

import tensorflow as tf

from warmstart.inputs import (
    IGNORED,
    check_count,
    check_labels_shape,
    needed,
    refuse_label,
    refuse_nothing,
    refuse_places,
)
from warmstart.tf.inputs import eager


def shift_labels(labels: Any, pad_token_id: int | None, decoder_start_token_id: int | None) -> Any:
    """Decoder inputs (b, t) from labels (b, t): one step to the right, the start id first, -100 become padding.

    Raises:
        ValueError: an id is not set; the message says how to set it.

    >>> shift_labels(tf.constant([[5, 6, -100]]), pad_token_id=0, decoder_start_token_id=1).numpy()
    array([[1, 5, 6]], dtype=int32)
    """
    check_labels_shape(tuple(labels.shape))
    start, pad = needed("decoder_start_token_id", decoder_start_token_id), needed("pad_token_id", pad_token_id)
    shifted = _moved(labels, start)
    return tf.where(shifted == IGNORED, pad, shifted)


def _moved(labels: Any, first: int) -> Any:
    return tf.concat([tf.zeros_like(labels[:, :1]) + first, labels[:, :-1]], 1)


def label_mask(labels: Any) -> Any:
    """Which decoder inputs made from labels are real (b, t): the start, and every label up to the last that counts."""
    places = tf.range(tf.shape(labels)[1])
    count = tf.reduce_max(tf.where(labels != IGNORED, places + 1, 0), 1, keepdims=True)
    return places <= count


def warn_of_unshifted(decoder_input_ids: Any, labels: Any, start: int | None) -> None:
    """Warn of decoder inputs that are the labels themselves: the model would learn to copy them from its input."""
    if not (eager(labels) and eager(decoder_input_ids)) or decoder_input_ids.shape != labels.shape:
        return
    inputs, wanted = decoder_input_ids.numpy(), labels.numpy()
    counted = wanted != IGNORED
    if not (inputs == wanted)[counted].all():
        return
    # Shifted inputs equal the labels too where a token repeats; a label that is ignored says nothing of the input.
    before = _moved(labels, IGNORED if start is None else start).numpy()
    if (counted & (before != IGNORED) & (inputs != before)).any():
        warnings.warn(
            "decoder_input_ids are equal to labels: each position sees the token that it must predict. To train, leave "
            "decoder_input_ids out (they are made from the labels), or pass model.prepare_decoder_input_ids_from_labels"
            "(labels)",
            stacklevel=4,
        )


def token_losses(logits: Any, labels: Any) -> Any:
    """The cross-entropy of each position (b, t), computed in fp32; 0 where the label is -100.

    Raises:
        ValueError: labels do not fit the logits, or are neither -100 nor in the vocabulary.
    """
    check_labels(labels, logits)
    counted = labels != IGNORED
    if logits.dtype in (tf.float16, tf.bfloat16):
        logits = tf.cast(logits, tf.float32)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.where(counted, labels, 0), logits)
    return tf.where(counted, losses, 0.0)


def counted_losses(logits: Any, labels: Any) -> Any:
    """The cross-entropies of the labels that count, (n,): as the old class documents its loss."""
    return tf.boolean_mask(token_losses(logits, labels), labels != IGNORED)


def mean_loss(logits: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    """Mean cross-entropy over the labels that count, a scalar; on many devices, over those of all devices' batches.

    With `num_items_in_batch`, the count of such labels in a whole accumulated batch, the sum is divided by that.
    """
    check_count(num_items_in_batch)
    losses = token_losses(logits, labels)
    count = num_items_in_batch
    if count is None:
        count = tf.reduce_sum(tf.cast(labels != IGNORED, losses.dtype))
        replica = tf.distribute.get_replica_context()
        if replica is not None and replica.num_replicas_in_sync > 1:
            count = replica.all_reduce(tf.distribute.ReduceOp.SUM, count)
    return tf.reduce_sum(losses) / tf.maximum(tf.cast(count, losses.dtype), 1.0)


def check_labels(labels: Any, logits: Any) -> None:
    """Refuse labels that do not fit, or are neither -100 nor in the vocabulary, where looking costs nothing."""
    places, vocabulary = logits.shape[:-1], logits.shape[-1]
    if not labels.shape.is_compatible_with(places):
        refuse_places(tuple(labels.shape), tuple(places))
    if eager(labels):
        check_label_values(labels.numpy(), vocabulary)


def check_label_values(labels: Any, vocabulary: int) -> None:
    """Refuse labels (b, t) in an array that are none, or neither -100 nor in the vocabulary."""
    if labels.size == 0:
        refuse_nothing()
    odd = labels[((labels < 0) & (labels != IGNORED)) | (labels >= vocabulary)]
    if odd.size:
        refuse_label(int(odd[0]), vocabulary)
