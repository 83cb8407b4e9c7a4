"""The files of a tokenizer: what is read from a folder or the hub, and what is saved."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from warmstart.folder import write_folder
from warmstart.hub import find_file, hub_options, read_json
from warmstart.tokenization.sentence_piece import read_pieces
from warmstart.tokenization.special_tokens import as_json

if TYPE_CHECKING:
    from warmstart.tokenization.tokenizer import PreTrainedTokenizerFast

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"
CHAT_TEMPLATE = "chat_template.jinja"
SENTENCE_PIECE = (".model", ".spm")  # how the names of SentencePiece models end

# Keys of `tokenizer_config.json` that name files or places; a file does not choose what else is read.
_PLACES = ("tokenizer_file", "vocab_file", "merges_file", "special_tokens_map_file", "name_or_path", "init_inputs")
# Names of a tokenizer that is all in its `tokenizer.json`.
_GENERIC = ("PreTrainedTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend")
# Keywords that users pass to every `from_pretrained` and that change nothing here.
_WITHOUT_EFFECT = ("use_fast", "trust_remote_code", "from_slow", "code_revision", "_from_auto", "_commit_hash")
# The vocabularies of all families.
VOCABULARIES = (
    "vocab.txt",
    "vocab.json",
    "target_vocab.json",
    "merges.txt",
    "word_shape.json",
    "word_pronunciation.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "tokenizer.model",
    "spm.model",
    "source.spm",
    "target.spm",
)
ALL = (TOKENIZER, CONFIG, SPECIAL_TOKENS, ADDED_TOKENS, CHAT_TEMPLATE, *VOCABULARIES)
# Files of an earlier save that do not belong to this one: all that are not written.
_REPLACED = tuple(map(re.escape, ALL))


def find(cls: type[PreTrainedTokenizerFast], place: str | os.PathLike[str], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Find a tokenizer's files; returns the keywords that `cls` is made from, `kwargs` over what the files say.

    Raises:
        FileNotFoundError: no such place, or neither a `tokenizer.json` nor the vocabulary files that `cls` reads.
        OSError: a file is not what it should be.
    """
    options = hub_options(kwargs)
    for name in _WITHOUT_EFFECT:
        kwargs.pop(name, None)
    settings = _read_optional(place, CONFIG, options)
    tokenizer_file = find_file(place, TOKENIZER, required=False, **options) if cls.has_tokenizer_file else None
    if "added_tokens_decoder" not in settings:
        _add_legacy(settings, place, options)
    template = find_file(place, CHAT_TEMPLATE, required=False, **options)
    if template is not None:
        settings["chat_template"] = template.read_text(encoding="utf-8")
    for name in _PLACES:
        settings.pop(name, None)
    if cls.special_tokens or settings.get("tokenizer_class") in _GENERIC:
        settings.pop("tokenizer_class", None)  # it is written as what was read
    if cls.frame is not None or (tokenizer_file is not None and cls.start_and_end is None):
        # What stands around texts is said by the family, or by `tokenizer.json`.
        settings.pop("add_bos_token", None)
        settings.pop("add_eos_token", None)
    found = {**settings, "name_or_path": os.fspath(place), **kwargs}
    if kwargs.keys() & {"tokenizer_object", "tokenizer_file", "vocab_file", "vocab"}:
        return found
    names = list(cls.vocab_files_names.items())
    if tokenizer_file is not None:
        names = [(key, name) for key, name in names if name.endswith(SENTENCE_PIECE)]
    vocabulary = {key: find_file(place, name, required=False, **options) for key, name in names}
    if tokenizer_file is not None:
        return found | {"tokenizer_file": tokenizer_file} | vocabulary
    if not vocabulary or None in vocabulary.values():
        _explain_missing(cls, place, options)
    more = {key: find_file(place, name, required=False, **options) for key, name in cls.more_files_names.items()}
    return found | vocabulary | more


def read_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Read a `tokenizer.json`.

    Raises:
        OSError: the file is not there, or is not what the `tokenizers` library reads.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise OSError(f"{path} is not UTF-8 text ({error})") from error
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library raises this and nothing narrower
        raise OSError(
            f"{path} cannot be read as a tokenizer ({error}); is it whole, and of a known version?"
        ) from error


