"""The tokenizers of Chinese models: RoFormer's looks for whole words, RoCBert's tells how characters look and sound."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from tokenizers import NormalizedString, PreTokenizedString, Tokenizer, decoders
from tokenizers.pre_tokenizers import BertPreTokenizer, PreTokenizer

from warmstart.hub import read_json
from warmstart.tokenization import backend
from warmstart.tokenization.names import BertTokenizer

# The characters that stand alone where no word is known: the ranges that BERT's normalizer sets apart.
_CHINESE = (
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002b73f\U0002b740-\U0002b81f"
    "\U0002b920-\U0002ceaf\U0002f800-\U0002fa1f"
)
_PIECES = re.compile(f"[{_CHINESE}]|[^\\s{_CHINESE}]+")


class ChineseWords:
    """Cuts text into the words that jieba finds; one that the vocabulary does not have, into its characters."""

    def __init__(self, vocab: Mapping[str, int]) -> None:
        try:
            import rjieba
        except ImportError as error:
            raise ImportError(
                f"RoFormerTokenizer cuts Chinese text into words with rjieba, which is not installed ({error}): "
                "pip install 'warmstart[chinese]'; for text without Chinese give tokenizer_type='bert'",
                name="rjieba",
            ) from error
        self.vocab, self.tokenize = vocab, rjieba.tokenize

    def pre_tokenize(self, text: PreTokenizedString) -> None:
        """Split a text in place, as `tokenizers` asks it."""
        text.split(self.split)

    def split(self, index: int, text: NormalizedString) -> list[NormalizedString]:
        """The words of a stretch of text, in order."""
        words: list[NormalizedString] = []
        for word, start, end in self.tokenize(str(text), hmm=False):
            if word in self.vocab:
                words.append(text[start:end])
            else:
                words += [text[start + piece.start() : start + piece.end()] for piece in _PIECES.finditer(word)]
        return words


class RoFormerTokenizer(BertTokenizer):
    """RoFormer's: BERT's, but a Chinese word that the vocabulary has stays whole; needs the extra `chinese`.

    It cuts as the reference's fast class does, which is the one that its `AutoTokenizer` makes. Python cuts the text,
    which no `tokenizer.json` can say: the one that is saved cuts as BERT does, and who reads it as a RoFormer's puts
    the words in.
    """

    defaults_when_built: ClassVar[dict[str, Any]] = {}
    learns = False
    build = staticmethod(
        lambda vocab, merges, settings: backend.word_piece(vocab, merges, {**settings, "tokenize_chinese_chars": False})
    )

    @staticmethod
    def adapt(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> None:
        """Follow the settings, as BERT's does."""
        backend.adapt_bert(tokenizer, {**settings, "tokenize_chinese_chars": False})
        tokenizer.pre_tokenizer = PreTokenizer.custom(ChineseWords(tokenizer.get_vocab()))

    def backend_json(self) -> str:
        with self._lock:
            self._tokenizer.pre_tokenizer = BertPreTokenizer()
            try:
                return super().backend_json()
            finally:
                self.adapt(self._tokenizer, self.settings)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_tokenizer": Tokenizer.from_str(self.backend_json())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.adapt(self._tokenizer, self.settings)


RoFormerTokenizerFast = RoFormerTokenizer  # as in `names`


class RoCBertTokenizer(BertTokenizer):
    """RoCBert's: BERT's, and beside the ids `input_shape_ids` and `input_pronunciation_ids`, for the model.

    They come from `word_shape.json` and `word_pronunciation.json`, each a table of tokens and ids in which `[UNK]`
    stands for what it does not have, and for what is put around a text.

    >>> vocab, shapes = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "你": 5}, {"[UNK]": 1, "你": 7}
    >>> tokenizer = RoCBertTokenizer(vocab=vocab, word_shape_file=shapes, word_pronunciation_file=shapes)
    >>> tokenizer("你我")["input_shape_ids"]
    [1, 7, 1, 1]
    """

    vocab_files_names: ClassVar[dict[str, str]] = {
        "vocab_file": "vocab.txt",
        "word_shape_file": "word_shape.json",
        "word_pronunciation_file": "word_pronunciation.json",
    }
    defaults_when_built: ClassVar[dict[str, Any]] = {}
    ids_beside = ("input_shape_ids", "input_pronunciation_ids")
    has_tokenizer_file = False
    learns = False

    def __init__(
        self,
        vocab_file: Any = None,
        word_shape_file: str | os.PathLike[str] | Mapping[str, int] | None = None,
        word_pronunciation_file: str | os.PathLike[str] | Mapping[str, int] | None = None,
        **settings: Any,
    ) -> None:
        tables = {"word_shape_file": word_shape_file, "word_pronunciation_file": word_pronunciation_file}
        super().__init__(vocab_file=vocab_file, **settings)
        self._tables = [_read_table(self.vocab_files_names[name], given) for name, given in tables.items()]
        self._kept_files = {
            self.vocab_files_names[name]: (json.dumps(table, indent=4, ensure_ascii=False) + "\n").encode()
            for name, table in zip(tables, self._tables, strict=True)
        }

    @staticmethod
    def build(vocab: backend.Vocab, merges: backend.Merges | None, settings: Mapping[str, Any]) -> Tokenizer:
        """BERT's word pieces; text is put together again with its spaces."""
        tokenizer = backend.word_piece(vocab, merges, settings)
        tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
        return tokenizer

    def _beside(self, encodings: list[Any]) -> dict[str, list[list[int]]]:
        pad = self.pad_token_id
        rows = [
            [
                [
                    (table["[UNK]"] if special else table.get(token, table["[UNK]"])) if seen else pad
                    for token, seen, special in zip(
                        encoding.tokens, encoding.attention_mask, encoding.special_tokens_mask, strict=True
                    )
                ]
                for encoding in encodings
            ]
            for table in self._tables
        ]
        return dict(zip(self.ids_beside, rows, strict=True))

    def convert_tokens_to_shape_ids(self, tokens: Iterable[str]) -> list[int]:
        """The id of each token's shape."""
        return [self._tables[0].get(token, self._tables[0]["[UNK]"]) for token in tokens]

    def convert_tokens_to_pronunciation_ids(self, tokens: Iterable[str]) -> list[int]:
        """The id of each token's pronunciation."""
        return [self._tables[1].get(token, self._tables[1]["[UNK]"]) for token in tokens]


def _read_table(name: str, given: Any) -> dict[str, int]:
    """A table of tokens and ids, from its file or as it is."""
    if given is None:
        raise ValueError(
            f"RoCBertTokenizer is made from a vocab.txt, a word_shape.json and a word_pronunciation.json, and there is "
            f"no {name}; to read a folder or a hub id use RoCBertTokenizer.from_pretrained"
        )
    table = dict(given) if isinstance(given, Mapping) else read_json(given)
    if "[UNK]" not in table:
        raise OSError(f"{name} does not have '[UNK]', which stands in it for every token that it does not have")
    return table
