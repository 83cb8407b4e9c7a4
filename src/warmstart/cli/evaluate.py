"""`warmstart evaluate`: how good a model is on pairs, with intervals; two models side by side with a paired test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from warmstart.cli.rendering import busy, console, table
from warmstart.cli.settings import at_least_one, parse_settings, prepare_torch

PAIRS, WRITING, MACHINE = "Pairs", "Writing", "Model and machine"
SHOWN = {
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "bleu": "BLEU",
    "chrf": "chrF",
    "exact": "exact match",
}


def _option(panel: str, metavar: str | None, text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, metavar=metavar, help=text, **more)


def evaluate(
    *,
    models: Annotated[
        list[str], typer.Argument(metavar="DIR...", help="The model, or two that are compared: folders or hub ids.")
    ],
    data: Annotated[str, _option(PAIRS, "FILE", "JSON lines, CSV, TSV, Parquet, text, or a datasets name.")],
    targets: Annotated[str | None, _option(PAIRS, "FILE", "Targets line by line, if that is text.")] = None,
    source_column: Annotated[str, _option(PAIRS, "NAME", "Column of the sources.")] = "source",
    target_column: Annotated[str, _option(PAIRS, "NAME", "Column of the targets.")] = "target",
    prefix: Annotated[str, _option(PAIRS, "TEXT", "Put before each source.")] = "",
    split: Annotated[str, _option(PAIRS, "NAME", "Split of a datasets name.")] = "test",
    limit: Annotated[int | None, _option(PAIRS, "N", "The first N pairs alone.")] = None,
    skip_bad: Annotated[bool, _option(PAIRS, None, "Count rows that are no pairs, go on.", "--skip-bad")] = False,
    output: Annotated[
        Path | None, _option(WRITING, "FILE", "Write each pair with what was written for it.", "--output", "-o")
    ] = None,
    as_json: Annotated[bool, _option(WRITING, None, "Print the figures as JSON.", "--json")] = False,
    draws: Annotated[int, _option(WRITING, "N", "Draws of the bootstrap.")] = 1000,
    settings: Annotated[
        list[str] | None, _option(WRITING, "NAME=X", "A setting of generate, such as num_beams=4.", "--set")
    ] = None,
    max_source_length: Annotated[int | None, _option(MACHINE, "N", "Tokens of a source; else 512.")] = None,
    batch_tokens: Annotated[int, _option(MACHINE, "N", "Tokens of a batch, padding and both sides.")] = 8192,
    device: Annotated[str | None, _option(MACHINE, "NAME", "cpu, cuda ...; else the fastest here.")] = None,
    threads: Annotated[int | None, _option(MACHINE, "N", "Processor cores to use; else all.")] = None,
    seed: Annotated[int, _option(MACHINE, "N", "Seed of the draws.")] = 0,
) -> None:
    """Measure a model on pairs: ROUGE, BLEU, chrF, exact match, and its loss.

    Each figure comes with its 95 % interval over the texts (bootstrap). Of two
    models it says how they differ, and how surely (paired bootstrap).
    """
    from warmstart.generation_config import GenerationConfig
    from warmstart.training.pairs import Data

    for name, number in (("--limit", limit), ("--draws", draws), ("--batch-tokens", batch_tokens)):
        at_least_one(name, number)
    if len(models) > 2:
        raise ValueError(f"{len(models)} models are given; evaluate one, or compare two")
    call = parse_settings(settings or [], list(GenerationConfig.DEFAULTS))
    if call.get("num_return_sequences", 1) != 1:
        raise ValueError("--set num_return_sequences: one text is measured for each source")
    pairs = Data(data, targets, source_column, target_column, prefix, split)
    where = prepare_torch(seed, device, threads)
    found = [_measured(place, pairs, limit, max_source_length, skip_bad, batch_tokens, where, call) for place in models]
    if len({len(one["pairs"]) for one in found}) > 1:
        raise ValueError("the models do not take the same pairs, so they cannot be compared")
    figures = _figures(models, found, draws, seed)
    if output is not None:
        _write(output, found)
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
    else:
        _show(figures)


def _measured(
    place: str,
    data: Any,
    limit: int | None,
    longest: int | None,
    skip_bad: bool,
    batch_tokens: int,
    device: str,
    call: dict[str, Any],
) -> dict[str, Any]:
    """What one model writes for the pairs, with its loss on them."""
    import numpy as np

    from warmstart.cli import engine
    from warmstart.cli import training as work
    from warmstart.training import measure
    from warmstart.training.examples import load_examples, texts

    config = work.read_configuration(place)
    tokenizers = engine.load_tokenizers(place, {}, None, None)
    end = work.fill_token_ids(config, place, tokenizers[1])
    lengths = work.limits(config, longest, None)
    with busy("reading the pairs"):
        examples = load_examples(data, *tokenizers, end, lengths, skip_bad=skip_bad)
        examples = examples.select(np.arange(min(len(examples), limit or len(examples))))
        pairs = texts(data, examples.column("rows").tolist())
    with busy(f"writing for {len(pairs):,} sources with {place}"):
        model = work.load_model(place, config).to(device)
        loss = measure.held_out_loss(model, examples, batch_tokens)
        written = measure.written(model, examples, tokenizers[1], batch_tokens, call)
    return {"pairs": pairs, "loss": loss, "written": written, "cut": examples.counts.cut_sources}


def _figures(models: list[str], found: list[dict[str, Any]], draws: int, seed: int) -> dict[str, Any]:
    """Each model's scores with their intervals, and of two the differences with their p-values."""
    from warmstart.training import measure

    counted = [measure.parts(one["written"], [pair.target for pair in one["pairs"]]) for one in found]
    scores = [measure.scores(parts) for parts in counted]
    drawn = [measure.bootstrap(parts, draws, seed) for parts in counted]
    said: dict[str, Any] = {"pairs": len(found[0]["pairs"]), "draws": draws, "models": []}
    for place, one, values, sets in zip(models, found, scores, drawn, strict=True):
        metrics = {name: {"score": values[name], "interval": measure.interval(sets[name])} for name in values}
        said["models"].append({"model": place, "loss": one["loss"], "sources_cut": one["cut"], "metrics": metrics})
    if len(models) == 2:
        said["differences"] = {}
        for name in scores[0]:
            difference = scores[1][name] - scores[0][name]
            said["differences"][name] = {
                "difference": difference,
                "interval": measure.interval(drawn[1][name] - drawn[0][name]),
                "p": measure.significance(drawn[1][name], drawn[0][name], difference),
            }
    return said


