"""What `padding`, `truncation` and `max_length` ask for, and padding itself.

Shapes: b batch, t tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from warmstart.tokenization.batch import BatchEncoding

logger = logging.getLogger(__name__)

PADDINGS = ("longest", "max_length", "do_not_pad")
TRUNCATIONS = ("longest_first", "only_first", "only_second", "do_not_truncate")
UNLIMITED = int(1e30)  # `model_max_length` of a tokenizer that knows none, as files have it
_NO_LIMIT = int(1e20)  # what files write for "none" differs; anything above this means it

_WITH = {"attention_mask": 0, "token_type_ids": 0, "special_tokens_mask": 1}  # what each is padded with
_said: set[str] = set()


@dataclass(frozen=True)
class Lengths:
    """How one call pads and cuts; `pad_to` and `cut_to` are numbers of tokens, None where there is no such limit."""

    padding: str = "do_not_pad"
    truncation: str = "do_not_truncate"
    pad_to: int | None = None
    cut_to: int | None = None
    multiple_of: int | None = None
    side: str = "right"

    def padded(self, longest: int) -> int | None:
        """The length that rows are padded to, if they are, when the longest has `longest` tokens.

        >>> Lengths(padding="longest", multiple_of=8).padded(13)
        16
        """
        if self.padding == "do_not_pad":
            return None
        length = longest if self.padding == "longest" else self.pad_to or 0
        return -(-length // self.multiple_of) * self.multiple_of if self.multiple_of else length


def lengths(
    padding: Any,
    truncation: Any,
    max_length: int | None,
    model_max_length: int,
    multiple_of: int | None,
    side: str,
    pad_token_id: int | None,
) -> Lengths:
    """Settle the options of a call as users give them.

    `padding` is True or "longest", "max_length", False; `truncation` True or "longest_first", "only_first",
    "only_second", False. A `max_length` alone asks for truncation. Where a length is needed and none is given, it is
    the tokenizer's `model_max_length`; where that is unknown too, nothing is padded or cut, and a warning is logged.

    Raises:
        ValueError: an option that is not known; padding without a pad token; a length that is not a multiple of
            `pad_to_multiple_of` where both padding and truncation are asked for.

    >>> lengths(True, True, None, 512, None, "right", 0)
    Lengths(padding='longest', truncation='longest_first', pad_to=512, cut_to=512, multiple_of=None, side='right')
    """
    if max_length is not None and padding is False and truncation is None:
        truncation = True
    padding = _option("padding", padding, PADDINGS)
    truncation = _option("truncation", truncation, TRUNCATIONS)
    if max_length is not None and (not isinstance(max_length, int) or max_length < 1):
        raise ValueError(f"max_length={max_length!r}: give a number of tokens of at least 1, or None")
    if multiple_of is not None and (not isinstance(multiple_of, int) or multiple_of < 1):
        raise ValueError(f"pad_to_multiple_of={multiple_of!r}: give a number of at least 1, or None")
    if side not in ("right", "left"):
        raise ValueError(f"padding_side={side!r}: it is 'right' or 'left'")
    if max_length is None:
        if model_max_length <= _NO_LIMIT:
            max_length = model_max_length
        else:
            if padding == "max_length":
                padding = "do_not_pad"
                say_once(
                    "padding='max_length' without max_length, and model_max_length is not known: nothing is padded"
                )
            if truncation != "do_not_truncate":
                truncation = "do_not_truncate"
                say_once("truncation without max_length, and model_max_length is not known: nothing is cut")
    pads, cuts = padding != "do_not_pad", truncation != "do_not_truncate"
    if pads and pad_token_id is None:
        raise ValueError(
            "padding was asked for and there is no pad token; set one, for example tokenizer.pad_token = "
            "tokenizer.eos_token, or tokenizer.add_special_tokens({'pad_token': '[PAD]'}) and "
            "model.resize_token_embeddings(len(tokenizer))"
        )
    if pads and cuts and multiple_of and max_length and max_length % multiple_of:
        raise ValueError(
            f"texts are cut to {max_length} tokens, which is not a multiple of pad_to_multiple_of={multiple_of}"
        )
    return Lengths(padding, truncation, max_length, max_length if cuts else None, multiple_of, side)


def pad_rows(
    tokenizer: Any, rows: Any, wanted: Lengths, return_attention_mask: bool, kind: str | None
) -> BatchEncoding:
    """Pad what a tokenizer returned, one example, a batch or a list of examples, to one length.

    The ids, `attention_mask`, `token_type_ids` and `special_tokens_mask` are padded; other values are passed on.

    Raises:
        ValueError: there are no ids among the values, or a value has another number of rows than the ids.
    """
    if isinstance(rows, Sequence) and rows and isinstance(rows[0], Mapping):
        rows = {name: [row[name] for row in rows] for name in rows[0]}
    name = tokenizer.model_input_names[0]
    if not isinstance(rows, Mapping) or name not in rows:
        raise ValueError(f"there is no {name!r} to pad in {list(rows) if isinstance(rows, Mapping) else rows!r}")
    kind = kind or _kind_of(rows[name])
    values = {key: _as_list(value) for key, value in rows.items()}
    if not values[name]:
        return BatchEncoding(values | ({"attention_mask": []} if return_attention_mask else {}), tensor_type=kind)
    is_single = not isinstance(values[name][0], list)
    if is_single:
        values = {key: [value] for key, value in values.items()}
    ids = values[name]
    for key, value in values.items():
        if len(value) != len(ids):
            raise ValueError(f"{key!r} has {len(value)} rows where {name!r} has {len(ids)}")
    if return_attention_mask and "attention_mask" not in values:
        values["attention_mask"] = [[1] * len(row) for row in ids]
    length = wanted.padded(max(map(len, ids)))
    padding = {**_WITH, **dict.fromkeys((name, *tokenizer.ids_beside), tokenizer.pad_token_id)}
    if length is not None:
        for key in values.keys() & padding.keys():
            values[key] = [_pad(row, length, padding[key], wanted.side) for row in values[key]]
    if is_single:
        values = {key: value[0] for key, value in values.items()}
    return BatchEncoding(values, tensor_type=kind)


def say_once(message: str) -> None:
    """Log a warning, once in a process."""
    if message not in _said:
        _said.add(message)
        logger.warning(message)


def _option(name: str, value: Any, names: tuple[str, ...]) -> str:
    value = getattr(value, "value", value)
    value = {True: names[0], False: names[-1], None: names[-1]}.get(value, value)
    if value not in names:
        raise ValueError(f"{name}={value!r} is not known; it is True, False or one of {', '.join(map(repr, names))}")
    return value


def _pad(row: list[int], length: int, value: int, side: str) -> list[int]:
    more = [value] * (length - len(row))
    return row + more if side == "right" else more + row


def _kind_of(value: Any) -> str | None:
    """The framework of the ids that were given, so that the padded ones are of the same."""
    first = value[0] if isinstance(value, (list, tuple)) and value else value
    module = type(first).__module__.partition(".")[0]
    return {"torch": "pt", "numpy": "np", "tensorflow": "tf", "jax": "jax", "jaxlib": "jax"}.get(module)


def _as_list(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_as_list(item) for item in value]
    if hasattr(value, "tolist"):
        return value.tolist()
    return value.numpy().tolist() if hasattr(value, "numpy") else value
