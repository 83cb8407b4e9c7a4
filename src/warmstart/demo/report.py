"""What came out of the demo: as an object, as JSON, and as text for the terminal and for a file."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from warmstart.demo.score import MEASURES

BERT, GPT2 = "BERT", "GPT-2"
FIRST, RANDOM, WARM = "first sentence of the input", "random weights", "warm start"
SHOWN = 6  # examples on the terminal; all are in report.json
LINE = "def count_words(text): return len(text.split())"  # a line for the user to begin with


@dataclass(frozen=True)
class Example:
    """A held-out pair and what was written for its source, by system."""

    package: str
    source: str
    reference: str
    written: Mapping[str, str]


@dataclass(frozen=True)
class Result:
    """Everything the demo measured; `scores` are ROUGE F1 (0 to 100) by system and measure."""

    folder: Path
    seed: int
    seconds: float
    machine: Mapping[str, Any]
    corpus: Mapping[str, Any]
    recipe: Mapping[str, Any]
    parameters: Mapping[str, int]  # by origin: loaded from either checkpoint, new
    trainings: Mapping[str, Mapping[str, float]]  # steps, seconds, loss
    scores: Mapping[str, Mapping[str, float]]
    different: Mapping[str, int]  # summaries that differ from one another, by system
    held_out_loss: Mapping[str, float]  # nats per token of the references
    gain: tuple[float, float]  # of ROUGE-L, warm start over random weights: a 95 % interval
    examples: list[Example] = field(repr=False)

    @property
    def model(self) -> Path:
        """The folder of the fine-tuned model and its tokenizer."""
        return self.folder / "model"

    @property
    def command(self) -> str:
        """A command that lets the model summarise a line."""
        return f"echo {shlex.quote(LINE)} | warmstart generate {shlex.quote(str(self.model))} -"

    def to_json(self) -> str:
        """The result as text in JSON."""
        return json.dumps({**asdict(self), "folder": str(self.folder), "command": self.command}, indent=1) + "\n"

    def to_text(self, width: int = 110) -> str:
        """The result as plain text."""
        text = io.StringIO()
        Console(file=text, width=width, highlight=False).print(rendered(self, shown=len(self.examples)))
        return text.getvalue()


def rendered(result: Result, shown: int = SHOWN) -> RenderableType:
    """Scores, what they mean, and examples, for a rich console."""
    spaced: list[RenderableType] = [verdict(result), *(example_table(example) for example in result.examples[:shown])]
    return Group(score_table(result), *(Padding(part, (1, 0, 0, 0)) for part in spaced))


def score_table(result: Result) -> Table:
    """A row of ROUGE for each system."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column(f"{result.corpus['test']:,} test functions")
    for name in [*MEASURES.values(), "different", "loss"]:
        table.add_column(name, justify="right")
    for system, scores in result.scores.items():
        loss = result.held_out_loss.get(system)
        cells = [f"{scores[measure]:.1f}" for measure in MEASURES]
        cells += [f"{result.different[system]}", "" if loss is None else f"{loss:.2f}"]
        table.add_row(system, *cells, style="bold" if system == WARM else "")
    return table


def verdict(result: Result) -> Text:
    """In words: what was compared, and what the figures say and do not say."""
    low, high = result.gain
    better = "better" if low > 0 else "worse" if high < 0 else "neither better nor worse beyond chance"
    steps, before = result.trainings[WARM]["steps"], pretraining_seconds(result)
    return Text(
        f"Both models were fine-tuned for {steps:,.0f} steps on the same batches; they differ in the weights they "
        f"began with. In ROUGE-L the warm start is {better}: {low:+.1f} to {high:+.1f} (95 % interval). It had "
        f"{before:.0f} s of pre-training before, on the training text alone. 'different' counts summaries unlike any "
        "other: a model that has not learned to read its input writes the same one for all. 'loss' is per token of the "
        "true summaries.",
        style="dim",
    )


def pretraining_seconds(result: Result) -> float:
    """What the two checkpoints cost before the warm start."""
    return sum(result.trainings[name]["seconds"] for name in (BERT, GPT2))


def example_table(example: Example) -> Table:
    """One held-out function with its reference and what each system wrote."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(justify="right", style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row(example.package, Text(shortened(example.source), style="cyan"))
    table.add_row("its docstring", example.reference)
    for system, text in example.written.items():
        if system != FIRST:
            table.add_row(system, Text(text, style="bold" if system == WARM else ""))
    return table


def shortened(text: str, longest: int = 150) -> str:
    """`text` cut at a space, with an ellipsis where something was left out."""
    if len(text) <= longest:
        return text
    return text[:longest].rpartition(" ")[0] + " …"
