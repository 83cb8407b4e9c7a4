"""Checkpoints with a SentencePiece model and no `tokenizer.json`: ids and text equal those of `transformers`."""

from __future__ import annotations

import io
import json
import shutil
import sys

import pytest
import sentencepiece
import transformers

from warmstart.cli.facts import read_tokenizer
from warmstart.tokenization import AutoTokenizer
from warmstart.tokenization.auto import special_token_ids

IDS = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}  # fairseq's and Llama's
PAD_FIRST = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}  # T5's
PAD_EOS_BOS = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3}  # Gemma's
BRACKETS = {
    "pad_id": 0,
    "unk_id": 1,
    "bos_id": 2,
    "eos_id": 3,
    "bos_piece": "[CLS]",
    "eos_piece": "[SEP]",
    "control_symbols": "[MASK]",
}
BYTES = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "split_digits": True,
    "allow_whitespace_only_pieces": True,
}
GEMMA = {**BYTES, **PAD_EOS_BOS, "bos_piece": "<bos>", "eos_piece": "<eos>", "add_dummy_prefix": False}
GEMMA["user_defined_symbols"] = "<mask>,<start_of_turn>,<end_of_turn>,\n"
FULL_BIG_BIRD = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "user_defined_symbols": "[CLS],[SEP],[MASK]"}
SW3 = {**BYTES, "pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3, "eos_piece": "<|endoftext|>"}
SW3["user_defined_symbols"] = "<|python|>,   "
DEBERTA = {**BRACKETS, "pad_piece": "[PAD]", "unk_piece": "[UNK]", "control_symbols": ""}

# name -> (model_type, tokenizer class, file, how the model is trained, settings)
KINDS = {
    "albert": ("albert", "Albert", "spiece.model", BRACKETS, {}),
    "albert-cased": ("albert", "Albert", "spiece.model", BRACKETS, {"do_lower_case": False, "keep_accents": True}),
    "big_bird": ("big_bird", "BigBird", "spiece.model", FULL_BIG_BIRD, {}),
    "bert-generation": ("bert-generation", "BertGeneration", "spiece.model", PAD_EOS_BOS, {}),
    "camembert": ("camembert", "Camembert", "sentencepiece.bpe.model", IDS, {}),
    "deberta-v2": ("deberta-v2", "DebertaV2", "spm.model", DEBERTA, {}),
    "deberta-v2-lower": (
        "deberta-v2",
        "DebertaV2",
        "spm.model",
        DEBERTA,
        {"do_lower_case": True, "split_by_punct": True},
    ),
    "gemma": ("gemma", "Gemma", "tokenizer.model", GEMMA, {}),
    "gpt-sw3": ("gpt-sw3", "GPTSw3", "spiece.model", SW3, {}),
    "llama": ("llama", "Llama", "tokenizer.model", {**BYTES, **IDS}, {"legacy": True}),
    "llama-new": ("llama", "Llama", "tokenizer.model", {**BYTES, **IDS}, {"legacy": False, "add_eos_token": True}),
    "mbart": ("mbart", "MBart", "sentencepiece.bpe.model", IDS, {}),
    "mbart50": ("mbart", "MBart50", "sentencepiece.bpe.model", IDS, {"src_lang": "fr_XX", "tgt_lang": "ko_KR"}),
    "mt5": ("mt5", "MT5", "spiece.model", {**PAD_FIRST, "byte_fallback": False}, {"extra_ids": 0}),
    "pegasus": ("pegasus", "Pegasus", "spiece.model", PAD_FIRST, {}),
    "plbart": ("plbart", "PLBart", "sentencepiece.bpe.model", IDS, {}),
    "plbart-multi": (
        "plbart",
        "PLBart",
        "sentencepiece.bpe.model",
        {**IDS, "model_type": "bpe"},
        {"language_codes": "multi", "src_lang": "python", "tgt_lang": "en_XX"},
    ),
    "rembert": (
        "rembert",
        "RemBert",
        "sentencepiece.model",
        {**BRACKETS, "pad_piece": "[PAD]", "unk_piece": "[UNK]"},
        {"keep_accents": True, "do_lower_case": False, "unk_token": "[UNK]", "pad_token": "[PAD]"},
    ),
    "t5": ("t5", "T5", "spiece.model", PAD_FIRST, {}),
    "t5-new": ("t5", "T5", "spiece.model", PAD_FIRST, {"legacy": False}),
    "xglm": ("xglm", "XGLM", "sentencepiece.bpe.model", IDS, {}),
    "xlm-roberta": ("xlm-roberta", "XLMRoberta", "sentencepiece.bpe.model", IDS, {}),
    "xlm-roberta-bpe": ("xlm-roberta", "XLMRoberta", "sentencepiece.bpe.model", {**IDS, "model_type": "bpe"}, {}),
}
SLOW = {
    "bert-generation",
    "gpt-sw3",
    "plbart",
    "plbart-multi",
}  # the reference runs sentencepiece


def train(path, lines, **options):
    """A small SentencePiece model."""
    made = io.BytesIO()
    options = {"vocab_size": 700, "hard_vocab_limit": False, "character_coverage": 0.98, "minloglevel": 2} | options
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=made, **options)
    path.write_bytes(made.getvalue())


