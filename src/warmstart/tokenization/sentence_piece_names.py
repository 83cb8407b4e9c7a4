"""The familiar tokenizer classes of SentencePiece models: what each family adds to the pieces, as data.

All are read from `tokenizer.json`, or from the model file alone with the extra `sentencepiece`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from warmstart.tokenization import framing
from warmstart.tokenization import sentence_piece as pieces
from warmstart.tokenization.names import ANGLED, IDS_AND_MASK
from warmstart.tokenization.sentence_piece import Layout, Pieces, Scored, Settings, around
from warmstart.tokenization.tokenizer import PreTrainedTokenizerFast

FAIRSEQ = ("<s>", "<pad>", "</s>", "<unk>")  # fairseq's first ids, where SentencePiece has <unk>, <s>, </s>
_BRACKETED = {
    "bos_token": "[CLS]",
    "eos_token": "[SEP]",
    "unk_token": "<unk>",
    "sep_token": "[SEP]",
    "pad_token": "<pad>",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
MASK_AFTER_SPACE = {"mask_token": {"lstrip": True}}
_MADE_UP = tuple(f"<madeupword{index}>" for index in range(7))


def with_own(settings: Settings, tokens: list[str]) -> list[Any]:
    """A family's own special tokens, and those that were given beside them."""
    given = list(settings.get("additional_special_tokens") or [])
    return [*tokens, *(token for token in given if str(token) not in tokens)]


def _extra_ids(settings: Settings) -> list[str]:
    return [f"<extra_id_{index}>" for index in range(settings.get("extra_ids", 100))]


def _t5_special(settings: Settings) -> list[Any]:
    given = list(settings.get("additional_special_tokens") or [])
    return given if any("<extra_id_" in str(token) for token in given) else given + _extra_ids(settings)


def _t5_vocab(model: Pieces, settings: Settings) -> Scored:
    return [*model.scored, *((token, 0.0) for token in reversed(_extra_ids(settings)))]


def _pegasus_special(settings: Settings) -> list[Any]:
    sentence = settings.get("mask_token_sent")
    first = [] if sentence is None else [sentence]
    return with_own(settings, first + [f"<unk_{index}>" for index in range(2, settings["offset"])])


def _pegasus_vocab(model: Pieces, settings: Settings) -> Scored:
    named = [settings.get(name) for name in ("pad_token", "eos_token", "mask_token_sent")]
    first = [(str(token), 0.0) for token in named if token is not None]
    if settings.get("mask_token") is not None and settings["offset"]:
        first.append((str(settings["mask_token"]), 0.0))
    unused = [(f"<unk_{index}>", -100.0) for index in range(2, settings["offset"])]
    return [*first, *unused, *model.scored[2:]]


class XLMRobertaTokenizer(PreTrainedTokenizerFast):
    """XLM-RoBERTa's: unigrams in fairseq's order; `<s> a </s></s> b </s>`."""

    special_tokens: ClassVar[dict[str, Any]] = ANGLED
    token_flags: ClassVar[dict[str, dict[str, bool]]] = MASK_AFTER_SPACE
    defaults: ClassVar[dict[str, Any]] = {"model_input_names": IDS_AND_MASK}
    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": "sentencepiece.bpe.model"}
    build = Layout(around(FAIRSEQ, 3, ["<mask>"]), unknown=3)
    frame = framing.frame_angled


class CamembertTokenizer(PreTrainedTokenizerFast):
    """CamemBERT's: unigrams in an order of its own; `<s> a </s></s> b </s>`."""

    special_tokens: ClassVar[dict[str, Any]] = {
        **ANGLED,
        "additional_special_tokens": ["<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"],
    }
    token_flags: ClassVar[dict[str, dict[str, bool]]] = {"mask_token": {"lstrip": True, "normalized": False}}
    defaults: ClassVar[dict[str, Any]] = {"model_input_names": IDS_AND_MASK}
    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": "sentencepiece.bpe.model"}
    build = Layout(
        around(["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", ("<unk>NOTUSED", -100.0)], 1, ["<mask>"]), unknown=3
    )
    frame = framing.frame_angled


