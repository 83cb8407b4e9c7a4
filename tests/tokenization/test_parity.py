"""Ids, masks, offsets and text equal those of `transformers`' own tokenizers, in every layout that checkpoints have."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import transformers

from warmstart.tokenization import AutoTokenizer

IS_V5 = int(transformers.__version__.split(".")[0]) >= 5
FOLDERS = [
    *itertools.product(["bert", "gpt2", "roberta", "bart", "qwen2"], ["whole", "bare", "slow"]),
    *itertools.product(["xlm-roberta", "camembert", "llama"], ["whole", "bare"]),
]
EVERYTHING = {
    "return_offsets_mapping": True,
    "return_special_tokens_mask": True,
    "return_token_type_ids": True,
    "return_attention_mask": True,
}


@pytest.fixture(params=FOLDERS, ids="-".join)
def both(request, folders):
    """Our tokenizer and theirs, from one folder."""
    folder = folders[request.param]
    return AutoTokenizer.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder)


def plain(value):
    """Arrays, lists and tuples alike, to compare."""
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value


def assert_same(ours, theirs):
    assert list(ours) == list(theirs)
    for name in theirs:
        assert plain(ours[name]) == plain(theirs[name]), name


def test_some_lines(both, lines):
    ours, theirs = both
    some = lines[:100]
    mine, wanted = ours(some, **EVERYTHING), theirs(some, **EVERYTHING)
    assert_same(mine, wanted)
    ids = wanted["input_ids"]
    for skips, cleans in itertools.product((True, False), (True, False, None)):
        options = {"skip_special_tokens": skips, "clean_up_tokenization_spaces": cleans}
        assert ours.batch_decode(ids, **options) == theirs.batch_decode(ids, **options)
    for line, row in list(zip(some, ids, strict=True))[:36]:
        assert ours.tokenize(line) == theirs.tokenize(line)
        tokens = theirs.convert_ids_to_tokens(row)
        assert ours.convert_ids_to_tokens(row) == tokens
        assert ours.convert_tokens_to_ids(tokens) == theirs.convert_tokens_to_ids(tokens)
        assert ours.convert_tokens_to_string(tokens) == theirs.convert_tokens_to_string(tokens)
        assert ours.encode(line) == row
        assert ours.decode(row) == theirs.decode(row)
        assert ours.decode(np.array(row), skip_special_tokens=True) == theirs.decode(row, skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "roberta", "qwen2", "xlm-roberta", "llama"])
def test_thousands_of_lines(folders, lines, kind):
    folder = folders[kind, "whole"]
    ours, theirs = AutoTokenizer.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder)
    ids = theirs(lines)["input_ids"]
    assert ours(lines)["input_ids"] == ids
    assert ours.batch_decode(ids) == theirs.batch_decode(ids)


def test_special_tokens(both):
    ours, theirs = both
    for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"):
        assert getattr(ours, f"{name}_token") == getattr(theirs, f"{name}_token")
        assert getattr(ours, f"{name}_token_id") == getattr(theirs, f"{name}_token_id")
    assert ours.all_special_tokens == theirs.all_special_tokens
    assert ours.all_special_ids == theirs.all_special_ids
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.additional_special_tokens == theirs.additional_special_tokens
    assert (len(ours), ours.vocab_size) == (len(theirs), theirs.vocab_size)
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.get_added_vocab() == theirs.get_added_vocab()
    for name in ("model_max_length", "padding_side", "truncation_side", "model_input_names", "is_fast"):
        assert getattr(ours, name) == getattr(theirs, name), name
    for pair in (False, True):
        assert ours.num_special_tokens_to_add(pair) == theirs.num_special_tokens_to_add(pair)
    assert type(ours).__name__.removesuffix("Fast") == type(theirs).__name__.removesuffix("Fast")


def test_frame(both):
    ours, theirs = both
    mask = theirs.get_special_tokens_mask([theirs.convert_tokens_to_ids(theirs.all_special_tokens[0]), 300], None, True)
    assert ours.get_special_tokens_mask([ours.all_special_ids[0], 300], None, True) == mask
    for pair in ((), ([300],)):
        built = theirs.build_inputs_with_special_tokens([300, 301], *pair)
        assert ours.build_inputs_with_special_tokens([300, 301], *pair) == built


LENGTHS = [
    {"padding": True},
    {"padding": "longest", "pad_to_multiple_of": 8},
    {"padding": "max_length", "max_length": 24, "truncation": True},
    {"padding": "max_length", "truncation": True},
    {"padding": "max_length", "max_length": 9},
    {"truncation": True, "max_length": 7},
    {"truncation": "longest_first", "max_length": 12, "padding": True},
    {"truncation": False, "max_length": 7},
    {"max_length": 8},
    {"truncation": True, "max_length": 16, "padding": True, "pad_to_multiple_of": 4},
    {"truncation": True, "max_length": 24, "stride": 2, "return_overflowing_tokens": True, "return_length": True},
    {"truncation": True, "max_length": 10, "return_overflowing_tokens": True, "padding": "max_length"},
    {"padding": True, "padding_side": "left"},
    {"add_special_tokens": False, "padding": True},
    {"add_special_tokens": False, "truncation": True, "max_length": 4, "return_length": True},
    {"split_special_tokens": True},
    {"return_token_type_ids": False, "return_attention_mask": False, "return_length": True},
]


@pytest.fixture(scope="module", params=["bert", "gpt2", "llama"])
def whole(request, folders):
    folder = folders[request.param, "whole"]
    ours, theirs = AutoTokenizer.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder)
    if ours.pad_token is None:
        ours.pad_token = ours.eos_token
        theirs.pad_token = theirs.eos_token
    return ours, theirs


@pytest.mark.parametrize("options", LENGTHS, ids=str)
def test_lengths(whole, lines, options):
    ours, theirs = whole
    some = [*lines[1:4], *lines[22:24], *lines[40:43]]
    for side in ("right", "left"):
        ours.truncation_side = theirs.truncation_side = side
        assert_same(ours(some, **EVERYTHING | options), theirs(some, **EVERYTHING | options))
        assert_same(ours(some[3], **options), theirs(some[3], **options))
        assert_same(ours(some, some[::-1], **options), theirs(some, some[::-1], **options))
        assert_same(ours(some[5], some[6], **options), theirs(some[5], some[6], **options))
    ours.truncation_side = theirs.truncation_side = "right"


@pytest.mark.parametrize("truncation", ["only_first", "only_second", "longest_first", True])
def test_pairs_cut(whole, lines, truncation):
    ours, theirs = whole
    texts, pairs = ["a b c", lines[40] * 4], [lines[28] * 3, lines[50] * 4]
    texts, pairs = (pairs, texts) if truncation == "only_first" else (texts, pairs)
    options = {
        "truncation": truncation,
        "max_length": 100 + len(ours(texts, padding=True)["input_ids"][0]),
        "padding": True,
    }
    if truncation in (True, "longest_first"):
        options["max_length"] = 40
    assert_same(ours(texts, pairs, **options), theirs(texts, pairs, **options))
    both = list(zip(texts, pairs, strict=True))
    assert_same(ours(both, **options), theirs(both, **options))


@pytest.mark.parametrize("kind", ["np", "pt"])
def test_tensors(whole, lines, kind):
    ours, theirs = whole
    options = {"padding": True, "truncation": True, "max_length": 20, "return_tensors": kind}
    mine, wanted = ours(lines[:9], **options), theirs(lines[:9], **options)
    assert_same(mine, wanted)
    assert [(type(mine[name]), mine[name].dtype) for name in mine] == [
        (type(wanted[name]), wanted[name].dtype) for name in wanted
    ]
    assert_same(ours(lines[3], return_tensors=kind), theirs(lines[3], return_tensors=kind))
    assert plain(ours.encode(lines[3], return_tensors=kind)) == plain(theirs.encode(lines[3], return_tensors=kind))
    assert ours.batch_decode(mine["input_ids"]) == theirs.batch_decode(wanted["input_ids"])


def test_targets(whole, lines):
    ours, theirs = whole
    options = {"padding": True, "truncation": True, "max_length": 20, "return_tensors": "np"}
    assert_same(
        ours(lines[:5], text_target=lines[5:10], **options), theirs(lines[:5], text_target=lines[5:10], **options)
    )
    assert_same(ours(text_target=lines[:5], **options), theirs(text_target=lines[:5], **options))
    assert_same(ours(lines[3], text_target=lines[4]), theirs(lines[3], text_target=lines[4]))


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "llama", "gpt2", "roberta"])
def test_words(folders, lines, kind):
    folder, options = folders[kind, "whole"], {"add_prefix_space": True} if kind in ("gpt2", "roberta") else {}
    ours = AutoTokenizer.from_pretrained(folder, **options)
    theirs = transformers.AutoTokenizer.from_pretrained(folder, **options)
    rows = [line.split() for line in lines[:80]]
    assert_same(
        ours(rows, is_split_into_words=True, **EVERYTHING), theirs(rows, is_split_into_words=True, **EVERYTHING)
    )
    assert_same(ours(rows[4], is_split_into_words=True), theirs(rows[4], is_split_into_words=True))
    mine, wanted = ours(rows[4], rows[5], is_split_into_words=True), theirs(rows[4], rows[5], is_split_into_words=True)
    assert_same(mine, wanted)
    assert mine.word_ids() == wanted.word_ids()
    assert_same(ours(lines[:80]), theirs(lines[:80]))


def test_pad(whole, lines):
    ours, theirs = whole
    batch = theirs(lines[:6], return_special_tokens_mask=True)
    rows = [{name: batch[name][row] for name in batch} for row in range(6)]
    for options in (
        {},
        {"pad_to_multiple_of": 8},
        {"padding": "max_length", "max_length": 300},
        {"padding_side": "left", "return_tensors": "np"},
        {"padding": False},
    ):
        assert_same(ours.pad(rows, **options), theirs.pad([dict(row) for row in rows], **options))
        assert_same(ours.pad(dict(batch), **options), theirs.pad(dict(batch), **options))
        if "return_tensors" not in options:
            assert_same(ours.pad(rows[3], **options), theirs.pad(dict(rows[3]), **options))
    assert set(rows[0]) == set(batch), "what was given is not changed"
    assert_same(ours.pad({"input_ids": rows[3]["input_ids"]}), theirs.pad({"input_ids": rows[3]["input_ids"]}))


def test_where_tokens_come_from(whole, lines):
    ours, theirs = whole
    texts = [line for line in lines if len(line) > 20][:12]
    mine, wanted = ours(texts, texts[::-1]), theirs(texts, texts[::-1])
    assert mine.n_sequences == wanted.n_sequences == 2
    assert mine.is_fast
    for row in range(len(texts)):
        assert mine.tokens(row) == wanted.tokens(row)
        assert mine.word_ids(row) == mine.words(row) == wanted.word_ids(row)
        assert mine.sequence_ids(row) == wanted.sequence_ids(row)
        assert mine[row].ids == wanted[row].ids
        for place in (0, 1, 3, 7):
            assert mine.token_to_chars(row, place) == wanted.token_to_chars(row, place)
            assert mine.token_to_word(row, place) == wanted.token_to_word(row, place)
            assert mine.token_to_sequence(row, place) == wanted.token_to_sequence(row, place)
            for sequence in (0, 1):
                assert mine.char_to_token(row, place, sequence) == wanted.char_to_token(row, place, sequence)
                assert mine.char_to_word(row, place, sequence) == wanted.char_to_word(row, place, sequence)
        assert mine.word_to_tokens(row, 0, 1) == wanted.word_to_tokens(row, 0, 1)
        assert mine.word_to_chars(row, 0, 1) == wanted.word_to_chars(row, 0, 1)
    assert mine.char_to_token(2) == wanted.char_to_token(2)
    assert [row.ids for row in mine[0:2]] == [row.ids for row in wanted[0:2]]
