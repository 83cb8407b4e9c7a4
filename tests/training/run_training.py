"""A training in processes of their own, for tests that kill or share it.

Arguments: the folders of the model, the data and the output; the dropout; after which step to leave at once.
With SHARD in the environment, processes hold the model in shards.
"""

import os
import sys
from pathlib import Path

import torch

from warmstart import AutoConfig, AutoTokenizer, EncoderDecoderModel
from warmstart.training import loop
from warmstart.training.examples import Limits, load_examples, texts
from warmstart.training.pairs import Data
from warmstart.training.recipe import Recipe, set_dropout
from warmstart.training.run import Run


def main(model: Path, data: Path, output: Path, dropout: str = "0.1", leave: str = "") -> None:
    torch.set_num_threads(1)
    reads, writes = AutoTokenizer.from_pretrained(model), AutoTokenizer.from_pretrained(model / "decoder_tokenizer")
    sets = [Data(str(data / name)) for name in ("train.jsonl", "dev.jsonl")]
    training, validation = (load_examples(one, reads, writes, 2, Limits(12, 6), cache=data / "cache") for one in sets)
    references = texts(sets[1], validation.column("rows"))
    run = Run(
        output,
        steps=15,
        batch_tokens=150,
        accumulate=2,
        evaluate_every=5,
        save_every=2,
        samples=0,
        cpu=True,
        log_every=5,
        shard="SHARD" in os.environ,
    )
    recipe = Recipe(encoder_rate=5e-3, decoder_rate=5e-3, cross_attention_rate=5e-3, cross_attention_first=0.3)
    config = AutoConfig.from_pretrained(model)
    set_dropout(config, float(dropout))
    pair = EncoderDecoderModel.from_pretrained(model, config=config)
    if leave:
        leave_after(int(leave))
    loop.train(pair, (reads, writes), training, validation, references, run, recipe, resume=True)


def leave_after(step: int) -> None:
    """End each process when the checkpoint of a step is written."""
    save = loop._Loop.save

    def saved(self: loop._Loop) -> None:
        save(self)
        if self.state.step == step:
            os._exit(0)

    loop._Loop.save = saved


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), *sys.argv[4:])
