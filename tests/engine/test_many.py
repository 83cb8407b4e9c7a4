"""Many inputs: refilled batches give what each input gives alone, whatever the order, the errors and the source."""

import itertools

import pytest
import torch

from tiny_models import END, FIRST, VOCABULARY, pair
from warmstart import AutoModelForCausalLM, BertConfig, GenerationConfig
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


def stranger():
    """A model with a vocabulary of its own."""
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return AutoModelForCausalLM(BertConfig(vocab_size=99, is_decoder=True, **size))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_tokens": 0}, "batch_tokens=0"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate"),
        ({"generation_config": GenerationConfig(return_dict_in_generate=True)}, "return_dict_in_generate"),
        ({"num_beam": 4}, "did you mean 'num_beams'"),
        ({"num_beams": 3, "num_beam_groups": 2, "diversity_penalty": 1.0}, "does not divide num_beams=3"),
        ({"max_length": 99}, "max_length=99 makes sequences of 99 tokens"),
        ({"bad_words_ids": [[99]], "prompt_lookup_num_tokens": 2}, r"outside the vocabulary: \[99\]"),
        ({"guidance_scale": 2.0, "prompt_lookup_num_tokens": 2}, "guidance_scale and drafts"),
        ({"assistant_model": 3}, "assistant_model is a int"),
        ({"assistant_model": stranger()}, "assistant_model has a decoder vocabulary of 99"),
        ({"stop_strings": "a"}, "pass the decoder's tokenizer"),
        ({"logits_processor": [3]}, "logits_processor holds 3"),
        ({"attention_mask": torch.ones(1, 1)}, "attention_mask belongs to one batch"),
        ({"token_type_ids": torch.ones(1, 1)}, "token_type_ids belongs to one batch"),
        ({"streamer": object()}, "takes no streamer"),
        ({"seed": 1, "generator": torch.Generator()}, "generator and seed both"),
        ({"decoder_input_ids": torch.ones(2, 3).long()}, "decoder_input_ids has 2 rows"),
        ({"inputs": "one text"}, "inputs is a str; give a list of texts"),
        ({"inputs": None}, "inputs is a NoneType"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_options_are_named_before_an_input_is_read(options, message):
    def unread():
        raise AssertionError("an input was read")
        yield

    with pytest.raises(ValueError, match=message):
        pair("bert", "bert").generate_stream(**{"inputs": unread(), **options})


@pytest.mark.parametrize(("dtype", "together"), [(torch.float32, 2), (torch.bfloat16, 4)])
def test_narrower_keys_and_values_make_room_for_more_sources(dtype, together, monkeypatch):
    monkeypatch.setattr(many, "TOKENS", 10)
    joined, add = [], refill.Refilled.add
    monkeypatch.setattr(refill.Refilled, "add", lambda self, new: (joined.append(len(new)), add(self, new))[1])
    pair("bert", "bert").to(dtype).generate_many([[7, 8, 9, 10, 11]] * 8, max_length=3, min_length=3)
    assert set(joined) - {0} == {together}


def test_settings_of_a_generation_config_lie_under_those_of_the_call():
    model, inputs = pair("bert", "bert"), sources(5)
    given = GenerationConfig(num_beams=3, max_new_tokens=30, min_new_tokens=2)
    answers = model.generate_many(inputs, generation_config=given, max_length=6)
    expected = [alone(model, ids, num_beams=3, max_length=6, min_new_tokens=2)[0] for ids in inputs]
    assert [answer.sequences[0].tolist() for answer in answers] == expected


def test_a_seed_is_one_generator_for_all_batches():
    model = pair("bert", "bert")
    settings = {"do_sample": True, "max_length": 9, "batch_size": 1, "typical_p": 0.9}
    for more in ({}, {"prompt_lookup_num_tokens": 2}):  # refilled, and in batches
        answers = model.generate_many([[7, 8]] * 6, seed=3, **settings, **more)
        drawn = [answer.sequences[0].tolist() for answer in answers]
        again = model.generate_many([[7, 8]] * 6, generator=torch.Generator().manual_seed(3), **settings, **more)
        assert drawn == [answer.sequences[0].tolist() for answer in again]
        assert len(set(map(tuple, drawn))) > 1


def test_what_depends_on_the_input_goes_by_its_place():
    model, inputs = pair("bert", "bert"), [[7], [8, 9], [10, 11, 12], [13, 14]]
    answers = model.generate_many(inputs, max_length=4, prefix_allowed_tokens_fn=lambda place, ids: [5 + place])
    assert [answer.sequences[0].tolist()[1:] for answer in answers] == [[5 + place] * 3 for place in range(4)]

    starts = [4, 5, 6]
    answers = model.generate_many(inputs, max_length=6, decoder_start_token_id=starts)
    for ids, start, answer in zip(inputs, starts, answers, strict=False):
        assert answer.sequences[0].tolist() == alone(model, ids, max_length=6, decoder_start_token_id=start)[0]
    assert "decoder_start_token_id has 3 ids, and none for input 3" in str(answers[3].error)

    prompt = torch.tensor([[9, END, 5]])  # an end token in a prompt ends nothing
    answers = model.generate_many(inputs, max_length=8, decoder_input_ids=prompt)
    for ids, answer in zip(inputs, answers, strict=True):
        source = torch.tensor([ids])
        found = model.generate(source, attention_mask=torch.ones_like(source), max_length=8, decoder_input_ids=prompt)
        held = answer.sequences[0].tolist()
        assert held == found[0, : len(held)].tolist() and len(held) > 4


class Letters:
    """A tokenizer of single letters, the ids of which are moved by `shift`."""

    def __init__(self, shift):
        self.shift = shift

    def __call__(self, texts, **options):
        ids = [
            [ord(letter) - 97 + self.shift for letter in text] for text in ([texts] if type(texts) is str else texts)
        ]
        return {"input_ids": ids[0] if type(texts) is str else ids}

    def decode(self, ids, skip_special_tokens=False):
        return "".join(chr(97 + int(token) - self.shift) for token in ids if token >= self.shift)

    def batch_decode(self, rows, skip_special_tokens=False):
        return [self.decode(row) for row in rows]


def test_the_tokenizers_serve_stop_strings_and_drafts():
    model, texts = pair("bert", "bert"), ["abc", "cde", "a"]
    source, target = Letters(FIRST), Letters(FIRST + 2)
    settings = {"tokenizer": source, "decoder_tokenizer": target, "max_length": 9}
    plain = [answer.texts[0] for answer in model.generate_many(texts, **settings)]
    stop = plain[0][1]
    answers = model.generate_many(texts, **settings, stop_strings=stop)
    assert [answer.texts[0] for answer in answers] == [
        text[: text.index(stop) + 1] if stop in text else text for text in plain
    ]
    read = []

    class Reads(Letters):
        def __call__(self, text, **options):
            read.append(text)
            return super().__call__(text, **options)

    settings["decoder_tokenizer"] = Reads(FIRST + 2)
    answers = model.generate_many(texts, **settings, prompt_lookup_num_tokens=3)
    assert [answer.texts[0] for answer in answers] == plain and sorted(read) == sorted(texts)


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