@pytest.fixture(scope="module")
def folders(tmp_path_factory, lines):
    """A folder of each kind, with a model and its settings alone; models that are trained alike are trained once."""
    root, trained, texts = tmp_path_factory.mktemp("pieces"), {}, [line for line in lines[:35] + lines[36::4] if line]
    for name, (model_type, cls, file, options, settings) in KINDS.items():
        folder = root / name
        folder.mkdir()
        key = json.dumps(options, sort_keys=True)
        if key in trained:
            shutil.copy(trained[key], folder / file)
        else:
            train(folder / file, texts, **options)
        trained[key] = folder / file
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": f"{cls}Tokenizer", **settings}))
    return root


def pair(folder):
    return AutoTokenizer.from_pretrained(folder), theirs(folder)


def theirs(folder):
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def some(lines):
    """Odd lines, and some hundreds of real ones."""
    return lines[:35] + lines[35::8]


def same_but_for_ties(ours, wanted):
    """Two ways to cut a text that score the same fall as rounding has it, where the reference runs sentencepiece."""
    differ = [(mine, ids) for mine, ids in zip(ours, wanted, strict=True) if mine != ids]
    return len(differ) <= len(wanted) / 100 and all(sorted(mine) == sorted(ids) for mine, ids in differ)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_text(folders, some, kind, tmp_path):
    ours, reference = pair(folders / kind)
    assert type(ours).__name__ == f"{KINDS[kind][1].replace('MT5', 'T5')}Tokenizer"
    wanted = [reference(line)["input_ids"] for line in some]
    found = [ours(line)["input_ids"] for line in some]
    assert found == wanted or (kind in SLOW and same_but_for_ties(found, wanted))
    for ids in wanted:
        assert ours.decode(ids, skip_special_tokens=True) == reference.decode(ids, skip_special_tokens=True)
        assert kind in SLOW or ours.decode(ids) == reference.decode(ids)
    assert ours(some[5:9], some[9:13]).data == dict(reference(some[5:9], some[9:13]))
    assert (len(ours), ours.get_vocab()) == (len(reference), reference.get_vocab())
    for name in ("all_special_tokens", "all_special_ids", "model_input_names", "padding_side", "model_max_length"):
        assert getattr(ours, name) == getattr(reference, name), name

    reference.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    wanted = [theirs(tmp_path / "theirs")(line)["input_ids"] for line in some]
    places = [tmp_path / "ours"] if kind in SLOW else [tmp_path / "ours", tmp_path / "theirs"]
    for again in (*map(AutoTokenizer.from_pretrained, places), theirs(tmp_path / "ours")):
        found = [again(line)["input_ids"] for line in some]
        assert found == wanted or (kind in SLOW and same_but_for_ties(found, wanted))
        assert len(again) == len(ours)


@pytest.mark.parametrize("kind", ["mbart", "mbart50", "plbart-multi"])
def test_languages(folders, kind):
    ours, reference = pair(folders / kind)
    text, target = "def one(): return 1", "a function of one"
    assert ours.lang_code_to_id == reference.lang_code_to_id
    for source, written in (("en_XX", "python"), ("java", "en_XX")) if "pl" in kind else (("ro_RO", "hi_IN"),):
        for tokenizer in (ours, reference):
            tokenizer.src_lang, tokenizer.tgt_lang = source, written
        assert ours(text, text_target=target).data == dict(reference(text, text_target=target))
        assert ours(text_target=target).data == dict(reference(text_target=target))
        assert ours(text).data == dict(reference(text))
    with pytest.raises(ValueError, match=r"src_lang='xx' is not a language of .*Tokenizer; they are "):
        AutoTokenizer.from_pretrained(folders / kind, src_lang="xx")


def test_a_target_needs_its_language(folders):
    with pytest.raises(ValueError, match=r"text_target needs the language it is in; set tokenizer.tgt_lang"):
        AutoTokenizer.from_pretrained(folders / "mbart")("a", text_target="b")


