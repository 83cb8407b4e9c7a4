"""A training in a process of its own, for tests that kill it: folder of the model, of the data, of the output."""

import sys
from pathlib import Path

import torch

from warmstart import AutoConfig, AutoTokenizer, EncoderDecoderModel
from warmstart.training.examples import Limits, load_examples, texts
from warmstart.training.loop import Run, train
from warmstart.training.pairs import Data
from warmstart.training.recipe import Recipe, set_dropout


def main(model: Path, data: Path, output: Path) -> None:
    torch.set_num_threads(1)
    reads, writes = AutoTokenizer.from_pretrained(model), AutoTokenizer.from_pretrained(model / "decoder_tokenizer")
    sets = [Data(str(data / name)) for name in ("train.jsonl", "dev.jsonl")]
    training, validation = (load_examples(one, reads, writes, 2, Limits(12, 6), cache=data / "cache") for one in sets)
    references = texts(sets[1], validation.column("rows"))
    run = Run(output, steps=15, batch_tokens=150, accumulate=2, evaluate_every=5, save_every=2, log_every=5, cpu=True)
    recipe = Recipe(encoder_rate=5e-3, decoder_rate=5e-3, cross_attention_rate=5e-3, cross_attention_first=0.3)
    config = AutoConfig.from_pretrained(model)
    set_dropout(config, 0.1)
    pair = EncoderDecoderModel.from_pretrained(model, config=config)
    train(pair, (reads, writes), training, validation, references, run, recipe, resume=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
