"""Files: what is read in the layouts of many years, what is saved, and what opens where."""

from __future__ import annotations

import json
import shutil

import pytest
import transformers

from warmstart.tokenization import (
    AutoTokenizer,
    BertTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
)

KINDS = ["bert", "gpt2", "roberta", "bart", "qwen2", "xlm-roberta", "camembert", "llama"]
SLOW = ["bert", "gpt2", "roberta", "bart", "qwen2"]


def same_ids(ours, theirs, lines):
    some = [*lines[:120], "<a> added<sum> word"]
    mine, wanted = ours(some, some[::-1]), theirs(some, some[::-1])
    assert list(mine) == list(wanted)
    for name in wanted:
        assert mine[name] == wanted[name]
    assert ours.batch_decode(wanted["input_ids"]) == theirs.batch_decode(wanted["input_ids"])
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert len(ours) == len(theirs)


def write(folder, name, value):
    (folder / name).write_text(json.dumps(value), encoding="utf-8")


@pytest.mark.parametrize("kind", KINDS)
def test_saved_here_opens_there_and_back(folders, lines, tmp_path, kind):
    ours = AutoTokenizer.from_pretrained(folders[kind, "whole"])
    ours.add_tokens(["<a>", "added"])
    ours.add_special_tokens({"additional_special_tokens": ["<sum>"]})
    ours.model_max_length = 77
    files = ours.save_pretrained(tmp_path / "here")
    assert sorted(map(str, (tmp_path / "here").iterdir())) == sorted(files)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "here")
    same_ids(ours, theirs, lines)
    assert theirs.model_max_length == 77
    theirs.save_pretrained(tmp_path / "there")
    again = AutoTokenizer.from_pretrained(tmp_path / "there")
    same_ids(again, theirs, lines)
    assert type(again) is type(ours)
    assert again.my_own_key == {"kept": [1, None]}
    again.save_pretrained(tmp_path / "again")
    names = {path.name for path in (tmp_path / "here").iterdir()}
    assert {path.name for path in (tmp_path / "again").iterdir()} == names
    for name in names - {"tokenizer_config.json", "special_tokens_map.json"}:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "here" / name).read_bytes(), name


@pytest.mark.parametrize("kind", SLOW)
def test_saved_here_opens_in_a_slow_tokenizer(folders, lines, tmp_path, kind):
    ours = AutoTokenizer.from_pretrained(folders[kind, "slow"])
    ours.add_special_tokens({"additional_special_tokens": ["<sum>"]})
    ours.save_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, use_fast=False)
    some = lines[100:300]
    assert ours(some)["input_ids"] == theirs(some)["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_keys_are_kept_and_written_back(folders, tmp_path, kind):
    folder = tmp_path / "given"
    shutil.copytree(folders[kind, "whole"], folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {
        "auto_map": {"AutoTokenizer": ["a", None]},
        "processor_class": "P",
        "nothing": None,
        "chat_template": "{{ x }}",
    }
    write(folder, "tokenizer_config.json", config)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    for key in ("auto_map", "processor_class", "nothing", "my_own_key"):
        assert saved[key] == config[key]
    assert saved["tokenizer_class"] == config["tokenizer_class"]
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(tmp_path / "saved").chat_template == "{{ x }}"


def test_a_class_that_is_not_known_is_read_as_it_stands(folders, lines, tmp_path):
    shutil.copytree(folders["bert", "whole"], tmp_path / "given")
    write(tmp_path / "given", "tokenizer_config.json", {"tokenizer_class": "SplinterTokenizer", "mask_token": "[MASK]"})
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "given")
    assert type(tokenizer) is PreTrainedTokenizerFast
    assert tokenizer(lines[:50]).data == AutoTokenizer.from_pretrained(folders["bert", "whole"])(lines[:50]).data
    tokenizer.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert saved["tokenizer_class"] == "SplinterTokenizer"


@pytest.mark.parametrize("name", ["PreTrainedTokenizerFast", "TokenizersBackend", "PreTrainedTokenizer"])
def test_a_tokenizer_that_is_all_in_its_file(folders, lines, tmp_path, name):
    shutil.copy(folders["gpt2", "bare"] / "tokenizer.json", tmp_path)
    write(tmp_path, "tokenizer_config.json", {"tokenizer_class": name, "add_prefix_space": False})
    ours = AutoTokenizer.from_pretrained(tmp_path)
    ours.save_pretrained(tmp_path)
    same_ids(ours, transformers.AutoTokenizer.from_pretrained(tmp_path), lines)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "roberta", "llama"])
