"""What the demo shows while it runs: a chapter for each part, a bar for each training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.syntax import Syntax
from rich.table import Column
from rich.text import Text

from warmstart.demo.loop import Trained, Watch
from warmstart.demo.report import Result, rendered

INDENT = 3
WIDEST = 100  # columns; longer lines are hard to read
NAME_WIDTH, NOTE_WIDTH, TIME_WIDTH = 17, 23, 10
WARM_START = """\
model = EncoderDecoderModel.from_encoder_decoder_pretrained(
    "{encoder}", "{decoder}", cross_attention_init="copy"
)"""


class Display:
    """Prints to a rich console, or nowhere at all."""

    def __init__(self, console: Console | None) -> None:
        self.console = console or Console(quiet=True)
        self.width = min(self.console.width, WIDEST)
        self.chapters = 0

    def opening(self, minutes: float) -> None:
        """What this is and how long it takes."""
        self.console.print(Text("From two checkpoints to a summary", style="bold"))
        self.say(f"Everything happens on this machine, in about {minutes:g} minutes. Nothing is downloaded.", indent=0)

    def chapter(self, title: str, *remarks: str) -> None:
        """Begin the next part."""
        self.chapters += 1
        self.console.print()
        self.console.print(Text.assemble((f"{self.chapters}  ", "cyan"), (title, "bold")))
        self.say(*remarks)

    def say(self, *lines: str, indent: int = INDENT) -> None:
        """Lines of plain text under a chapter."""
        for line in lines:
            self.show(Text(line, style="dim"), indent)

    def show(self, part: RenderableType, indent: int = INDENT) -> None:
        """A table or the like under a chapter."""
        self.console.print(Padding(part, (0, 0, 0, indent)), width=self.width)

    def corpus(self, counts: Mapping[str, Any]) -> None:
        """How much text there is, and which of it is held out."""
        left_out = ", ".join(f"{number:,} {reason}" for reason, number in counts["left_out"].items())
        names = counts["test_packages"]
        self.say(
            f"For training: {counts['train']:,} functions from {counts['train_packages']:,} packages. "
            f"Left out: {left_out}.",
            f"For the test: {counts['test']:,} functions from {len(names)} other packages ({', '.join(names)}).",
        )

    def warm_start(self, folders: Sequence[Path], parameters: Mapping[str, int]) -> None:
        """The call that makes one model of two, and what it made."""
        self.chapter("Warm start: the two checkpoints become one encoder-decoder")
        encoder, decoder = (str(folder) for folder in folders)
        self.show(Syntax(WARM_START.format(encoder=encoder, decoder=decoder), "python", background_color="default"))
        self.say(
            f"{parameters['encoder']:,} parameters come from {folders[0].name}, {parameters['decoder']:,} from "
            f"{folders[1].name}; {parameters['new']:,} are new: the cross-attention between them."
        )

    def ending(self, result: Result) -> None:
        """The figures, where everything is, and what to type next."""
        self.console.print()
        self.show(rendered(result))
        self.chapter(
            "Yours to try",
            f"That took {result.seconds / 60:.1f} minutes. {result.folder} holds the model, the two checkpoints and a "
            "report with all examples. Give the model a line of your own:",
        )
        self.console.print()
        self.console.print(Text(" " * INDENT + result.command, style="bold cyan"), soft_wrap=True)

    @contextmanager
    def counting(self, name: str) -> Iterator[Callable[[float], None]]:
        """A bar for work whose share done is told now and then."""
        with self._progress() as progress:
            task = progress.add_task(name, total=1.0, note="", left=None)
            yield lambda share: progress.update(task, completed=share)

    @contextmanager
    def training(self, name: str) -> Iterator[Watch]:
        """A bar for a training, with its loss and the time left."""
        with self._progress() as progress:
            task = progress.add_task(name, total=1.0, note="", left=None)

            def watch(trained: Trained, spent: float, left: float) -> None:
                note = f"{trained.steps:,} steps  loss {trained.loss:.2f}"
                progress.update(task, completed=spent, note=note, left=left, seconds=trained.seconds)

            yield watch

    def _progress(self) -> Progress:
        gaps = 4
        bar = max(8, self.width - INDENT - NAME_WIDTH - NOTE_WIDTH - TIME_WIDTH - gaps)
        columns = [
            TextColumn(" " * INDENT + "{task.description}", table_column=Column(width=INDENT + NAME_WIDTH)),
            BarColumn(bar_width=bar, complete_style="cyan", finished_style="green"),
            TextColumn("{task.fields[note]}", table_column=Column(width=NOTE_WIDTH, justify="right")),
            TimeLeft(table_column=Column(width=TIME_WIDTH, justify="right")),
        ]
        return Progress(*columns, console=self.console, refresh_per_second=4)


class TimeLeft(ProgressColumn):
    """Seconds left while a training runs, seconds taken when it is done."""

    def render(self, task: Task) -> Text:
        """The text of one bar."""
        left = task.fields["left"]
        if left is None:
            return Text("")
        return Text(f"took {task.fields['seconds']:.0f} s" if task.finished else f"{left:.0f} s left", style="dim")
