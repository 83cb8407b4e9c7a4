"""Refuses what a model cannot be called with, by the sizes and numbers that each framework reads off its own arrays.

So the words are the same in all three. A size that is not known while a graph is traced is None.

Shapes: r rows, t new tokens, p tokens in the cache, h hidden size, v vocabulary.
"""

from __future__ import annotations

from typing import Any, NoReturn

from warmstart.spec import StackSpec

IGNORED = -100
"""A label that the loss passes over."""


def one_of(ids: Any, vectors: Any) -> Any:
    """Ids or vectors, whichever was given to a stack.

    Raises:
        ValueError: neither was, or both.
    """
    if (ids is None) == (vectors is None):
        raise ValueError("give either input ids or input vectors (`inputs_embeds`), and not both")
    return vectors if ids is None else ids


def check_shape(spec: StackSpec, shape: tuple[Any, ...], is_ids: bool, past: Any = 0) -> None:
    """Refuse ids (r, t) or vectors (r, t, h) that do not fit a stack which holds p = `past` tokens already.

    Raises:
        ValueError: they have other axes, are empty, too long, or of another width.
    """
    if len(shape) != (2 if is_ids else 3):
        raise ValueError(f"input of shape {shape} is not (batch, length) ids or (batch, length, size)")
    if shape[0] == 0 or shape[1] == 0:
        raise ValueError(f"the {spec.family} stack got an empty input of shape {shape}; give >= 1 token")
    if past is not None and shape[1] is not None:
        check_length(spec, past + shape[1])
    if not is_ids and shape[2] != spec.embedding.size:
        raise ValueError(
            f"inputs_embeds are {shape[2]} wide and the {spec.family} stack's embeddings {spec.embedding.size}; give "
            "what get_input_embeddings() would"
        )


def check_length(spec: StackSpec, length: Any) -> None:
    """Refuse more tokens than a stack has positions.

    Raises:
        ValueError: names both.
    """
    if spec.positions is not None and length > spec.positions:
        raise ValueError(
            f"{length} tokens are more than the {spec.positions} positions of the {spec.family} stack; truncate to "
            f"max_length={spec.positions}, or use a model with more positions"
        )


def refuse_mask(shape: tuple[Any, ...], rows: Any, past: Any, length: Any) -> NoReturn:
    """Raise the error of a mask that is not (r, p + t)."""
    raise ValueError(
        f"attention_mask of shape {shape} does not cover {past} cached and {length} new tokens: it must be "
        f"({rows}, {past + length})"
    )


def check_range(low: int, high: int, rows: int, name: str) -> None:
    """Refuse token types or positions from `low` to `high` of which some have no row in their table.

    Raises:
        ValueError: names the id, and how many rows there are.
    """
    if low < 0 or high >= rows:
        raise ValueError(f"{name} holds {low if low < 0 else high}, and the model has rows for 0 to {rows - 1}")


def refuse_beside(shape: tuple[Any, ...], tokens: tuple[Any, ...], name: str) -> NoReturn:
    """Raise the error of ids for a table beside the tokens' that are not one for each token."""
    raise ValueError(f"{name} of shape {shape} must be {tokens}, an id for each token")


def refuse_type(dtype: Any, family: str) -> NoReturn:
    """Raise the error of ids that are no whole numbers."""
    raise ValueError(f"ids of type {dtype} given to the {family} stack; token ids are integers")


def refuse_id(wrong: int, row: int, column: int, family: str, vocabulary: int) -> NoReturn:
    """Raise the error of a token id that is not from 0 to v - 1."""
    raise ValueError(
        f"token id {wrong} at row {row}, column {column} is outside the {family} stack's vocabulary of {vocabulary}; "
        "use the tokenizer that belongs to the model, or resize_token_embeddings after adding tokens"
    )


# Labels ---------------------------------------------------------------------------------------------------------------


def needed(name: str, value: Any) -> int:
    """An id that must be set by now.

    Raises:
        ValueError: it is None, or no whole number.
    """
    if value is None:
        hint = "tokenizer.cls_token_id" if name == "decoder_start_token_id" else "tokenizer.pad_token_id"
        raise ValueError(
            f"{name} is not set: neither the decoder's config nor its tokenizer says it. "
            f"Set model.config.{name}, for example to {hint} or to the id of the token your labels were trained with"
        )
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ValueError(f"{name}={value!r} is not a token id; set model.config.{name} to one whole number")
    return int(value)


def refuse_labels(given: str, wanted: str = "a tensor") -> NoReturn:
    """Raise the error of labels that are not whole numbers in two axes."""
    raise ValueError(f"labels must be {wanted} of token ids (batch, target_length), not {given}")


def check_labels_shape(shape: tuple[Any, ...]) -> None:
    """Refuse labels (r, t) of no token, from which no input of a decoder can be made.

    Raises:
        ValueError: t is 0.
    """
    if shape[1] == 0:
        raise ValueError(f"labels of shape {shape} are empty; give at least the end token")


def refuse_places(shape: tuple[Any, ...], places: tuple[Any, ...]) -> NoReturn:
    """Raise the error of labels that are not one for each place of the logits."""
    raise ValueError(
        f"labels of shape {shape} do not fit logits for {places} positions; give one label for each, -100 where there "
        "is none"
    )


def refuse_nothing() -> NoReturn:
    """Raise the error of labels without a number in them."""
    raise ValueError("there is nothing to predict: the labels are empty, or a prompt of one token has no next one")


def check_count(count: object) -> None:
    """Refuse a count of labels that a loss cannot be divided by, where it is a plain number.

    Raises:
        ValueError: it is below 1.

    >>> check_count(12)
    """
    if isinstance(count, int) and count < 1:
        raise ValueError(
            f"num_items_in_batch={count}: give the number of labels that are not -100 in the whole batch, at least 1; "
            "leave a batch without any out"
        )


def refuse_label(wrong: int, vocabulary: int) -> NoReturn:
    """Raise the error of a label that is neither -100 nor from 0 to v - 1."""
    raise ValueError(
        f"label {wrong} is neither -100 nor in the decoder's vocabulary of {vocabulary}; tokenize the targets with the "
        "decoder's tokenizer, and use -100 for what the loss ignores"
    )


def check_sources(width: int, own: int) -> None:
    """Refuse an encoder's states of another width than the encoder of this pair has.

    Raises:
        ValueError: names both.
    """
    if width != own:
        raise ValueError(f"encoder_outputs are {width} wide and the encoder's states {own}")


def check_target_rows(rows: Any, sources: Any) -> None:
    """Refuse a decoder's rows that are not one or more for each source.

    Raises:
        ValueError: names both.
    """
    if rows % sources:
        raise ValueError(
            f"the decoder has {rows} rows for {sources} sources; labels and decoder_input_ids must have as many rows "
            "for each source, one or more"
        )


def refuse_no_target() -> NoReturn:
    """Raise the error of a call that gives the decoder nothing."""
    raise ValueError("the decoder has nothing to read: give labels, decoder_input_ids or decoder_inputs_embeds")
