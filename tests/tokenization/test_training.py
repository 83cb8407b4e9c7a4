"""Learning a new vocabulary for a tokenizer of the same kind."""

from __future__ import annotations

import pytest
import transformers
from tokenizers import AddedToken

from warmstart.tokenization import AutoTokenizer

KINDS = ["bert", "gpt2", "roberta", "xlm-roberta", "camembert", "llama", "qwen2"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_vocabulary_equals_transformers(folders, lines, kind):
    folder = folders[kind, "whole"]
    texts = [lines[start : start + 50] for start in range(100, 400, 50)]
    options = {
        "vocab_size": 620,
        "new_special_tokens": ["<new>", AddedToken("<other>", lstrip=True)],
        "show_progress": False,
    }
    ours = AutoTokenizer.from_pretrained(folder).train_new_from_iterator(texts, **options)
    theirs = transformers.AutoTokenizer.from_pretrained(folder).train_new_from_iterator(texts, **options)
    assert type(ours).__name__.removesuffix("Fast") == type(theirs).__name__.removesuffix("Fast")
    assert len(ours) == len(theirs)
    assert ours.special_tokens_map == theirs.special_tokens_map
    if kind not in ("bert", "xlm-roberta", "camembert"):  # those trainers break ties by chance
        assert ours.get_vocab() == theirs.get_vocab()
        some = [*lines[400:500], "a <new> b <other> c"]
        assert ours(some, some[::-1]).data == theirs(some, some[::-1]).data
    assert ours.convert_tokens_to_ids("<new>") in ours.all_special_ids


def test_special_tokens_are_renamed(folders, lines):
    bert = AutoTokenizer.from_pretrained(folders["bert", "whole"], padding_side="left", model_max_length=99)
    renamed = {"[CLS]": "<cls>", "[UNK]": "<unk>"}
    ours = bert.train_new_from_iterator(iter(lines[:300]), 500, special_tokens_map=renamed)
    assert (ours.cls_token, ours.unk_token, ours.sep_token) == ("<cls>", "<unk>", "[SEP]")
    assert ours.tokenize("x", add_special_tokens=True)[0] == "<cls>"
    assert (ours.padding_side, ours.model_max_length, ours.my_own_key) == ("left", 99, {"kept": [1, None]})
    assert len(bert) == 900


def test_start_and_end_stay(folders, lines, tmp_path):
    gpt2 = AutoTokenizer.from_pretrained(folders["gpt2", "whole"], add_eos_token=True)
    ours = gpt2.train_new_from_iterator(lines[:300], 400)
    assert ours.add_eos_token is True
    assert ours("a")["input_ids"][-1] == ours.eos_token_id
    ours.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("a b").data == ours("a b").data
