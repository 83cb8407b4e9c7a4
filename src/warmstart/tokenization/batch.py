"""What a tokenizer returns: lists or tensors by name, and the way from tokens back to words and characters.

Shapes: b batch, t tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

# what `return_tensors` may say -> the extra that brings the framework
TENSOR_KINDS = {"np": None, "pt": "torch", "tf": "tf", "jax": "flax"}


class CharSpan(NamedTuple):
    """Characters `start` to `end` (not included) of a text."""

    start: int
    end: int


class TokenSpan(NamedTuple):
    """Tokens `start` to `end` (not included) of a sequence."""

    start: int
    end: int


class BatchEncoding(dict[str, Any]):
    """A dictionary of what the model takes (`input_ids`, `attention_mask` ...), readable by key and by attribute.

    An integer or a slice as key gives the `tokenizers.Encoding` of a row, which knows where each token came from; the
    methods `tokens`, `word_ids`, `char_to_token` ... ask it. Tensors have the shape (b, t).

    >>> batch = BatchEncoding({"input_ids": [[5, 6], [7, 0]]}, tensor_type="np")
    >>> batch.input_ids.shape, list(batch)
    ((2, 2), ['input_ids'])
    """

    def __init__(
        self,
        data: Any = None,
        encoding: Any = None,
        tensor_type: str | None = None,
        prepend_batch_axis: bool = False,
        n_sequences: int | None = None,
    ) -> None:
        super().__init__(data or {})
        self.__dict__["encodings"] = [encoding] if not isinstance(encoding, (list, type(None))) else encoding
        self.__dict__["_n_sequences"] = n_sequences
        self.convert_to_tensors(tensor_type, prepend_batch_axis)

    @property
    def data(self) -> dict[str, Any]:
        return self

    @property
    def is_fast(self) -> bool:
        return self.encodings is not None

    @property
    def n_sequences(self) -> int | None:
        return self.encodings[0].n_sequences if self.encodings else self._n_sequences

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return super().__getitem__(key)
        if self.encodings is not None:
            return self.encodings[key]
        if isinstance(key, slice):
            return {name: value[key] for name, value in self.items()}
        raise KeyError(f"{key!r}: this batch was not made by a tokenizer; its keys are {list(self)}")

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"this batch has no {name!r}; it has {', '.join(map(repr, self)) or 'nothing'}")

    def __reduce__(self) -> Any:
        return type(self), (dict(self), self.encodings, None, False, self._n_sequences)

    def copy(self) -> BatchEncoding:
        return type(self)(dict(self), self.encodings, n_sequences=self._n_sequences)

    def convert_to_tensors(self, tensor_type: str | None = None, prepend_batch_axis: bool = False) -> BatchEncoding:
        """Turn every value into a tensor of integers: "np", "pt", "tf" or "jax"; None leaves the lists.

        With `prepend_batch_axis` the values are those of one text, and become a batch of one.

        Raises:
            ValueError: the kind is not known, or the rows of a value differ in length.
            ImportError: the framework is not installed.
        """
        if tensor_type is None:
            return self
        kind = str(getattr(tensor_type, "value", tensor_type))
        make = tensor_maker(kind)
        for name, value in self.items():
            super().__setitem__(name, make(_as_array(name, [value] if prepend_batch_axis else value)))
        return self

    def to(self, device: Any, *, non_blocking: bool = False) -> BatchEncoding:
        """Move the PyTorch tensors to a device, in place; other values stay where they are."""
        for name, value in self.items():
            if hasattr(value, "to") and hasattr(value, "device"):
                super().__setitem__(name, value.to(device=device, non_blocking=non_blocking))
        return self

    def tokens(self, batch_index: int = 0) -> list[str]:
        """The tokens of a row, as written in the vocabulary."""
        return self[batch_index].tokens

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token, which word of its text it belongs to; None for special tokens."""
        return self[batch_index].word_ids

    words = word_ids

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token, 0 for the text, 1 for its pair, None for special tokens."""
        return self[batch_index].sequence_ids

    # Each of these takes (row, index), or the index alone, for the first row.

    def token_to_sequence(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        row, index = _row_and_index(batch_or_token_index, token_index)
        return self[row].token_to_sequence(index)

    def token_to_word(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        row, index = _row_and_index(batch_or_token_index, token_index)
        return self[row].token_to_word(index)

    def token_to_chars(self, batch_or_token_index: int, token_index: int | None = None) -> CharSpan | None:
        row, index = _row_and_index(batch_or_token_index, token_index)
        span = self[row].token_to_chars(index)
        return CharSpan(*span) if span is not None else None

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        row, index = _row_and_index(batch_or_char_index, char_index)
        return self[row].char_to_token(index, sequence_index)

    def char_to_word(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        row, index = _row_and_index(batch_or_char_index, char_index)
        return self[row].char_to_word(index, sequence_index)

    def word_to_tokens(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> TokenSpan | None:
        row, index = _row_and_index(batch_or_word_index, word_index)
        span = self[row].word_to_tokens(index, sequence_index)
        return TokenSpan(*span) if span is not None else None

    def word_to_chars(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> CharSpan:
        row, index = _row_and_index(batch_or_word_index, word_index)
        return CharSpan(*self[row].word_to_chars(index, sequence_index))


def tensor_maker(kind: str) -> Any:
    """The function that turns a numpy array into a tensor of a framework, imported only now.

    >>> tensor_maker("np")(np.ones(2)).tolist()
    [1.0, 1.0]
    """
    if kind not in TENSOR_KINDS:
        raise ValueError(
            f"return_tensors={kind!r} is not known; it is one of {', '.join(map(repr, TENSOR_KINDS))}, or None"
        )
    try:
        if kind == "pt":
            import torch

            return torch.tensor
        if kind == "tf":
            import tensorflow

            return lambda array: tensorflow.constant(array.astype(np.int32))
        if kind == "jax":
            import jax

            return lambda array: jax.numpy.asarray(array.astype(np.int32))
    except ImportError as error:
        raise ImportError(
            f"return_tensors={kind!r} needs {error.name}, which is not installed: "
            f'pip install "warmstart[{TENSOR_KINDS[kind]}]"',
            name=error.name,
        ) from error
    return np.asarray


def _as_array(name: str, value: Any) -> np.ndarray:
    if hasattr(value, "detach"):  # a torch tensor
        value = value.detach().cpu()
    try:
        array = np.asarray(value)
    except ValueError as error:
        lengths = sorted({len(row) for row in value})
        raise ValueError(
            f"{name!r} cannot become one tensor, its rows have {lengths[0]} to {lengths[-1]} items: ask for "
            "padding=True, and truncation=True if there is a longest length"
        ) from error
    return array.astype(np.int64) if array.size == 0 else array


def _row_and_index(first: int, second: int | None) -> tuple[int, int]:
    return (0, first) if second is None else (first, second)
