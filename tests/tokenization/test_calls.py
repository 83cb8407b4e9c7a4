"""Calls: what may be given, what is refused and how, what comes back."""

from __future__ import annotations

import pickle
import threading

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from warmstart.tokenization import AutoTokenizer, BatchEncoding, BertTokenizer, GPT2Tokenizer, padding


@pytest.fixture(scope="module")
def bert(folders):
    return AutoTokenizer.from_pretrained(folders["bert", "whole"])


@pytest.fixture(scope="module")
def gpt2(folders):
    return AutoTokenizer.from_pretrained(folders["gpt2", "whole"], pad_token="<|endoftext|>")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"bytes", r"text is not text but bytes b'bytes'; decode it first, bytes.decode\('utf-8'\)"),
        ([b"bytes"], r"text\[0\] is not text but bytes"),
        (["a", None], r"text\[1\] is not text but NoneType None; give a text"),
        (7, "text is not text but int 7"),
        ({"text": "a"}, "text is not text but dict"),
        ([["a", "b", "c"]], r"text\[0\] is not text but list .* is_split_into_words=True"),
        ([float("nan")], r"text\[0\] is not text but float nan"),
        ("half \ud83d", r"text\[0\] is not text that UTF-8 can hold: it has '\\ud83d', .* at character 5"),
        (["a", ("b", "\udcff")], r"text\[1\]\[1\] is not text that UTF-8 can hold"),
    ],
)
def test_what_is_not_text_is_refused(bert, text, words):
    with pytest.raises(ValueError, match=words):
        bert(text)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"padding": "long"}, r"padding='long' is not known; it is True, False or one of 'longest', 'max_length'"),
        ({"truncation": "some"}, "truncation='some' is not known"),
        ({"max_length": 0}, "max_length=0: give a number of tokens of at least 1"),
        ({"max_length": 3.5}, "max_length=3.5"),
        ({"max_length": 1}, "max_length=1 is too short, the special tokens alone are 2"),
        ({"max_length": 6, "truncation": True, "stride": 4}, "stride=4 has to be from 0 to less than the 4 tokens"),
        ({"max_length": 6, "truncation": True, "stride": -1}, "stride=-1"),
        ({"pad_to_multiple_of": 0, "padding": True}, "pad_to_multiple_of=0"),
        (
            {"padding": True, "truncation": True, "max_length": 9, "pad_to_multiple_of": 8},
            "9 tokens, which is not a mul",
        ),
        ({"padding": True, "padding_side": "top"}, "padding_side='top': it is 'right' or 'left'"),
        ({"return_tensors": "mx"}, "return_tensors='mx' is not known; it is one of 'np', 'pt', 'tf', 'jax'"),
        (
            {"return_tensors": "np"},
            "'input_ids' cannot become one tensor, its rows have 3 to 1. items: ask for padding=T",
        ),
        ({"truncation": "only_second", "max_length": 4}, "cannot bring every input to max_length=4"),
    ],
    ids=str,
)
def test_options_that_cannot_be_met_are_refused(bert, options, words):
    with pytest.raises(ValueError, match=words):
        bert(["a", "a much longer text"], **options)
    assert bert("a much longer text")["input_ids"], "the tokenizer works on"


def test_other_refusals(bert, gpt2, folders):
    with pytest.raises(ValueError, match="there is nothing to encode"):
        bert()
    with pytest.raises(ValueError, match="1 pairs for 2 texts"):
        bert(["a", "b"], ["c"])
    with pytest.raises(ValueError, match="one pair, 'c', for 2 texts"):
        bert(["a", "b"], "c")
    with pytest.raises(ValueError, match="make it with add_prefix_space=True"):
        gpt2(["a", "b"], is_split_into_words=True)
    with pytest.raises(
        ValueError, match=r"no pad token; set one, for example tokenizer.pad_token = tokenizer.eos_token"
    ):
        AutoTokenizer.from_pretrained(folders["gpt2", "whole"])("a", padding=True)
    with pytest.raises(ValueError, match=r"-100 is no id of a token; .* replaced by the pad token's id"):
        bert.decode([5, -100])
    with pytest.raises(ValueError, match=r"1.5 is no id"):
        bert.decode([1.5])
    with pytest.raises(ValueError, match="no 'input_ids' to pad in"):
        bert.pad({"labels": [1]})
    with pytest.raises(ValueError, match="'labels' has 1 rows where 'input_ids' has 2"):
        bert.pad({"input_ids": [[1], [2]], "labels": [[1]]})
    with pytest.raises(TypeError, match="max_lenght"):
        bert("a", max_lenght=3)
    with pytest.raises(ValueError, match="padding_side='top'"):
        BertTokenizer(vocab={"[UNK]": 0}, padding_side="top")


