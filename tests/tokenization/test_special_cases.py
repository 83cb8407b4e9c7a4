"""Tokenizers that do more than the `tokenizers` library does: Blenderbot's small one, RoFormer's and RoCBert's."""

from __future__ import annotations

import copy
import json
import pickle
import re
import sys

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from warmstart.cli.facts import read_tokenizer
from warmstart.tokenization import AutoTokenizer, BlenderbotSmallTokenizer, RoCBertTokenizer
from warmstart.tokenization.auto import special_token_ids

pytestmark = pytest.mark.v5
IS_V5 = int(transformers.__version__.split(".")[0]) >= 5

CHINESE = [
    "今天天气非常好。",
    "北京大学的学生在图书馆学习自然语言处理",
    "我来到北京清华大学，他来到了网易杭研大厦 hello world",
    "小明硕士毕业于中国科学院计算所，后在日本京都大学深造",
    "[MASK]天气[SEP] 非常 [CLS]好",
]
WORDS = {
    "今天天气",
    "今天",
    "天气",
    "非常",
    "北京大学",
    "北京",
    "学生",
    "在",
    "图书馆",
    "学习",
    "自然语言",
    "的",
    "中国科学院",
}
# RoCBert's in the reference is Python: it takes out what Unicode assigns to nothing; in version 5 a sigma may be final.
OTHERWISE = re.compile("[\U000e0fff\uffffΣ]")


def folder_of(root, model_type, files):
    root.mkdir()
    for name, content in {"config.json": {"model_type": model_type}, **files}.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (root / name).write_text(text, encoding="utf-8")
    return root


