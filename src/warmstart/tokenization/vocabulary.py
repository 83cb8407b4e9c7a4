"""The vocabulary of a tokenizer: its tokens and their ids, which of them are special, and how to add to it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer

from warmstart.tokenization.special_tokens import NAMES, NamedToken, NamedTokenId, Token, as_token


class Vocabulary:
    """Tokens and ids of a `tokenizers.Tokenizer`, with the special tokens under their names.

    >>> from tokenizers.models import WordLevel
    >>> vocabulary = Vocabulary(Tokenizer(WordLevel({"[PAD]": 0, "a": 1}, unk_token="[PAD]")))
    >>> vocabulary.pad_token = "[PAD]"
    >>> vocabulary.pad_token_id, len(vocabulary), vocabulary.convert_tokens_to_ids(["a"])
    (0, 2, [1])
    >>> vocabulary.add_special_tokens({"bos_token": "<s>"}), vocabulary.bos_token_id
    (1, 2)
    """

    bos_token = NamedToken()
    eos_token = NamedToken()
    unk_token = NamedToken()
    sep_token = NamedToken()
    pad_token = NamedToken()
    cls_token = NamedToken()
    mask_token = NamedToken()
    bos_token_id = NamedTokenId()
    eos_token_id = NamedTokenId()
    unk_token_id = NamedTokenId()
    sep_token_id = NamedTokenId()
    pad_token_id = NamedTokenId()
    cls_token_id = NamedTokenId()
    mask_token_id = NamedTokenId()

    def __init__(self, backend: Tokenizer) -> None:
        self._tokenizer = backend
        self._special: dict[str, Token | None] = dict.fromkeys(NAMES)
        self._additional: list[Token] = []
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def __bool__(self) -> bool:
        return True

    @property
    def backend_tokenizer(self) -> Tokenizer:
        """The `tokenizers.Tokenizer` that does the work."""
        return self._tokenizer

    def backend_json(self) -> str:
        """The backend as a `tokenizer.json` holds it."""
        return self._tokenizer.to_str(pretty=True)

    @property
    def vocab_size(self) -> int:
        """The number of tokens without those that were added; `len()` counts them all."""
        return self._tokenizer.get_vocab_size(with_added_tokens=False)

    def get_vocab(self) -> dict[str, int]:
        """All tokens and their ids, added ones too."""
        return self._tokenizer.get_vocab(with_added_tokens=True)

    @property
    def vocab(self) -> dict[str, int]:
        return self.get_vocab()

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """The tokens that are found in a text before it is split, by id."""
        return self._tokenizer.get_added_tokens_decoder()

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        return {token.content: index for index, token in sorted(self.added_tokens_decoder.items())}

    def get_added_vocab(self) -> dict[str, int]:
        return self.added_tokens_encoder

    @property
    def additional_special_tokens(self) -> list[str]:
        """Special tokens that have no name."""
        return [str(token) for token in self._additional]

    @additional_special_tokens.setter
    def additional_special_tokens(self, tokens: Sequence[Any] | None) -> None:
        self._additional = _once(_present(token) for token in tokens or ())

    @property
    def additional_special_tokens_ids(self) -> list[int]:
        return self.convert_tokens_to_ids(self.additional_special_tokens)

    @property
    def extra_special_tokens(self) -> dict[str, str]:
        """Special tokens under names of a model's own, such as `image_token`."""
        return {name: str(token) for name, token in self._special.items() if name not in NAMES and token}

    @property
    def special_tokens_map(self) -> dict[str, str | list[str]]:
        """The special tokens that are set, by name."""
        named: dict[str, Any] = {name: str(token) for name, token in self._special.items() if token}
        return named | ({"additional_special_tokens": self.additional_special_tokens} if self._additional else {})

    @property
    def all_special_tokens(self) -> list[str]:
        """The special tokens, each once."""
        named = [str(token) for token in self._special.values() if token]
        return list(dict.fromkeys(named + self.additional_special_tokens))

    @property
    def all_special_ids(self) -> list[int]:
        return self.convert_tokens_to_ids(self.all_special_tokens)

    def set_special_token(self, name: str, value: Token | None) -> None:
        """Set a special token by its name; the vocabulary is not changed (see `add_special_tokens`)."""
        self._special[name] = as_token(value, name)

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """The id of a token, or the list of ids of several; a token that is not there has the id of `unk_token`."""
        if isinstance(tokens, str):
            return self._token_to_id(tokens)
        return [self._token_to_id(token) for token in tokens]

    def _token_to_id(self, token: str) -> int | None:
        index = self._tokenizer.token_to_id(token)
        unknown = self._special["unk_token"]
        return self._tokenizer.token_to_id(str(unknown)) if index is None and unknown is not None else index

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The token of an id, or the list of tokens of several; None stands for an id that is not there."""
        if not hasattr(ids, "__iter__") or getattr(ids, "ndim", 1) == 0:
            return self._id_to_token(ids)
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self._id_to_token(index) for index in ids if int(index) not in skipped]

    def _id_to_token(self, index: Any) -> str | None:
        return self._tokenizer.id_to_token(int(index)) if int(index) >= 0 else None

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join tokens to text."""
        decoder = self._tokenizer.decoder
        return decoder.decode(tokens) if decoder is not None else " ".join(tokens)

    def add_tokens(self, new_tokens: Token | Sequence[Token], special_tokens: bool = False) -> int:
        """Append tokens to the vocabulary; returns how many were new.

        The model must then be given an embedding for each: `model.resize_token_embeddings(len(tokenizer))`.
        """
        tokens = [new_tokens] if isinstance(new_tokens, (str, AddedToken)) else list(new_tokens)
        for token in tokens:
            as_token(token, "a token to add")
        with self._lock:
            add = self._tokenizer.add_special_tokens if special_tokens else self._tokenizer.add_tokens
            return add(tokens) if tokens else 0

    def add_special_tokens(
        self, special_tokens_dict: Mapping[str, Any], replace_additional_special_tokens: bool = True
    ) -> int:
        """Set special tokens by name, and append to the vocabulary those that are not in it; returns how many were new.

        Raises:
            ValueError: a name that is not one of a special token.
        """
        named: dict[str, AddedToken] = {}
        more: list[AddedToken] = []
        for name, value in special_tokens_dict.items():
            if name in ("additional_special_tokens", "extra_special_tokens") and not isinstance(value, Mapping):
                more += [_special(_present(token)) for token in value]
            elif name in self._special:
                named[name] = _special(_present(value, name))
            else:
                names = ", ".join([*self._special, "additional_special_tokens"])
                raise ValueError(f"{name!r} is not the name of a special token; the names are {names}")
        count = self.add_tokens(_once([*named.values(), *more]), special_tokens=True)
        for name, token in named.items():
            self.set_special_token(name, token)
        kept = [] if replace_additional_special_tokens and more else self._additional
        self._additional = _once([*kept, *more])
        return count


