"""The demo from beginning to end: text, two pre-trainings, a warm start, a fine-tuning, and what it was worth."""

from __future__ import annotations

import os
import platform
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from warmstart.demo import recipe as make
from warmstart.demo.corpus import Pair, package_folders, read_package
from warmstart.demo.display import Display
from warmstart.demo.loop import Budget, Trained
from warmstart.demo.recipe import Recipe
from warmstart.demo.report import BERT, FIRST, GPT2, RANDOM, WARM, Example, Result
from warmstart.demo.score import first_sentence, gain_interval, held_out_loss, mean, rouge, write_summaries
from warmstart.demo.split import Split, split_by_package
from warmstart.folder import check_can_write

# Of the time that is left when training begins.
SHARES = {BERT: 0.24, GPT2: 0.14, WARM: 0.27, RANDOM: 0.27, "evaluation": 0.08}
PAIRS_OF_A_PACKAGE = 2000  # at most: no package is most of the corpus, and reading stays quick
FEWEST_PAIRS = 100  # for training; with less there is nothing to see
REPORT = "report.json"


@dataclass(frozen=True)
class Settings:
    """What a run of the demo may be told. `packages` are (name, file or folder) to read, None for all there are."""

    output: Path
    minutes: float
    steps: int | None
    seed: int
    packages: Sequence[tuple[str, Path]] | None = None
    test_pairs: int = 300
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        if not self.minutes > 0:
            raise ValueError(f"minutes={self.minutes}: the demo needs some time; 4.5 is the usual")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps={self.steps}: each training takes 1 step at least")
        if self.output.exists() and not self.output.is_dir():
            raise FileExistsError(f"{self.output} is a file; give a folder for the demo's result")
        check_can_write(self.output)
        if self.output.exists() and any(self.output.iterdir()) and not (self.output / REPORT).exists():
            raise FileExistsError(f"{self.output} holds other files; give a new or an empty folder")


class Clock:
    """Shares out the time from now on; a training that took too long or too little changes those after it."""

    def __init__(self, seconds: float, steps: int | None) -> None:
        self.start, self.whole, self.steps = time.perf_counter(), seconds, steps

    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self.start

    def budget(self, name: str) -> Budget:
        """What one training may take: its share of what is left for it and those after it."""
        names = list(SHARES)
        share = SHARES[name] / sum(SHARES[later] for later in names[names.index(name) :])
        return Budget(max(1.0, share * (self.whole - self.seconds())), self.steps or float("inf"))


def tell(settings: Settings, console: Console | None) -> Result:
    """Run the demo; see `warmstart.demo.run`."""
    clock, display = Clock(settings.minutes * 60, settings.steps), Display(console)
    display.opening(settings.minutes)
    torch.manual_seed(settings.seed)
    split, corpus = read_corpus(settings, display)
    tokenizer = make.train_tokenizer(split.train, settings.recipe)
    examples = make.encode(tokenizer, split.train, settings.recipe)
    trainings: dict[str, Trained] = {}
    folders = pretrain(settings, clock, display, tokenizer, examples, trainings)
    models, parameters = fine_tune(settings, clock, display, folders, examples, trainings)
    models[WARM].save_pretrained(settings.output / "model", encoder_tokenizer=tokenizer)
    measured = evaluate(settings, display, models, tokenizer, split.test)
    result = Result(
        folder=settings.output,
        seed=settings.seed,
        seconds=clock.seconds(),
        machine=machine(),
        corpus=corpus,
        recipe=asdict(settings.recipe),
        parameters=parameters,
        trainings={name: asdict(trained) for name, trained in trainings.items()},
        **measured,
    )
    (settings.output / REPORT).write_text(result.to_json(), encoding="utf-8")
    (settings.output / "report.txt").write_text(result.to_text(), encoding="utf-8")
    display.ending(result)
    return result


