"""Refuses what `generate` cannot begin with, by the sizes that each framework reads off its own arrays.

Shapes: b sources, s source length, p prompt length, h hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from warmstart.generation_config import GenerationConfig


def source_name(arguments: Mapping[str, Any]) -> str:
    """Which of the arguments holds the source.

    Raises:
        ValueError: none does, or both ids and vectors do.
    """
    if arguments.get("encoder_outputs") is not None:
        return "encoder_outputs"
    ids, vectors = arguments.get("input_ids"), arguments.get("inputs_embeds")
    if (ids is None) == (vectors is None):
        given = "neither" if ids is None else "both"
        raise ValueError(f"generate() needs either input_ids or inputs_embeds for the encoder; it got {given}")
    return "inputs_embeds" if ids is None else "input_ids"


def check_ids(name: str, shape: tuple[Any, ...], dtype: Any, is_whole: bool) -> None:
    """Refuse ids that are not whole numbers (b, s) or (b, p), or are none.

    Raises:
        ValueError: names the argument, its shape and its type.
    """
    if len(shape) != 2 or not is_whole:
        raise ValueError(
            f"{name} is {shape} of {dtype}; it must be whole numbers (batch, length), as token ids are integers"
        )
    if 0 in shape:
        raise ValueError(f"{name} is empty, {shape}; give at least one row with at least one token")


def check_vectors(shape: tuple[Any, ...]) -> None:
    """Refuse vectors that are not (b, s, h), or are none.

    Raises:
        ValueError: names the shape.
    """
    if len(shape) != 3 or 0 in shape:
        raise ValueError(f"inputs_embeds is {shape}; it must be (batch, source_length, hidden)")


def check_prompt(rows: Any, sources: Any) -> None:
    """Refuse prompts that are not one for each source.

    Raises:
        ValueError: names how many there are of both.
    """
    if rows != sources:
        raise ValueError(f"decoder_input_ids has {rows} rows and the source {sources}; they must be the same")


def check_starts(count: int, sources: Any) -> None:
    """Refuse start tokens that are neither one nor one for each source.

    Raises:
        ValueError: names how many there are of both.
    """
    if count not in (1, sources):
        raise ValueError(f"decoder_start_token_id has {count} ids for {sources} sources; give one, or one for each")


def refuse_prompt_mask() -> NoReturn:
    """Raise the error of a prompt's mask that has no prompt, or not its shape."""
    raise ValueError("decoder_attention_mask belongs to decoder_input_ids of the same shape; give both, or neither")


def refuse_right_padding() -> NoReturn:
    """Raise the error of a prompt that is not padded on the left."""
    raise ValueError(
        "the prompt ends in padding, and generation goes on from its last position: pad it on the left "
        "(tokenizer.padding_side = 'left')"
    )


def check_alone(arguments: Mapping[str, Any], others: Iterable[str]) -> None:
    """Refuse the arguments that a model without an encoder has no use for.

    Raises:
        ValueError: names the first that is given.
    """
    for name in others:
        if arguments.get(name) is not None:
            raise ValueError(f"{name} is not supported by generate() of a model without an encoder; give input_ids")


def first_token(config: GenerationConfig) -> int:
    """What a text without a prompt begins with.

    Raises:
        ValueError: it is not set.
    """
    if config.bos_token_id is None:
        raise ValueError("there is nothing to begin with: give input_ids, or set model.config.bos_token_id")
    token: int = config.bos_token_id
    return token


def padding_of(config: GenerationConfig) -> int | None:
    """The id that pads prompts, None where it also ends a text and so cannot be told from one."""
    ends = config.eos_token_id if isinstance(config.eos_token_id, (list, tuple)) else [config.eos_token_id]
    pad: int | None = config.pad_token_id
    return None if pad in ends else pad


def check_guided(config: GenerationConfig) -> None:
    """Refuse a negative prompt that nothing reads.

    Raises:
        ValueError: says what to set.
    """
    if config.guidance_scale in (None, 1):
        raise ValueError("negative_prompt_ids are what guidance_scale leads away from: set it to a number above 1")


def check_negative_rows(count: Any, rows: Any) -> None:
    """Refuse negative prompts that are neither one nor one for each of the rows.

    Raises:
        ValueError: names how many there are of both.
    """
    if count not in (1, rows):
        raise ValueError(f"negative_prompt_ids has {count} rows for {rows} sources; give one, or one each")


def check_multiple(multiple: Any) -> None:
    """Refuse what no length is a multiple of.

    Raises:
        ValueError: it is no whole number, 1 or more.
    """
    if isinstance(multiple, bool) or not isinstance(multiple, int) or multiple < 1:
        raise ValueError(f"pad_to_multiple_of={multiple!r}: it must be a whole number, 1 or more")