def take_special_tokens(
    vocabulary: Vocabulary, settings: dict[str, Any], flags: Mapping[str, Mapping[str, bool]], checks_ids: bool = False
) -> None:
    """Take the special and added tokens out of the settings, and append to a vocabulary those that it does not have.

    `flags` say how a special token that is given as text matches. Files of `transformers` 4 (`added_tokens_decoder`,
    `additional_special_tokens`, `extra_special_tokens` by name) and 5 (`extra_special_tokens` as a list,
    `model_specific_special_tokens`) are understood.

    Raises:
        ValueError: something is no token; or, with `checks_ids`, a token would not get the id that the files say.
    """
    decoder = settings.pop("added_tokens_decoder", None) or {}
    if wrong := [index for index in decoder if not str(index).isdecimal()]:
        raise ValueError(f"added_tokens_decoder has the key {wrong[0]!r}, which is no id")
    added = [_present(decoder[index], f"added_tokens_decoder[{index}]") for index in sorted(decoder, key=int)]
    known = {str(token): token for token in added}
    named = {name: settings.pop(name, None) for name in NAMES}
    more = list(settings.pop("additional_special_tokens", None) or [])
    for key in ("extra_special_tokens", "model_specific_special_tokens"):
        extra = settings.pop(key, None) or {}
        if isinstance(extra, Mapping):
            named |= extra
        else:
            more += extra
    for name, value in named.items():
        token = as_token(value, name)
        if isinstance(token, str):
            token = known.get(token) or (AddedToken(token, **flags[name]) if name in flags else token)
        vocabulary._special[name] = token
    vocabulary.additional_special_tokens = more

    there = {repr(token) for token in vocabulary.added_tokens_decoder.values()}
    missing = {str(token): token for token in added if repr(token) not in there}
    present = vocabulary.added_tokens_encoder
    for token in [*filter(None, vocabulary._special.values()), *vocabulary._additional]:
        if isinstance(token, AddedToken) or token not in present:
            missing.setdefault(str(token), token)
    special = set(vocabulary.all_special_tokens)
    vocabulary.add_tokens([_flagged(token, str(token) in special) for token in missing.values()])
    for index, token in decoder.items() if checks_ids else ():
        content = str(_present(token, "an added token"))
        if vocabulary.convert_tokens_to_ids(content) != int(index):
            raise ValueError(
                f"the added token {content!r} should have the id {index} and would get "
                f"{vocabulary.convert_tokens_to_ids(content)}, as ids before it are missing; use the tokenizer.json"
            )


def _flagged(token: Token, is_special: bool) -> AddedToken:
    """Mark a token as special, in place: a copy would say `normalized` where the token left it open."""
    if isinstance(token, str):
        return AddedToken(token, special=is_special)
    if is_special and not token.special:
        token.special = True
    return token


def _special(token: Token) -> AddedToken:
    return AddedToken(token, special=True, normalized=False) if isinstance(token, str) else token


def _present(value: Any, name: str = "each of additional_special_tokens") -> Token:
    token = as_token(value, name)
    if token is None:
        raise ValueError(f"{name} has to be text or an AddedToken, not None")
    return token


def _once(tokens: Iterable[Token]) -> list[Token]:
    first: dict[str, Token] = {}
    for token in tokens:
        first.setdefault(str(token), token)
    return list(first.values())