class AlbertTokenizer(PreTrainedTokenizerFast):
    """ALBERT's: unigrams of text without case and accents; `[CLS] a [SEP] b [SEP]`.

    `do_lower_case` and `keep_accents` say how a text is cleaned.
    """

    special_tokens: ClassVar[dict[str, Any]] = _BRACKETED
    token_flags: ClassVar[dict[str, dict[str, bool]]] = {"mask_token": {"lstrip": True, "normalized": False}}
    defaults: ClassVar[dict[str, Any]] = {"do_lower_case": True, "keep_accents": False, "remove_space": True}
    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": "spiece.model"}
    build = Layout(pieces.commas_apart, normalizer=pieces.cleaned_then_compiled)
    frame = framing.frame_bert


class RemBertTokenizer(PreTrainedTokenizerFast):
    """RemBERT's: unigrams; `[CLS] a [SEP] b [SEP]`."""

    special_tokens: ClassVar[dict[str, Any]] = _BRACKETED
    token_flags: ClassVar[dict[str, dict[str, bool]]] = MASK_AFTER_SPACE
    defaults: ClassVar[dict[str, Any]] = {"do_lower_case": True, "keep_accents": False, "remove_space": True}
    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": "sentencepiece.model"}
    build = Layout(pieces.pieces_alone, normalizer=pieces.spaces_then_compiled)
    frame = framing.frame_bert


class BigBirdTokenizer(PreTrainedTokenizerFast):
    """BigBird's: pieces as they are; `[CLS] a [SEP] b [SEP]`."""

    special_tokens: ClassVar[dict[str, Any]] = {
        **_BRACKETED,
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    token_flags: ClassVar[dict[str, dict[str, bool]]] = {
        name: {"lstrip": name == "mask_token", "normalized": True} for name in _BRACKETED
    }
    defaults: ClassVar[dict[str, Any]] = {"model_input_names": IDS_AND_MASK}
    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": "spiece.model"}
    build = Layout(pieces.pieces_alone)
    frame = framing.frame_bert


class DebertaV2Tokenizer(PreTrainedTokenizerFast):
    """DeBERTa's second and third version's: pieces as they are; `[CLS] a [SEP] b [SEP]`.

    `do_lower_case` and `split_by_punct` say how a text is cleaned and split.
    """

    special_tokens: ClassVar[dict[str, Any]] = {**_BRACKETED, "unk_token": "[UNK]", "pad_token": "[PAD]"}
    defaults: ClassVar[dict[str, Any]] = {"do_lower_case": False, "split_by_punct": False}
    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": "spm.model"}
    build = Layout(
        pieces.pieces_alone,
        normalizer=pieces.stripped_then_compiled,
        pre_tokenizer=pieces.words_and_punctuation,
    )
    frame = framing.frame_bert


class T5Tokenizer(PreTrainedTokenizerFast):
    """T5's and mT5's: unigrams, and `extra_ids` sentinels after them, the last first; `a </s> b </s>`."""

    special_tokens: ClassVar[dict[str, Any]] = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    defaults: ClassVar[dict[str, Any]] = {"extra_ids": 100, "model_input_names": IDS_AND_MASK}
    more_special_tokens = staticmethod(_t5_special)
    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": "spiece.model"}
    build = Layout(_t5_vocab)
    frame = framing.frame_t5


class PegasusTokenizer(PreTrainedTokenizerFast):
    """Pegasus': unigrams after `offset` ids that pre-training used; `a </s>`."""

    special_tokens: ClassVar[dict[str, Any]] = {
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "mask_token": "<mask_2>",
    }
    defaults: ClassVar[dict[str, Any]] = {
        "mask_token_sent": "<mask_1>",
        "offset": 103,
        "model_input_names": IDS_AND_MASK,
    }
    more_special_tokens = staticmethod(_pegasus_special)
    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": "spiece.model"}
    build = Layout(_pegasus_vocab, unknown=105, pre_tokenizer=pieces.words_of_white_space)
    frame = framing.frame_end


class XGLMTokenizer(PreTrainedTokenizerFast):
    """XGLM's: unigrams in fairseq's order; `</s> a </s></s> b`."""

    special_tokens: ClassVar[dict[str, Any]] = {name: token for name, token in ANGLED.items() if name != "mask_token"}
    defaults: ClassVar[dict[str, Any]] = {"model_input_names": IDS_AND_MASK}
    more_special_tokens = staticmethod(lambda settings: with_own(settings, list(_MADE_UP)))
    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": "sentencepiece.bpe.model"}
    build = Layout(around(FAIRSEQ, 3, _MADE_UP), unknown=3)
    frame = framing.frame_xglm


class BertGenerationTokenizer(PreTrainedTokenizerFast):
    """BertGeneration's: pieces as they are; nothing around a text unless it is asked for."""

    special_tokens: ClassVar[dict[str, Any]] = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "sep_token": "<::::>",
    }
    defaults: ClassVar[dict[str, Any]] = {"model_input_names": IDS_AND_MASK}
    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": "spiece.model"}
    build = Layout(
        pieces.pieces_alone,
        normalizer=pieces.as_trained,
        pre_tokenizer=pieces.user_defined_apart,
        decoder=pieces.words_joined_and_stripped,
        adds_tokens=False,
    )


