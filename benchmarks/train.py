"""`python -m benchmarks.train`: fine-tuning beside transformers 5's Seq2SeqTrainer with its best settings.

The same base-size bert2bert, the same pairs (random ids; lengths as CNN/DailyMail's or XSum's about are), AdamW,
dropout 0.1, padding as batches need it: ours by token budget, theirs by groups of like length and dynamic padding.
Each contender has a process of its own, and they alternate. Speed is target tokens per second over one epoch, so that
both read the same sources for them, the first step included; memory is the highest that was resident in it, beyond what
the process had before the model. The last lines, one for each precision, are of both on the same batches of a smaller
pair without dropout: how far their loss curves are apart.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import probes

# Medians and spreads of log-normal lengths in word pieces, and the longest source that is kept.
LENGTHS = {"cnn": ((780, 0.48), (61, 0.35)), "xsum": ((430, 0.75), (25, 0.25))}
LONGEST = (512, 128)
TRAINERS = ("warmstart", "transformers")
SIZES: dict[str, dict[str, Any]] = {
    "base": {},
    "short": {"num_hidden_layers": 2},
    "small": {"num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024},
    "tiny": {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128},
}
VOCABULARY = {"base": 30522, "short": 30522, "small": 2000, "tiny": 500}


def lengths(kind: str, count: int) -> np.ndarray:
    """Tokens of sources and targets (count, 2)."""
    draw = np.random.default_rng(0)
    sides = [
        draw.lognormal(np.log(median), spread, count).round().clip(8, longest)
        for (median, spread), longest in zip(LENGTHS[kind], LONGEST, strict=True)
    ]
    return np.stack(sides, 1).astype(int)


def make_pairs(kind: str, count: int, vocabulary: int) -> list[dict[str, list[int]]]:
    """So many pairs of random ids."""
    draw = np.random.default_rng(1)
    return [
        {"input_ids": draw.integers(5, vocabulary, s).tolist(), "labels": draw.integers(5, vocabulary, t).tolist()}
        for s, t in lengths(kind, count).tolist()
    ]


def model_of(library: str, size: str, dropout: float) -> Any:
    """A pair of two BERTs from random weights, the same in either library."""
    import importlib

    import torch

    module = importlib.import_module(library)
    shape = SIZES[size] | {"vocab_size": VOCABULARY[size]}
    shape |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    sides = [module.BertConfig(**shape) for _ in range(2)]
    config = module.EncoderDecoderConfig.from_encoder_decoder_configs(*sides)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, 2
    torch.manual_seed(0)
    return module.EncoderDecoderModel(config=config)


def ours(pairs: list[dict[str, list[int]]], given: dict[str, Any], folder: str) -> dict[str, Any]:
    """Our loop, with the recipe of theirs: one rate, no smoothing, no first phase."""
    from warmstart.training.loop import train
    from warmstart.training.recipe import Recipe
    from warmstart.training.run import Run

    steps = given["steps"] if given["curves"] else len(_order(pairs, given).batches(0))
    run = Run(
        Path(folder, "ours"),
        steps=steps + 1,  # it is left before the last, whose checkpoint is not what is measured
        batch_tokens=budget(pairs, given),
        precision=given["precision"],
        log_every=1,
        evaluate_every=10**6,
        cpu=True,
    )
    rate = given["rate"]
    recipe = Recipe(
        rate,
        rate,
        rate,
        schedule="constant",
        encoder_warmup=0,
        decoder_warmup=0,
        cross_attention_warmup=0,
        label_smoothing=0,
        cross_attention_first=0,
        weight_decay=0,
    )
    watch = Watch(given["clock"], pairs)
    model = model_of("warmstart", given["size"], given["dropout"])

    def until_enough(event: dict[str, Any]) -> None:
        if "checks" in event:
            watch.start()
        watch.event(event)
        if len(watch.losses) == steps:
            raise _Enough

    with contextlib.suppress(_Enough):
        train(model, _NoTokenizers(), _examples(pairs), None, [], run, recipe, watch=until_enough)
    return watch.figures()


def budget(pairs: list[dict[str, list[int]]], given: dict[str, Any]) -> int:
    """Tokens of our batches: about as many as theirs have."""
    return int(given["rows"] * np.percentile(lengths(given["kind"], len(pairs)).sum(1), 60))


def same_batches(pairs: list[dict[str, list[int]]], given: dict[str, Any]) -> list[list[dict[str, list[int]]]]:
    """The batches that ours takes, in its order."""
    order = _order(pairs, given)
    return [[pairs[row] for row in order.rows(step)] for step in range(given["steps"])]


def _order(pairs: list[dict[str, list[int]]], given: dict[str, Any]) -> Any:
    from warmstart.training.batches import Order

    return Order(_examples(pairs), budget(pairs, given), 0)


def theirs(pairs: list[dict[str, list[int]]], given: dict[str, Any], folder: str) -> dict[str, Any]:
    """Seq2SeqTrainer: groups of like length, dynamic padding, the fused optimizer."""
    import transformers
    from examples.trainer import pad

    watch = Watch(given["clock"], pairs)
    model = model_of("transformers", given["size"], given["dropout"])
    if given["curves"]:  # from the same weights
        model_of("warmstart", given["size"], given["dropout"]).save_pretrained(Path(folder, "model"))
        model = transformers.EncoderDecoderModel.from_pretrained(Path(folder, "model"))
    collate = pad(model.config)

    def padded(features: list[dict[str, list[int]]]) -> Any:
        features = features[0] if given["curves"] else features
        return collate([{name: one[name] for name in ("input_ids", "labels")} for one in features])

    class Steps(transformers.TrainerCallback):
        def on_train_begin(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
            watch.start()

        def on_log(self, arguments: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in logs:
                watch.event({"step": state.global_step, "loss": logs["loss"]})

    settings = transformers.Seq2SeqTrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=1 if given["curves"] else given["rows"],
        max_steps=given["steps"],
        learning_rate=given["rate"],
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        bf16=given["precision"] == "bf16",
        train_sampling_strategy="sequential" if given["curves"] else "group_by_length",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = transformers.Seq2SeqTrainer(
        model=model,
        args=settings,
        data_collator=padded,
        train_dataset=same_batches(pairs, given) if given["curves"] else pairs,
        callbacks=[Steps()],
    )
    trainer.train()
    return watch.figures()


class Watch:
    """Clocks the steps, and the memory beyond what there was when it was made."""

    def __init__(self, clock: str, pairs: list[dict[str, list[int]]]) -> None:
        self.tokens = sum(len(pair["labels"]) for pair in pairs)
        self.clock = time.process_time if clock == "cpu" else time.perf_counter
        self.before = probes.memory()["resident_mb"]
        self.losses: list[float] = []
        self.seconds = 0.0

    def start(self) -> None:
        """The first step begins."""
        probes.reset_peak()
        self.probe, self.begin = probes.Probe(), self.clock()

    def event(self, event: dict[str, Any]) -> None:
        """A step is done."""
        if "loss" in event:
            self.losses.append(event["loss"])
            self.seconds = self.clock() - self.begin
            self.peak = probes.memory()["peak_mb"]

    def figures(self) -> dict[str, Any]:
        """Target tokens per second, megabytes, losses."""
        others = self.probe.stop()["others"]
        return {
            "tokens_per_second": self.tokens / self.seconds,
            "peak_mb": self.peak - self.before,
            "losses": self.losses,
            "others": others,
        }


class _Enough(Exception):
    """The steps that count are done."""


class _NoTokenizers(tuple):
    """Two tokenizers that write no files."""

    def __new__(cls) -> Any:
        return super().__new__(cls, (None, None))


def _examples(pairs: list[dict[str, list[int]]]) -> Any:
    from warmstart.training.examples import Counts, Examples

    columns = {
        "source_ids": np.concatenate([pair["input_ids"] for pair in pairs]),
        "target_ids": np.concatenate([pair["labels"] for pair in pairs]),
        "source_ends": np.cumsum([len(pair["input_ids"]) for pair in pairs]),
        "target_ends": np.cumsum([len(pair["labels"]) for pair in pairs]),
        "rows": np.arange(len(pairs)),
        "source_hashes": np.arange(len(pairs), dtype=np.uint64),
        "pair_hashes": np.arange(len(pairs), dtype=np.uint64),
    }
    return Examples(columns, np.arange(len(pairs)), Counts(rows=len(pairs), pairs=len(pairs)))


def main() -> None:
    """Measure and print, or be one contender."""
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        given = json.loads(sys.argv[1])
        pairs = make_pairs(given["kind"], given["steps"] * given["rows"], VOCABULARY[given["size"]])
        with tempfile.TemporaryDirectory() as folder:
            found = (ours if given["library"] == "warmstart" else theirs)(pairs, given, folder)
        print(json.dumps(found))
        return
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description=__doc__)
    parser.add_argument("--kinds", nargs="+", choices=LENGTHS, default=list(LENGTHS))
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--steps", type=int, default=4, help="steps of an epoch of theirs (4)")
    parser.add_argument("--rows", type=int, default=8, help="pairs of a batch of theirs; ours holds as many tokens (8)")
    parser.add_argument("--runs", type=int, default=1, help="processes of each contender (1)")
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--curve-steps", type=int, default=30, help="steps of the loss curves; 0 leaves them out (30)")
    parser.add_argument("--curve-size", choices=SIZES, default="small")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--rate", type=float, default=1e-5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: seconds of CPU, where others compute"
    )
    arguments = parser.parse_args()
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "TRANSFORMERS_VERBOSITY": "error"}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "ACCELERATE_USE_CPU": "true"}
    print("| lengths | precision | ours, target tokens/s | theirs | ratio | ours, peak MB | theirs | ratio | losses |")
    print("| --- " * 9 + "|")
    for kind in arguments.kinds:
        for precision in arguments.precisions:
            given = {name: getattr(arguments, name) for name in ("steps", "rows", "size", "dropout", "rate", "clock")}
            row(given | {"kind": kind, "precision": precision, "curves": False}, arguments.runs, environment)
    if arguments.curve_steps:
        shape = {"size": arguments.curve_size, "steps": arguments.curve_steps, "rows": 4, "dropout": 0.0, "rate": 3e-4}
        shape["clock"] = arguments.clock
        for precision in arguments.precisions:
            curves(shape | {"kind": "xsum", "precision": precision, "curves": True}, environment)


def curves(given: dict[str, Any], environment: dict[str, str]) -> None:
    """Both contenders on the same batches; a line that says how far apart their losses are."""
    one, other = (measured(given | {"library": name}, environment)["losses"] for name in TRAINERS)
    apart = max(abs(a - b) for a, b in zip(one, other, strict=True))
    print(
        f"\nThe same batches, no dropout, {given['size']} size, {given['precision']}, {len(one)} steps: the losses "
        f"go from {one[0]:.3f} to {one[-1]:.3f} and are {apart:.1e} apart at most."
    )


def measured(given: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
    """The figures of one contender in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.train", json.dumps(given)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def row(given: dict[str, Any], runs: int, environment: dict[str, str]) -> None:
    """Both contenders in turn; a line of the table."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in TRAINERS}
    for _ in range(runs):
        for name in TRAINERS:
            found[name].append(measured(given | {"library": name}, environment))
    cells = [given["kind"], given["precision"]]
    for key, digits in (("tokens_per_second", 1), ("peak_mb", 0)):
        one, other = (statistics.median(run[key] for run in found[name]) for name in TRAINERS)
        cells += [f"{one:,.{digits}f}", f"{other:,.{digits}f}", f"{one / other:.2f}"]
    cells.append(" / ".join(f"{found[name][0]['losses'][-1]:.3f}" for name in TRAINERS))
    print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
