"""What `warmstart train` does around the training: reads the data and the model, and shows both and the progress."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warmstart.cli.rendering import busy, console, error_console, is_terminal, say, table
from warmstart.cli.token_ids import missing, token_ids
from warmstart.training.examples import Asked, Examples, Limits, load_examples, report, texts
from warmstart.training.pairs import Data, Pair

if TYPE_CHECKING:
    from warmstart.training.batches import Order
    from warmstart.training.loop import Result
    from warmstart.training.run import Run
    from warmstart.training.stream import Stream

Event = dict[str, Any]
SOURCE_TOKENS, TARGET_TOKENS = 512, 128  # unless the model has fewer positions, or other limits are asked for


def is_main() -> bool:
    """Whether this process is the one that speaks, where several train together."""
    return os.environ.get("RANK", "0") == "0"


def read_configuration(place: str) -> Any:
    """A pair's configuration with its generation settings.

    Raises:
        FileNotFoundError: no such folder or repository.
        ValueError: it is no encoder-decoder.
    """
    from warmstart.families.auto import AutoConfig
    from warmstart.generation_config import GenerationConfig
    from warmstart.hub import find_file
    from warmstart.warm_start import pair_of

    config = pair_of(AutoConfig.from_pretrained(place))[0]
    if config.model_type != "encoder-decoder":
        raise ValueError(
            f"{place} is a {config.model_type}, not an encoder-decoder; make one with warmstart create --encoder ..."
        )
    if find_file(place, "generation_config.json", required=False) is not None:
        config.merge_settings(GenerationConfig.from_pretrained(place))
    return config


def fill_token_ids(config: Any, place: str, tokenizer: Any) -> int:
    """Fill the ids that training needs from the target's tokenizer, where they are open; gives the end's.

    Raises:
        ValueError: an id is not known.
    """
    from warmstart.tokenization.auto import IDS
    from warmstart.warm_start import fill_settings

    fill_settings(config, {name: getattr(tokenizer, name) for name in IDS})
    if lacking := missing(token_ids(config, [])):
        raise ValueError(f"{place} has no {', '.join(lacking)}; give it with --set {lacking[0]}=ID")
    return int(config.eos_token_id[0] if isinstance(config.eos_token_id, (list, tuple)) else config.eos_token_id)


def limits(config: Any, source: int | None, target: int | None) -> Limits:
    """How many tokens are kept: as asked, else as many as are usual and both sides have positions for.

    Raises:
        ValueError: more are asked for than there are positions.
    """
    from warmstart.families import family_of

    found = []
    for side, asked, usual in (("encoder", source, SOURCE_TOKENS), ("decoder", target, TARGET_TOKENS)):
        part = getattr(config, side)
        positions = family_of(part).spec(part, side == "decoder").positions
        if asked is not None and positions is not None and asked > positions:
            option = "--max-source-length" if side == "encoder" else "--max-target-length"
            raise ValueError(f"{option} {asked} is more than the {side}'s {positions} positions")
        found.append(asked or min(usual, positions or usual))
    return Limits(*found)


def check_validation(
    validation: Data | None, split: str | None, share: float, best: str, patience: int | None, average: int
) -> None:
    """Refuse a split of a file, and settings that ask for validation where there is none.

    Raises:
        ValueError: names the option.
    """
    if validation is not None and split is not None and validation.is_file:
        raise ValueError(
            f"--validation-split {split}: {validation.place} is a file, and only what datasets reads has splits; "
            "give a file of validation pairs with --validation"
        )
    if validation is None and not share:
        asked = [("--best", best if best != "loss" else None), ("--patience", patience), ("--average", average > 1)]
        if named := [name for name, value in asked if value]:
            raise ValueError(
                f"{', '.join(named)} compares models on validation pairs; with --validation-share 0 there are none"
            )


def load_data(
    asked: Asked, validation: Data | None, share: float, run: Run, cache: Path
) -> tuple[Examples, Examples | None]:
    """Training and validation examples; without a validation set of its own, a share of the training's is held out."""
    with _main_first(run):
        own = load_examples(*asked[:-1], skip_bad=asked.skip_bad, cache=cache)
        if validation is not None:
            return own, load_examples(validation, *asked[1:-1], skip_bad=asked.skip_bad, cache=cache)
    if not share:
        return own, None
    kept, held_out = own.held_out(share)
    if not len(kept) or not len(held_out):
        raise ValueError(
            f"--validation-share {share} of {len(own):,} pairs leaves {len(kept):,} for training and {len(held_out):,} "
            "for validation; give another share, 0, or a file with --validation"
        )
    return kept, held_out


def load_stream(
    asked: Asked, validation: Data | None, share: float, run: Run, cache: Path
) -> tuple[Stream, Examples | None]:
    """A stream of the training pairs, its first ones read, and the validation examples.

    Raises:
        ValueError: there is no validation set, and a share is to be held out of pairs that are not read yet.
    """
    from warmstart.training.stream import Stream

    if validation is None and share:
        raise ValueError(
            "--stream reads no pair ahead, so no share can be held out: give --validation FILE, or --validation-share 0"
        )
    if run.steps is None:
        raise ValueError("--stream: how many pairs there are is not known before they were read; give --steps")
    held_out = None
    with _main_first(run):
        if validation is not None:
            held_out = load_examples(validation, *asked[1:-1], skip_bad=asked.skip_bad, cache=cache)
    stream = Stream(asked, run.batch_tokens, run.seed)
    stream.batch(0)
    return stream, held_out


