"""Many inputs: a batch that is refilled as sources finish; answers in the inputs' order, or as they come.

Shapes: b sources at work, k rows for each, r = b * k rows, n length, s source length.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from warmstart.decoding.settings import lay_over
from warmstart.generation_config import GenerationConfig
from warmstart.torch.engine.runner import memory_type
from warmstart.torch.generation.common import check_inputs, checked_settings, settings_of_batch
from warmstart.torch.generation.generate import generator_of
from warmstart.torch.generation.refill import Refilled, can_refill, padded, trimmed

ROWS = 64  # decoder rows at work at once: beyond, another row costs as much as in a batch of its own
TOKENS = 5120  # of sources at work at once, with keys and values in float32: in a base size they take 377 MB
SHARE = 8  # of the places of a batch, one in so many is free before sources join: encoders like many tokens at once


@dataclass
class Answer:
    """What came of one input: `sequences`, ids without padding `(length,)`, best first; or the `error` that ended it.

    `texts` are the sequences decoded, where there was a tokenizer; `was_cut` says that the input was too long.
    """

    index: int
    sequences: list[Tensor] = field(default_factory=list)
    texts: list[str] | None = None
    error: Exception | None = None
    was_cut: bool = False


@dataclass
class Request:
    """One input made ready: its place among the inputs, its ids, and by name what each token has beside its id."""

    index: int
    ids: list[int]
    was_cut: bool = False
    beside: dict[str, list[int]] = field(default_factory=dict)


def generate_stream(
    model: Any,
    inputs: Iterable[Any],
    *,
    tokenizer: Any = None,
    decoder_tokenizer: Any = None,
    max_source_length: int | None = None,
    batch_size: int | None = None,
    batch_tokens: int | None = None,
    window: int = 256,
    in_order: bool = True,
    progress: Callable[[int], Any] | None = None,
    generation_config: GenerationConfig | None = None,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    **settings: Any,
) -> Iterator[Answer]:
    """Answer any number of inputs as they come, holding only so many at a time.

    Within a window inputs are ordered by length. Sources fill the batch up to `batch_tokens`; whenever one is finished
    another takes its place, so that no row waits for the longest of a batch. An input that fails ends alone: its
    answer has the error. Where `inputs` itself raises, what was read is answered first.

    Args:
        model: an encoder-decoder.
        inputs: texts, or source ids (lists or tensors `(source_length,)`), or what a tokenizer gave for a text: a
            mapping with `input_ids` and what else the encoder reads of each token (RoCBert's `input_shape_ids`).
        tokenizer: the texts' tokenizer; results are decoded if it, or `decoder_tokenizer`, is there.
        decoder_tokenizer: the results' tokenizer, where it is another.
        max_source_length: how many tokens of an input are read; the encoder's positions if None.
        batch_size: sources at work at once; if None as many as 64 rows hold, a row for each beam.
        batch_tokens: source tokens at work at once. Their keys and values take 2 * layers * width numbers each; if None
            5120 where these are float32, 10240 where they are half as wide.
        window: how many inputs are ordered together, and read ahead.
        in_order: answer in the inputs' order; otherwise as they are finished.
        progress: called with the number of answers so far.
        generation_config: settings under those that follow.
        generator: the random numbers of sampling; the global generator if None.
        seed: a generator for this call alone, begun with this number.
        settings: those of `generate`. `decoder_input_ids` `(1, prompt_length)` is a prompt for each input; of a list
            `decoder_start_token_id` each input gets its own, and `prefix_allowed_tokens_fn` is told the input's index.

    Raises:
        ValueError: settings are unknown, contradict each other, belong to one batch or return more than ids; `inputs`
            is one text; or `batch_size`, `batch_tokens` or `window` is below 1. At once, before an input is read.

    >>> from warmstart import BertConfig, EncoderDecoderConfig, EncoderDecoderModel
    >>> size = dict(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> config = EncoderDecoderConfig.from_encoder_decoder_configs(BertConfig(**size), BertConfig(**size))
    >>> model = EncoderDecoderModel(config).eval()
    >>> sources = [[4, 5, 6], [7], [8, 3]]
    >>> settings = dict(decoder_start_token_id=1, eos_token_id=2, pad_token_id=0, min_length=4, max_length=4)
    >>> [(answer.index, len(answer.sequences[0])) for answer in generate_stream(model, sources, **settings)]
    [(0, 4), (1, 4), (2, 4)]
    """
    if not hasattr(model, "encode"):
        raise ValueError(f"generate_stream is for encoder-decoders, not for a {type(model).__name__}")
    for name, value in (("batch_size", batch_size), ("batch_tokens", batch_tokens), ("window", window)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: at least 1")
    check_inputs(inputs)
    settings = checked_settings(model, generation_config, settings, (tokenizer, decoder_tokenizer))
    generator = generator_of(model, generator, seed)
    reader = _Reader(model, inputs, tokenizer, max_source_length)
    batch_tokens = batch_tokens or TOKENS * 4 // memory_type(model.decoder).itemsize
    work = _work(model, reader, batch_size, batch_tokens, window, generator, settings)
    decode = decoder_tokenizer or tokenizer
    return _answered(work, decode, in_order, progress)


def generate_many(model: Any, inputs: Iterable[Any], **options: Any) -> list[Answer]:
    """Answer all inputs, in their order; arguments and errors are those of `generate_stream`."""
    return list(generate_stream(model, inputs, **options))


def _answered(
    work: Iterator[Answer], tokenizer: Any, in_order: bool, progress: Callable[[int], Any] | None
) -> Iterator[Answer]:
    waiting: dict[int, Answer] = {}
    given = 0
    for count, answer in enumerate(work, 1):
        if tokenizer is not None and answer.error is None:
            answer.texts = tokenizer.batch_decode(answer.sequences, skip_special_tokens=True)
        if progress is not None:
            progress(count)
        if not in_order:
            yield answer
            continue
        waiting[answer.index] = answer
        while given in waiting:
            yield waiting.pop(given)
            given += 1


class _Reader:
    """Inputs as requests, some at a time; what cannot be one is an answer with its error."""

    def __init__(self, model: Any, inputs: Iterable[Any], tokenizer: Any, longest: int | None):
        self.numbered, self.tokenizer = enumerate(inputs), tokenizer
        spec = model.encoder.spec
        self.positions, self.vocabulary, self.names = spec.positions, spec.embedding.vocabulary, spec.beside_names
        if longest is not None and self.positions is not None and longest > self.positions:
            raise ValueError(f"max_source_length={longest} is more than the encoder's {self.positions} positions")
        self.longest = longest or self.positions
        self.failed: list[Answer] = []
        self.error: BaseException | None = None  # what the iterable raised

    def read(self, count: int) -> list[Request]:
        """The next requests, longest first; none at the end."""
        requests = []
        for _ in range(count):
            try:
                index, item = next(self.numbered)
            except StopIteration:
                break
            except Exception as error:
                self.error, self.numbered = error, enumerate(())
                break
            try:
                requests.append(self._request(index, item))
            except Exception as error:
                self.failed.append(Answer(index, error=error))
        return sorted(requests, key=lambda request: -len(request.ids))

    def _request(self, index: int, item: Any) -> Request:
        if isinstance(item, str):
            if self.tokenizer is None:
                raise ValueError(f"input {index} is a text and there is no tokenizer; pass tokenizer=...")
            limits = {} if self.longest is None else {"truncation": True, "max_length": self.longest}
            batch = self.tokenizer([item], return_attention_mask=False, verbose=False, **limits)
            was_cut = any(bool(getattr(one, "overflowing", None)) for one in getattr(batch, "encodings", None) or ())
            given = {name: rows[0] for name, rows in batch.items()}
        else:
            given, was_cut = dict(item) if isinstance(item, Mapping) else {"input_ids": item}, False
            if "input_ids" not in given:
                raise ValueError(f"input {index} has no input_ids, only {', '.join(map(str, given)) or 'nothing'}")
        ids = _as_list(given["input_ids"])
        if not isinstance(item, str) and self.longest is not None and len(ids) > self.longest:
            raise ValueError(f"input {index} has {len(ids)} tokens, and {self.longest} can be read; cut it shorter")
        if not ids:
            raise ValueError(f"input {index} has no tokens")
        if wrong := [value for value in ids if not 0 <= value < self.vocabulary]:
            raise ValueError(
                f"input {index} holds token id {wrong[0]}; the encoder's go from 0 to {self.vocabulary - 1}"
            )
        beside = {name: _as_list(given[name]) for name in self.names if given.get(name) is not None}
        for name, values in beside.items():
            if len(values) != len(ids):
                raise ValueError(
                    f"input {index} has {len(ids)} tokens and {len(values)} {name}; give one for each token"
                )
        return Request(index, ids, was_cut, beside)


def _as_list(values: Any) -> list[int]:
    """Ids of a list, an array or a tensor `(length,)`."""
    return [int(value) for value in (values.tolist() if hasattr(values, "tolist") else values)]


@torch.no_grad()
def _work(
    model: Any,
    reader: _Reader,
    batch_size: int | None,
    batch_tokens: int,
    window: int,
    generator: torch.Generator | None,
    settings: dict[str, Any],
) -> Iterator[Answer]:
    """Answers as they are finished."""
    config = lay_over(model.generation_config, None, settings)[0]
    size = batch_size or max(1, ROWS // max(config.num_beams, config.num_return_sequences))
    batch = Refilled(model, settings, generator, size) if can_refill(model, settings) else None
    pending: deque[Request] = deque()
    while True:
        if not pending:
            pending.extend(reader.read(window))
            yield from reader.failed
            reader.failed = []
        if batch is None:
            if not pending:
                break
            requests = _taken(pending, batch_tokens, size)
            yield from _separately(model, requests, settings, generator)
            continue
        new = _taken(pending, batch_tokens - batch.tokens, batch.room, at_least=not batch.requests)
        if pending and batch.requests and len(new) * SHARE < len(new) + len(batch.requests):
            pending.extendleft(reversed(new))  # they wait for company
            new = []
        if not new and not batch.requests:
            break
        for request, result in itertools.chain(batch.add(new), batch.step()):
            yield _answer(request, result)
    if reader.error is not None:
        raise reader.error


def _taken(pending: deque[Request], tokens: int, room: int, at_least: bool = True) -> list[Request]:
    """The first requests that fit; one that is too long for any batch goes alone."""
    requests: list[Request] = []
    while pending and len(requests) < room:
        size = len(pending[0].ids)
        if size > tokens and (requests or not at_least):
            break
        tokens -= size
        requests.append(pending.popleft())
    return requests


def _answer(request: Request, result: Any) -> Answer:
    if isinstance(result, Exception):
        return Answer(request.index, error=result, was_cut=request.was_cut)
    return Answer(request.index, sequences=result, was_cut=request.was_cut)


def _separately(
    model: Any, requests: list[Request], settings: dict[str, Any], generator: torch.Generator | None
) -> Iterator[Answer]:
    """Answers of one call of `generate`; where that fails, each request is tried alone."""
    try:
        own = settings_of_batch(settings, [request.index for request in requests])
        result = model.generate(**padded(requests, model), generator=generator, **own)
    except Exception as error:
        if len(requests) == 1:
            yield _answer(requests[0], error)
            return
        for request in requests:
            yield from _separately(model, [request], settings, generator)
        return
    ends = lay_over(model.generation_config, None, settings)[0].eos_token_id
    prompt = settings.get("decoder_input_ids")
    held, each = 1 if prompt is None else prompt.shape[1], len(result) // len(requests)
    for place, request in enumerate(requests):
        yield _answer(request, [trimmed(row, ends, held) for row in result[place * each : (place + 1) * each].cpu()])
