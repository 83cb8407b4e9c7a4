"""Texts as users give them to `tokenizers.Encoding`s, and ids back to text."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from tokenizers import Encoding

from warmstart.tokenization.padding import Lengths, _as_list

if TYPE_CHECKING:
    from warmstart.tokenization.tokenizer import PreTrainedTokenizerFast

_REMEDY = "give a text (str), a list of texts, or a list of lists of words with is_split_into_words=True"

# What a word-piece decoder leaves of English punctuation and contractions -> how it is written; applied in this order.
CLEANED_UP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


def clean_up(text: str) -> str:
    """Take out the spaces that decoding leaves before English punctuation and contractions.

    >>> clean_up("it 's done , is n't it ?")
    "it's done, isn't it?"
    """
    for found, written in CLEANED_UP:
        text = text.replace(found, written)
    return text


def as_inputs(text: Any, text_pair: Any, are_words: bool) -> tuple[list[Any], bool]:
    """Read the texts of a call: the list of texts or (text, pair) tuples, and whether a batch was given.

    Raises:
        ValueError: something other than text, or texts and pairs that differ in number.

    >>> as_inputs("a", "b", False), as_inputs(["a", ("b", "c")], None, False)
    (([('a', 'b')], False), (['a', ('b', 'c')], True))
    """
    text, text_pair = _as_lists(text), _as_lists(text_pair)
    depth = 2 if are_words else 1
    is_batch = isinstance(text, list) and (not are_words or (bool(text) and isinstance(text[0], (list, tuple))))
    if not is_batch:
        text, text_pair = [text], [text_pair] if text_pair else None
    elif text_pair is not None and not (isinstance(text_pair, list) and len(text_pair) == len(text)):
        given = f"{len(text_pair)} pairs" if isinstance(text_pair, list) else f"one pair, {text_pair!r},"
        raise ValueError(f"{given} for {len(text)} texts; give a list with one pair for each text")
    where = "text[{}]" if is_batch else "text"
    checked = [_checked(item, where.format(row), depth, may_pair=text_pair is None) for row, item in enumerate(text)]
    if text_pair is None:
        return checked, is_batch
    where = where.replace("text", "text_pair")
    pairs = [_checked(item, where.format(row), depth, may_pair=False) for row, item in enumerate(text_pair)]
    return list(zip(checked, pairs, strict=True)), is_batch


def cut_texts(inputs: list[Any], known: Collection[str], cut: Callable[[str], list[str]]) -> list[Any]:
    """Texts, pairs or lists of words as the pieces that `cut` makes of what lies between `known` tokens.

    >>> cut_texts(["ab<s>c", ("a", "b")], ["<s>"], list)
    [['a', 'b', '<s>', 'c'], (['a'], ['b'])]
    """
    pattern = "|".join(map(re.escape, sorted(known, key=len, reverse=True)))

    def pieces(text: str | list[str]) -> list[str]:
        if isinstance(text, list):
            return [piece for word in text for piece in pieces(word)]
        parts = re.split(f"({pattern})", text) if pattern else [text]
        return [piece for part in filter(None, parts) for piece in ([part] if part in known else cut(part))]

    return [tuple(map(pieces, item)) if isinstance(item, tuple) else pieces(item) for item in inputs]


def encode_batch(
    tokenizer: PreTrainedTokenizerFast,
    inputs: list[Any],
    lengths: Lengths,
    stride: int,
    add_special_tokens: bool,
    are_words: bool,
    split_special_tokens: bool,
) -> list[Encoding]:
    """Encode, cut and pad a batch of inputs.

    Raises:
        ValueError: the length does not hold the special tokens and the stride, a text that cannot be written as UTF-8.
    """
    backend = tokenizer.backend_tokenizer
    is_pair = any(isinstance(item, tuple) for item in inputs)
    with tokenizer._lock:  # truncation is a state of the backend
        if lengths.cut_to is None:
            backend.no_truncation()
        else:
            taken = backend.num_special_tokens_to_add(is_pair) if add_special_tokens else 0
            _check_length(lengths.cut_to, taken, stride)
            backend.enable_truncation(
                lengths.cut_to, stride=stride, strategy=lengths.truncation, direction=tokenizer.truncation_side
            )
        backend.encode_special_tokens = split_special_tokens
        try:
            encodings = backend.encode_batch(inputs, is_pretokenized=are_words, add_special_tokens=add_special_tokens)
        except TypeError:
            _check_unicode(inputs)
            raise
        except BaseException as error:  # the library panics where it cuts a pair shorter than the stride
            if "runcation" not in str(error) and "stride" not in str(error):
                raise
            raise ValueError(
                f"truncation={lengths.truncation!r} and stride={stride} cannot bring every input to max_length="
                f"{lengths.cut_to}, the text to cut is too short ({error}); use 'longest_first' and a smaller stride"
            ) from error
    length = lengths.padded(max((len(encoding.ids) for encoding in encodings), default=0))
    if length is not None:
        pad_token, pad_token_id = tokenizer.pad_token, tokenizer.pad_token_id
        for encoding in encodings:
            encoding.pad(
                length,
                direction=lengths.side,
                pad_id=pad_token_id,
                pad_type_id=tokenizer.pad_token_type_id,
                pad_token=pad_token,
            )
    return encodings


def decode_batch(tokenizer: PreTrainedTokenizerFast, rows: Any, skip_special_tokens: bool, cleans: bool) -> list[str]:
    """Turn rows of ids, in lists or tensors of any framework, back to text.

    Raises:
        ValueError: an id below zero or something that is no id.
    """
    listed = [[row] if isinstance(row, int) else row for row in map(_as_list, rows)]
    try:
        texts = tokenizer.backend_tokenizer.decode_batch(listed, skip_special_tokens=skip_special_tokens)
    except (OverflowError, TypeError) as error:
        wrong = [index for row in listed for index in row if not isinstance(index, int) or index < 0]
        raise ValueError(
            f"{wrong[0]!r} is no id of a token; ids are whole numbers from 0 (labels of -100 must be replaced by the "
            "pad token's id before they are decoded)"
            if wrong
            else f"ids cannot be decoded: {error}"
        ) from error
    return [clean_up(text) for text in texts] if cleans else texts


def _as_lists(value: Any) -> Any:
    """Let arrays, columns and generators of texts pass for lists."""
    if value is None or isinstance(value, (str, bytes, Mapping, list)) or not isinstance(value, Iterable):
        return value
    return list(value)


def _checked(item: Any, where: str, depth: int, may_pair: bool) -> Any:
    if depth == 1:
        if isinstance(item, str):
            return item
        if may_pair and _are_texts(item) and len(item) == 2:
            return tuple(item)
    elif _are_texts(item):
        return list(item)
    elif may_pair and isinstance(item, (list, tuple)) and len(item) == 2 and all(map(_are_texts, item)):
        return tuple(list(words) for words in item)
    remedy = "decode it first, bytes.decode('utf-8')" if isinstance(item, bytes) else _REMEDY
    raise ValueError(f"{where} is not text but {_shown(item)}; {remedy}")


def _are_texts(item: Any) -> bool:
    return isinstance(item, (list, tuple)) and all(isinstance(text, str) for text in item)


def _shown(item: Any) -> str:
    shown = repr(item)
    return f"{type(item).__name__} {shown if len(shown) <= 60 else shown[:57] + '...'}"


def _check_length(cut_to: int, taken: int, stride: int) -> None:
    if cut_to < taken:
        raise ValueError(f"max_length={cut_to} is too short, the special tokens alone are {taken}")
    if stride < 0 or (stride and stride >= cut_to - taken):
        raise ValueError(
            f"stride={stride} has to be from 0 to less than the {cut_to - taken} tokens that max_length={cut_to} "
            f"leaves beside {taken} special tokens"
        )


def _check_unicode(inputs: Any, where: str = "text") -> None:
    for index, item in enumerate(inputs):
        if isinstance(item, (list, tuple)):
            _check_unicode(item, f"{where}[{index}]")
            continue
        try:
            item.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{where}[{index}] is not text that UTF-8 can hold: it has {item[error.start]!r}, half of a pair of "
                f"surrogates, at character {error.start}; read the file again with the right encoding, or with "
                "errors='replace'"
            ) from error
