"""A RoCBert reads shapes and pronunciations: they reach it from texts, in `generate`, in many at once, in training."""

import json

import numpy as np
import pytest
import torch

import tiny_models
from warmstart import EncoderDecoderModel, RoCBertTokenizer
from warmstart.training.batches import collate
from warmstart.training.examples import Limits, load_examples
from warmstart.training.loss import PairLoss
from warmstart.training.pairs import Data

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"天气很好我们去山上看书写字"]
SIZES = ((7, 10), (4, 9))  # of each table, how its ids are drawn
SIDES = {"roc_bert": {"pad_token_id": 0}, "gpt2": {}}
TEXTS = ["天气很好", "我们去山上看书", "写字", "去看山", "气天好很们我 [SEP] 山"]
OPTIONS = {"max_new_tokens": 5, "eos_token_id": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    shapes, sounds = ({token: place * step % rows for place, token in enumerate(TOKENS)} for step, rows in SIZES)
    tokenizer = RoCBertTokenizer(
        vocab={token: place for place, token in enumerate(TOKENS)},
        word_shape_file=shapes,
        word_pronunciation_file=sounds,
        model_max_length=20,
    )
    sides = (tiny_models.config(name, vocab_size=len(TOKENS), **more) for name, more in SIDES.items())
    model = tiny_models.pair(*sides, spread=1.0, seed=1)
    place = tmp_path_factory.mktemp("model") / "pair"
    model.save_pretrained(place, encoder_tokenizer=tokenizer, decoder_tokenizer=tokenizer)
    return place


@pytest.fixture(scope="module")
def loaded(folder):
    return EncoderDecoderModel.from_pretrained(folder).eval(), RoCBertTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def wanted(loaded):
    """What the model writes for each text alone, with all that its tokenizer gives."""
    model, tokenizer = loaded
    found = [model.generate(**tokenizer([text], return_tensors="pt"), **OPTIONS)[0].tolist() for text in TEXTS]
    without = [
        model.generate(tokenizer([text], return_tensors="pt").input_ids, **OPTIONS)[0].tolist() for text in TEXTS
    ]
    assert sum(one != other for one, other in zip(found, without, strict=True)) > 2  # else it would not be seen
    return found


@pytest.mark.parametrize("size", [1, 3])
def test_the_command(run, loaded, folder, wanted, size, tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    ran = run(
        "generate",
        folder,
        tmp_path / "texts.txt",
        "--max-new-tokens",
        5,
        "--batch-size",
        size,
        "--set",
        "eos_token_id=null",
    )
    written = [text.strip() for text in loaded[1].batch_decode(wanted, skip_special_tokens=True)]
    assert ran.out.split("\n")[:-1] == written


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 2}, {"num_beams": 2, "num_beam_groups": 2, "diversity_penalty": 0.5}], ids=str
)
def test_many_texts(loaded, wanted, options):
    model, tokenizer = loaded
    given = [dict(tokenizer(text)) for text in TEXTS]
    for inputs, tokens in ((TEXTS, tokenizer), (given, None)):
        answers = model.generate_many(inputs, tokenizer=tokens, batch_size=3, **OPTIONS, **options)
        found = [answer.sequences[0].tolist() for answer in answers]
        if not options:
            assert found == wanted
        for text, ids in zip(TEXTS, found, strict=True):
            batch = tokenizer([text], return_tensors="pt")
            assert ids == model.generate(**batch, **OPTIONS, **options)[0].tolist()


def test_what_is_refused(loaded):
    model, tokenizer = loaded
    given = dict(tokenizer(TEXTS[0]))
    answers = model.generate_many(
        [{**given, "input_shape_ids": [1, 2]}, {**given, "input_shape_ids": [99] * 6}, {"ids": [5]}, given], **OPTIONS
    )
    assert [type(answer.error) for answer in answers] == [ValueError, ValueError, ValueError, type(None)]
    assert "input 0 has 6 tokens and 2 input_shape_ids; give one for each token" in str(answers[0].error)
    assert "input_shape_ids holds 99" in str(answers[1].error)
    assert "input 2 has no input_ids, only ids" in str(answers[2].error)


def test_training_reads_them(loaded, tmp_path):
    model, tokenizer = loaded
    pairs = [{"source": text, "target": text[:2]} for text in TEXTS]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    asked = Data(str(tmp_path / "pairs.jsonl")), tokenizer, tokenizer, 3, Limits(20, 6)
    rows = np.arange(len(TEXTS))
    batch = collate(load_examples(*asked), rows, 0)
    tokens = tokenizer(TEXTS, padding=True, return_tensors="pt")
    for name in ("input_ids", "attention_mask", "input_shape_ids", "input_pronunciation_ids"):
        assert torch.equal(batch[name], tokens[name])
    with torch.no_grad():
        loss = PairLoss(model)(**batch, count=int((batch["labels"] != -100).sum()))
        assert abs(loss - model(**batch).loss) < 1e-5
        assert abs(loss - model(batch["input_ids"], batch["attention_mask"], labels=batch["labels"]).loss) > 1e-3
