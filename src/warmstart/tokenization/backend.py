"""Builds and adjusts `tokenizers.Tokenizer`s: from vocabulary files, and to what the settings ask for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

# How Qwen2 cuts text before its byte-level BPE: https://huggingface.co/Qwen/Qwen2-7B/blob/main/tokenizer.json
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

Vocab = dict[str, int]
Merges = list[tuple[str, str]]


def word_piece(vocab: Vocab, merges: Merges | None, settings: Mapping[str, Any]) -> Tokenizer:
    """BERT's: clean, split at white space and punctuation, longest known piece first (arXiv:1810.04805, section 3).

    >>> word_piece({"[UNK]": 0, "un": 1, "##do": 2}, None, {"do_lower_case": True}).encode("Undo it").tokens
    ['un', '##do', '[UNK]']
    """
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=str(settings.get("unk_token", "[UNK]"))))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def byte_level_bpe(vocab: Vocab, merges: Merges | None, settings: Mapping[str, Any]) -> Tokenizer:
    """GPT-2's byte-pair encoding over bytes, so that no text is unknown (Radford et al. 2019, section 2.2).

    >>> byte_level_bpe({"a": 0, "b": 1, "ab": 2}, [("a", "b")], {}).encode("abb").tokens
    ['ab', 'b']
    """
    tokenizer = Tokenizer(_bpe(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(settings.get("add_prefix_space")))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def qwen2_bpe(vocab: Vocab, merges: Merges | None, settings: Mapping[str, Any]) -> Tokenizer:
    """Qwen2's byte-level BPE: text in NFC, digits one by one."""
    tokenizer = Tokenizer(_bpe(vocab, merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=bool(settings.get("add_prefix_space")), use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def _bpe(vocab: Vocab, merges: Merges | None) -> models.BPE:
    return models.BPE(
        vocab=vocab, merges=merges or [], continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False
    )


def adapt_prefix_space(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> None:
    """Make a byte-level pre-tokenizer follow `add_prefix_space`, where that is set."""
    state = component_state(tokenizer.pre_tokenizer)
    wanted = settings.get("add_prefix_space")
    if wanted is not None and state.get("type") == "ByteLevel" and state["add_prefix_space"] != wanted:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
            add_prefix_space=wanted, trim_offsets=state["trim_offsets"], use_regex=state["use_regex"]
        )


def adapt_roberta(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> None:
    """Make RoBERTa's processing follow `add_prefix_space` and `trim_offsets`."""
    adapt_prefix_space(tokenizer, settings)
    state = component_state(tokenizer.post_processor)
    wanted = {key: settings[key] for key in ("add_prefix_space", "trim_offsets") if settings.get(key) is not None}
    if state.get("type") == "RobertaProcessing" and state != state | wanted:
        state |= wanted
        # by position: the names of the first two differ between versions of the library
        tokenizer.post_processor = processors.RobertaProcessing(
            tuple(state["sep"]), tuple(state["cls"]), state["trim_offsets"], state["add_prefix_space"]
        )


def adapt_bert(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> None:
    """Make BERT's normalizer follow `do_lower_case`, `strip_accents` and `tokenize_chinese_chars`."""
    state = component_state(tokenizer.normalizer)
    wanted = {
        "lowercase": settings.get("do_lower_case", True),
        "strip_accents": settings.get("strip_accents"),
        "handle_chinese_chars": settings.get("tokenize_chinese_chars", True),
    }
    if state.get("type") == "BertNormalizer" and state != state | wanted:
        tokenizer.normalizer = normalizers.BertNormalizer(clean_text=state["clean_text"], **wanted)


def component_state(component: Any) -> dict[str, Any]:
    """What a normalizer, pre-tokenizer or post-processor is made of, as it stands in `tokenizer.json`.

    >>> component_state(normalizers.NFC())
    {'type': 'NFC'}
    """
    return json.loads(component.__getstate__()) if component is not None else {}
