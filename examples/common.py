"""What the three loops share: the command line, a pair with its tokenizers, pairs of texts as batches."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from warmstart import AutoTokenizer, EncoderDecoderModel
from warmstart.training.batches import Order, collate
from warmstart.training.examples import Examples, Limits, load_examples
from warmstart.training.pairs import Data


def parse(says: str | None, words: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=says)
    parser.add_argument("model", help="a folder or hub id of a pair, as `warmstart create` makes it")
    parser.add_argument("pairs", help="JSON lines with source and target, or what else `warmstart train` reads")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the folder to save into")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=5e-5, help="learning rate of every weight")
    parser.add_argument("--batch-tokens", type=int, default=4096, help="tokens of a batch, padding and both sides")
    parser.add_argument("--source-length", type=int, default=512)
    parser.add_argument("--target-length", type=int, default=128)
    return parser.parse_args(words)


def load(arguments: argparse.Namespace) -> tuple[Any, tuple[Any, Any], Examples]:
    """The model, the tokenizers of its two sides, and the tokenized pairs."""
    model = EncoderDecoderModel.from_pretrained(arguments.model)
    reads = AutoTokenizer.from_pretrained(arguments.model)
    folder = Path(arguments.model, "decoder_tokenizer")
    writes = AutoTokenizer.from_pretrained(folder) if folder.is_dir() else reads
    limits = Limits(arguments.source_length, arguments.target_length)
    examples = load_examples(Data(arguments.pairs), reads, writes, model.config.eos_token_id, limits)
    return model, (reads, writes), examples


def batches(model: Any, examples: Examples, arguments: argparse.Namespace) -> Iterator[dict[str, Tensor]]:
    """`input_ids`, `attention_mask` (batch, source) and `labels` (batch, target) of each step, by token budget."""
    order = Order(examples, arguments.batch_tokens, seed=0)
    for step in range(arguments.steps):
        yield collate(*order.batch(step), model.config.encoder.pad_token_id or 0)