def read_corpus(settings: Settings, display: Display) -> tuple[Split, dict[str, Any]]:
    """Read and split the texts; returns them with the counts for the report."""
    display.chapter("Read the text: functions of Python packages, and the first line of their docstrings")
    packages = package_folders() if settings.packages is None else list(settings.packages)
    pairs: list[Pair] = []
    with display.counting("reading") as watch:
        for done, (name, path) in enumerate(packages, 1):
            pairs.extend(read_package(name, path, PAIRS_OF_A_PACKAGE, settings.seed))
            watch(done / len(packages))
    split = split_by_package(pairs, settings.test_pairs, settings.seed)
    if len(split.train) < FEWEST_PAIRS or not split.test:
        raise FileNotFoundError(
            f"only {len(split.train)} functions with docstrings to train on were found in {len(packages)} packages; "
            "the demo needs a Python whose standard library is there as source"
        )
    sizes = Counter(pair.package for pair in split.train)
    corpus = {
        "found": len(pairs),
        "train": len(split.train),
        "train_packages": len(sizes),
        "test": len(split.test),
        "test_packages": split.test_packages,
        "left_out": split.dropped,
    }
    display.corpus(corpus)
    return split, corpus


def pretrain(
    settings: Settings, clock: Clock, display: Display, tokenizer: Any, examples: Any, trainings: dict[str, Trained]
) -> list[Path]:
    """Pre-train and save the two checkpoints; returns their folders."""
    display.chapter(
        "Pre-train two small models from nothing",
        f"Both read {len(tokenizer):,} word pieces. BERT fills in masked words, GPT-2 predicts the next word.",
    )
    recipe, seed = settings.recipe, settings.seed
    with display.training(BERT) as watch:
        bert, trainings[BERT] = make.pretrain_encoder(tokenizer, examples, recipe, clock.budget(BERT), seed, watch)
    with display.training(GPT2) as watch:
        budget = clock.budget(GPT2)
        gpt2, trainings[GPT2] = make.pretrain_decoder(tokenizer, examples, recipe, budget, seed, watch, bert)
    folders = [settings.output / "bert", settings.output / "gpt2"]
    for folder, checkpoint in zip(folders, (bert, gpt2), strict=True):
        checkpoint.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folders


def fine_tune(
    settings: Settings,
    clock: Clock,
    display: Display,
    folders: list[Path],
    examples: Any,
    trainings: dict[str, Trained],
) -> tuple[dict[str, Any], dict[str, int]]:
    """Fine-tune the warm-started pair and its twin from random weights; returns them, and parameters by origin."""
    recipe, seed = settings.recipe, settings.seed
    models = {WARM: make.warm_started(*folders)}
    models[RANDOM] = make.from_random_weights(models[WARM].config, seed)
    parameters = make.parameters_by_origin(models[WARM])
    display.warm_start(folders, parameters)
    display.chapter(
        "Fine-tune on code -> summary",
        "Beside it, the same model from random weights: same batches in the same order, same number of steps.",
    )
    with display.training(WARM) as watch:
        trainings[WARM] = make.fine_tune(models[WARM], examples, recipe, clock.budget(WARM), seed, watch)
    with display.training(RANDOM) as watch:
        same = Budget(steps=trainings[WARM].steps)
        trainings[RANDOM] = make.fine_tune(models[RANDOM], examples, recipe, same, seed, watch)
    for model in models.values():
        make.set_generation(model, recipe)
    return models, parameters


def evaluate(
    settings: Settings, display: Display, models: dict[str, Any], tokenizer: Any, test: list[Pair]
) -> dict[str, Any]:
    """The measured fields of a `Result`: ROUGE by system, loss by model, the warm start's gain, every example."""
    display.chapter("Summarise functions of the test packages")
    written = {FIRST: [first_sentence(pair.source) for pair in test]}
    for name in (RANDOM, WARM):
        with display.counting(name) as watch:
            written[name] = write_summaries(models[name], tokenizer, [pair.source for pair in test], watch)
    scores = {name: rouge(texts, test) for name, texts in written.items()}
    encoded = make.encode(tokenizer, test, settings.recipe)
    return {
        "scores": {
            name: {measure: mean(values) for measure, values in parts.items()} for name, parts in scores.items()
        },
        "different": {name: len(set(texts)) for name, texts in written.items()},
        "held_out_loss": {name: held_out_loss(model, encoded) for name, model in models.items()},
        "gain": gain_interval(scores[WARM]["rougeL"], scores[RANDOM]["rougeL"], settings.seed),
        "examples": [
            Example(pair.package, pair.source, pair.summary, {name: texts[row] for name, texts in written.items()})
            for row, pair in enumerate(test)
        ],
    }


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    from warmstart import __version__

    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "warmstart": __version__,
    }