def _show(figures: dict[str, Any]) -> None:
    out = console()
    models = figures["models"]
    names = [Path(one["model"]).name or one["model"] for one in models]
    if len(set(names)) < len(names):
        names = [f"{number}: {name}" for number, name in enumerate(names, 1)]
    shown = table("", *names, *(["difference", "p"] if len(models) == 2 else []))
    for name, text in SHOWN.items():
        row = [_with_interval(one["metrics"][name]["score"], one["metrics"][name]["interval"]) for one in models]
        if len(models) == 2:
            between = figures["differences"][name]
            row += [_with_interval(between["difference"], between["interval"], "+"), f"{between['p']:.3f}"]
        shown.add_row(text, *row)
    shown.add_row("loss, nats per token", *(f"{one['loss']:.3f}" for one in models))
    out.print(shown)
    out.print(
        f"{figures['pairs']:,} pairs; in brackets the 95 % interval over {figures['draws']:,} draws.", soft_wrap=True
    )


def _with_interval(value: float, interval: tuple[float, float], sign: str = "") -> str:
    return f"{value:{sign}.1f} [{interval[0]:{sign}.1f}, {interval[1]:{sign}.1f}]"


def _write(output: Path, found: list[dict[str, Any]]) -> None:
    """A JSON object for each pair, whole or not there."""
    from warmstart.cli import records

    names = ["output"] if len(found) == 1 else ["output", "other_output"]
    with records.whole_file(str(output)) as write:
        for number, pair in enumerate(found[0]["pairs"]):
            line = {"source": pair.source, "target": pair.target}
            line |= {name: one["written"][number] for name, one in zip(names, found, strict=True)}
            write((json.dumps(line, ensure_ascii=False) + "\n").encode())
