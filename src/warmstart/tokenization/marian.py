"""Marian's tokenizer: one SentencePiece model for each side, and ids of a vocabulary that is neither's.

A piece that a model does not know still has an id if the vocabulary has it from the other side, so that no model of
`tokenizers` gives the same ids: `sentencepiece` itself cuts the text, and the backend looks the pieces up.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any, ClassVar

from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from warmstart.hub import read_json
from warmstart.tokenization import framing
from warmstart.tokenization.sentence_piece import load_processor, words_joined_and_stripped
from warmstart.tokenization.texts import cut_texts
from warmstart.tokenization.tokenizer import PreTrainedTokenizerFast


class MarianTokenizer(PreTrainedTokenizerFast):
    """Marian's: `source.spm` for what is read, `target.spm` for what is written, ids from `vocab.json`; `a </s>`.

    A text may begin with the language that it is to be put into, `>>fra<<`. With `separate_vocabs`, what is written has
    ids of its own, from `target_vocab.json`. Ids are decoded as the target's.
    """

    special_tokens: ClassVar[dict[str, Any]] = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>"}
    defaults: ClassVar[dict[str, Any]] = {
        "model_max_length": 512,
        "separate_vocabs": False,
        "model_input_names": ("input_ids", "attention_mask"),
    }
    vocab_files_names: ClassVar[dict[str, str]] = {
        "source_spm": "source.spm",
        "target_spm": "target.spm",
        "vocab": "vocab.json",
    }
    more_files_names: ClassVar[dict[str, str]] = {"target_vocab_file": "target_vocab.json"}
    has_tokenizer_file = False
    learns = False
    frame = framing.frame_end

    def __init__(self, source_spm: Any = None, target_spm: Any = None, vocab: Any = None, **settings: Any) -> None:
        paths = {"source.spm": source_spm, "target.spm": target_spm, "vocab.json": vocab}
        if settings.get("separate_vocabs"):
            paths["target_vocab.json"] = settings.pop("target_vocab_file", None)
        settings.pop("target_vocab_file", None)
        if missing := [name for name, path in paths.items() if path is None]:
            raise ValueError(
                f"MarianTokenizer is made from source_spm=, target_spm= and vocab= (and target_vocab_file= with "
                f"separate_vocabs), and there is no {' and no '.join(missing)}; to read a folder or a hub id use "
                "MarianTokenizer.from_pretrained"
            )
        named = {**self.special_tokens, **settings}
        super().__init__(tokenizer_object=_lookup(vocab, named), **settings)
        self._target = _lookup(paths["target_vocab.json"], named) if self.separate_vocabs else self._tokenizer
        self._cutter, self._target_cutter = load_processor(source_spm), load_processor(target_spm)
        self._kept_files = {name: Path(path).read_bytes() for name, path in paths.items()}

    def _cut(self, inputs: list[Any], are_words: bool) -> tuple[list[Any], bool]:
        return cut_texts(inputs, self.added_tokens_encoder, self._pieces), True

    def _pieces(self, text: str) -> list[str]:
        language = re.match(">>.*?<<", text, re.DOTALL)
        if language is None:
            return self._cutter.encode(text, out_type=str)
        return [language[0], *self._cutter.encode(text[language.end() :], out_type=str)]

    def _encode_target(self, text: Any, pair: Any, options: dict[str, Any]) -> Any:
        side = copy.copy(self)
        side.__dict__.update(_tokenizer=self._target, _cutter=self._target_cutter)
        return side.encode_plus(text, pair, **options)

    def batch_decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        use_source_tokenizer: bool = False,
        **options: Any,
    ) -> list[str]:
        """The texts of rows of ids, as the target's; with `use_source_tokenizer`, as the source's."""
        side = copy.copy(self)
        side.__dict__["_tokenizer"] = self._tokenizer if use_source_tokenizer else self._target
        return PreTrainedTokenizerFast.batch_decode(side, sequences, skip_special_tokens, clean_up_tokenization_spaces)

    def decode(self, token_ids: Any, *options: Any, **named: Any) -> str:
        return self.batch_decode([token_ids], *options, **named)[0]


def _lookup(path: Any, named: dict[str, Any]) -> Tokenizer:
    """The ids of a `vocab.json`, for pieces that were found elsewhere."""
    ids = read_json(path)
    special = [str(named[name]) for name in ("unk_token", "eos_token", "pad_token")]
    if missing := [token for token in special if token not in ids]:
        raise OSError(f"{path} does not have {missing[0]!r}, which is a special token of it")
    tokenizer = Tokenizer(WordLevel(ids, unk_token=special[0]))
    tokenizer.decoder = words_joined_and_stripped(None, {})
    tokenizer.add_special_tokens(special)
    framing.frame_end(tokenizer, named)
    return tokenizer