@contextmanager
def _main_first(run: Run) -> Iterator[None]:
    """Let the first of several processes tokenize, and the others find what it wrote."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield
        return
    from warmstart.training.extras import needs

    with needs("accelerate", "training"):
        from accelerate import PartialState
    with PartialState(cpu=run.on_processor).main_process_first():
        yield


def show_data(
    training: Examples, validation: Examples | None, has_file: bool, padding: float, is_start: bool = False
) -> dict[str, Any]:
    """Print the report of the data, or of what is its start alone; gives it as data too."""
    said = report(training, validation, validation.counts if validation is not None and has_file else None)
    out = console()
    shown = table("", "training", "validation", title="Data, as far as it was read" if is_start else "Data")
    held = said.get("validation", {})

    def row(name: str, *values: Any) -> None:
        shown.add_row(name, *(f"{value:,}" if isinstance(value, int) else value or "" for value in values))

    row("pairs", said["pairs"], held.get("pairs"))
    for side in ("source", "target"):
        row(
            f"{side} tokens: median, 95 %, longest",
            *(_lengths(part.get(f"{side}_tokens", {})) for part in (said, held)),
        )
    counts = (said["counts"], held.get("counts", {}))
    for name, text in (
        ("cut_sources", "sources that were cut"),
        ("cut_targets", "targets that were cut"),
        ("empty_sources", "left out: empty source"),
        ("empty_targets", "left out: empty target"),
        ("bad", "left out: no pair"),
    ):
        row(text, *(part.get(name) for part in counts))
    row("twice or more", said["duplicates"], None)
    if held:
        row("also in training: pairs", None, held["in_training"])
        row("also in training: sources", None, held["sources_in_training"])
    row("padding in batches", f"{padding:.1%}", None)
    out.print(shown)
    out.print()
    for message in [message for part in counts for message in part.get("first_bad", [])]:
        say(f"left out: {message}")
    if held.get("in_training"):
        say(f"warning: {held['in_training']:,} validation pairs are in training too: a model may know them by heart")
    return said


def _lengths(quantiles: Mapping[str, int]) -> str:
    return ", ".join(f"{quantiles[name]:,}" for name in ("median", "95%", "longest")) if quantiles else ""


def show_checks(checks: Mapping[str, str]) -> None:
    """Print what the check of a batch saw."""
    shown = table("", "", title="Checks")
    for name, text in checks.items():
        shown.add_row(name, text)
    console().print(shown)
    console().print()


def load_model(place: str, config: Any) -> Any:
    """The model with that configuration."""
    from warmstart import EncoderDecoderModel

    return EncoderDecoderModel.from_pretrained(place, config=config)


@contextmanager
def progress(steps: int) -> Iterator[Callable[[Event], None]]:
    """Show the lines of the log: a bar on a terminal, and a line for each evaluation."""
    if not is_main():
        yield lambda event: None
        return
    bar = _bar(steps) if is_terminal("stderr") else nullcontext(lambda event: None)
    with bar as advance:

        def show(event: Event) -> None:
            advance(event)
            if "checks" in event:
                show_checks(event["checks"])
            elif "validation_loss" in event:
                console().print(_evaluation(event), soft_wrap=True)

        yield show


def _evaluation(event: Event) -> str:
    names = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "bleu": "BLEU", "chrf": "chrF"}
    found = [f"{shown} {event[name]:.1f}" for name, shown in (names | {"exact": "exact"}).items() if name in event]
    return f"step {event['step']:,}: " + ", ".join([f"validation loss {event['validation_loss']:.3f}", *found])


@contextmanager
def _bar(steps: int) -> Iterator[Callable[[Event], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn()]
    with Progress(*columns, TextColumn("left"), console=error_console(), redirect_stdout=False) as shown:
        task = shown.add_task("", total=steps, note="")
        before: dict[str, float] = {"seconds": 0.0}

        def advance(event: Event) -> None:
            if "loss" in event:
                speed = event["target_tokens"] / max(1e-9, event["seconds"] - before["seconds"])
                before["seconds"] = event["seconds"]
                note = f"loss {event['loss']:.3f}  {speed:,.0f} target tokens/s"
                shown.update(task, completed=event["step"], note=note)

        yield advance


def batches_of(training: Examples | Stream, run: Run) -> Order | Stream:
    """The batches of a run."""
    from warmstart.training import loop

    return loop.batches_of(training, run)[0]


def references(data: Data, validation: Examples | None, samples: int) -> list[Pair]:
    """The first validation pairs as text."""
    return [] if validation is None else texts(data, validation.column("rows")[:samples].tolist())


def check(model: Any, batches: Order | Stream, overfit: int | None) -> None:
    """Check the first batch, and learn some pairs by heart if that is asked for."""
    from warmstart.training import checks
    from warmstart.training.batches import collate

    pad = model.config.encoder.pad_token_id
    show_checks(checks.check_batch(model, collate(*batches.batch(0), 0 if pad is None else pad)))
    if overfit is not None:
        with busy(f"learning {overfit} pairs by heart"):
            loss = checks.overfit(model, batches.examples, overfit)
        count = min(overfit, len(batches.examples))
        console().print(f"{count} pairs were learnt by heart: loss {loss:.4f}, every target written as it is.")


def summary(result: Result, output: Path) -> str:
    """How a training ended."""
    best = f"; the best model is that of step {result.best[1]:,}" if result.best else ""
    return (
        f"{result.steps:,} steps in {result.seconds:,.0f} s{best}. Saved to {output}; try it with: warmstart generate "
        f"{output} FILE"
    )
