"""What a tokenizer puts around a text: `[CLS] a [SEP]`, a start and an end, or nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from tokenizers import Tokenizer, processors

from warmstart.tokenization.backend import component_state
from warmstart.tokenization.special_tokens import Token
from warmstart.tokenization.vocabulary import Vocabulary


@dataclass(frozen=True)
class Frame:
    """What a family puts around a text, and around a text and its pair, as data; called, it does so.

    `$A` and `$B` are the texts, names in braces the special tokens and settings, a figure after the colon the type.
    """

    single: str
    pair: str

    def __call__(self, tokenizer: Tokenizer, named: Mapping[str, Any]) -> None:
        """Put the frame on a tokenizer; `named` holds the special tokens and settings by name."""
        single, pair = ([piece.format_map(named) for piece in text.split()] for text in (self.single, self.pair))
        tokens = [piece.rpartition(":")[0] for piece in single + pair if not piece.startswith("$")]
        special = [(token, _id(tokenizer, token)) for token in dict.fromkeys(tokens)]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)


frame_bert = Frame("{cls_token}:0 $A:0 {sep_token}:0", "{cls_token}:0 $A:0 {sep_token}:0 $B:1 {sep_token}:1")
frame_angled = Frame(
    "{cls_token}:0 $A:0 {sep_token}:0", "{cls_token}:0 $A:0 {sep_token}:0 {sep_token}:0 $B:0 {sep_token}:0"
)
frame_mpnet = Frame(
    "{cls_token}:0 $A:0 {sep_token}:0", "{cls_token}:0 $A:0 {sep_token}:0 {sep_token}:0 $B:1 {sep_token}:1"
)
frame_t5 = Frame("$A:0 {eos_token}:0", "$A:0 {eos_token}:0 $B:0 {eos_token}:0")
frame_end = Frame("$A:0 {eos_token}:0", "$A:0 $B:0 {eos_token}:0")
frame_xglm = Frame("{eos_token}:0 $A:0", "{eos_token}:0 $A:0 {eos_token}:0 {eos_token}:0 $B:0")
frame_language_last = Frame("$A:0 {eos_token}:0 {language}:0", "$A:0 $B:0 {eos_token}:0 {language}:0")
frame_language_first = Frame("{language}:0 $A:0 {eos_token}:0", "{language}:0 $A:0 $B:0 {eos_token}:0")


def frame_roberta(tokenizer: Tokenizer, named: Mapping[str, Any]) -> None:
    """Put `<s> a </s>` and `<s> a </s></s> b </s>` around texts, all of type 0, of which offsets may be trimmed."""
    cls, sep = named["cls_token"], named["sep_token"]
    tokenizer.post_processor = processors.RobertaProcessing(  # by position: the names differ between versions
        (sep, _id(tokenizer, sep)),
        (cls, _id(tokenizer, cls)),
        named.get("trim_offsets", True),
        bool(named.get("add_prefix_space")),
    )


def starts_and_ends(tokenizer: Tokenizer, bos: str | None, eos: str | None) -> tuple[bool, bool]:
    """Whether a text is given `bos` at its start and `eos` at its end.

    >>> from tokenizers.models import WordLevel
    >>> tokenizer = Tokenizer(WordLevel({"a": 0, "[CLS]": 1, "[SEP]": 2}, unk_token="a"))
    >>> frame_bert(tokenizer, {"cls_token": "[CLS]", "sep_token": "[SEP]"})
    >>> starts_and_ends(tokenizer, "[CLS]", None)
    (True, False)
    """
    for state in _parts(tokenizer.post_processor):
        if state["type"] == "TemplateProcessing":
            first, last = state["single"][0], state["single"][-1]
            tokens = [piece.get("SpecialToken", {}).get("id") for piece in (first, last)]
            return tokens[0] is not None and tokens[0] == bos, tokens[1] is not None and tokens[1] == eos
        if state["type"] in ("RobertaProcessing", "BertProcessing"):
            return state["cls"][0] == bos, state["sep"][0] == eos
    return False, False


def tokens_around(tokenizer: Tokenizer) -> set[str] | None:
    """The special tokens that are put around a text; None where the tokenizer was not told.

    >>> from tokenizers.models import WordLevel
    >>> tokens_around(Tokenizer(WordLevel({"a": 0}, unk_token="a"))) is None
    True
    """
    for state in _parts(tokenizer.post_processor):
        if state["type"] == "TemplateProcessing":
            return {piece["SpecialToken"]["id"] for piece in state["single"] if "SpecialToken" in piece}
        if state["type"] in ("RobertaProcessing", "BertProcessing"):
            return {state["cls"][0], state["sep"][0]}
    return None


def set_start_and_end(tokenizer: Tokenizer, bos: str | None, eos: str | None) -> None:
    """Put `bos` before and `eos` after each text; None puts nothing.

    >>> from tokenizers.models import WordLevel
    >>> tokenizer = Tokenizer(WordLevel({"a": 0, "</s>": 1}, unk_token="a"))
    >>> set_start_and_end(tokenizer, None, "</s>")
    >>> tokenizer.encode("a").ids, tokenizer.encode("a", "a").type_ids
    ([0, 1], [0, 0, 1, 1])
    """
    kept: list[Any] = [
        processors.ByteLevel(
            add_prefix_space=state["add_prefix_space"], trim_offsets=state["trim_offsets"], use_regex=state["use_regex"]
        )
        for state in _parts(tokenizer.post_processor)
        if state["type"] == "ByteLevel"
    ]
    pieces = [
        [f"{bos}:{kind}"] * (bos is not None) + [f"${name}:{kind}"] + [f"{eos}:{kind}"] * (eos is not None)
        for name, kind in (("A", 0), ("B", 1))
    ]
    special = [(token, _id(tokenizer, token)) for token in dict.fromkeys((bos, eos)) if token is not None]
    template = processors.TemplateProcessing(single=pieces[0], pair=pieces[0] + pieces[1], special_tokens=special)
    parts = [*kept, template]
    tokenizer.post_processor = parts[0] if len(parts) == 1 else processors.Sequence(parts)


def layout(tokenizer: Tokenizer, pair: bool) -> list[tuple[int | None, int, int]]:
    """The order of special tokens and texts, as (which text or None, id of the special token, type id).

    >>> from tokenizers.models import WordLevel
    >>> tokenizer = Tokenizer(WordLevel({"a": 0, "[CLS]": 1, "[SEP]": 2}, unk_token="a"))
    >>> frame_bert(tokenizer, {"cls_token": "[CLS]", "sep_token": "[SEP]"})
    >>> layout(tokenizer, pair=True)
    [(None, 1, 0), (0, -1, 0), (None, 2, 0), (1, -1, 1), (None, 2, 1)]
    """
    probe = next((text for text in _probes(tokenizer) if tokenizer.encode(text, add_special_tokens=False).ids), None)
    if probe is None:
        raise ValueError("this tokenizer finds no token in any text; its vocabulary is empty")
    whole = tokenizer.encode(probe, probe if pair else None)
    pieces = [
        (sequence, index if sequence is None else -1, kind)
        for sequence, index, kind in zip(whole.sequence_ids, whole.ids, whole.type_ids, strict=True)
    ]
    return [piece for n, piece in enumerate(pieces) if n == 0 or piece[0] is None or piece != pieces[n - 1]]


class FramedVocabulary(Vocabulary):
    """A vocabulary that knows what is put around a text.

    >>> from tokenizers.models import WordLevel
    >>> vocabulary = FramedVocabulary(Tokenizer(WordLevel({"a": 0, "<s>": 1}, unk_token="a")))
    >>> vocabulary.bos_token, vocabulary.add_bos_token = "<s>", True
    >>> vocabulary.build_inputs_with_special_tokens([0, 0], [0])
    [1, 0, 0, 1, 0]
    """

    frame: ClassVar[Any] = None  # a family's own: `frame_bert`, `frame_roberta`

    def set_special_token(self, name: str, value: Token | None) -> None:
        before, ends = self._special.get(name), self._ends()
        is_around = name in ("bos_token", "eos_token") and any(ends) and not self._has_own_frame()
        super().set_special_token(name, value)
        if is_around:
            try:
                self._put_ends(ends[0] and self.bos_token is not None, ends[1] and self.eos_token is not None)
            except ValueError:
                self._special[name] = before
                raise

    def ask_for_ends(self, bos: bool | None, eos: bool | None) -> None:
        """Put `bos_token` and `eos_token` around texts, or leave them away; None leaves it as it is.

        Raises:
            ValueError: a token that is not set, or a frame of its own would have to change.
        """
        now = self._ends()
        wanted = (now[0] if bos is None else bool(bos), now[1] if eos is None else bool(eos))
        if wanted == now:
            return
        if self._has_own_frame():
            around = " and ".join(sorted(tokens_around(self._tokenizer) or ()))
            raise ValueError(
                f"add_bos_token={wanted[0]}, add_eos_token={wanted[1]}: this {type(self).__name__} puts {around} "
                "around texts and cannot do otherwise; add_special_tokens=False in a call leaves them out"
            )
        self._put_ends(*wanted)

    @property
    def add_bos_token(self) -> bool:
        """Whether `bos_token` is put before a text."""
        return self._ends()[0]

    @add_bos_token.setter
    def add_bos_token(self, value: bool) -> None:
        self.ask_for_ends(value, None)

    @property
    def add_eos_token(self) -> bool:
        """Whether `eos_token` is put after a text."""
        return self._ends()[1]

    @add_eos_token.setter
    def add_eos_token(self, value: bool) -> None:
        self.ask_for_ends(None, value)

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many special tokens are put around a text, or a text and its pair."""
        return self._tokenizer.num_special_tokens_to_add(pair)

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Put the special tokens around the ids of a text, and of its pair."""
        pieces = self._laid_out(token_ids_0, token_ids_1)
        return [index for ids, _, _ in pieces for index in ids]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """The type of each token that `build_inputs_with_special_tokens` gives."""
        pieces = self._laid_out(token_ids_0, token_ids_1)
        return [kind for ids, kind, _ in pieces for _ in ids]

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """1 for each special token, 0 for each other."""
        if already_has_special_tokens:
            special = set(self.all_special_ids)
            return [int(index in special) for index in token_ids_0]
        pieces = self._laid_out(token_ids_0, token_ids_1)
        return [int(is_special) for ids, _, is_special in pieces for _ in ids]

    def _laid_out(self, first: list[int], second: list[int] | None) -> list[tuple[list[int], int, bool]]:
        """Ids, their type, and whether they are special, in order."""
        with self._lock:
            self._tokenizer.no_truncation()
            pieces = layout(self._tokenizer, second is not None)
        texts = (first, second or [])
        return [
            ([index], kind, True) if which is None else (list(texts[which]), kind, False)
            for which, index, kind in pieces
        ]

    def _ends(self) -> tuple[bool, bool]:
        return starts_and_ends(self._tokenizer, self.bos_token, self.eos_token)

    def _has_own_frame(self) -> bool:
        around = tokens_around(self._tokenizer) or set()
        return self.frame is not None or not around <= {self.bos_token, self.eos_token}

    def _put_ends(self, bos: bool, eos: bool) -> None:
        for asked, name in ((bos, "bos_token"), (eos, "eos_token")):
            if asked and getattr(self, name) is None:
                raise ValueError(f"add_{name} needs a {name}, and none is set; set {name} first")
        with self._lock:
            set_start_and_end(self._tokenizer, self.bos_token if bos else None, self.eos_token if eos else None)


def _probes(tokenizer: Tokenizer) -> Iterator[str]:
    yield from ("a", "0", ".")
    yield from tokenizer.get_vocab()


def _id(tokenizer: Tokenizer, token: str) -> int:
    index = tokenizer.token_to_id(token)
    if index is None:
        raise ValueError(
            f"{token!r} is to stand around texts but is not in the vocabulary; add it with "
            "add_special_tokens, or name another one"
        )
    return index


def _parts(post_processor: Any) -> list[dict[str, Any]]:
    state = component_state(post_processor)
    return state["processors"] if state.get("type") == "Sequence" else [state] if state else []