class GPTSw3Tokenizer(PreTrainedTokenizerFast):
    """GPT-SW3's: byte pairs of printable text; nothing around a text."""

    special_tokens: ClassVar[dict[str, Any]] = {
        "bos_token": "<s>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
    }
    defaults: ClassVar[dict[str, Any]] = {"model_input_names": IDS_AND_MASK}
    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": "spiece.model"}
    build = Layout(
        pieces.pieces_alone,
        normalizer=pieces.printable,
        pre_tokenizer=pieces.user_defined_apart,
        decoder=pieces.bytes_joined_after_mark,
        falls_back_on_bytes=True,
        adds_tokens=False,
    )


class LlamaTokenizer(PreTrainedTokenizerFast):
    """Llama's and Mistral's: BPE that falls back on bytes; `<s> a`, padded on the left.

    `legacy=False` puts a space mark before the text alone, not after each special token within it.
    """

    special_tokens: ClassVar[dict[str, Any]] = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    defaults: ClassVar[dict[str, Any]] = {"padding_side": "left", "model_input_names": IDS_AND_MASK}
    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": "tokenizer.model"}
    build = Layout(
        pieces.pieces_alone,
        unknown=0,
        normalizer=pieces.mark_before,
        pre_tokenizer=pieces.words_from_first,
        decoder=pieces.bytes_joined_after_mark,
        falls_back_on_bytes=True,
    )
    start_and_end = (True, False)


def _gemma_vocab(model: Pieces, settings: Settings) -> Scored:
    named = [(str(settings[name]), 0.0) for name in ("pad_token", "eos_token", "bos_token")]
    vocab = [*named, *model.scored[3:]]
    if not any(token == "\t" for token, _ in vocab):  # the first release had no tab but its byte
        vocab = [("\t", 0.0) if token == "<0x09>" else (token, score) for token, score in vocab]
    return vocab


class GemmaTokenizer(PreTrainedTokenizerFast):
    """Gemma's: BPE that falls back on bytes and keeps all spaces; `<bos> a`, padded on the left."""

    special_tokens: ClassVar[dict[str, Any]] = {
        "unk_token": "<unk>",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
    }
    defaults: ClassVar[dict[str, Any]] = {"padding_side": "left", "model_input_names": IDS_AND_MASK}
    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": "tokenizer.model"}
    build = Layout(
        _gemma_vocab,
        unknown=3,
        normalizer=pieces.marks_only,
        pre_tokenizer=pieces.after_spaces,
        decoder=pieces.bytes_joined,
        falls_back_on_bytes=True,
        special=frozenset(("<start_of_turn>", "<end_of_turn>")),
    )
    start_and_end = (True, False)


# There is one kind of tokenizer here; the other spelling is for code that asks for it.
AlbertTokenizerFast = AlbertTokenizer
BigBirdTokenizerFast = BigBirdTokenizer
CamembertTokenizerFast = CamembertTokenizer
DebertaV2TokenizerFast = DebertaV2Tokenizer
GemmaTokenizerFast = GemmaTokenizer
LlamaTokenizerFast = LlamaTokenizer
PegasusTokenizerFast = PegasusTokenizer
RemBertTokenizerFast = RemBertTokenizer
T5TokenizerFast = T5Tokenizer
XGLMTokenizerFast = XGLMTokenizer
XLMRobertaTokenizerFast = XLMRobertaTokenizer