@pytest.mark.parametrize("layout", ["whole", "slow"])
def test_older_files_of_special_and_added_tokens(folders, lines, tmp_path, kind, layout):
    if (kind, layout) not in folders:
        pytest.skip("its model file alone is in test_sentence_piece.py")
    shutil.copytree(folders[kind, layout], tmp_path, dirs_exist_ok=True)
    size = len(AutoTokenizer.from_pretrained(tmp_path))
    pad = {"content": "<padding>", "lstrip": False, "normalized": False, "rstrip": True, "single_word": False}
    write(tmp_path, "special_tokens_map.json", {"pad_token": pad, "additional_special_tokens": ["<sum>"]})
    write(tmp_path, "added_tokens.json", {"<sum>": size + 2, "<padding>": size, "added": size + 1})
    ours, theirs = AutoTokenizer.from_pretrained(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    same_ids(ours, theirs, lines)
    assert ours.convert_tokens_to_ids(["<padding>", "added", "<sum>"]) == [size, size + 1, size + 2]
    assert ours.pad_token_id == size
    if layout == "slow":
        write(tmp_path, "added_tokens.json", {"<sum>": size + 7})
        with pytest.raises(ValueError, match=f"'<sum>' should have the id {size + 7} and would get {size}"):
            AutoTokenizer.from_pretrained(tmp_path)


def test_files_of_transformers_5(folders, lines, tmp_path):
    """As version 5 writes them: special tokens as text, others in a list, no map, no vocabulary files."""
    shutil.copy(folders["gpt2", "bare"] / "tokenizer.json", tmp_path)
    config = {
        "add_prefix_space": False,
        "backend": "tokenizers",
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "extra_special_tokens": ["<sum>", "<more>"],
        "image_token": "<image>",
        "is_local": True,
        "model_max_length": 1000000000000000019884624838656,
        "model_specific_special_tokens": {"image_token": "<image>"},
        "tokenizer_class": "GPT2Tokenizer",
    }
    write(tmp_path, "tokenizer_config.json", config)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.additional_special_tokens == ["<sum>", "<more>"]
    assert tokenizer.image_token_id in tokenizer.all_special_ids
    assert tokenizer.convert_tokens_to_ids("<sum>") in tokenizer.all_special_ids
    tokenizer.save_pretrained(tmp_path / "saved")
    same_ids(tokenizer, transformers.AutoTokenizer.from_pretrained(tmp_path / "saved"), lines)


def test_vocabulary_files_by_position(folders, lines):
    bert, gpt2 = folders["bert", "slow"], folders["gpt2", "slow"]
    ours = BertTokenizer(str(bert / "vocab.txt"), do_lower_case=False)
    assert (
        ours(lines[:50]).data
        == transformers.BertTokenizerFast(str(bert / "vocab.txt"), do_lower_case=False)(lines[:50]).data
    )
    files = str(gpt2 / "vocab.json"), str(gpt2 / "merges.txt")
    assert GPT2Tokenizer(*files)(lines[:50]).data == transformers.GPT2TokenizerFast(*files)(lines[:50]).data
    named = GPT2Tokenizer(vocab_file=files[0], merges_file=files[1], add_eos_token=True)
    assert named("a")["input_ids"][-1] == named.eos_token_id
    again = RobertaTokenizer.from_pretrained(folders["roberta", "slow"])
    assert (
        again(lines[:50]).data
        == transformers.RobertaTokenizer.from_pretrained(folders["roberta", "slow"])(lines[:50]).data
    )


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (
            {"model_type": "encoder-decoder", "encoder": {"model_type": "bert"}, "decoder": {"model_type": "gpt2"}},
            "Bert",
        ),
        ({"model_type": "mistral"}, "Llama"),
        ({"model_type": "qwen3"}, "Qwen2"),
        ({"model_type": "roberta", "tokenizer_class": "GPT2TokenizerFast"}, "GPT2"),
        ({"model_type": "something"}, "PreTrained"),
    ],
    ids=str,
)
def test_the_class_that_a_config_asks_for(folders, tmp_path, config, wanted):
    shutil.copy(folders["roberta", "bare"] / "tokenizer.json", tmp_path)
    write(tmp_path, "config.json", config)
    assert type(AutoTokenizer.from_pretrained(tmp_path)).__name__.startswith(wanted)


