"""A pair under transformers' Seq2SeqTrainer, 4.57 or 5: `python -m examples.trainer DIR pairs.jsonl -o TRAINED`."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from examples.common import load, parse
from warmstart.training.examples import Examples


def main(words: list[str] | None = None) -> list[float]:
    """Train, generate for a few sources, save, give the losses."""
    arguments = parse(__doc__, words)
    model, tokenizers, examples = load(arguments)
    settings = transformers.Seq2SeqTrainingArguments(
        output_dir=str(arguments.output),
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        learning_rate=arguments.rate,
        max_steps=arguments.steps,
        logging_steps=1,
        predict_with_generate=True,
        save_strategy="no",  # its own save knows models of transformers alone; ours is below
        report_to=[],
        disable_tqdm=True,
    )
    data = rows(examples)
    trainer = transformers.Seq2SeqTrainer(
        model=model, args=settings, data_collator=pad(model.config), train_dataset=data, eval_dataset=data[:8]
    )
    trainer.train()
    ids = trainer.predict(data[:2], max_new_tokens=16).predictions
    print(tokenizers[1].batch_decode(ids.clip(min=0), skip_special_tokens=True))
    model.save_pretrained(arguments.output, encoder_tokenizer=tokenizers[0], decoder_tokenizer=tokenizers[1])
    return [event["loss"] for event in trainer.state.log_history if "loss" in event]


def rows(examples: Examples) -> list[dict[str, list[int]]]:
    """Each pair as the trainer takes it."""
    return [
        {"input_ids": examples.source(row).tolist(), "labels": examples.labels(row).tolist()}
        for row in range(len(examples))
    ]


def pad(config: Any) -> Any:
    """A collator: sources are filled up with the encoder's pad id under a mask, labels with -100."""
    fill = {"input_ids": config.encoder.pad_token_id or 0, "attention_mask": 0, "labels": -100}

    def collate(features: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        full = [one | {"attention_mask": [1] * len(one["input_ids"])} for one in features]
        longest = {name: max(len(one[name]) for one in full) for name in fill}
        return {
            name: torch.tensor([one[name] + [fill[name]] * (longest[name] - len(one[name])) for one in full])
            for name in fill
        }

    return collate


if __name__ == "__main__":
    main()
