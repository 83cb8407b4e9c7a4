"""`report.html`: a training on one page that needs no network: curves, lengths, texts from start to end, heat maps.

Shapes: n pairs, t written length, s source length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from warmstart.torch.attention_maps import cross_attention, names
from warmstart.training import svg
from warmstart.training.batches import collate, source_of
from warmstart.training.examples import Examples
from warmstart.training.log import Event
from warmstart.training.pairs import Pair

NAME = "report.html"
_MAPS, _LONGEST_SOURCE, _LONGEST_TEXT = 3, 60, 700
_TEXT_SCORES = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "bleu": "BLEU", "chrf": "chrF"}

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a202c; background: #fff; margin: 2rem auto; max-width: 1180px;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.grid2 { display: grid; grid-template-columns: repeat(auto-fit, minmax(480px, 1fr)); gap: 1.5rem; }
figure { margin: 0; } figcaption { font-weight: 600; }
svg text { font: 11px system-ui, sans-serif; fill: #4a5568; }
svg .grid { stroke: #e2e8f0; } svg .axis { stroke: #718096; }
svg.chart { width: 100%; height: auto; } .map { overflow-x: auto; margin-bottom: 1.5rem; }
.legend { margin: .2rem 0; font-size: 13px; } .legend span { margin-right: 1rem; white-space: nowrap; }
.legend i { display: inline-block; width: .8em; height: .8em; margin-right: .35em; border-radius: 2px; }
table { border-collapse: collapse; width: 100%; margin-bottom: 1.5rem; }
td, th { text-align: left; padding: .3rem .6rem;
  border-bottom: 1px solid #e2e8f0; vertical-align: top; } th { width: 8rem; font-weight: 600; white-space: nowrap; }
.note { color: #4a5568; }
"""


class Map(NamedTuple):
    """Where a model looked while it wrote: weights (t, s), the tokens written and those read."""

    weights: np.ndarray
    written: list[str]
    read: list[str]


def attention_maps(model: Any, examples: Examples, tokenizers: tuple[Any, Any]) -> list[Map]:
    """Heat maps for the first few sources: the mean over layers and heads, for what the model writes."""
    found, pad = [], model.config.encoder.pad_token_id
    for row in range(min(_MAPS, len(examples))):
        batch = collate(examples, np.array([row]), 0 if pad is None else pad)
        source = source_of(model, batch)
        ids = model.generate(**source, num_return_sequences=1)
        read = names(tokenizers[0], batch["input_ids"][0])[:_LONGEST_SOURCE]
        written = names(tokenizers[1], ids[0, 1:])
        if written:  # the last token is not read: nothing is chosen after it
            weights = cross_attention(model, decoder_input_ids=ids[:, :-1], **source)[:, 0].mean((0, 1))
            found.append(Map(weights[: len(written), : len(read)].float().cpu().numpy(), written, read))
    return found


def write_report(
    output: str | Path, events: Sequence[Event], examples: Examples, references: Sequence[Pair], maps: Sequence[Map]
) -> None:
    """Write the page into a training's folder, whole or not at all."""
    lengths = {side: examples.lengths(side) for side in ("source", "target")}
    page = _page(Path(output).resolve().name, events, lengths, references, maps)
    part = Path(output, f".{NAME}.part")
    part.write_text(page, encoding="utf-8")
    part.replace(Path(output, NAME))


def _page(
    name: str,
    events: Sequence[Event],
    lengths: Mapping[str, np.ndarray],
    references: Sequence[Pair],
    maps: Sequence[Map],
) -> str:
    evaluations = [event for event in events if "validation_loss" in event]
    steps = max((event["step"] for event in events), default=0)
    best = min(evaluations, key=lambda event: event["validation_loss"], default=None)
    said = f"{steps:,} steps, {len(lengths['source']):,} pairs"
    if best is not None:
        said += f"; lowest validation loss {best['validation_loss']:.3f} at step {best['step']:,}"
    curves = {
        "Loss, nats per token": svg.lines(_losses(events), "step", "loss"),
        "Learning rates": svg.lines(_rates(events), "step", "rate"),
        "Scores of the texts written for validation sources": svg.lines(_scores(evaluations), "step", "score"),
        "Source lengths": svg.histogram(lengths["source"], "tokens"),
        "Target lengths": svg.histogram(lengths["target"], "tokens"),
    }
    figures = "".join(
        f"<figure><figcaption>{title}</figcaption>{chart}</figure>" for title, chart in curves.items() if chart
    )
    parts = [f"<h1>{escape(name)}</h1><p class=note>{said}</p>", f'<div class="grid2">{figures}</div>']
    if texts := _texts(events, references):
        parts.append(f"<h2>What it wrote, from start to end</h2>{texts}")
    if maps:
        note = f"Darker: looked at more; mean over layers and heads. At most {_LONGEST_SOURCE} source tokens are shown."
        shown = "".join(f'<div class="map">{svg.heat_map(*one)}</div>' for one in maps)
        parts.append(f'<h2>Where it looked while it wrote</h2><p class="note">{note}</p>{shown}')
    head = f'<meta charset="utf-8"><title>{escape(name)}</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def _losses(events: Sequence[Event]) -> dict[str, svg.Points]:
    found = {
        "training, with smoothing": [(event["step"], event["loss"]) for event in events if "loss" in event],
        "validation": [(event["step"], event["validation_loss"]) for event in events if "validation_loss" in event],
    }
    return {name: points for name, points in found.items() if points}


def _rates(events: Sequence[Event]) -> dict[str, svg.Points]:
    found: dict[str, list[tuple[float, float]]] = {}
    for event in events:
        for part, rate in event.get("rates", {}).items():
            found.setdefault(part.replace("_", "-"), []).append((event["step"], rate))
    return dict(found)


def _scores(evaluations: Sequence[Event]) -> dict[str, svg.Points]:
    found = {
        shown: [(event["step"], event[name]) for event in evaluations if name in event]
        for name, shown in _TEXT_SCORES.items()
    }
    return {name: points for name, points in found.items() if points}


def _texts(events: Sequence[Event], references: Sequence[Pair]) -> str:
    """A table for each sample: its source, what was written at each evaluation, the reference."""
    written = [(event["step"], event["samples"]) for event in events if event.get("samples")]
    if not written:
        return ""
    tables = []
    for number in range(min(len(references), *(len(texts) for _, texts in written))):
        rows = [("source", references[number].source)]
        rows += [(f"step {step:,}", texts[number]) for step, texts in written]
        rows.append(("reference", references[number].target))
        cells = "".join(f"<tr><th>{name}</th><td>{escape(_cut(text))}</td></tr>" for name, text in rows)
        tables.append(f"<table>{cells}</table>")
    return "".join(tables)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]} …"
