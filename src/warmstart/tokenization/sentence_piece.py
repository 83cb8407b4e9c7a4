"""Reads SentencePiece models (`.model`, `.spm`) and builds `tokenizers.Tokenizer`s of them, by a family's layout.

A model (Kudo and Richardson 2018, arXiv:1808.06226) is a list of pieces with scores, either unigrams (arXiv:1804.10959)
or byte pairs, and the rules by which text is normalized. Families move the pieces to other ids, add tokens of their own
and clean text in ways of their own: that is what a `Layout` says.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

SPACE = "▁"  # how SentencePiece writes a space, U+2581
_UNIGRAM, _BPE = 1, 2  # kinds of a model, as its file numbers them
_CONTROL, _USER_DEFINED = 3, 4  # kinds of a piece

Settings: TypeAlias = Mapping[str, Any]
Scored: TypeAlias = "list[tuple[str, float]]"


class Pieces(NamedTuple):
    """What a SentencePiece model holds."""

    scored: Scored
    kinds: list[int]
    is_bpe: bool
    unknown: int
    charsmap: bytes  # the compiled normalization, empty where there is none
    starts_with_space: bool
    merges_spaces: bool
    falls_back_on_bytes: bool


def read_pieces(path: str | os.PathLike[str]) -> Pieces:
    """Read a SentencePiece model.

    Raises:
        ImportError: `sentencepiece` is not installed; the message says which extra brings it.
        OSError: the file is not a SentencePiece model, or one of words or characters.
    """
    messages = _sentencepiece(path).sentencepiece_model_pb2
    with open(path, "rb") as file:
        data = file.read()
    try:
        model = messages.ModelProto.FromString(data)
    except Exception as error:  # protobuf raises its own kinds
        raise OSError(f"{path} cannot be read as a SentencePiece model ({error}); is it whole?") from error
    training, normalization = model.trainer_spec, model.normalizer_spec
    if not model.pieces:
        raise OSError(f"{path} has no pieces; is it a whole SentencePiece model?")
    if training.model_type not in (_UNIGRAM, _BPE):
        raise OSError(f"{path} is a SentencePiece model of words or characters; unigram and bpe can be read here")
    return Pieces(
        [(piece.piece, piece.score) for piece in model.pieces],
        [piece.type for piece in model.pieces],
        training.model_type == _BPE,
        training.unk_id,
        normalization.precompiled_charsmap,
        normalization.add_dummy_prefix,
        normalization.remove_extra_whitespaces,
        training.byte_fallback,
    )


def load_processor(path: str | os.PathLike[str]) -> Any:
    """SentencePiece's own processor of a model.

    Raises:
        ImportError: as `read_pieces`.
        OSError: as `read_pieces`.
    """
    read_pieces(path)
    return _sentencepiece(path).SentencePieceProcessor(model_file=os.fspath(path))


def _sentencepiece(path: str | os.PathLike[str]) -> Any:
    try:
        import sentencepiece
        import sentencepiece.sentencepiece_model_pb2
    except ImportError as error:
        raise ImportError(
            f"{path} is a SentencePiece model, and reading one needs sentencepiece and protobuf ({error}): "
            "pip install 'warmstart[sentencepiece]'"
        ) from error
    return sentencepiece


@dataclass(frozen=True)
class Layout:
    """How a family makes a tokenizer of a model's pieces; called, it does.

    `vocab` gives the tokens in the order of their ids, with scores; the others give the parts of the tokenizer. Each is
    a function of the pieces and the tokenizer's settings. `unknown` is the id of the unknown token, where the model
    does not say; `falls_back_on_bytes`, that unknown characters become their bytes.
    """

    vocab: Callable[[Pieces, Settings], Scored]
    unknown: int | None = None
    normalizer: Callable[[Pieces, Settings], Any] = lambda pieces, settings: spaces_merged(pieces, settings)
    pre_tokenizer: Callable[[Pieces, Settings], Any] = lambda pieces, settings: words(pieces, settings)
    decoder: Callable[[Pieces, Settings], Any] = lambda pieces, settings: words_joined(pieces, settings)
    falls_back_on_bytes: bool = False
    special: frozenset[str] = frozenset()  # pieces that users of the model treat as special, whatever it says
    adds_tokens: bool = True  # whether the model's own control and user-defined pieces are found in a text

    def __call__(self, pieces: Pieces, merges: None, settings: Settings) -> Tokenizer:
        vocab = self.vocab(pieces, settings)
        unknown = pieces.unknown if self.unknown is None else self.unknown
        model: Any
        if pieces.is_bpe:
            ids = {token: index for index, (token, _) in enumerate(vocab)}
            model = models.BPE(
                ids,
                merges_of(vocab, {token: index for index, (token, _) in enumerate(pieces.scored)} | ids),
                unk_token=pieces.scored[pieces.unknown][0],
                fuse_unk=True,
                byte_fallback=self.falls_back_on_bytes,
                ignore_merges=not self.adds_tokens,
            )
        else:
            model = models.Unigram(vocab, unk_id=unknown, byte_fallback=self.falls_back_on_bytes)
        tokenizer = Tokenizer(model)
        for name, part in (
            ("normalizer", self.normalizer),
            ("pre_tokenizer", self.pre_tokenizer),
            ("decoder", self.decoder),
        ):
            made = part(pieces, settings)
            if made is not None:
                setattr(tokenizer, name, made)
        if self.adds_tokens:
            tokenizer.add_tokens(
                [
                    AddedToken(token, normalized=False, special=kind == _CONTROL or token in self.special)
                    for (token, _), kind in zip(pieces.scored, pieces.kinds, strict=True)
                    if kind in (_CONTROL, _USER_DEFINED)
                ]
            )
        return tokenizer


# --- the ids


def pieces_alone(pieces: Pieces, settings: Settings) -> Scored:
    """The model's pieces as they are."""
    return pieces.scored


