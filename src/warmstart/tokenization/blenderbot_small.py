"""Blenderbot's small tokenizer: byte pairs whose pieces say that a word goes on (`hel@@ lo`).

The byte-pair model of `tokenizers` marks where a word ends, and takes no piece that has no id, as some have that are
joined further. So it joins pieces of its own, and the backend looks up what they are called in the vocabulary.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from tokenizers import Regex, Tokenizer, decoders
from tokenizers.models import BPE, WordLevel

from warmstart.tokenization.files import read_merges
from warmstart.tokenization.texts import cut_texts
from warmstart.tokenization.tokenizer import PreTrainedTokenizerFast

_END, _UNKNOWN = "</w>", " "  # how a word's last piece ends where pieces are joined; no word has a space
# What is put between a word and the punctuation at it; of a word, and the line's end if that follows it.
_APART = ((r"([.,!?()])", r" \1"), ("(')", r" \1 "), (r"\s{2,}", " "), ("\n", " __newln__"))


class BlenderbotSmallTokenizer(PreTrainedTokenizerFast):
    """Blenderbot's small tokenizer: byte pairs of lower-case words, from `vocab.json` and `merges.txt`; no frame.

    A line's end after a word is the word `__newln__`; other white space is lost.

    >>> vocab = {"__start__": 0, "__end__": 1, "__unk__": 2, "__null__": 3, "he@@": 4, "y": 5, "!": 6}
    >>> tokenizer = BlenderbotSmallTokenizer(vocab=vocab, merges=[("h", "e")])
    >>> tokenizer("Hey! you")["input_ids"], tokenizer.decode([4, 5, 6])
    ([4, 5, 6, 2, 2, 2], 'hey !')
    """

    special_tokens: ClassVar[dict[str, Any]] = {
        "bos_token": "__start__",
        "eos_token": "__end__",
        "unk_token": "__unk__",
        "pad_token": "__null__",
    }
    defaults: ClassVar[dict[str, Any]] = {"model_input_names": ("input_ids", "attention_mask")}
    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": "vocab.json", "merges_file": "merges.txt"}
    has_tokenizer_file = False
    learns = False
    build = staticmethod(lambda vocab, merges, settings: _lookup(vocab, str(settings["unk_token"])))

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | None = None,
        merges_file: str | os.PathLike[str] | None = None,
        **settings: Any,
    ) -> None:
        merges = settings.get("merges") if merges_file is None else read_merges(merges_file)
        if merges is None or settings.keys() & {"tokenizer_object", "tokenizer_file"}:
            raise ValueError(
                "BlenderbotSmallTokenizer is made from a vocab.json and a merges.txt and nothing else; to read a "
                "folder or a hub id use BlenderbotSmallTokenizer.from_pretrained"
            )
        super().__init__(vocab_file=vocab_file, merges_file=merges_file, **settings)
        vocab = self._tokenizer.get_vocab(with_added_tokens=False)
        self._pairs = _pairs(vocab, merges)
        lines = ["#version: 0.2", *map(" ".join, merges), ""]
        self._kept_files = {
            "vocab.json": (json.dumps(vocab, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode(),
            "merges.txt": "\n".join(lines).encode(),
        }

    def _cut(self, inputs: list[Any], are_words: bool) -> tuple[list[Any], bool]:
        return cut_texts(inputs, self.added_tokens_encoder, self._pieces), True

    def _pieces(self, text: str) -> list[str]:
        return [piece for word in _words(text) for piece in self._pieces_of(word)]

    def _pieces_of(self, word: str) -> list[str]:
        *first, last = (token.value for token in self._pairs.tokenize(word))
        return [*(piece if piece == _UNKNOWN else f"{piece}@@" for piece in first), last.removesuffix(_END)]


def _words(text: str) -> Iterator[str]:
    for word in re.findall(r"\S+\n?", text):
        for found, written in _APART:
            word = re.sub(found, written, word)
        yield from (part.lower() for part in word.split(" ") if part)


def _pairs(vocab: Mapping[str, int], merges: Iterable[tuple[str, str]]) -> BPE:
    """What joins the characters of a word, the last of which ends in `</w>`; an unknown one becomes a space."""
    ends = [token.removesuffix("@@") if token.endswith("@@") else token + _END for token in vocab]
    known = dict.fromkeys([_UNKNOWN, *ends, *(piece for pair in merges for piece in (*pair, "".join(pair)))])
    ids = {piece: index for index, piece in enumerate(known)}
    return BPE(ids, list(merges), unk_token=_UNKNOWN, end_of_word_suffix=_END, fuse_unk=False)


def _lookup(vocab: dict[str, int], unknown: str) -> Tokenizer:
    if unknown not in vocab:
        raise ValueError(f"the vocabulary does not have {unknown!r}, which is its unk_token")
    tokenizer = Tokenizer(WordLevel(vocab, unk_token=unknown))
    steps = [decoders.Fuse(), decoders.Replace(Regex(" $"), ""), decoders.Replace("@@ ", "")]
    tokenizer.decoder = decoders.Sequence([decoders.Replace(Regex("$"), " "), *steps])
    return tokenizer
