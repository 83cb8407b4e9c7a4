"""The named special tokens of a tokenizer (`bos_token`, `pad_token_id` ...) as attributes that can be set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from tokenizers import AddedToken

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

Token: TypeAlias = "str | AddedToken"


class NamedToken:
    """An attribute that holds a special token's text; None where the tokenizer has none."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, tokenizer: Any, owner: type) -> Any:
        if tokenizer is None:
            return self
        token = tokenizer._special[self.name]
        return None if token is None else str(token)

    def __set__(self, tokenizer: Any, value: Token | None) -> None:
        tokenizer.set_special_token(self.name, value)


class NamedTokenId:
    """An attribute that holds a special token's id; setting it looks the token up."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name.removesuffix("_id")

    def __get__(self, tokenizer: Any, owner: type) -> Any:
        if tokenizer is None:
            return self
        token = getattr(tokenizer, self.name)
        return None if token is None else tokenizer.convert_tokens_to_ids(token)

    def __set__(self, tokenizer: Any, value: int | None) -> None:
        token = None if value is None else tokenizer.convert_ids_to_tokens(value)
        if value is not None and token is None:
            raise ValueError(f"{self.name}_id={value}: the vocabulary has no such id, it has {len(tokenizer)} tokens")
        setattr(tokenizer, self.name, token)


def as_token(value: Any, name: str) -> Token | None:
    """Read a special token as files and users give it: text, `AddedToken`, its fields as a dictionary, or None.

    >>> as_token("<s>", "bos_token"), as_token({"content": "<mask>", "lstrip": True}, "mask_token").lstrip
    ('<s>', True)
    >>> as_token(3, "pad_token")
    Traceback (most recent call last):
    ...
    ValueError: pad_token has to be text or an AddedToken, not 3
    """
    if value is None or isinstance(value, (str, AddedToken)):
        return value
    if isinstance(value, Mapping) and isinstance(value.get("content"), str):
        fields = {
            key: value[key] for key in ("single_word", "lstrip", "rstrip", "normalized", "special") if key in value
        }
        return AddedToken(value["content"], **fields)
    raise ValueError(f"{name} has to be text or an AddedToken, not {value!r}")


def as_json(token: Token | None) -> Any:
    """Write a special token into a JSON file, the fields of an `AddedToken` with it.

    >>> as_json("<s>"), as_json(AddedToken("<mask>", lstrip=True))["lstrip"]
    ('<s>', True)
    """
    return token.__getstate__() if isinstance(token, AddedToken) else token
