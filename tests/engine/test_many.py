"""Many inputs: refilled batches give what each input gives alone, whatever the order, the errors and the source."""

import itertools

import pytest
import torch

from tiny_models import END, FIRST, VOCABULARY, pair
from warmstart.torch.generation import many, refill
from warmstart.torch.generation.refill import can_refill, trimmed

ENDS = [END, 7, 8, 11, 14, 19, 20, 23, 26, 28, 31, 33]  # many, so that random models end soon, and at different times
STRATEGIES = [
    {},
    {"num_beams": 3},
    {"num_beams": 2, "num_return_sequences": 2, "early_stopping": True, "no_repeat_ngram_size": 2},
    {"num_beams": 3, "length_penalty": 2.0, "early_stopping": "never", "min_length": 4},
    {"repetition_penalty": 1.3, "min_new_tokens": 3},
    {"num_beam_groups": 2, "num_beams": 2, "diversity_penalty": 0.5},
]


def sources(count, seed=0):
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 14, (count,), generator=draw).tolist()
    return [torch.randint(FIRST, VOCABULARY, (length,), generator=draw).tolist() for length in lengths]


def alone(model, ids, **settings):
    rows = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), **settings)
    return [trimmed(row, settings.get("eos_token_id", END)).tolist() for row in rows]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
@pytest.mark.parametrize("sides", [("bert", "bert"), ("roberta", "gpt2"), ("bart", "llama")], ids="-".join)
def test_refilled_batches_are_the_separate_ones(sides, strategy, kernels, monkeypatch):
    monkeypatch.setattr(many, "ROWS", 7)  # so that sources join and leave
    model = pair(*sides)
    inputs = sources(17)
    settings = {**strategy, "max_length": 11, "eos_token_id": ENDS}
    assert can_refill(model, settings) is ("num_beam_groups" not in strategy)
    answers = model.generate_many(inputs, batch_tokens=40, window=9, **settings)
    assert [answer.index for answer in answers] == list(range(17))
    lengths = set()
    for ids, answer in zip(inputs, answers, strict=True):
        found = [row.tolist() for row in answer.sequences]
        assert found == alone(model, ids, **settings)
        lengths |= {len(row) for row in found}
    assert len(lengths) > 1 or strategy.get("length_penalty") or "gpt2" in sides  # else nothing ever was refilled


def test_sampling_draws_from_the_model():
    model = pair("bert", "bert")
    settings = {"do_sample": True, "num_return_sequences": 3, "max_length": 6}
    draws = [
        model.generate_many(sources(5), generator=torch.Generator().manual_seed(seed), **settings) for seed in (0, 0, 1)
    ]
    ids = [[row.tolist() for answer in answers for row in answer.sequences] for answers in draws]
    assert ids[0] == ids[1] != ids[2] and len(ids[0]) == 15


def test_answers_as_they_are_finished_and_progress():
    model = pair("bert", "bert")
    counts = []
    inputs = sources(12)
    given = list(model.generate_stream(inputs, in_order=False, progress=counts.append, max_length=12))
    assert counts == list(range(1, 13))
    assert sorted(answer.index for answer in given) == list(range(12)) != [answer.index for answer in given]


def test_any_iterable_is_read_no_further_than_the_window(monkeypatch):
    monkeypatch.setattr(many, "ROWS", 4)
    model = pair("bert", "bert")
    read = itertools.count()

    def endless():
        for ids in itertools.cycle(sources(5)):
            next(read)
            yield ids

    stream = model.generate_stream(endless(), window=4, max_length=5)
    answers = list(itertools.islice(stream, 3))
    assert [answer.index for answer in answers] == [0, 1, 2] and next(read) <= 12


@pytest.mark.parametrize("strategy", [{}, {"num_beam_groups": 2, "num_beams": 2, "diversity_penalty": 0.5}])
def test_a_broken_input_ends_alone(strategy, kernels):
    model = pair("bert", "bert")
    inputs = [[7, 8], [], [VOCABULARY], "text", list(range(5, 30)) * 3, [9, 10], None]
    answers = model.generate_many(inputs, max_length=5, **strategy)
    errors = [str(answer.error) for answer in answers if answer.error]
    assert [answer.index for answer in answers if answer.error is None] == [0, 5]
    assert answers[5].sequences[0].tolist() == alone(model, [9, 10], max_length=5, **strategy)[0]
    for error, word in zip(errors, ["no tokens", "token id 37", "tokenizer", "75 tokens", "NoneType"], strict=True):
        assert word in error


def test_a_broken_iterable_is_raised_after_the_answers():
    model = pair("bert", "bert")

    def broken():
        yield [7]
        yield [8, 9]
        raise OSError("the file ends here")

    stream = model.generate_stream(broken(), max_length=4)
    assert [next(stream).index, next(stream).index] == [0, 1]
    with pytest.raises(OSError, match="ends here"):
        next(stream)


def test_a_source_that_may_say_nothing_ends_alone(monkeypatch):
    model = pair("bert", "bert")
    calls = itertools.count()
    process = refill.process

    def forbid(xp, processors, scores, ids, at):
        scores = process(xp, processors, scores, ids, at)
        if next(calls) == 1:
            scores[1] = float("-inf")
        return scores

    monkeypatch.setattr(refill, "process", forbid)
    answers = model.generate_many([[7, 8, 9], [10, 11], [12]], max_length=6, min_length=6)
    assert ["forbidden" in str(answer.error) for answer in answers] == [False, True, False]


def test_texts_in_and_out():
    class Words:
        def __call__(self, texts, **options):
            limit = options.get("max_length", 99)
            return {"input_ids": [[FIRST + len(word) for word in text.split()][:limit] for text in texts]}

        def batch_decode(self, rows, skip_special_tokens):
            return [" ".join(str(int(x)) for x in row) for row in rows]

    model = pair("bert", "bert")
    (answer,) = model.generate_many(["a bb ccc"], tokenizer=Words(), max_length=4)
    assert answer.texts == [" ".join(map(str, alone(model, [6, 7, 8], max_length=4)[0]))]


@pytest.mark.parametrize(
    "options", [{"window": 0}, {"batch_size": 0}, {"batch_tokens": 0}, {"return_dict_in_generate": True}]
)
def test_bad_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        pair("bert", "bert").generate_many([[7]], **options)


@pytest.mark.gpu
@pytest.mark.parametrize("strategy", [{}, {"num_beams": 3}], ids=str)
def test_a_model_on_a_gpu_answers_as_on_the_processor(strategy, monkeypatch):
    monkeypatch.setattr(many, "ROWS", 7)
    model = pair("bert", "bert")
    settings = {**strategy, "max_length": 11, "eos_token_id": ENDS}
    here = model.generate_many(sources(17), batch_tokens=40, window=9, **settings)
    model.to("cuda")
    assert can_refill(model, {})
    there = model.generate_many(sources(17), batch_tokens=40, window=9, **settings)
    for answer, other in zip(here, there, strict=True):
        assert [row.tolist() for row in answer.sequences] == [row.tolist() for row in other.sequences]
