"""What models are called with: tensors, arrays, lists or a dict of them, made tensors of one kind and checked.

What can be told from types and shapes is refused before anything is traced; what only values tell, where they can be
looked at for free.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from warmstart.spec import BESIDE, EmbeddingSpec

IGNORED = -100  # a label that the loss passes over


def eager(x: Any) -> bool:
    """Whether a tensor's values can be looked at: it is not traced."""
    return isinstance(x, tf.Tensor) and hasattr(x, "numpy")


def as_ids(value: Any, name: str) -> Any:
    """Token ids, labels, positions or token types as an int32 tensor (batch, length); None stays.

    Raises:
        TypeError: they are no tensor, array or list.
        ValueError: they are not whole numbers, not in rows of one length, or not two-dimensional.
    """
    if value is None:
        return None
    ids = as_tensor(value, name)
    if not ids.dtype.is_integer or ids.shape.rank not in (None, 2):
        given = f"{tuple(ids.shape)} of {ids.dtype.name}"
        if name == "labels":
            raise ValueError(f"labels must be a tensor of token ids (batch, target_length), not {given}")
        raise ValueError(f"{name} is {given}; it must be whole numbers (batch, length), as token ids are integers")
    return tf.cast(ids, tf.int32)


def as_tensor(value: Any, name: str) -> Any:
    """A tensor of what is given.

    Raises:
        TypeError: it is no tensor, array or list.
        ValueError: its rows have different lengths.
    """
    if isinstance(value, (tf.Tensor, tf.Variable)) or tf.is_symbolic_tensor(value):
        return tf.convert_to_tensor(value)
    if hasattr(value, "__array__"):
        return tf.convert_to_tensor(np.asarray(value))
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{name} is a {type(value).__name__}; give a tensor (tokenizer(..., return_tensors='tf'))")
    try:
        return tf.convert_to_tensor(np.array(value))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{name} is a list that is no array ({error}); rows must have one length: tokenizer(..., padding=True)"
        ) from error


def as_mask(value: Any, name: str) -> Any:
    """A mask as a tensor, 1 or True for tokens; None stays."""
    return None if value is None else as_tensor(value, name)


def named(inputs: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name: the first may be a dict of them."""
    rest = {name: value for name, value in arguments.items() if name != "input_ids"}
    if not isinstance(inputs, Mapping):
        return {"input_ids": inputs, **rest}
    if twice := [name for name in inputs if rest.get(name) is not None]:
        raise ValueError(f"{twice} are given twice, in the dict and by name; give each once")
    return {"input_ids": None, **rest, **inputs}


def check_mask(mask: Any, rows: Any, past: Any, length: Any) -> None:
    """Refuse a mask that does not fit its tokens.

    Raises:
        ValueError: it has another number of rows or columns.
    """
    shape = mask.shape
    if shape.rank in (3, 4):
        return
    places = past + length
    known = isinstance(places, int) and shape.rank == 2 and shape[1] is not None
    if shape.rank != 2 or (known and shape[1] != places) or (isinstance(rows, int) and shape[0] not in (None, 1, rows)):
        raise ValueError(
            f"attention_mask of shape {tuple(shape)} does not cover {past} cached and {length} new tokens: it "
            f"must be ({rows}, {places})"
        )


def check_rows(ids: Any, rows: int, name: str) -> None:
    """Refuse ids of token types or positions that have no row in their table, where looking costs nothing.

    Raises:
        ValueError: names the id, and how many rows there are.
    """
    if ids is None or not eager(ids) or 0 in ids.shape:
        return
    low, high = int(tf.reduce_min(ids)), int(tf.reduce_max(ids))
    if low < 0 or high >= rows:
        raise ValueError(f"{name} holds {low if low < 0 else high}, and the model has rows for 0 to {rows - 1}")


def as_beside(given: Mapping[str, Any] | None, spec: EmbeddingSpec, tokens: Any) -> dict[str, Any]:
    """The ids of the tables beside the tokens', by table.

    Raises:
        TypeError: they are no tensor, array or list.
        ValueError: they are not one for each token, or have no row; names the shape, or the id.
    """
    found: dict[str, Any] = {}
    for table, rows, _ in spec.beside:
        if given is None or table not in given:
            continue
        name = BESIDE[table]
        found[table] = ids = as_ids(given[table], name)
        if not ids.shape.is_compatible_with(tokens.shape[:2]):
            shape = tuple(tokens.shape[:2])
            raise ValueError(f"{name} of shape {tuple(ids.shape)} must be {shape}, an id for each token")
        check_rows(ids, rows, name)
    return found


def check_ids(ids: Any, vocabulary: int, where: str) -> None:
    """Refuse ids outside the vocabulary, where looking costs nothing."""
    if not eager(ids):
        return
    values = ids.numpy()
    low, high = (int(x) for x in (values.min(initial=0), values.max(initial=0)))
    if low < 0 or high >= vocabulary:
        wrong = low if low < 0 else high
        row, column = (int(x) for x in np.argwhere(values == wrong)[0])
        raise ValueError(
            f"token id {wrong} at row {row}, column {column} is outside the {where} stack's "
            f"vocabulary of {vocabulary}; use the tokenizer that belongs to the model, or resize_token_embeddings "
            "after adding tokens"
        )