def test_a_subfolder_and_a_chosen_type(folders, tmp_path):
    shutil.copytree(folders["gpt2", "whole"], tmp_path / "decoder" / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(
        tmp_path, subfolder="decoder/tokenizer", use_fast=True, trust_remote_code=False
    )
    assert type(tokenizer) is GPT2Tokenizer
    folder = tmp_path / "decoder" / "tokenizer"
    assert type(AutoTokenizer.from_pretrained(folder, tokenizer_type="llama")) is LlamaTokenizer
    with pytest.raises(ValueError, match="tokenizer_type='abc' is not known; it is one of albert, bart, bert"):
        AutoTokenizer.from_pretrained(folder, tokenizer_type="abc")
    with pytest.raises(OSError, match="is not made"):
        AutoTokenizer()


def test_padding_and_truncation_in_the_file_are_defaults_of_the_call(folders, tmp_path):
    state = json.loads((folders["bert", "bare"] / "tokenizer.json").read_text(encoding="utf-8"))
    state["truncation"] = {"direction": "Left", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    pad = {"pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
    state["padding"] = {"strategy": {"Fixed": 9}, "direction": "Left", "pad_to_multiple_of": None, **pad}
    write(tmp_path, "tokenizer.json", state)
    write(tmp_path, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    ours, theirs = AutoTokenizer.from_pretrained(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (ours.padding_side, ours.truncation_side, ours.pad_token) == ("left", "left", "[PAD]")
    assert (theirs.padding_side, theirs.truncation_side, theirs.pad_token) == ("left", "left", "[PAD]")
    text = ["some words that are many", "a"]
    assert ours(text).data == theirs(text).data
    assert (
        ours(text, padding=True, truncation=True, max_length=4).data
        == theirs(text, padding=True, truncation=True, max_length=4).data
    )


def test_sentence_piece_of_no_family_is_refused_with_what_to_say(tmp_path):
    write(tmp_path, "config.json", {"model_type": "my-own"})
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"\x00")
    with pytest.raises(FileNotFoundError, match=r"SentencePiece model, sentencepiece.bpe.model, .* tokenizer_type="):
        AutoTokenizer.from_pretrained(tmp_path)


def test_a_vocabulary_of_no_family_is_refused_with_what_to_say(folders, tmp_path):
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(folders["gpt2", "slow"] / name, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no 'tokenizer.json' in .*say whose it is: tokenizer_type='gpt2'"):
        AutoTokenizer.from_pretrained(tmp_path)
    made = AutoTokenizer.from_pretrained(tmp_path, tokenizer_type="gpt2")
    assert made("the mat").input_ids == GPT2Tokenizer.from_pretrained(tmp_path)("the mat").input_ids


def test_missing_and_broken_files_are_named(folders, tmp_path):
    write(tmp_path, "config.json", {"model_type": "gpt2"})
    with pytest.raises(
        FileNotFoundError,
        match=r"no 'tokenizer.json' in .*; there is config.json; nor vocab.json and merges.txt, from which a GPT2Tok",
    ):
        AutoTokenizer.from_pretrained(tmp_path)
    write(tmp_path, "vocab.json", {"a": 0})
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b c\n")
    with pytest.raises(OSError, match=r"merges.txt has a line that is not two tokens: 'a b c'"):
        AutoTokenizer.from_pretrained(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    with pytest.raises(OSError, match=r"vocab.json and .*merges.txt: "):
        AutoTokenizer.from_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text("{")
    with pytest.raises(OSError, match=r"vocab.json is not valid JSON"):
        AutoTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(OSError, match=r"tokenizer.json cannot be read as a tokenizer"):
        AutoTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe")
    with pytest.raises(OSError, match=r"tokenizer.json is not UTF-8 text"):
        AutoTokenizer.from_pretrained(tmp_path)
    shutil.copy(folders["gpt2", "bare"] / "tokenizer.json", tmp_path)
    write(tmp_path, "tokenizer_config.json", {"pad_token": {"no": "content"}})
    with pytest.raises(ValueError, match="pad_token has to be text or an AddedToken, not"):
        AutoTokenizer.from_pretrained(tmp_path)
    write(tmp_path, "tokenizer_config.json", {"added_tokens_decoder": {"first": "<s>"}})
    with pytest.raises(ValueError, match="added_tokens_decoder has the key 'first', which is no id"):
        AutoTokenizer.from_pretrained(tmp_path)
    bert = tmp_path / "bert"
    bert.mkdir()
    (bert / "vocab.txt").write_bytes(b"[UNK]\n\xff\n")
    with pytest.raises(OSError, match=r"vocab.txt is not UTF-8 text"):
        BertTokenizer.from_pretrained(bert)


def test_a_file_does_not_choose_what_else_is_read(folders, tmp_path):
    shutil.copytree(folders["gpt2", "whole"], tmp_path, dirs_exist_ok=True)
    write(
        tmp_path,
        "tokenizer_config.json",
        {"tokenizer_class": "GPT2Tokenizer", "tokenizer_file": "/etc/passwd", "vocab_file": "/x"},
    )
    assert AutoTokenizer.from_pretrained(tmp_path)("a")["input_ids"]


def test_a_save_is_whole_or_not_there(folders, tmp_path, monkeypatch):
    tokenizer = AutoTokenizer.from_pretrained(folders["gpt2", "whole"])
    tokenizer.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    tokenizer.add_tokens("more")
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        tokenizer.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    monkeypatch.undo()
    tokenizer.save_pretrained(tmp_path)
    assert len(AutoTokenizer.from_pretrained(tmp_path)) == 901
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        tokenizer.save_pretrained(tmp_path / "file")


def test_files_of_an_earlier_save_do_not_stay(folders, tmp_path):
    AutoTokenizer.from_pretrained(folders["bert", "slow"]).save_pretrained(tmp_path)
    assert (tmp_path / "vocab.txt").exists()
    AutoTokenizer.from_pretrained(folders["gpt2", "slow"]).save_pretrained(tmp_path)
    assert not (tmp_path / "vocab.txt").exists()
    assert type(AutoTokenizer.from_pretrained(tmp_path)) is GPT2Tokenizer


def test_pushing_sends_what_is_saved(folders, tmp_path, monkeypatch):
    sent = []

    def upload(folder, repo_id, **options):
        import os

        sent.append((sorted(os.listdir(folder)), repo_id, options))
        return "address"

    monkeypatch.setattr("warmstart.tokenization.tokenizer.upload_folder", upload)
    tokenizer = AutoTokenizer.from_pretrained(folders["gpt2", "whole"])
    assert tokenizer.push_to_hub("me/model", private=True) == "address"
    tokenizer.save_pretrained(tmp_path / "model", push_to_hub=True, token="hf_x")
    names = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert sent == [(names, "me/model", {"private": True}), (names, "model", {"token": "hf_x"})]


def test_the_last_call_leaves_no_trace_in_the_files(folders, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folders["bert", "whole"])
    tokenizer.save_pretrained(tmp_path / "before")
    tokenizer("some words", truncation=True, max_length=3, padding="max_length", split_special_tokens=True)
    tokenizer.save_pretrained(tmp_path / "after")
    for path in (tmp_path / "before").iterdir():
        assert path.read_bytes() == (tmp_path / "after" / path.name).read_bytes()
    assert tokenizer.build_inputs_with_special_tokens([5, 6, 7, 8]) == [2, 5, 6, 7, 8, 3]
