"""A pair under Lightning: `python -m examples.lightning_loop DIR pairs.jsonl -o TRAINED --steps 100`."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from examples.common import batches, load, parse


class Pair(lightning.LightningModule):
    """The model as Lightning trains it."""

    def __init__(self, model: Any, rate: float):
        super().__init__()
        self.model, self.rate = model, rate
        self.losses: list[float] = []

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        """The loss of a batch."""
        loss = self.model(**batch).loss
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over everything."""
        return torch.optim.AdamW(self.model.parameters(), lr=self.rate)


def main(words: list[str] | None = None) -> list[float]:
    """Train, save, give the losses."""
    arguments = parse(__doc__, words)
    model, tokenizers, examples = load(arguments)
    pair = Pair(model.train(), arguments.rate)
    trainer = lightning.Trainer(
        max_steps=arguments.steps,
        max_epochs=-1,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=arguments.output,
        accelerator="auto",
    )
    steps = list(batches(model, examples, arguments))
    trainer.fit(pair, DataLoader(steps, batch_size=None))
    model.save_pretrained(arguments.output, encoder_tokenizer=tokenizers[0], decoder_tokenizer=tokenizers[1])
    return pair.losses


if __name__ == "__main__":
    main()