def commas_apart(pieces: Pieces, settings: Settings) -> Scored:
    """The model's pieces, those of a digit and a comma hardly ever chosen."""
    return [
        (token, score - 100 if len(token) > 1 and token[-1] == "," and token[-2].isdigit() else score)
        for token, score in pieces.scored
    ]


def around(
    first: Iterable[str | tuple[str, float]], skipped: int, last: Iterable[str] = ()
) -> Callable[[Pieces, Settings], Scored]:
    """Tokens of the family's own before and after the pieces, of which the first few are left out."""

    def vocab(pieces: Pieces, settings: Settings) -> Scored:
        scored = [(token, 0.0) if isinstance(token, str) else token for token in first]
        return [*scored, *pieces.scored[skipped:], *((token, 0.0) for token in last)]

    return vocab


def merges_of(vocab: Scored, ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """The pairs that make up each token, in the order in which byte-pair encoding joins them: by score.

    >>> merges_of([("a", 0.0), ("b", 0.0), ("ab", -1.0), ("aba", -2.0)], {"a": 0, "b": 1, "ab": 2, "aba": 3})
    [('a', 'b'), ('ab', 'a')]
    """
    found = []
    for token, score in dict(vocab).items():
        splits = [(token[:place], token[place:]) for place in range(1, len(token))]
        known = [split for split in splits if split[0] in ids and split[1] in ids]
        known.sort(key=lambda split: (ids[split[0]], ids[split[1]]))
        found += [(score, len(left), len(right), left, right) for left, right in known]
    found.sort(key=itemgetter(0, 1, 2), reverse=True)
    return [(left, right) for *_, left, right in found]


# --- text before it is split


def _compiled(pieces: Pieces) -> list[Any]:
    return [normalizers.Precompiled(pieces.charsmap)] if pieces.charsmap else []


def _cleaned(settings: Settings) -> list[Any]:
    """What ALBERT and RemBERT do to case and accents."""
    steps: list[Any] = []
    if not settings.get("keep_accents"):
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    return steps + ([normalizers.Lowercase()] if settings.get("do_lower_case") else [])


_QUOTES = (("``", '"'), ("''", '"'))


def _replaced(pairs: Sequence[tuple[Any, str]]) -> list[Any]:
    return [normalizers.Replace(found, written) for found, written in pairs]


def spaces_merged(pieces: Pieces, settings: Settings) -> Any:
    """The model's own normalization; spaces at the end are dropped, several become one mark."""
    strip = normalizers.Strip(left=False, right=True)
    return normalizers.Sequence([*_compiled(pieces), strip, *_replaced([(Regex(" {2,}"), SPACE)])])


def cleaned_then_compiled(pieces: Pieces, settings: Settings) -> Any:
    """ALBERT's: quotes, accents and case first, spaces last."""
    steps = [*_replaced(_QUOTES), *_cleaned(settings), *_compiled(pieces), *_replaced([(Regex(" {2,}"), " ")])]
    return normalizers.Sequence(steps)


def spaces_then_compiled(pieces: Pieces, settings: Settings) -> Any:
    """RemBERT's: quotes and spaces first, then accents and case."""
    steps = [*_replaced([*_QUOTES, (Regex(" {2,}"), " ")]), *_cleaned(settings), *_compiled(pieces)]
    return normalizers.Sequence(steps)


def stripped_then_compiled(pieces: Pieces, settings: Settings) -> Any:
    """DeBERTa-v2's: case, spaces at the ends, the model's own normalization, spaces within."""
    case = [normalizers.Lowercase()] if settings.get("do_lower_case") else []
    return normalizers.Sequence([*case, normalizers.Strip(), *_compiled(pieces), *_replaced([(Regex(" {2,}"), " ")])])


def marks_only(pieces: Pieces, settings: Settings) -> Any:
    """Gemma's: each space a mark, nothing else."""
    return normalizers.Replace(" ", SPACE)


def mark_before(pieces: Pieces, settings: Settings) -> Any:
    """Llama's: each space a mark, and one before the text; where `legacy` is false, `words_from_first` does it."""
    if not _is_legacy(settings):
        return None
    before = [normalizers.Prepend(SPACE)] if settings.get("add_prefix_space") is not False else []
    return normalizers.Sequence([*before, normalizers.Replace(" ", SPACE)])


def as_trained(pieces: Pieces, settings: Settings) -> Any:
    """As SentencePiece itself does, by what the model says of spaces."""
    steps = _compiled(pieces)
    if pieces.merges_spaces:
        steps += _replaced([(Regex("^ +| +$"), ""), (Regex(" {2,}"), " ")])
    steps.append(normalizers.Replace(" ", SPACE))
    return normalizers.Sequence(steps + ([normalizers.Prepend(SPACE)] if pieces.starts_with_space else []))


# What gpt-sw3 takes out of a text, and what it takes for a space.
_NOT_PRINTED = "".join(map(chr, [*range(9), *range(11, 32), *range(127, 161), 173, 8203]))
_SPACES = "\u2002\u2003\u2005\u2008\u2009\u200a\u202f\u3000\ufffc"


def printable(pieces: Pieces, settings: Settings) -> Any:
    """gpt-sw3's: what is not printed goes, blanks become spaces, NFC, then as the model was trained."""
    steps = _replaced([(Regex(f"[{re.escape(_NOT_PRINTED)}]"), ""), (Regex(f"[{re.escape(_SPACES)}]"), " ")])
    return normalizers.Sequence([*steps, normalizers.NFC(), as_trained(pieces, settings)])


# --- words, and back


def _is_legacy(settings: Settings) -> bool:
    return settings.get("legacy") is not False


def _scheme(settings: Settings) -> str:
    """Where a mark is put before a text: before each stretch between special tokens, the first alone, or none."""
    if settings.get("add_prefix_space") is False:
        return "never"
    return "always" if _is_legacy(settings) else "first"


def words(pieces: Pieces, settings: Settings) -> Any:
    """At spaces, each word with its mark."""
    return pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=_scheme(settings))


