"""`warmstart generate`: a text out for each text in, in order, from a model that was saved as a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import partial
from typing import Annotated, Any

import typer

from warmstart.cli import records
from warmstart.cli.records import STANDARD, Format
from warmstart.cli.rendering import busy, error_console, is_terminal, say
from warmstart.cli.settings import at_least_one, parse_settings

TEXTS, DECODING, SAMPLING, MACHINE = "Texts", "Decoding", "Sampling", "Model and machine"
# Lengths are evened out within so many batches; that many texts are held at a time.
BATCHES_IN_WINDOW = 16
# What would make `generate` return more than token ids.
NOT_HERE = ("return_dict_in_generate", "output_scores", "output_logits", "output_attentions", "output_hidden_states")


class EarlyStopping(str, Enum):
    """When a beam search ends."""

    true = "true"
    false = "false"
    never = "never"


class Weights(str, Enum):
    """The type of the weights that a model runs with."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    int8 = "int8"
    auto = "auto"


class Framework(str, Enum):
    """What runs the model."""

    torch = "torch"
    flax = "flax"
    tf = "tf"


def _option(panel: str, metavar: str | None, text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, metavar=metavar, help=text, **more)


def generate(
    *,
    model: Annotated[str, typer.Argument(metavar="DIR", help="The model: a folder, or a hub id.", show_default=False)],
    texts: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="Texts, one to a line, or JSON lines. Left out, or -: standard input.",
            show_default=False,
        ),
    ] = STANDARD,
    output: Annotated[
        str, _option(TEXTS, "FILE", "Write results here, not to the screen.", "--output", "-o", show_default=False)
    ] = STANDARD,
    form: Annotated[Format, _option(TEXTS, "TYPE", "text, jsonl, or auto.", "--format")] = Format.auto,
    input_field: Annotated[str, _option(TEXTS, "NAME", "Field to read, in JSON.")] = "text",
    output_field: Annotated[str, _option(TEXTS, "NAME", "Field to write, in JSON.")] = "output",
    max_source_length: Annotated[int | None, _option(TEXTS, "N", "Read only so many tokens of a text.")] = None,
    num_beams: Annotated[int | None, _option(DECODING, "N", "Beams; 1 is greedy search.")] = None,
    max_new_tokens: Annotated[int | None, _option(DECODING, "N", "Longest result, in tokens.")] = None,
    max_length: Annotated[int | None, _option(DECODING, "N", "The same with the start token.")] = None,
    min_length: Annotated[int | None, _option(DECODING, "N", "Shortest, with the start token.")] = None,
    length_penalty: Annotated[float | None, _option(DECODING, "X", "Of beams: a higher one favours length.")] = None,
    early_stopping: Annotated[
        EarlyStopping | None, _option(DECODING, "WHEN", "Of beams: true, false or never.")
    ] = None,
    no_repeat_ngram_size: Annotated[int | None, _option(DECODING, "N", "Never repeat a run of N tokens.")] = None,
    repetition_penalty: Annotated[float | None, _option(DECODING, "X", "Above 1 avoids repetition.")] = None,
    num_return_sequences: Annotated[int | None, _option(DECODING, "N", "Results for each text.")] = None,
    settings: Annotated[
        list[str] | None, _option(DECODING, "NAME=X", "Any other setting; as often as needed.", "--set")
    ] = None,
    do_sample: Annotated[bool | None, _option(SAMPLING, None, "Draw at random.", "--do-sample/--no-do-sample")] = None,
    temperature: Annotated[float | None, _option(SAMPLING, "X", "Below 1 surer, above more varied.")] = None,
    top_k: Annotated[int | None, _option(SAMPLING, "N", "Draw from the N likeliest tokens.")] = None,
    top_p: Annotated[float | None, _option(SAMPLING, "X", "Draw from the likeliest, X in sum.")] = None,
    seed: Annotated[int, _option(SAMPLING, "N", "Seed of the random numbers.")] = 0,
    tokenizer: Annotated[str | None, _option(MACHINE, "DIR", "Tokenizer of the texts, if not in DIR.")] = None,
    decoder_tokenizer: Annotated[
        str | None, _option(MACHINE, "DIR", "Tokenizer of the results, if not in DIR.")
    ] = None,
    batch_size: Annotated[int, _option(MACHINE, "N", "Texts that go through together.")] = 8,
    device: Annotated[str | None, _option(MACHINE, "NAME", "cpu, cuda, cuda:1 ...; else the fastest here.")] = None,
    dtype: Annotated[Weights, _option(MACHINE, "TYPE", "float32, bfloat16, float16, int8, auto.")] = Weights.float32,
    threads: Annotated[int | None, _option(MACHINE, "N", "Processor cores to use; else all.")] = None,
    framework: Annotated[Framework, _option(MACHINE, "NAME", "What runs the model.")] = Framework.torch,
    revision: Annotated[str | None, _option(MACHINE, "NAME", "Branch, tag or commit on the hub.")] = None,
) -> None:
    """Run a saved model on texts: a result for each, in order.

    Reads lines of text, or JSON lines, whose other fields are kept. An empty
    line gives an empty line. Settings that are left out are the model's own.
    """
    call = _settings(
        num_beams=num_beams,
        max_new_tokens=max_new_tokens,
        max_length=max_length,
        min_length=min_length,
        length_penalty=length_penalty,
        early_stopping=early_stopping and {"true": True, "false": False}.get(early_stopping.value, "never"),
        no_repeat_ngram_size=no_repeat_ngram_size,
        repetition_penalty=repetition_penalty,
        num_return_sequences=num_return_sequences,
        do_sample=do_sample,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        more=settings or [],
    )
    at_least_one("--batch-size", batch_size)
    at_least_one("--threads", threads)
    at_least_one("--max-source-length", max_source_length)
    hub = {"revision": revision}
    with records.opened(texts) as file, records.whole_file(output) as write:
        with busy(f"loading {model}"):
            from warmstart.cli import engine

            ends_at = engine.check_settings(model, hub, call)
            tokenizers = engine.load_tokenizers(model, hub, tokenizer, decoder_tokenizer)
            pair = engine.load_model(model, hub, dtype.value, device, threads, seed, framework.value)
            longest = engine.longest_source(pair, tokenizers[0], max_source_length)
        if ends_at is not None:
            say(f"note: results end after {ends_at} tokens; --max-new-tokens N changes that")
        reply = partial(engine.answer, pair, tokenizers, batch_size, longest, call)
        read = records.read_records(file, texts, form, input_field)
        if file.isatty():
            say("one text to a line; Ctrl-D ends")
            lines, cut = _run(records.windows(read, 1), reply, write, output_field)
        else:
            window = batch_size * BATCHES_IN_WINDOW if batch_size > 1 else 1
            with _progress(records.length(file), output != STANDARD or not is_terminal("stdout")) as advance:
                lines, cut = _run(records.windows(read, window), reply, write, output_field, advance)
    if cut:
        say(f"note: {cut:,} of {lines:,} texts have more than {longest:,} tokens; the rest of each was not read")