def build_tokenizer(
    cls: type[PreTrainedTokenizerFast], vocabulary: Mapping[str, Any], settings: Mapping[str, Any]
) -> Tokenizer:
    """Build a tokenizer from a family's vocabulary files, or from the vocabulary itself.

    Raises:
        ValueError: nothing was given to build from.
        OSError: a file is not what it should be.
    """
    vocab, merges = vocabulary.get("vocab"), vocabulary.get("merges")
    if str(vocabulary.get("vocab_file")).endswith(SENTENCE_PIECE):
        vocab = read_pieces(vocabulary["vocab_file"])
    elif vocabulary.get("vocab_file") is not None:
        vocab = _read_vocab(vocabulary["vocab_file"])
    if vocabulary.get("merges_file") is not None:
        merges = read_merges(vocabulary["merges_file"])
    wanted = ", ".join(f"{key}= (a {name})" for key, name in cls.vocab_files_names.items())
    if cls.build is None or vocab is None or (merges is None and "merges_file" in cls.vocab_files_names):
        raise ValueError(
            f"{cls.__name__} is made from tokenizer_object=, tokenizer_file={' or ' + wanted if wanted else ''}; to "
            f"read a folder or a hub id use {cls.__name__}.from_pretrained"
        )
    try:
        return cls.build(vocab, merges, settings)
    except Exception as error:  # as above
        raise OSError(f"{' and '.join(map(str, filter(None, vocabulary.values())))[:200]}: {error}") from error


def kept(cls: type[PreTrainedTokenizerFast], vocabulary: Mapping[str, Any]) -> dict[str, bytes]:
    """The SentencePiece models that a tokenizer came with, by file name: they are saved with it, as they are."""
    return {
        name: Path(vocabulary[key]).read_bytes()
        for key, name in cls.vocab_files_names.items()
        if name.endswith(SENTENCE_PIECE) and vocabulary.get(key) is not None
    }


def save(tokenizer: PreTrainedTokenizerFast, folder: str | os.PathLike[str]) -> tuple[str, ...]:
    """Write a tokenizer's files into a folder, all or none; returns their paths."""
    files = to_files(tokenizer)
    write_folder(folder, files, _REPLACED)
    return tuple(os.path.join(folder, name) for name in files)


def to_files(tokenizer: PreTrainedTokenizerFast) -> dict[str, bytes]:
    """What a tokenizer saves, by file name.

    `tokenizer.json` says all that it takes to encode; the family's vocabulary files are for readers that know no other.
    """
    with tokenizer._lock:
        tokenizer.backend_tokenizer.no_truncation()
        text = tokenizer.backend_json() if tokenizer.has_tokenizer_file else None
    files = {} if text is None else {TOKENIZER: text.encode()}
    files[CONFIG] = _json(_config(tokenizer))
    named = {name: _plain(token) for name, token in tokenizer._special.items() if token}
    more = (
        {"additional_special_tokens": [_plain(token) for token in tokenizer._additional]}
        if tokenizer._additional
        else {}
    )
    files[SPECIAL_TOKENS] = _json(named | more)
    if isinstance(tokenizer.chat_template, str):
        files[CHAT_TEMPLATE] = tokenizer.chat_template.encode()
    return files | _vocabulary_files(tokenizer) | tokenizer._kept_files