def words_joined(pieces: Pieces | None, settings: Settings) -> Any:
    """Marks to spaces, but for the one that was put before the text."""
    return decoders.Metaspace(replacement=SPACE, prepend_scheme=_scheme(settings))


def words_joined_and_stripped(pieces: Pieces | None, settings: Settings) -> Any:
    """The same, without any space at the ends."""
    return decoders.Sequence([words_joined(pieces, settings), decoders.Fuse(), decoders.Replace(Regex("^ +| +$"), "")])


def words_of_white_space(pieces: Pieces, settings: Settings) -> Any:
    """Pegasus': at any white space."""
    return pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), words(pieces, settings)])


def words_and_punctuation(pieces: Pieces, settings: Settings) -> Any:
    """DeBERTa-v2's: at punctuation too, with `split_by_punct`."""
    apart = [pre_tokenizers.Punctuation(behavior="isolated")] if settings.get("split_by_punct") else []
    return pre_tokenizers.Sequence([*apart, words(pieces, settings)])


def words_from_first(pieces: Pieces, settings: Settings) -> Any:
    """Llama's with `legacy` false: marks, and the text whole."""
    if _is_legacy(settings):
        return None
    return pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=_scheme(settings), split=False)


def after_spaces(pieces: Pieces, settings: Settings) -> Any:
    """Gemma's, which finds no space left to split at and is there for text that had none replaced."""
    return pre_tokenizers.Split(" ", "merged_with_previous")


def user_defined_apart(pieces: Pieces, settings: Settings) -> Any:
    """The text whole but for the pieces that users of the trainer asked for, longest first."""
    asked = [token for (token, _), kind in zip(pieces.scored, pieces.kinds, strict=True) if kind == _USER_DEFINED]
    if not asked:
        return None
    pattern = "|".join(map(re.escape, sorted(asked, key=len, reverse=True)))
    return pre_tokenizers.Split(Regex(pattern), behavior="isolated")


def bytes_joined(pieces: Pieces, settings: Settings) -> Any:
    """Marks to spaces, bytes to characters, all joined."""
    return decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])


def bytes_joined_after_mark(pieces: Pieces, settings: Settings) -> Any:
    """The same, without the space that was put before the text."""
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if _scheme(settings) != "never" else []))
