"""What holds against `transformers` 4 and 5 alike: ids are equal, and each opens what the other saved."""

from __future__ import annotations

import pytest
import transformers

from warmstart.tokenization import AutoTokenizer

pytestmark = pytest.mark.v5

# Version 5 makes XLM-RoBERTa's, CamemBERT's and Llama's anew and leaves out parts of their tokenizer.json.
AS_THEY_STAND = ["bert", "gpt2", "roberta", "bart", "qwen2"]
KINDS = [*AS_THEY_STAND, "xlm-roberta", "camembert", "llama"]


def same(ours, theirs, lines):
    some = [*lines[:90], "<a> added<sum> word"]
    options = {"return_offsets_mapping": True, "return_token_type_ids": True}
    for texts in ((some[:40], some[40:80]), (some,)):
        mine, wanted = ours(*texts, **options), theirs(*texts, **options)
        for name in wanted:
            assert mine[name] == wanted[name], name
    ids = wanted["input_ids"]
    for skips in (True, False):
        options = {"skip_special_tokens": skips, "clean_up_tokenization_spaces": False}
        assert ours.batch_decode(ids, **options) == theirs.batch_decode(ids, **options)
    assert len(ours) == len(theirs)
    assert set(ours.all_special_tokens) == set(theirs.all_special_tokens)
    for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"):
        assert getattr(ours, f"{name}_token_id") == getattr(theirs, f"{name}_token_id"), name


@pytest.mark.parametrize("kind", AS_THEY_STAND)
@pytest.mark.parametrize("layout", ["whole", "bare"])
def test_ids(folders, lines, kind, layout):
    folder = folders[kind, layout]
    same(AutoTokenizer.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder), lines)


@pytest.mark.parametrize("kind", AS_THEY_STAND)
def test_saved_here_opens_there(folders, lines, tmp_path, kind):
    ours = AutoTokenizer.from_pretrained(folders[kind, "whole"])
    ours.add_tokens(["<a>", "added"])
    ours.add_special_tokens({"additional_special_tokens": ["<sum>"]})
    ours.save_pretrained(tmp_path)
    same(ours, transformers.AutoTokenizer.from_pretrained(tmp_path), lines)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_there_opens_here(folders, lines, tmp_path, kind):
    theirs = transformers.AutoTokenizer.from_pretrained(folders[kind, "whole"])
    theirs.add_tokens(["<a>", "added"])
    theirs.add_special_tokens({"pad_token": "<padding>"})
    theirs.save_pretrained(tmp_path)
    same(AutoTokenizer.from_pretrained(tmp_path), theirs, lines)


def test_start_and_end_saved_here_are_kept_there(folders, tmp_path):
    ours = AutoTokenizer.from_pretrained(folders["gpt2", "whole"], add_bos_token=True, add_eos_token=True)
    ours.save_pretrained(tmp_path)
    ids = ours("some words")["input_ids"]
    assert ids[0] == ids[-1] == ours.eos_token_id
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)("some words")["input_ids"] == ids


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_start_and_end_saved_there_are_kept_here(folders, tmp_path, kind):
    theirs = transformers.AutoTokenizer.from_pretrained(folders[kind, "whole"], add_bos_token=True, add_eos_token=True)
    theirs.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("some words")["input_ids"] == theirs("some words")["input_ids"]
