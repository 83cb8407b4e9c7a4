"""Pairs of words and two tokenizers that know them, and a tiny model with both."""

from __future__ import annotations

import json
import os
import random

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

import tiny_models
from warmstart import BertTokenizer, PreTrainedTokenizerFast

WORDS = [f"w{number}" for number in range(tiny_models.VOCABULARY - tiny_models.FIRST)]


def words_between(start: str, end: str, pad: str) -> Tokenizer:
    special = {pad: 0, start: 1, end: 2, "[UNK]": 3, "[MASK]": 4}
    tokenizer = Tokenizer(models.WordLevel(special | {word: 5 + i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


@pytest.fixture(autouse=True)
def no_waiting_for_disks(monkeypatch):
    """No test here pulls a plug; that saves are flushed is tested with the saves themselves."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(scope="session")
def reads():
    """The source's tokenizer: [CLS] text [SEP], as BERT's."""
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    return BertTokenizer(vocab=vocabulary, model_max_length=tiny_models.POSITIONS)


@pytest.fixture(scope="session")
def writes():
    """The target's tokenizer: it puts nothing around a text, as GPT-2's."""
    words = words_between("<s>", "</s>", "<pad>")
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def made(count: int, seed: int = 0, longest: int = 8) -> list[tuple[str, str]]:
    """Pairs to learn from: the target is the source's first two words."""
    draw = random.Random(seed)
    sources = [draw.choices(WORDS, k=draw.randint(3, longest)) for _ in range(count)]
    return [(" ".join(source), " ".join(source[:2])) for source in sources]


def write_json_lines(path, pairs, names=("source", "target")):
    path.write_text("".join(json.dumps(dict(zip(names, pair, strict=True))) + "\n" for pair in pairs))
    return str(path)


@pytest.fixture(scope="session")
def folder(tmp_path_factory, reads, writes):
    """A warm-started pair of tiny models with its tokenizers, saved; not to be changed."""
    place = tmp_path_factory.mktemp("model") / "pair"
    model = tiny_models.pair("bert", "gpt2", spread=0.05)
    model.generation_config.max_new_tokens = 6
    model.save_pretrained(place, encoder_tokenizer=reads, decoder_tokenizer=writes)
    return place
