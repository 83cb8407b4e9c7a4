"""The familiar tokenizer classes of word pieces and byte-level BPE: some lines of data each, over one class."""

from __future__ import annotations

from typing import Any, ClassVar

from warmstart.tokenization import backend, framing
from warmstart.tokenization.tokenizer import PreTrainedTokenizerFast

IDS_AND_MASK = ("input_ids", "attention_mask")
_MERGED = {"vocab_file": "vocab.json", "merges_file": "merges.txt"}
ANGLED = {
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
    frame = framing.frame_bert


class ElectraTokenizer(BertTokenizer):
    """ELECTRA's, which is BERT's."""


class DistilBertTokenizer(BertTokenizer):
    """DistilBERT's, which is BERT's without token types."""

    defaults: ClassVar[dict[str, Any]] = {**BertTokenizer.defaults, "model_input_names": IDS_AND_MASK}


class MPNetTokenizer(BertTokenizer):
    """MPNet's: BERT's word pieces in RoBERTa's frame, `<s> a </s></s> b </s>`."""

    special_tokens: ClassVar[dict[str, Any]] = {**ANGLED, "unk_token": "[UNK]"}
    token_flags: ClassVar[dict[str, dict[str, bool]]] = {"mask_token": {"lstrip": True}}
    defaults: ClassVar[dict[str, Any]] = {**BertTokenizer.defaults, "model_input_names": IDS_AND_MASK}
    frame = framing.frame_mpnet


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
    defaults: ClassVar[dict[str, Any]] = {"add_prefix_space": False, "model_input_names": IDS_AND_MASK}
    vocab_files_names: ClassVar[dict[str, str]] = _MERGED
    build = staticmethod(backend.byte_level_bpe)
    words_need_prefix_space = True


class RobertaTokenizer(PreTrainedTokenizerFast):
    """RoBERTa's: GPT-2's byte-level BPE with `<s> a </s>` around a text and `<s> a </s></s> b </s>` around a pair.

    >>> vocab = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4, "b": 5, "<mask>": 6}
    >>> RobertaTokenizer(vocab=vocab, merges=[])("a", "b")["input_ids"]
    [0, 4, 2, 2, 5, 2]
    """

    special_tokens: ClassVar[dict[str, Any]] = ANGLED
    token_flags: ClassVar[dict[str, dict[str, bool]]] = {"mask_token": {"lstrip": True, "normalized": False}}
    defaults: ClassVar[dict[str, Any]] = {
        "add_prefix_space": False,
        "trim_offsets": True,
        "model_input_names": IDS_AND_MASK,
    }
    vocab_files_names: ClassVar[dict[str, str]] = _MERGED
    build = staticmethod(backend.byte_level_bpe)
    adapt = staticmethod(backend.adapt_roberta)
    frame = staticmethod(framing.frame_roberta)
    words_need_prefix_space = True


class BartTokenizer(RobertaTokenizer):
    """BART's, which is RoBERTa's."""


class LongformerTokenizer(RobertaTokenizer):
    """Longformer's, which is RoBERTa's."""


class MvpTokenizer(RobertaTokenizer):
    """MVP's, which is RoBERTa's."""


class BlenderbotTokenizer(RobertaTokenizer):
    """Blenderbot's: RoBERTa's vocabulary, an end alone after a text, and nothing around a pair."""

    frame = framing.Frame("$A:0 {eos_token}:0", "$A:0 $B:1")


class CodeGenTokenizer(GPT2Tokenizer):
    """CodeGen's and Phi's, which is GPT-2's."""


class GPTNeoXTokenizer(GPT2Tokenizer):
    """GPT-NeoX', StableLM's and OLMo 2's, which is GPT-2's with settings of its own in `tokenizer.json`."""


class BloomTokenizer(PreTrainedTokenizerFast):
    """BLOOM's: byte-level BPE, from `tokenizer.json`; nothing around a text."""

    special_tokens: ClassVar[dict[str, Any]] = {
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
    }
    defaults: ClassVar[dict[str, Any]] = {"add_prefix_space": False, "model_input_names": IDS_AND_MASK}


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
    defaults: ClassVar[dict[str, Any]] = {"model_input_names": IDS_AND_MASK}
    vocab_files_names: ClassVar[dict[str, str]] = _MERGED
    build = staticmethod(backend.qwen2_bpe)


# There is one kind of tokenizer here; the other spelling is for code that asks for it.
BartTokenizerFast = BartTokenizer
BertTokenizerFast = BertTokenizer
BlenderbotTokenizerFast = BlenderbotTokenizer
BloomTokenizerFast = BloomTokenizer
CodeGenTokenizerFast = CodeGenTokenizer
DistilBertTokenizerFast = DistilBertTokenizer
ElectraTokenizerFast = ElectraTokenizer
GPT2TokenizerFast = GPT2Tokenizer
GPTNeoXTokenizerFast = GPTNeoXTokenizer
LongformerTokenizerFast = LongformerTokenizer
MPNetTokenizerFast = MPNetTokenizer
MvpTokenizerFast = MvpTokenizer
Qwen2TokenizerFast = Qwen2Tokenizer
RobertaTokenizerFast = RobertaTokenizer