@pytest.fixture(scope="module")
def marian(tmp_path_factory, lines):
    """Two models, and a vocabulary that lacks some pieces of both."""
    folder = tmp_path_factory.mktemp("marian")
    texts, vocab = [line for line in lines[:35] + lines[36::4] if line], {"</s>": 0, "<unk>": 1}
    for file, part in (("source.spm", texts[::2]), ("target.spm", texts[1::2])):
        train(folder / file, part, vocab_size=500)
        model = sentencepiece.SentencePieceProcessor(model_file=str(folder / file))
        for index in range(3, model.get_piece_size()):
            if index % 9:
                vocab.setdefault(model.id_to_piece(index), len(vocab))
    vocab |= {">>fra<<": len(vocab), "<pad>": len(vocab) + 1}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    others = [token for token in vocab if token not in ("</s>", "<unk>", "<pad>")]
    swapped = dict(zip(others, (vocab[token] for token in reversed(others)), strict=True))
    (folder / "target_vocab.json").write_text(json.dumps(vocab | swapped))
    (folder / "config.json").write_text(json.dumps({"model_type": "marian"}))
    return folder


@pytest.mark.filterwarnings("ignore:Recommended")  # the reference names sacremoses, which it then does not use
@pytest.mark.parametrize("separate", [False, True])
def test_marian(marian, some, separate, tmp_path):
    shutil.copytree(marian, tmp_path / "folder")
    settings = {"separate_vocabs": separate, "tokenizer_class": "MarianTokenizer", "source_lang": "en"}
    (tmp_path / "folder" / "tokenizer_config.json").write_text(json.dumps(settings))
    ours, reference = pair(tmp_path / "folder")
    some = [*some, ">>fra<< some words", ">>fra<<x"]
    wanted = [reference(line)["input_ids"] for line in some]
    assert reference.unk_token_id in {index for ids in wanted for index in ids}
    assert [ours(line)["input_ids"] for line in some] == wanted
    targets = [reference(text_target=line)["input_ids"] for line in some]
    assert [ours(text_target=line)["input_ids"] for line in some] == targets
    assert ours(some[3], text_target=some[5]).data == dict(reference(some[3], text_target=some[5]))
    batch = {"padding": True, "truncation": True, "max_length": 12}
    assert ours(some[3:9], **batch).data == dict(reference(some[3:9], **batch))
    for ids, source in zip(targets, wanted, strict=True):
        assert ours.decode(ids, skip_special_tokens=True) == reference.decode(ids, skip_special_tokens=True)
        options = {"use_source_tokenizer": not separate, "skip_special_tokens": True}
        assert ours.decode(source, **options) == reference.decode(source, **options)
    assert (len(ours), ours.vocab_size) == (len(reference), reference.vocab_size)
    assert ours.get_vocab() == reference.get_vocab()
    assert (ours.pad_token_id, ours.model_max_length) == (reference.pad_token_id, reference.model_max_length)

    ours.save_pretrained(tmp_path / "again")
    for again in (AutoTokenizer.from_pretrained(tmp_path / "again"), theirs(tmp_path / "again")):
        assert [again(line)["input_ids"] for line in some] == wanted
        assert [again(text_target=line)["input_ids"] for line in some] == targets


def test_what_is_missing_is_named(folders, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ImportError, match=r"spiece.model .*pip install 'warmstart\[sentencepiece\]'"):
        AutoTokenizer.from_pretrained(folders / "t5")
    assert special_token_ids(folders / "t5") == {} and "no token ids are taken" in caplog.text
    assert read_tokenizer(folders / "t5", "", {}) is None
    monkeypatch.undo()
    assert special_token_ids(folders / "t5")["eos_token_id"] == read_tokenizer(folders / "t5", "", {}).eos_token_id == 1
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    (tmp_path / "spiece.model").write_bytes(b"")
    with pytest.raises(OSError, match=r"spiece.model has no pieces; is it a whole"):
        AutoTokenizer.from_pretrained(tmp_path)
    (tmp_path / "spiece.model").write_bytes(b"not one at all")
    with pytest.raises(OSError, match=r"spiece.model cannot be read as a SentencePiece model"):
        AutoTokenizer.from_pretrained(tmp_path)
    train(tmp_path / "spiece.model", ["a b c", "d e"] * 9, model_type="char", vocab_size=9)
    with pytest.raises(OSError, match=r"spiece.model is a SentencePiece model of words or characters"):
        AutoTokenizer.from_pretrained(tmp_path)