def _run(
    windows: Iterable[list[records.Record]],
    reply: Callable[..., tuple[list[list[str]], int]],
    write: Callable[[bytes], None],
    field: str,
    advance: Callable[[list[int]], None] = lambda sizes: None,
) -> tuple[int, int]:
    """Answer all records in their order; how many there were, and how many were cut."""
    lines = cut = 0
    for window in windows:
        sizes = [record.size for record in window]
        results, cut_here = reply(
            [record.text for record in window], done=lambda rows, sizes=sizes: advance([sizes[row] for row in rows])
        )
        answered = zip(window, results, strict=True)
        write(b"".join(records.written(record, result, field) for record, result in answered))
        lines, cut = lines + len(window), cut + cut_here
    return lines, cut


def _settings(more: list[str], **named: Any) -> dict[str, Any]:
    """The settings of this call; those that were not given are the model's."""
    from warmstart.generation_config import GenerationConfig

    call = {name: value for name, value in named.items() if value is not None}
    others = parse_settings(more, [name for name in GenerationConfig.DEFAULTS if name not in NOT_HERE])
    if twice := sorted(call.keys() & others.keys()):
        raise ValueError(f"{', '.join(twice)} is given as an option and with --set; give it once")
    return call | others


@contextmanager
def _progress(total: int | None, shown: bool) -> Iterator[Callable[[list[int]], None]]:
    """A bar on stderr if that is a terminal; it moves by the sizes in bytes of the lines that are done."""
    if not shown or not is_terminal("stderr"):
        yield lambda sizes: None
        return
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = [BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[texts]:,} texts"), TimeElapsedColumn()]
    columns += [TimeRemainingColumn(), TextColumn("left")] if total else []
    with Progress(*columns, console=error_console(), redirect_stdout=False, redirect_stderr=False) as progress:
        task = progress.add_task("", total=total, texts=0)

        def advance(sizes: list[int]) -> None:
            progress.update(task, advance=sum(sizes), texts=progress.tasks[task].fields["texts"] + len(sizes))

        yield advance
