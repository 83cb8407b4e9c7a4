"""The familiar tokenizer classes: one line of data each, over one class."""

from __future__ import annotations

from typing import Any, ClassVar

from warmstart.tokenization import backend, framing
from warmstart.tokenization.tokenizer import PreTrainedTokenizerFast

_IDS_AND_MASK = ("input_ids", "attention_mask")
_MERGED = {"vocab_file": "vocab.json", "merges_file": "merges.txt"}
_ANGLED = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}


class BertTokenizer(PreTrainedTokenizerFast):
    """BERT's: word pieces, from `tokenizer.json` or `vocab.txt`; `[CLS] a [SEP]` around a text.

    `do_lower_case`, `strip_accents` and `tokenize_chinese_chars` say how a text is cleaned.

    >>> tokenizer = BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "hi": 5})
    >>> tokenizer("Hi", "hi hi")["token_type_ids"], tokenizer.decode(tokenizer.encode("Hi there"))
    ([0, 0, 0, 1, 1, 1], '[CLS] hi [UNK] [SEP]')
    """

    special_tokens: ClassVar[dict[str, Any]] = {
        "unk_token": "[UNK]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
    }
    defaults: ClassVar[dict[str, Any]] = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}
    defaults_when_built: ClassVar[dict[str, Any]] = {"clean_up_tokenization_spaces": True}
    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": "vocab.txt"}
    build = staticmethod(backend.word_piece)
    adapt = staticmethod(backend.adapt_bert)
    frame = staticmethod(framing.frame_bert)


class GPT2Tokenizer(PreTrainedTokenizerFast):
    """GPT-2's: byte-level BPE, from `tokenizer.json` or `vocab.json` and `merges.txt`; nothing around a text.

    For labels, ask for a start and an end: `add_bos_token=True, add_eos_token=True`.

    >>> vocab = {"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3}
    >>> tokenizer = GPT2Tokenizer(vocab=vocab, merges=[("a", "b")], add_eos_token=True)
    >>> tokenizer("abb")["input_ids"]
    [3, 2, 0]
    """

    special_tokens: ClassVar[dict[str, Any]] = {
        "unk_token": "<|endoftext|>",
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
    }
    defaults: ClassVar[dict[str, Any]] = {"add_prefix_space": False, "model_input_names": _IDS_AND_MASK}
    vocab_files_names: ClassVar[dict[str, str]] = _MERGED
    build = staticmethod(backend.byte_level_bpe)
    words_need_prefix_space = True


class RobertaTokenizer(PreTrainedTokenizerFast):
    """RoBERTa's: GPT-2's byte-level BPE with `<s> a </s>` around a text and `<s> a </s></s> b </s>` around a pair.

    >>> vocab = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4, "b": 5, "<mask>": 6}
    >>> RobertaTokenizer(vocab=vocab, merges=[])("a", "b")["input_ids"]
    [0, 4, 2, 2, 5, 2]
    """

    special_tokens: ClassVar[dict[str, Any]] = _ANGLED
    token_flags: ClassVar[dict[str, dict[str, bool]]] = {"mask_token": {"lstrip": True, "normalized": False}}
    defaults: ClassVar[dict[str, Any]] = {
        "add_prefix_space": False,
        "trim_offsets": True,
        "model_input_names": _IDS_AND_MASK,
    }
    vocab_files_names: ClassVar[dict[str, str]] = _MERGED
    build = staticmethod(backend.byte_level_bpe)
    adapt = staticmethod(backend.adapt_roberta)
    frame = staticmethod(framing.frame_roberta)
    words_need_prefix_space = True


class BartTokenizer(RobertaTokenizer):
    """BART's, which is RoBERTa's."""


class XLMRobertaTokenizer(PreTrainedTokenizerFast):
    """XLM-RoBERTa's: SentencePiece unigrams, from `tokenizer.json`; `<s> a </s></s> b </s>`."""

    special_tokens: ClassVar[dict[str, Any]] = _ANGLED
    token_flags: ClassVar[dict[str, dict[str, bool]]] = {"mask_token": {"lstrip": True}}
    defaults: ClassVar[dict[str, Any]] = {"model_input_names": _IDS_AND_MASK}
    frame = staticmethod(framing.frame_roberta)


class CamembertTokenizer(PreTrainedTokenizerFast):
    """CamemBERT's: SentencePiece unigrams, from `tokenizer.json`; `<s> a </s></s> b </s>`."""

    special_tokens: ClassVar[dict[str, Any]] = {
        **_ANGLED,
        "additional_special_tokens": ["<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"],
    }
    token_flags: ClassVar[dict[str, dict[str, bool]]] = {"mask_token": {"lstrip": True, "normalized": False}}
    defaults: ClassVar[dict[str, Any]] = {"model_input_names": _IDS_AND_MASK}
    frame = staticmethod(framing.frame_roberta)


class BertGenerationTokenizer(PreTrainedTokenizerFast):
    """BertGeneration's: SentencePiece, from `tokenizer.json`; nothing around a text unless it is asked for."""

    special_tokens: ClassVar[dict[str, Any]] = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "sep_token": "<::::>",
    }
    defaults: ClassVar[dict[str, Any]] = {"model_input_names": _IDS_AND_MASK}


class LlamaTokenizer(PreTrainedTokenizerFast):
    """Llama's and Mistral's: BPE that falls back on bytes, from `tokenizer.json`; `<s> a`, padded on the left."""

    special_tokens: ClassVar[dict[str, Any]] = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    defaults: ClassVar[dict[str, Any]] = {"padding_side": "left", "model_input_names": _IDS_AND_MASK}
    start_and_end = (True, False)


class Qwen2Tokenizer(PreTrainedTokenizerFast):
    """Qwen2's and Qwen3's: byte-level BPE, from `tokenizer.json` or `vocab.json` and `merges.txt`; no frame.

    >>> tokenizer = Qwen2Tokenizer(vocab={"<|endoftext|>": 0, "1": 1, "2": 2}, merges=[])
    >>> tokenizer("121")["input_ids"], tokenizer.pad_token
    ([1, 2, 1], '<|endoftext|>')
    """

    special_tokens: ClassVar[dict[str, Any]] = {
        "unk_token": "<|endoftext|>",
        "bos_token": None,
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    token_flags: ClassVar[dict[str, dict[str, bool]]] = {
        name: {"normalized": False, "special": True} for name in ("unk_token", "bos_token", "eos_token", "pad_token")
    }
    defaults: ClassVar[dict[str, Any]] = {"model_input_names": _IDS_AND_MASK}
    vocab_files_names: ClassVar[dict[str, str]] = _MERGED
    build = staticmethod(backend.qwen2_bpe)


# There is one kind of tokenizer here; the other spelling is for code that asks for it.
BertTokenizerFast = BertTokenizer
GPT2TokenizerFast = GPT2Tokenizer
RobertaTokenizerFast = RobertaTokenizer
BartTokenizerFast = BartTokenizer
XLMRobertaTokenizerFast = XLMRobertaTokenizer
CamembertTokenizerFast = CamembertTokenizer
LlamaTokenizerFast = LlamaTokenizer
Qwen2TokenizerFast = Qwen2Tokenizer
