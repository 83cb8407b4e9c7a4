"""Streamers give what the batch gives, row by row, and an error or a reader who leaves ends only its own call."""

import asyncio
import queue
import threading

import pytest
import torch
import transformers

from warmstart import AsyncTextIteratorStreamer, TextIteratorStreamer, TextStreamer


class Words:
    """A tokenizer: a token is a word, a part of one, a Chinese character or a new line."""

    pieces = ("", "<pad>", "<s>", "</s>", " one", " two", "ner", "ly", "\n", "好", " end")

    def decode(self, ids, skip_special_tokens=False, **options):
        kept = [i for i in ids if i > 3 or not skip_special_tokens]
        return "".join(self.pieces[i % len(self.pieces)] for i in kept)


@pytest.fixture
def source(zoo):
    ids, mask = zoo.sources(11, rows=3)
    return {"input_ids": ids, "attention_mask": mask, "eos_token_id": [zoo.END, 7, 12, 20], "max_length": 14}


@pytest.fixture
def model(zoo):
    return zoo.ours("encoder_decoder", 1)


def in_thread(model, **options):
    errors = []

    def run():
        try:
            model.generate(**options)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, errors


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_one_row_is_given_in_the_pieces_of_the_oracle(seed, skip, zoo):
    ids, mask = zoo.sources(seed, rows=1)
    options = {"attention_mask": mask, "max_length": 14, "suppress_tokens": [zoo.PAD]}
    pieces = []
    for model, kind in (
        (zoo.encoder_decoder(seed), transformers.TextIteratorStreamer),
        (zoo.ours("encoder_decoder", seed), TextIteratorStreamer),
    ):
        streamer = kind(Words(), skip_prompt=skip, timeout=60, skip_special_tokens=True)
        model.generate(ids, **options, streamer=streamer)
        pieces.append(list(streamer))
    assert pieces[0] == pieces[1]


@pytest.mark.parametrize("drafts", [{}, {"prompt_lookup_num_tokens": 3}], ids=["plain", "drafts"])
def test_rows_of_a_batch_stream_apart_while_others_go_on(drafts, model, source, zoo):
    expected = model.generate(**source)
    streamer = TextIteratorStreamer(Words(), skip_prompt=True, timeout=60)
    thread, errors = in_thread(model, **source, **drafts, streamer=streamer)
    texts, order = ["", "", ""], []
    for row, text in streamer:
        texts[row] += text
        order.append(row)
    thread.join()
    assert not errors
    lengths = (expected != zoo.PAD).sum(1)
    assert len(set(lengths.tolist())) > 1, "rows should end apart"
    assert texts == [Words().decode(row[1:length].tolist()) for row, length in zip(expected, lengths, strict=True)]
    first = int(lengths.argmin())
    assert max(i for i, row in enumerate(order) if row == first) < len(order) - 1


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prompt_lookup_num_tokens": 3},
        {"do_sample": True, "num_return_sequences": 2},
        {"penalty_alpha": 0.5, "top_k": 4},
    ],
    ids=str,
)
def test_a_plain_streamer_gets_the_prompt_and_each_token(options, model, source):
    class Streamer:
        parts, ended = [], 0

        def put(self, ids):
            self.parts.append(ids if ids.ndim == 2 else ids[:, None])

        def end(self):
            self.ended += 1

    streamer = Streamer()
    streamer.parts = []
    torch.manual_seed(0)
    ids = model.generate(**source, **options, streamer=streamer)
    assert streamer.ended == 1 and torch.equal(torch.cat(streamer.parts, 1), ids)


def test_printing(capsys, model, source, zoo):
    one = {name: value[:1] if isinstance(value, torch.Tensor) else value for name, value in source.items()}
    ids = model.generate(**one, streamer=TextStreamer(Words(), skip_prompt=True))
    assert capsys.readouterr().out == Words().decode(ids[0, 1:].tolist()) + "\n"
    model.generate(**source, streamer=TextStreamer(Words(), skip_prompt=True))
    lines = capsys.readouterr().out.splitlines()
    assert {line.split(":")[0] for line in lines if ":" in line} == {"0", "1", "2"}


def test_an_async_iterator(model, source, zoo):
    one = {name: value[:1] if isinstance(value, torch.Tensor) else value for name, value in source.items()}

    async def read():
        streamer = AsyncTextIteratorStreamer(Words(), skip_prompt=True, timeout=60)
        thread, _ = in_thread(model, **one, streamer=streamer)
        text = "".join([piece async for piece in streamer])
        thread.join()
        return text

    assert asyncio.run(read()) == Words().decode(model.generate(**one)[0, 1:].tolist())

    async def wait():
        return [piece async for piece in AsyncTextIteratorStreamer(Words(), timeout=0.01)]

    with pytest.raises(TimeoutError, match=r"no text came in 0\.01 seconds"):
        asyncio.run(wait())


def test_a_reader_that_waits_in_vain_is_told(model, source):
    with pytest.raises(queue.Empty):
        next(TextIteratorStreamer(Words(), timeout=0.01))
    streamer = TextIteratorStreamer(Words(), timeout=60)
    thread, errors = in_thread(model, **source, bad_words_ids=[[99]], streamer=streamer)
    with pytest.raises(ValueError, match="bad_words_ids has token ids outside the vocabulary"):
        list(streamer)
    thread.join()
    assert len(errors) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [({"num_beam": 2}, "no argument 'num_beam'"), ({"num_beams": 2}, "a streamer with num_beams=2")],
)
def test_a_call_that_does_not_begin_tells_its_reader(options, message, model, source):
    streamer = TextIteratorStreamer(Words(), timeout=60)
    thread, _ = in_thread(model, **source, **options, streamer=streamer)
    with pytest.raises(ValueError, match=message):
        next(streamer)
    thread.join()


def test_a_reader_who_leaves_or_fails_ends_his_own_call(model, source):
    streamer = TextIteratorStreamer(Words(), timeout=60)
    streamer.close()
    thread, errors = in_thread(model, **source, streamer=streamer)
    thread.join()
    assert list(streamer) == [] and type(errors[0]).__name__ == "StreamClosed"

    class Broken(TextStreamer):
        def on_finalized_text(self, text, stream_end=False, row=None):
            raise OSError("the other side is gone")

    expected = model.generate(**source)
    with pytest.raises(OSError, match="the other side is gone"):
        model.generate(**source, streamer=Broken(Words()))
    assert torch.equal(model.generate(**source), expected)
