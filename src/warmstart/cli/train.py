"""`warmstart train`: from a file of pairs to a fine-tuned model, with a check before and a log beside it."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from warmstart.cli.rendering import busy, console
from warmstart.cli.settings import at_least_one, parse_settings, prepare_torch

PAIRS, LENGTH, RECIPE, MEASURE, MACHINE = "Pairs", "Length of the training", "Recipe", "Evaluation", "Model and machine"


class Precision(str, Enum):
    """What a step computes in."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Schedule(str, Enum):
    """How rates fall after their warm-up."""

    linear = "linear"
    inverse_sqrt = "inverse_sqrt"
    constant = "constant"


class Part(str, Enum):
    """What may be frozen."""

    encoder = "encoder"
    decoder = "decoder"
    cross_attention = "cross_attention"


class Best(str, Enum):
    """What models are compared by."""

    loss = "loss"
    rouge1 = "rouge1"
    rouge2 = "rouge2"
    rougeL = "rougeL"
    bleu = "bleu"
    chrf = "chrf"
    exact = "exact"


def _option(panel: str, metavar: str | None, text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, metavar=metavar, help=text, **more)


def train(
    *,
    model: Annotated[str, typer.Argument(metavar="DIR", help="The pair to train: a folder, or a hub id.")],
    pairs: Annotated[
        str, typer.Argument(metavar="FILE", help="JSON lines, CSV, TSV, Parquet, text, or a datasets name.")
    ],
    output: Annotated[Path, _option(PAIRS, "DIR", "The folder to train into.", "--output", "-o", show_default=False)],
    targets: Annotated[str | None, _option(PAIRS, "FILE", "Targets line by line, if FILE is text.")] = None,
    source_column: Annotated[str, _option(PAIRS, "NAME", "Column of the sources.")] = "source",
    target_column: Annotated[str, _option(PAIRS, "NAME", "Column of the targets.")] = "target",
    prefix: Annotated[str, _option(PAIRS, "TEXT", "Put before each source.")] = "",
    split: Annotated[str, _option(PAIRS, "NAME", "Split of a datasets name.")] = "train",
    validation: Annotated[str | None, _option(PAIRS, "FILE", "Pairs to evaluate on.")] = None,
    validation_targets: Annotated[str | None, _option(PAIRS, "FILE", "Their targets, if that is text.")] = None,
    validation_split: Annotated[str | None, _option(PAIRS, "NAME", "Their split of the datasets name.")] = None,
    validation_share: Annotated[float, _option(PAIRS, "X", "Without them, hold out such a share.")] = 0.05,
    max_source_length: Annotated[int | None, _option(PAIRS, "N", "Tokens of a source; else 512.")] = None,
    max_target_length: Annotated[int | None, _option(PAIRS, "N", "Tokens of a target; else 128.")] = None,
    skip_bad: Annotated[bool, _option(PAIRS, None, "Count rows that are no pairs, go on.", "--skip-bad")] = False,
    stream: Annotated[bool, _option(PAIRS, None, "Read as it trains; nothing is kept.", "--stream")] = False,
    cache_dir: Annotated[Path | None, _option(PAIRS, "DIR", "Where tokenized pairs are kept.")] = None,
    steps: Annotated[int | None, _option(LENGTH, "N", "Steps of the optimizer.")] = None,
    epochs: Annotated[int, _option(LENGTH, "N", "Or so many times through the pairs.")] = 3,
    batch_tokens: Annotated[int, _option(LENGTH, "N", "Tokens of a batch, padding and both sides.")] = 8192,
    accumulate: Annotated[int, _option(LENGTH, "N", "Compute each batch in N parts; same result.")] = 1,
    resume: Annotated[bool, _option(LENGTH, None, "Go on from the last checkpoint.", "--resume")] = False,
    encoder_rate: Annotated[float, _option(RECIPE, "X", "Highest learning rate of the encoder.")] = 1.4e-5,
    decoder_rate: Annotated[float, _option(RECIPE, "X", "Of the decoder.")] = 5e-5,
    cross_attention_rate: Annotated[float, _option(RECIPE, "X", "Of cross-attention.")] = 1e-3,
    encoder_warmup: Annotated[float, _option(RECIPE, "X", "Share of the steps it rises in.")] = 0.1,
    decoder_warmup: Annotated[float, _option(RECIPE, "X", "The decoder's.")] = 0.05,
    cross_attention_warmup: Annotated[float, _option(RECIPE, "X", "Cross-attention's.")] = 0.05,
    schedule: Annotated[Schedule, _option(RECIPE, "NAME", "linear, inverse_sqrt or constant.")] = Schedule.linear,
    cross_attention_first: Annotated[float, _option(RECIPE, "X", "Share that trains it alone.")] = 0.05,
    label_smoothing: Annotated[float, _option(RECIPE, "X", "Share taken from the right token.")] = 0.1,
    dropout: Annotated[float | None, _option(RECIPE, "X", "Else the model's own.")] = None,
    weight_decay: Annotated[float, _option(RECIPE, "X", "Of matrices.")] = 0.01,
    clip: Annotated[float, _option(RECIPE, "X", "Longest gradient; 0 is any.")] = 1.0,
    lora: Annotated[int, _option(RECIPE, "N", "Train adapters of rank N (LoRA); 0 is none.")] = 0,
    lora_rate: Annotated[float, _option(RECIPE, "X", "Their highest learning rate.")] = 2e-4,
    freeze: Annotated[
        list[Part] | None, _option(RECIPE, "PART", "encoder, decoder or cross_attention; as often as needed.")
    ] = None,
    evaluate_every: Annotated[int | None, _option(MEASURE, "N", "Steps; else a tenth of all.")] = None,
    save_every: Annotated[int | None, _option(MEASURE, "N", "More checkpoints than evaluations.")] = None,
    samples: Annotated[int, _option(MEASURE, "N", "Validation pairs that text is written for.")] = 200,
    best: Annotated[Best, _option(MEASURE, "NAME", "loss, rouge1, rouge2, rougeL, bleu, chrf, exact.")] = Best.loss,
    patience: Annotated[int | None, _option(MEASURE, "N", "End after N without a better one.")] = None,
    average: Annotated[int, _option(MEASURE, "N", "Average the N best, if that is better.")] = 1,
    check: Annotated[bool, _option(MEASURE, None, "Check data and model; train nothing.", "--check")] = False,
    overfit: Annotated[int | None, _option(MEASURE, "N", "Learn N pairs by heart; save nothing.")] = None,
    tensorboard: Annotated[bool, _option(MEASURE, None, "Write for TensorBoard too.", "--tensorboard")] = False,
    precision: Annotated[Precision, _option(MACHINE, "TYPE", "fp32, bf16 or fp16.")] = Precision.fp32,
    gradient_checkpointing: Annotated[
        bool, _option(MACHINE, None, "Less memory, a third more time.", "--gradient-checkpointing")
    ] = False,
    compile: Annotated[bool, _option(MACHINE, None, "Compile each layer (torch.compile).", "--compile")] = False,
    shard: Annotated[bool, _option(MACHINE, None, "Several processes: in shards (FSDP2).", "--shard")] = False,
    cpu: Annotated[bool, _option(MACHINE, None, "Use no accelerator.", "--cpu")] = False,
    threads: Annotated[int | None, _option(MACHINE, "N", "Processor cores to use; else all.")] = None,
    seed: Annotated[int, _option(MACHINE, "N", "Seed of the random numbers.")] = 0,
    settings: Annotated[
        list[str] | None, _option(MACHINE, "NAME=X", "A setting of the model, such as num_beams=4.", "--set")
    ] = None,
) -> None:
    """Fine-tune a pair on texts: sources and what is to be written for each.

    Looks at the data and checks the first batch, then trains. The best model
    stands in the output folder; --resume goes on after a kill.
    """
    from warmstart.cli import engine
    from warmstart.cli import training as work
    from warmstart.generation_config import GenerationConfig
    from warmstart.training.examples import Asked, default_cache
    from warmstart.training.pairs import Data

    at_least_one("--overfit", overfit)
    if not 0 <= validation_share < 1:
        raise ValueError(f"--validation-share {validation_share} is not a share from 0 to below 1")
    at_least_one("--threads", threads)
    columns = {"source_column": source_column, "target_column": target_column, "prefix": prefix}
    data = Data(pairs, targets, split=split, **columns)
    held_out = None
    if validation is not None or validation_split is not None:
        held_out = Data(validation or pairs, validation_targets, split=validation_split or split, **columns)
    work.check_validation(held_out, validation_split, validation_share, best.value, patience, average)
    if overfit is not None and held_out is None:
        validation_share = 0.0  # all pairs may be learnt by heart
    run, recipe, loop = _plans(locals())
    if not check and overfit is None:
        from warmstart.training.run import check_output

        check_output(output, resume)
    config = work.read_configuration(model)
    tokenizers = engine.load_tokenizers(model, {}, None, None)
    for name, value in parse_settings(settings or [], list(GenerationConfig.DEFAULTS)).items():
        setattr(config.generation_config, name, value)
    if dropout is not None:
        from warmstart.training.recipe import set_dropout

        set_dropout(config, dropout)
    end = work.fill_token_ids(config, model, tokenizers[1])
    lengths = work.limits(config, max_source_length, max_target_length)
    with busy("reading the pairs"):
        cache = cache_dir or default_cache()
        asked = Asked(data, *tokenizers, end, lengths, skip_bad)
        sets: tuple[Any, Any] = (
            work.load_stream(asked, held_out, validation_share, run, cache)
            if stream
            else work.load_data(asked, held_out, validation_share, run, cache)
        )
        batches = work.batches_of(sets[0], run)
    if work.is_main():
        work.show_data(batches.examples, sets[1], held_out is not None, batches.padding(), stream)
    with busy(f"loading {model}"):
        prepare_torch(seed, "cpu" if cpu else None, threads)
        pair = work.load_model(model, config)
    if check or overfit is not None:
        if work.is_main():
            work.check(pair, batches, overfit)
        return
    references = work.references(held_out or data, sets[1], samples)
    with work.progress(loop.batches_of(sets[0], run)[1]) as watch:
        result = loop.train(pair, tokenizers, *sets, references, run, recipe, resume=resume, watch=watch)
    if work.is_main():
        console().print(work.summary(result, output), soft_wrap=True)


def _plans(given: dict[str, Any]) -> tuple[Any, Any, Any]:
    """The run and the recipe that options say, checked; and the module of the loop.

    Raises:
        ImportError: torch is missing.
        ValueError: a setting makes no sense.
    """
    from dataclasses import fields

    from warmstart.training.extras import needs

    with needs("torch", "training"):
        from warmstart.training import loop
        from warmstart.training.recipe import Recipe
        from warmstart.training.run import Run

    plain = {name: value.value if isinstance(value, Enum) else value for name, value in given.items()}
    plain["freeze"] = tuple(part.value for part in given["freeze"] or ())
    run = {field.name: plain[field.name] for field in fields(Run) if field.name in plain}
    recipe = {field.name: plain[field.name] for field in fields(Recipe)}
    return Run(**run), Recipe(**recipe), loop