def small_files(lines):
    """Byte pairs as fastBPE leaves them; some that are joined further have no id."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit()])
    texts = [re.sub("([.,!?()'])", r" \1 ", line) for line in lines]
    options = {"end_of_word_suffix": "</w>", "limit_alphabet": 150, "show_progress": False}
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=900, **options))
    state = json.loads(tokenizer.to_str())["model"]
    vocab = {token: index for index, token in enumerate(("__null__", "__start__", "__end__", "__unk__"))}
    for index, token in enumerate(sorted(state["vocab"], key=state["vocab"].get)):
        name = token.removesuffix("</w>") if token.endswith("</w>") else f"{token}@@"
        if index % 7:
            vocab.setdefault(name, len(vocab))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in state["merges"]]
    return {"vocab.json": vocab, "merges.txt": "\n".join(["#version: 0.2", *merges, ""])}


def tables_of(tokens):
    """Shapes and pronunciations of most tokens."""
    return {
        "word_shape.json": {token: index * 7 % 60 for index, token in enumerate(tokens) if index % 5 or index == 1},
        "word_pronunciation.json": {token: index % 40 for index, token in enumerate(tokens) if index % 6},
    }


@pytest.fixture(scope="module")
def folders(tmp_path_factory, backends, lines):
    root, vocab = tmp_path_factory.mktemp("special"), backends["bert"].get_vocab()
    tokens = list(dict.fromkeys([*sorted(vocab, key=vocab.get), *sorted(WORDS), *"今天气好北京大学处理"]))
    words = {"vocab.txt": "\n".join([*tokens, ""])}
    return {
        "blenderbot-small": folder_of(root / "small", "blenderbot-small", small_files(lines[:35] + lines[36::4])),
        "roformer": folder_of(root / "roformer", "roformer", words),
        "roc_bert": folder_of(root / "roc_bert", "roc_bert", words | tables_of(tokens)),
    }


@pytest.fixture(scope="module")
def some(lines):
    """Odd lines, a few hundred real ones, and what these three do otherwise."""
    more = ["x'\n", "two\nlines\n here", "__start__ hi __end__ __unk__x", "A.b.c (d)'e'\n\n f", *CHINESE]
    return [OTHERWISE.sub("", line) for line in lines[:35] + lines[35::8] + more]


def theirs(folder):
    """The reference's: its fast small Blenderbot, which `AutoTokenizer` may take, cannot read the files of one; version
    5's RoFormer knows no words where it reads them from `vocab.txt`.
    """
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    if kind == "roformer" and IS_V5 and not (folder / "tokenizer.json").exists():
        tokens = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1]
        return transformers.RoFormerTokenizer(vocab={token: index for index, token in enumerate(tokens)})
    cls = transformers.BlenderbotSmallTokenizer if kind == "blenderbot-small" else transformers.AutoTokenizer
    return cls.from_pretrained(folder)


def told(tokenizer, *texts, **options):
    """What a call gives, without token types, which version 5 leaves out for RoCBert."""
    return {
        name: value for name, value in tokenizer(*texts, **options).items() if name != "token_type_ids" or not IS_V5
    }


@pytest.mark.parametrize("kind", ["blenderbot-small", "roformer", "roc_bert"])
def test_ids_text_and_files(folders, some, kind, tmp_path):
    ours, reference = AutoTokenizer.from_pretrained(folders[kind]), theirs(folders[kind])
    assert type(ours).__name__ == type(reference).__name__.removesuffix("Fast")
    wanted = [told(reference, line) for line in some]
    assert [told(ours, line) for line in some] == wanted
    for row in wanted:
        for skips in (True, False):
            assert ours.decode(row["input_ids"], skip_special_tokens=skips) == reference.decode(
                row["input_ids"], skip_special_tokens=skips
            )
    batch = {"padding": True, "truncation": True, "max_length": 12}
    assert told(ours, some[5:9], some[9:13]) == told(reference, some[5:9], some[9:13])
    for side in ("right", "left"):
        ours.padding_side = reference.padding_side = side
        assert told(ours, CHINESE, **batch) == told(reference, CHINESE, **batch)
        rows = [dict(reference(line)) for line in CHINESE]
        assert ours.pad(rows).data == dict(reference.pad([dict(row) for row in rows]))
    ours.padding_side = reference.padding_side = "right"
    assert told(ours, CHINESE[0], add_special_tokens=False) == told(reference, CHINESE[0], add_special_tokens=False)
    assert (len(ours), ours.get_vocab()) == (len(reference), reference.get_vocab())
    assert IS_V5 or ours.model_input_names == reference.model_input_names
    assert set(ours.all_special_tokens) == set(reference.all_special_tokens)

    for tokenizer, name in ((ours, "ours"), (reference, "theirs")):
        tokenizer.add_tokens(["newtoken"])
        tokenizer.save_pretrained(tmp_path / name)
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": kind}))
    reference = theirs(folders[kind])  # RoFormer's cuts as BERT's does once it has been saved
    reference.add_tokens(["newtoken"])
    some = [*some, "a newtoken of 天气newtoken"]
    wanted = [told(reference, line) for line in some]
    for name in ("ours", "theirs"):
        for again in (AutoTokenizer.from_pretrained(tmp_path / name), theirs(tmp_path / name)):
            assert [told(again, line) for line in some] == wanted, (name, type(again))
    for again in (ours, pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours)):
        assert [told(again, line) for line in some] == wanted


def test_chinese_words(folders):
    tokenizer = AutoTokenizer.from_pretrained(folders["roformer"])
    text = CHINESE[1]
    assert tokenizer.tokenize(text) == ["北京大学", "的", "学生", "在", "图书馆", "学习", "自然语言", "处", "理"]
    offsets = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
    assert [text[start:end] for start, end in offsets] == tokenizer.tokenize(text)
    assert offsets == theirs(folders["roformer"])(text, return_offsets_mapping=True)["offset_mapping"][1:-1]
    tokenizer.do_lower_case = False
    assert tokenizer.tokenize("自然语言 Hello")[0] == "自然语言" and tokenizer.unk_token in tokenizer.tokenize("Éé")


def test_shapes_and_pronunciations(folders):
    ours, reference = AutoTokenizer.from_pretrained(folders["roc_bert"]), theirs(folders["roc_bert"])
    for name in ("convert_tokens_to_shape_ids", "convert_tokens_to_pronunciation_ids"):
        tokens = ["天", "气", "no such token", "[MASK]"]
        assert getattr(ours, name)(tokens) == getattr(reference, name)(tokens)
    batch = ours(CHINESE, padding=True, return_tensors="pt")
    assert batch.input_shape_ids.shape == batch.input_pronunciation_ids.shape == batch.input_ids.shape
    assert batch.input_shape_ids.dtype == torch.long
    options = {"padding": True, "return_special_tokens_mask": True}
    assert told(ours, CHINESE, CHINESE[::-1], **options) == told(reference, CHINESE, CHINESE[::-1], **options)
    labels = ours(CHINESE[0], text_target=CHINESE[1])
    assert labels["labels"] == reference(CHINESE[1])["input_ids"] and "input_shape_ids" in labels


def test_what_is_missing_is_named(folders, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "rjieba", None)
    with pytest.raises(ImportError, match=r"words with rjieba, .*pip install 'warmstart\[chinese\]'; for text without"):
        AutoTokenizer.from_pretrained(folders["roformer"])
    assert special_token_ids(folders["roformer"]) == {} and "no token ids are taken" in caplog.text
    assert read_tokenizer(folders["roformer"], "", {}) is None
    assert AutoTokenizer.from_pretrained(folders["roformer"], tokenizer_type="bert").cls_token == "[CLS]"
    folder = folder_of(tmp_path / "roc_bert", "roc_bert", {"vocab.txt": "[UNK]\n"})
    with pytest.raises(FileNotFoundError, match=r"nor vocab.txt and word_shape.json and word_pronunciation.json, from"):
        AutoTokenizer.from_pretrained(folder)
    for name in ("word_shape.json", "word_pronunciation.json"):
        (folder / name).write_text('{"a": 1}')
    with pytest.raises(OSError, match=r"word_shape.json does not have '\[UNK\]'"):
        AutoTokenizer.from_pretrained(folder)
    folder = folder_of(
        tmp_path / "small", "blenderbot-small", {"vocab.json": {"a": 0}, "merges.txt": "#version: 0.2\n"}
    )
    with pytest.raises(OSError, match=r"the vocabulary does not have '__unk__'"):
        AutoTokenizer.from_pretrained(folder)
    backend = AutoTokenizer.from_pretrained(folders["blenderbot-small"]).backend_tokenizer
    for given in ({}, {"vocab": {"a": 0}}, {"tokenizer_object": backend, "merges": []}):
        with pytest.raises(ValueError, match=r"made from a vocab.json and a merges.txt and nothing else; to read"):
            BlenderbotSmallTokenizer(**given)
    with pytest.raises(ValueError, match=r"and there is no word_shape.json; to read a folder"):
        RoCBertTokenizer(vocab={"[UNK]": 0, "[CLS]": 1, "[SEP]": 2})


@pytest.mark.parametrize("kind", ["blenderbot-small", "roformer", "roc_bert"])
def test_what_cannot_be_learned_says_so(folders, kind):
    with pytest.raises(ValueError, match=r"no new vocabulary can be learned for a .*Tokenizer"):
        AutoTokenizer.from_pretrained(folders[kind]).train_new_from_iterator(["a b"], 20)


def test_offsets_that_are_lost_are_refused(folders):
    with pytest.raises(ValueError, match="BlenderbotSmallTokenizer cuts a text before it looks its pieces up"):
        AutoTokenizer.from_pretrained(folders["blenderbot-small"])("a b", return_offsets_mapping=True)
