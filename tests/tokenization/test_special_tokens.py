"""Special tokens, tokens that are added, and what stands around a text."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import transformers
from tokenizers import AddedToken

from warmstart.tokenization import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast
from warmstart.tokenization.auto import special_token_ids

TEXT = "Hello world"


def load(folders, kind, **options):
    return AutoTokenizer.from_pretrained(folders[kind, "whole"], **options)


def test_tokens_are_set_by_name_and_by_id(folders):
    tokenizer = load(folders, "gpt2")
    assert tokenizer.pad_token is None
    assert tokenizer.pad_token_id is None
    tokenizer.pad_token = tokenizer.eos_token
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    tokenizer.pad_token_id = 5
    assert tokenizer.pad_token == tokenizer.convert_ids_to_tokens(5)
    tokenizer.pad_token = None
    assert tokenizer.special_tokens_map.keys() == {"bos_token", "eos_token", "unk_token"}
    with pytest.raises(ValueError, match="pad_token has to be text or an AddedToken, not 7"):
        tokenizer.pad_token = 7
    with pytest.raises(ValueError, match="no such id, it has 900 tokens"):
        tokenizer.eos_token_id = 900


def test_bert_ids_for_a_decoder(folders):
    tokenizer = load(folders, "bert")
    tokenizer.bos_token, tokenizer.eos_token = tokenizer.cls_token, tokenizer.sep_token
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert tokenizer(TEXT)["input_ids"] == load(folders, "bert")(TEXT)["input_ids"]


@pytest.mark.parametrize("kind", ["bert", "gpt2", "roberta", "xlm-roberta", "llama"])
def test_adding_tokens_equals_transformers(folders, kind):
    ours, theirs = load(folders, kind), transformers.AutoTokenizer.from_pretrained(folders[kind, "whole"])
    text = "An <entity> and a newtoken in <entity> <sum> mid<sum>word <left>  <both>  end"
    for tokenizer in (ours, theirs):
        tokenizer.counts = [
            tokenizer.add_tokens(["newtoken", "<entity>"]),
            tokenizer.add_tokens("newtoken"),
            tokenizer.add_tokens([AddedToken("<left>", lstrip=True), AddedToken("<both>", lstrip=True, rstrip=True)]),
            tokenizer.add_special_tokens({"additional_special_tokens": ["<sum>", "<entity>"]}),
            tokenizer.add_special_tokens({"pad_token": "<padding>"}),
            tokenizer.add_special_tokens(
                {"additional_special_tokens": ["<more>"]}, replace_additional_special_tokens=False
            ),
            len(tokenizer),
            tokenizer.vocab_size,
        ]
    assert ours.counts == theirs.counts
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    assert ours.additional_special_tokens == theirs.additional_special_tokens
    assert ours.get_added_vocab() == theirs.get_added_vocab()
    ids = ours(text)["input_ids"]
    assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.pad_token == "<padding>"


def test_a_name_that_is_no_special_token(folders):
    with pytest.raises(ValueError, match="'start_token' is not the name of a special token; the names are bos_token, "):
        load(folders, "gpt2").add_special_tokens({"start_token": "<s>"})


def test_named_tokens_of_a_models_own(folders, tmp_path):
    tokenizer = load(folders, "gpt2", extra_special_tokens={"image_token": "<image>"})
    assert tokenizer.image_token == "<image>"
    assert tokenizer.image_token_id == len(tokenizer) - 1
    assert tokenizer.image_token_id in tokenizer.all_special_ids
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).image_token_id == tokenizer.image_token_id
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).image_token_id == tokenizer.image_token_id
    with pytest.raises(AttributeError, match="no attribute 'video_token'"):
        _ = tokenizer.video_token


def test_start_and_end_around_labels(folders, tmp_path):
    """A GPT-2-like tokenizer puts no start or end around labels; this is the way to ask for it."""
    plain = load(folders, "gpt2")
    assert (plain.add_bos_token, plain.add_eos_token) == (False, False)
    ids, end = plain(TEXT)["input_ids"], plain.eos_token_id
    tokenizer = load(folders, "gpt2", add_bos_token=True, add_eos_token=True)
    assert tokenizer(TEXT)["input_ids"] == [end, *ids, end]
    assert tokenizer(TEXT, add_special_tokens=False)["input_ids"] == ids
    assert tokenizer(text_target=TEXT, truncation=True, max_length=3)["input_ids"] == [end, ids[0], end]
    assert tokenizer.num_special_tokens_to_add() == 2
    assert tokenizer.build_inputs_with_special_tokens(ids, [7]) == [end, *ids, end, end, 7, end]
    assert tokenizer.create_token_type_ids_from_sequences([1], [7]) == [0, 0, 0, 1, 1, 1]
    assert tokenizer.get_special_tokens_mask([1, 2]) == [1, 0, 0, 1]
    offsets = tokenizer(TEXT, return_offsets_mapping=True)["offset_mapping"]
    assert offsets == [(0, 0), *plain(TEXT, return_offsets_mapping=True)["offset_mapping"], (0, 0)]
    tokenizer.save_pretrained(tmp_path)
    for again in (AutoTokenizer.from_pretrained(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)):
        assert again(TEXT)["input_ids"] == [end, *ids, end]
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert (again.add_bos_token, again.add_eos_token) == (True, True)
    again.add_bos_token = False
    assert again(TEXT)["input_ids"] == [*ids, end]
    again.add_eos_token = False
    assert again(TEXT)["input_ids"] == ids


def test_start_and_end_follow_their_tokens(folders):
    tokenizer = load(folders, "gpt2", add_bos_token=True)
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    tokenizer.add_special_tokens({"bos_token": "<start>"})
    assert tokenizer(TEXT)["input_ids"] == [900, *ids]
    with pytest.raises(ValueError, match="'<other>' is to stand around texts but is not in the vocabulary"):
        tokenizer.bos_token = "<other>"
    assert tokenizer.bos_token == "<start>"
    tokenizer.bos_token = None
    assert tokenizer(TEXT)["input_ids"] == ids
    with pytest.raises(ValueError, match="add_bos_token needs a bos_token"):
        tokenizer.add_bos_token = True


@pytest.mark.parametrize(("bos", "eos"), [(True, True), (False, True), (True, False), (False, False)])
def test_llama_start_and_end_equal_transformers(folders, tmp_path, bos, eos):
    ours = load(folders, "llama", add_bos_token=bos, add_eos_token=eos)
    theirs = transformers.AutoTokenizer.from_pretrained(folders["llama", "whole"], add_bos_token=bos, add_eos_token=eos)
    assert ours([TEXT, "a"], [TEXT, "b"]).data == theirs([TEXT, "a"], [TEXT, "b"]).data
    assert (ours.add_bos_token, ours.add_eos_token) == (bos, eos)
    theirs.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)(TEXT)["input_ids"] == theirs(TEXT)["input_ids"]
    ours.save_pretrained(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert again(TEXT, TEXT).data == theirs(TEXT, TEXT).data


@pytest.mark.parametrize("config", [{}, {"add_eos_token": True}, {"add_bos_token": False}], ids=str)
@pytest.mark.parametrize("has_frame", [True, False])
def test_llama_start_and_end_in_the_files_equal_transformers(folders, tmp_path, config, has_frame):
    state = json.loads((folders["llama", "bare"] / "tokenizer.json").read_text(encoding="utf-8"))
    if not has_frame:
        state["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizerFast"} | config))
    ours, theirs = AutoTokenizer.from_pretrained(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert ours(TEXT, TEXT).data == theirs(TEXT, TEXT).data
    assert (ours.add_bos_token, ours.add_eos_token) == (theirs.add_bos_token, theirs.add_eos_token)


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "camembert"])
def test_a_frame_of_its_own_is_told_and_kept(folders, kind):
    tokenizer = load(folders, kind)
    is_bert = kind == "bert"
    assert (tokenizer.add_bos_token, tokenizer.add_eos_token) == (not is_bert, not is_bert)
    tokenizer.add_bos_token = not is_bert  # as it is
    with pytest.raises(ValueError, match="around texts and cannot do otherwise; add_special_tokens=False"):
        tokenizer.add_eos_token = is_bert
    with pytest.raises(ValueError, match="cannot do otherwise"):
        load(folders, kind, add_eos_token=is_bert)


def test_pickled_and_copied(folders):
    for kind in ("bert", "gpt2", "llama"):
        tokenizer = load(folders, kind)
        tokenizer.add_special_tokens({"pad_token": "<padding>"})
        for other in (pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer)):
            assert other(TEXT).data == tokenizer(TEXT).data
            assert other.pad_token_id == tokenizer.pad_token_id
            assert other.settings == tokenizer.settings
            other.add_tokens("only here")
            assert len(other) == len(tokenizer) + 1


def test_settings_take_effect_when_they_are_set(folders):
    tokenizer = load(folders, "bert")
    assert tokenizer.do_lower_case is True
    tokenizer.do_lower_case = False
    assert tokenizer("Hello")["input_ids"] == load(folders, "bert", do_lower_case=False)("Hello")["input_ids"]
    assert tokenizer("Hello")["input_ids"] != load(folders, "bert")("Hello")["input_ids"]
    assert tokenizer.my_own_key == {"kept": [1, None]}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("bert", {"do_lower_case": False}),
        ("bert", {"strip_accents": False}),
        ("bert", {"tokenize_chinese_chars": False}),
        ("gpt2", {"add_prefix_space": True}),
        ("roberta", {"add_prefix_space": True}),
        ("roberta", {"trim_offsets": False}),
        ("gpt2", {"pad_token": "<padding>", "model_max_length": 12, "truncation_side": "left", "padding_side": "left"}),
        ("roberta", {"mask_token": "<hole>"}),
        ("bert", {"additional_special_tokens": ["<a>", "<b>"]}),
        ("bert", {"model_input_names": ["input_ids"]}),
        ("bert", {"cls_token": "[SEP]"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("layout", ["whole", "slow"])
def test_keywords_equal_transformers(folders, lines, kind, layout, options):
    ours = AutoTokenizer.from_pretrained(folders[kind, layout], **options)
    theirs = transformers.AutoTokenizer.from_pretrained(folders[kind, layout], **options)
    some = [*lines[:60], "<a> and <b> a <hole> <padding>"]
    asked = {"return_offsets_mapping": True}
    assert ours(some, **asked).data == theirs(some, **asked).data
    if "model_max_length" in options:
        asked |= {"truncation": True, "padding": "max_length"}
        assert ours(some, **asked).data == theirs(some, **asked).data
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert len(ours) == len(theirs)


def test_ids_for_a_warm_start(folders, tmp_path):
    assert special_token_ids(folders["bert", "slow"]) == {
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
        "cls_token_id": 2,
        "sep_token_id": 3,
    }
    assert special_token_ids(folders["gpt2", "whole"])["bos_token_id"] == 0
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert special_token_ids(tmp_path) == {}
    (tmp_path / "spiece.model").write_bytes(b"\x00")
    assert special_token_ids(tmp_path) == {}
    with pytest.raises(FileNotFoundError, match="no folder"):
        special_token_ids(tmp_path / "nowhere")


def test_a_tokenizer_from_an_object_does_not_change_it(backends):
    before = backends["gpt2"].to_str()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backends["gpt2"], pad_token="<padding>", eos_token="<|endoftext|>"
    )
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backends["gpt2"], pad_token="<padding>", eos_token="<|endoftext|>"
    )
    assert tokenizer(["a b", "c"], padding=True).data == theirs(["a b", "c"], padding=True).data
    tokenizer.add_eos_token = True
    assert backends["gpt2"].to_str() == before


def test_nothing_to_make_it_from():
    with pytest.raises(ValueError, match=r"GPT2Tokenizer is made from .* vocab_file= \(a vocab.json\), merges_file="):
        GPT2Tokenizer()
    with pytest.raises(ValueError, match="PreTrainedTokenizerFast is made from tokenizer_object="):
        PreTrainedTokenizerFast()
    with pytest.raises(ValueError, match="takes vocab_file, merges_file by position"):
        GPT2Tokenizer("a", "b", "c")