def _read_optional(place: Any, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    path = find_file(place, name, required=False, **options)
    return read_json(path) if path is not None else {}


def _add_legacy(settings: dict[str, Any], place: Any, options: Mapping[str, Any]) -> None:
    """Add what older checkpoints keep in files of their own: special tokens, and the ids of added ones."""
    for name, value in _read_optional(place, SPECIAL_TOKENS, options).items():
        if isinstance(value, list):
            known = [_content(token) for token in settings.get(name) or []]
            value = [*(settings.get(name) or []), *(token for token in value if _content(token) not in known)]
        settings[name] = value
    ids = _read_optional(place, ADDED_TOKENS, options)
    values = [value for name, value in settings.items() if name.endswith("_token") and value]
    special = {_content(token) for token in [*values, *(settings.get("additional_special_tokens") or [])]}
    if ids:
        settings["added_tokens_decoder"] = {
            index: {"content": token, "special": token in special, "normalized": token not in special}
            for token, index in ids.items()
        }


def _content(token: Any) -> str:
    return str(token.get("content") if isinstance(token, Mapping) else token)


def _explain_missing(cls: type[PreTrainedTokenizerFast], place: Any, options: Mapping[str, Any]) -> None:
    for name in VOCABULARIES:
        if not name.endswith(SENTENCE_PIECE):
            continue
        if name not in cls.vocab_files_names.values() and find_file(place, name, required=False, **options) is not None:
            raise FileNotFoundError(
                f"{place} has a SentencePiece model, {name}, and no {TOKENIZER}, and {cls.__name__} does not say what "
                "is added to it; say so with tokenizer_type=, the model_type of its family, in "
                "AutoTokenizer.from_pretrained, or with tokenizer_class in its tokenizer_config.json"
            )
    try:
        find_file(place, TOKENIZER, **options)
    except FileNotFoundError as error:
        names = " and ".join(cls.vocab_files_names.values())
        more = f"; nor {names}, from which a {cls.__name__} can be built" if names else ""
        if not names and any(find_file(place, name, required=False, **options) for name in VOCABULARIES):
            more = (
                "; to build a tokenizer from its vocabulary, say whose it is: tokenizer_type='gpt2', or another "
                "model_type, in AutoTokenizer.from_pretrained, or the class of that family"
            )
        raise FileNotFoundError(f"{error}{more}") from error


def _read_vocab(path: str | os.PathLike[str]) -> dict[str, int]:
    """Read a `vocab.json`, or a `vocab.txt` with one token to a line."""
    if str(path).endswith(".json"):
        return read_json(path)
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise OSError(f"{path} is not UTF-8 text ({error})") from error
    return {line: index for index, line in enumerate(lines[:-1] if lines[-1] == "" else lines)}


def read_merges(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """Read a `merges.txt`, one pair to a line.

    Raises:
        OSError: it is not UTF-8 text, or has a line that is not two tokens.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise OSError(f"{path} is not UTF-8 text ({error})") from error
    pairs = [tuple(line.split()) for line in lines if line.strip() and not line.startswith("#version")]
    if wrong := [pair for pair in pairs if len(pair) != 2]:
        raise OSError(f"{path} has a line that is not two tokens: {' '.join(wrong[0])!r}")
    return pairs  # type: ignore[return-value]


def _config(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    config = {key: _typed(value) for key, value in tokenizer.settings.items()}
    for name in ("model_max_length", "padding_side", "truncation_side", "clean_up_tokenization_spaces"):
        config[name] = getattr(tokenizer, name)
    config["model_input_names"] = list(tokenizer.model_input_names)
    if tokenizer.split_special_tokens:
        config["split_special_tokens"] = True
    if tokenizer.chat_template is not None and not isinstance(tokenizer.chat_template, str):
        config["chat_template"] = tokenizer.chat_template
    if tokenizer.frame is None:
        config |= {"add_bos_token": tokenizer.add_bos_token, "add_eos_token": tokenizer.add_eos_token}
    config |= tokenizer.special_tokens_map
    for name, token in tokenizer._special.items():
        if token is None:
            config[name] = None
    extra = {name: token for name, token in tokenizer._special.items() if name in tokenizer.extra_special_tokens}
    config["extra_special_tokens"] = {name: _typed(token) for name, token in extra.items()}
    config["added_tokens_decoder"] = {
        str(index): as_json(token) for index, token in sorted(tokenizer.added_tokens_decoder.items())
    }
    config.setdefault("tokenizer_class", type(tokenizer).__name__)
    return config


def _vocabulary_files(tokenizer: PreTrainedTokenizerFast) -> dict[str, bytes]:
    model = {"vocab.txt": "WordPiece", "vocab.json": "BPE"}
    name = next(iter(tokenizer.vocab_files_names.values()), "")
    if type(tokenizer.backend_tokenizer.model).__name__ != model.get(name):
        return {}
    size = tokenizer.vocab_size
    added = {token: index for token, index in tokenizer.added_tokens_encoder.items() if index >= size}
    with tempfile.TemporaryDirectory() as folder:
        paths = tokenizer.backend_tokenizer.model.save(folder)
        files = {os.path.basename(path): Path(path).read_bytes() for path in paths}
    return files | ({ADDED_TOKENS: _json(added)} if added else {})


def _plain(token: Any) -> Any:
    fields = as_json(token)
    return {key: value for key, value in fields.items() if key != "special"} if isinstance(fields, dict) else fields


def _typed(value: Any) -> Any:
    fields = as_json(value) if hasattr(value, "content") else value
    return {"__type": "AddedToken", **fields} if fields is not value else value


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
