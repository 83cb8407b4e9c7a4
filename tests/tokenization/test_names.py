"""The tokenizers that are another's by another name: ids, frames and special tokens equal those of `transformers`."""

from __future__ import annotations

import json
import shutil

import pytest
import transformers

from warmstart.tokenization import AutoTokenizer

# name -> the tokenizer that it is trained as, model_type, settings
NAMES = {
    "DistilBertTokenizer": ("bert", "distilbert", {"do_lower_case": False}),
    "ElectraTokenizerFast": ("bert", "electra", {}),
    "MPNetTokenizer": ("bert", "mpnet", {}),
    "LongformerTokenizer": ("roberta", "longformer", {"trim_offsets": False}),
    "MvpTokenizerFast": ("roberta", "mvp", {}),
    "BlenderbotTokenizer": ("roberta", "blenderbot", {"add_prefix_space": True}),
    "CodeGenTokenizer": ("gpt2", "phi", {}),
    "GPT2Tokenizer": ("gpt2", "opt", {"add_bos_token": True}),
}
WHOLE = {
    "BloomTokenizerFast": ("gpt2", "bloom", {"pad_token": "<|endoftext|>"}),
    "GPTNeoXTokenizerFast": ("gpt2", "gpt_neox", {}),
}
CASES = [(name, "slow") for name in NAMES] + [(name, "whole") for name in {**NAMES, **WHOLE} if name[:5] != "MPNet"]


def made(folders, name, layout, folder, says_class=True):
    kind, model_type, settings = (NAMES | WHOLE)[name]
    shutil.copytree(folders[kind, layout], folder)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    said = {"tokenizer_class": name} if says_class else {}
    (folder / "tokenizer_config.json").write_text(json.dumps({**said, **settings}))
    if name == "MPNetTokenizer":
        vocab = (folder / "vocab.txt").read_text().split("\n")
        vocab[:5] = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]
        (folder / "vocab.txt").write_text("\n".join(vocab))
    return AutoTokenizer.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder)


def assert_same(ours, theirs, lines):
    assert type(ours).__name__ == type(theirs).__name__.removesuffix("Fast")
    assert ours(lines, return_offsets_mapping=True).data == dict(theirs(lines, return_offsets_mapping=True))
    ids = theirs(lines)["input_ids"]
    assert ours.batch_decode(ids) == theirs.batch_decode(ids)
    if not theirs.init_kwargs.get("add_bos_token"):  # ours has a start before the second text of a pair too
        assert ours(lines[5], lines[6]).data == dict(theirs(lines[5], lines[6]))
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.model_input_names == theirs.model_input_names


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_names(folders, lines, tmp_path, name, layout):
    ours, theirs = made(folders, name, layout, tmp_path / "given")
    assert_same(ours, theirs, lines[:300])
    ours.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert_same(again, transformers.AutoTokenizer.from_pretrained(tmp_path / "saved"), lines[:100])


@pytest.mark.parametrize("name", NAMES)
def test_by_model_type(folders, lines, tmp_path, name):
    ours, theirs = made(folders, name, "slow", tmp_path / "given", says_class=False)
    assert_same(ours, theirs, lines[:60])