def test_a_missing_framework_is_named_with_its_extra(bert, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorflow", None)
    with pytest.raises(ImportError, match=r"return_tensors='tf' needs tensorflow.*pip install \"warmstart\[tf\]\""):
        bert("a", return_tensors="tf")


@pytest.mark.parametrize(("kind", "package"), [("tf", "tensorflow"), ("jax", "jax")])
def test_other_frameworks(bert, kind, package):
    pytest.importorskip(package)
    batch = bert(["a", "b c"], padding=True, return_tensors=kind)
    assert np.asarray(batch["input_ids"]).tolist() == bert(["a", "b c"], padding=True)["input_ids"]
    assert np.asarray(batch["input_ids"]).dtype == np.int32  # as those frameworks have them, and `transformers` there


def test_what_counts_as_a_list_of_texts(bert):
    wanted = bert(["a", "b"]).data
    assert bert(("a", "b")).data == bert(np.array(["a", "b"])).data == bert(text for text in "ab").data == wanted
    assert bert([("a", "b")]).data == bert(["a"], ["b"]).data == bert([["a", "b"]]).data
    assert bert([]).data == {"input_ids": [], "token_type_ids": [], "attention_mask": []}
    assert bert([], padding=True, return_tensors="np")["input_ids"].shape == (0,)
    assert bert("", add_special_tokens=False, return_tensors="pt")["input_ids"].dtype == torch.int64
    assert bert.encode_plus("a").data == bert("a").data
    assert bert.batch_encode_plus(["a", "b"]).data == wanted


def test_lengths_that_are_not_known_change_nothing(gpt2, caplog):
    padding._said.clear()
    tokenizer = pickle.loads(pickle.dumps(gpt2))
    tokenizer.model_max_length = padding.UNLIMITED
    plain = tokenizer(["a", "a b c"]).data
    assert tokenizer(["a", "a b c"], truncation=True).data == plain
    assert tokenizer(["a", "a b c"], truncation=True).data == plain
    assert tokenizer(["a", "a b c"], padding="max_length").data == plain
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2, "each is said once"
    assert said[0].endswith("nothing is cut")
    assert said[1].endswith("nothing is padded")


def test_a_text_longer_than_the_model_takes_is_told(bert, caplog):
    padding._said.clear()
    bert("a " * 600)
    assert "602 tokens, more than the 512" in caplog.text


def test_decoding_takes_what_models_give(bert):
    ids = bert("hello world")["input_ids"]
    wanted = bert.decode(ids)
    for row in (tuple(ids), np.array(ids), torch.tensor(ids)):
        assert bert.decode(row) == wanted
    assert bert.batch_decode(torch.tensor([ids, ids])) == bert.batch_decode([np.array(ids)] * 2) == [wanted] * 2
    assert bert.decode(2) == bert.decode(torch.tensor(2)) == "[CLS]"
    assert bert.batch_decode([]) == []
    assert bert.decode([10**6]) == ""
    assert bert.convert_ids_to_tokens(torch.tensor(ids)) == bert.convert_ids_to_tokens(ids)
    assert bert.convert_ids_to_tokens(torch.tensor(2)) == bert.convert_ids_to_tokens(2) == "[CLS]"
    assert bert.convert_ids_to_tokens(ids, skip_special_tokens=True) == bert.tokenize("hello world")


def test_a_batch_is_a_dictionary(bert):
    batch = bert(["a", "b c"], padding=True, return_tensors="pt")
    assert isinstance(batch, dict)
    assert batch.input_ids is batch["input_ids"]
    assert {**batch}.keys() == {"input_ids", "token_type_ids", "attention_mask"}
    assert batch.to("cpu") is batch
    assert batch.to("meta")["input_ids"].device.type == "meta"
    with pytest.raises(AttributeError, match="this batch has no 'labels'; it has 'input_ids'"):
        _ = batch.labels
    with pytest.raises(KeyError):
        batch["labels"]
    batch = bert(["a", "b c"])
    for other in (pickle.loads(pickle.dumps(batch)), batch.copy()):
        assert other.data == batch.data
        assert other.tokens(1) == batch.tokens(1)
    assert BatchEncoding({"a": [1, 2, 3]})[0:2] == {"a": [1, 2]}
    with pytest.raises(KeyError, match="was not made by a tokenizer"):
        BatchEncoding({"a": [1]})[0]
    assert bert.pad([bert("a"), bert("b c")]).data == bert(["a", "b c"], padding=True).data
    moved = BatchEncoding({"input_ids": torch.ones(1, 1), "text": ["a"]}).to("meta")
    assert moved["text"] == ["a"]


def test_tensors_are_padded_to_the_kind_they_had(bert):
    rows = [{"input_ids": torch.tensor([1, 2])}, {"input_ids": torch.tensor([3])}]
    padded = bert.pad(rows)
    assert torch.equal(padded["input_ids"], torch.tensor([[1, 2], [3, 0]]))
    assert torch.equal(padded["attention_mask"], torch.tensor([[1, 1], [1, 0]]))
    assert isinstance(bert.pad({"input_ids": [np.array([1]), np.array([2, 3])]})["input_ids"], np.ndarray)
    assert bert.pad({"input_ids": []}).data == {"input_ids": [], "attention_mask": []}


def test_data_collators_of_transformers_take_it(bert):
    rows = [dict(bert(text)) for text in ("a", "b c d")]
    padded = transformers.DataCollatorWithPadding(bert)(rows)
    assert padded["input_ids"].shape == (2, 5)
    labelled = [row | {"labels": row["input_ids"]} for row in rows]
    batch = transformers.DataCollatorForSeq2Seq(bert)(labelled)
    assert batch["labels"][0].tolist() == [*rows[0]["input_ids"], -100, -100]
    masked = transformers.DataCollatorForLanguageModeling(bert, mlm_probability=0.5)(rows)
    assert masked["labels"].shape == (2, 5)


def test_threads_do_not_disturb_each_other(bert):
    texts = ["a few words", "some more words than before, and a comma"] * 8
    options = [
        {"truncation": True, "max_length": 4},
        {},
        {"padding": "max_length", "max_length": 30},
        {"truncation": True, "max_length": 6},
    ]
    wanted = [bert(texts, **each).data for each in options]
    wrong: list[object] = []

    def work(number):
        for _ in range(60):
            try:
                if bert(texts, **options[number]).data != wanted[number]:
                    wrong.append(number)
            except BaseException as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), min_size=1, max_size=4))
