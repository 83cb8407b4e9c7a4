"""What models are called with: tensors, arrays, lists or a dict of them, made tensors of one kind and checked.

What can be told from types and shapes is refused before anything is traced; what only values tell, where they can be
looked at for free.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from warmstart.inputs import check_range, refuse_beside, refuse_id, refuse_labels, refuse_mask
from warmstart.spec import BESIDE, EmbeddingSpec


def eager(x: Any) -> bool:
    """Whether a tensor's values can be looked at: it is not traced."""
    return isinstance(x, tf.Tensor) and hasattr(x, "numpy")


def as_ids(value: Any, name: str) -> Any:
    """Labels, positions or token types as an int32 tensor (batch, length); None stays.

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
            refuse_labels(given)
        raise ValueError(f"{name} is {given}; it must be whole numbers (batch, length)")
    return tf.cast(ids, tf.int32)


def as_tensor(value: Any, name: str) -> Any:
    """A tensor of what is given, a mask or vectors say; None stays.

    Raises:
        TypeError: it is no tensor, array or list.
        ValueError: its rows have different lengths.
    """
    if value is None:
        return None
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
        refuse_mask(tuple(shape), rows, past, length)


def check_rows(ids: Any, rows: int, name: str) -> None:
    """Refuse ids of token types or positions that have no row in their table, where looking costs nothing.

    Raises:
        ValueError: names the id, and how many rows there are.
    """
    if ids is None or not eager(ids) or 0 in ids.shape:
        return
    check_range(int(tf.reduce_min(ids)), int(tf.reduce_max(ids)), rows, name)


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
            refuse_beside(tuple(ids.shape), tuple(tokens.shape[:2]), name)
        check_rows(ids, rows, name)
    return found


def check_vocabulary(ids: Any, vocabulary: int, family: str) -> None:
    """Refuse ids outside the vocabulary, where looking costs nothing."""
    if eager(ids):
        check_values(ids.numpy(), vocabulary, family)


def check_values(ids: Any, vocabulary: int, family: str) -> None:
    """Refuse ids (r, t) in an array that are outside the vocabulary."""
    low, high = (int(x) for x in (ids.min(initial=0), ids.max(initial=0)))
    if low < 0 or high >= vocabulary:
        wrong = low if low < 0 else high
        row, column = (int(x) for x in np.argwhere(ids == wrong)[0])
        refuse_id(wrong, row, column, family, vocabulary)
