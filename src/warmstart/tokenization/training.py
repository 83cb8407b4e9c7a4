"""Learns a new vocabulary for a tokenizer that otherwise works as before."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer, pre_tokenizers, trainers

from warmstart.tokenization.special_tokens import NAMES, Token, as_json

if TYPE_CHECKING:
    from warmstart.tokenization.tokenizer import PreTrainedTokenizerFast

_TRAINERS = {
    "BPE": trainers.BpeTrainer,
    "Unigram": trainers.UnigramTrainer,
    "WordLevel": trainers.WordLevelTrainer,
    "WordPiece": trainers.WordPieceTrainer,
}


def train_new(
    tokenizer: PreTrainedTokenizerFast,
    text_iterator: Iterable[Any],
    vocab_size: int,
    length: int | None = None,
    new_special_tokens: Iterable[Token] | None = None,
    special_tokens_map: Mapping[str, str] | None = None,
    **options: Any,
) -> PreTrainedTokenizerFast:
    """A tokenizer of the same kind and settings, with a vocabulary of `vocab_size` tokens learned from texts.

    `text_iterator` gives texts or lists of them, `length` says how many. Special tokens come first, in their old order,
    renamed by `special_tokens_map`, then `new_special_tokens`. Other options go to the trainer of `tokenizers`.

    Raises:
        ValueError: a special token that stands around texts would be missing; no such tokenizer can be learned.
    """
    if not tokenizer.learns:
        raise ValueError(
            f"no new vocabulary can be learned for a {type(tokenizer).__name__}, which is more than a model of the "
            "tokenizers library; train one of those, or the SentencePiece model that it reads"
        )
    renamed = dict(special_tokens_map or {})
    state = json.loads(tokenizer.backend_json())
    model, frame = state["model"], state.pop("post_processor")
    added = [token for token in state.pop("added_tokens") if token["special"] or model["type"] == "Unigram"]
    special: list[Token] = [_renamed(token, renamed) for token in added]
    more = list(new_special_tokens or [])
    options |= _emptied(model, renamed)
    if _is_byte_level(state["pre_tokenizer"]):
        options.setdefault("initial_alphabet", pre_tokenizers.ByteLevel.alphabet())
    trained = Tokenizer.from_str(json.dumps(state | {"added_tokens": [], "post_processor": None}))
    options.setdefault("show_progress", False)
    trainer = _TRAINERS[model["type"]](vocab_size=vocab_size, special_tokens=special + more, **options)
    trained.train_from_iterator(text_iterator, length=length, trainer=trainer)
    if frame is not None:
        state = json.loads(trained.to_str()) | {"post_processor": _reframed(frame, trained, renamed)}
        trained = Tokenizer.from_str(json.dumps(state))

    settings = {**tokenizer.settings, **{name: _renamed_token(tokenizer, name, renamed) for name in NAMES}}
    extra = {name: _renamed_token(tokenizer, name, renamed) for name in tokenizer._special if name not in NAMES}
    for name in (
        "model_max_length",
        "padding_side",
        "truncation_side",
        "model_input_names",
        "chat_template",
        "clean_up_tokenization_spaces",
        "split_special_tokens",
        "name_or_path",
    ):
        settings[name] = getattr(tokenizer, name)
    settings["extra_special_tokens"] = extra
    settings["additional_special_tokens"] = [
        _renamed(as_json(token), renamed) for token in tokenizer._additional
    ] + more
    return type(tokenizer)(tokenizer_object=trained, **settings)


def _emptied(model: dict[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    """Empty a model of its vocabulary; returns what its trainer must be told of it."""
    options: dict[str, Any] = {}
    if model.get("unk_token") in renamed:
        model["unk_token"] = renamed[model["unk_token"]]
    if model["type"] == "Unigram":
        unknown = model["unk_id"]
        model["vocab"] = (
            [[renamed.get(token, token), 0.0] for token, _ in model["vocab"][unknown : unknown + 1]]
            if unknown is not None
            else []
        )
        if unknown is not None:
            model["unk_id"] = 0
            options["unk_token"] = model["vocab"][0][0]
        return options
    model["vocab"] = {}
    if model["type"] == "BPE":
        model["merges"] = []
        for name in ("continuing_subword_prefix", "end_of_word_suffix"):
            if model[name] is not None:
                options[name] = model[name]
    return options


def _is_byte_level(state: Any) -> bool:
    parts = state.get("pretokenizers", [state]) if state else []
    return any(part["type"] == "ByteLevel" for part in parts)


def _reframed(frame: Any, trained: Tokenizer, renamed: Mapping[str, str]) -> Any:
    """A post-processor with the names and ids that its special tokens have now."""
    if isinstance(frame, list):
        return [_reframed(part, trained, renamed) for part in frame]
    if not isinstance(frame, dict):
        return frame
    frame = {key: _reframed(value, trained, renamed) for key, value in frame.items()}
    if frame.keys() == {"id", "ids", "tokens"}:
        frame["tokens"] = [renamed.get(token, token) for token in frame["tokens"]]
        frame["ids"] = [_id(trained, token) for token in frame["tokens"]]
    for key in ("cls", "sep"):
        if key in frame:
            token = renamed.get(frame[key][0], frame[key][0])
            frame[key] = [token, _id(trained, token)]
    return frame


def _id(trained: Tokenizer, token: str) -> int:
    index = trained.token_to_id(token)
    if index is None:
        raise ValueError(
            f"{token!r} stands around texts and is not in the new vocabulary; add it to new_special_tokens"
        )
    return index


def _renamed_token(tokenizer: PreTrainedTokenizerFast, name: str, renamed: Mapping[str, str]) -> Token | None:
    token = tokenizer._special[name]
    return None if token is None else _renamed(as_json(token), renamed)


def _renamed(token: Any, renamed: Mapping[str, str]) -> Token:
    if isinstance(token, str):
        return renamed.get(token, token)
    fields = {key: value for key, value in token.items() if key not in ("id", "content")}
    return AddedToken(renamed.get(token["content"], token["content"]), **fields)