def test_byte_level_text_comes_back(gpt2, texts):
    rows = gpt2(texts)["input_ids"]
    assert gpt2.batch_decode(rows) == texts


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), min_size=1, max_size=4),
    st.integers(3, 12),
    st.sampled_from(["left", "right"]),
)
def test_padding_adds_only_padding(bert, texts, length, side):
    plain = bert(texts, truncation=True, max_length=length)
    padded = bert(texts, truncation=True, max_length=length, padding="max_length", padding_side=side)
    for row, ids in enumerate(plain["input_ids"]):
        mask = padded["attention_mask"][row]
        assert len(mask) == length
        assert [index for index, seen in zip(padded["input_ids"][row], mask, strict=True) if seen] == ids
        assert mask == sorted(mask, reverse=side == "right")
        assert all(
            index == bert.pad_token_id for index, seen in zip(padded["input_ids"][row], mask, strict=True) if not seen
        )
    batch = bert.pad([{name: plain[name][row] for name in plain} for row in range(len(texts))], padding_side=side)
    assert batch.data == bert(texts, truncation=True, max_length=length, padding=True, padding_side=side).data


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(), max_size=40))
def test_any_string_is_encoded_or_refused(bert, text):
    try:
        text.encode()
    except UnicodeEncodeError:
        with pytest.raises(ValueError, match="UTF-8"):
            bert(text)
    else:
        assert len(bert(text, truncation=True, max_length=5)["input_ids"]) <= 5


def test_class_from_the_vocabulary_itself():
    tokenizer = GPT2Tokenizer(vocab={"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}, merges=[("a", "b")])
    assert tokenizer("abba")["input_ids"] == [2, 1, 0]
    assert repr(tokenizer).startswith("GPT2Tokenizer(name_or_path='', vocab_size=4, length=4, model_max_length=1000")


def test_values_of_one_text_become_a_batch_of_one(bert):
    values = {"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1]}
    for library in (BatchEncoding, transformers.BatchEncoding):
        made = library(values, tensor_type="pt", prepend_batch_axis=True)
        turned = library(values).convert_to_tensors("pt", prepend_batch_axis=True)
        assert made["input_ids"].tolist() == turned["input_ids"].tolist() == [[5, 6, 7]]
        assert library(values, encoding=None, n_sequences=1).n_sequences == 1
    assert pickle.loads(pickle.dumps(BatchEncoding(values, n_sequences=1))).n_sequences == 1
    with pytest.raises(TypeError, match="tensor_kind"):
        BatchEncoding(values, tensor_kind="pt")


def test_what_is_not_here_says_what_is(bert):
    for name, words in (("as_target_tokenizer", "text_target"), ("save_vocabulary", "save_pretrained")):
        assert not hasattr(bert, name)
        with pytest.raises(AttributeError, match=f"BertTokenizer has no attribute '{name}'; use .*{words}"):
            getattr(bert, name)


def test_arguments_of_a_save_that_are_not_known_are_refused(bert, tmp_path):
    bert.save_pretrained(tmp_path / "fine", legacy_format=False, token=None)
    for options, words in (
        ({"filename_prefix": "my"}, r"save_pretrained got unknown arguments \['filename_prefix'\]"),
        ({"legacy_format": True}, "legacy_format=True: a tokenizer is saved with its tokenizer.json"),
    ):
        with pytest.raises(TypeError, match=words):
            bert.save_pretrained(tmp_path / "refused", **options)
    assert not (tmp_path / "refused").exists()
