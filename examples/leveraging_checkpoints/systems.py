"""The systems of the table: three small checkpoints, and what is put together of them.

Shapes: b batch, s source length, t target length.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from warmstart import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    EncoderDecoderModel,
    GPT2Config,
    RobertaConfig,
)
from warmstart.demo.batches import endless_batches, padded
from warmstart.demo.loop import Budget, Trained, train
from warmstart.demo.recipe import IGNORED, Examples, Recipe, mask_tokens

PAIRS = ("rnd2rnd", "bert2rnd", "rnd2bert", "bert2bert", "bertshare", "robertashare", "rnd2gpt", "bert2gpt")
SYSTEMS = (*PAIRS[:6], "gpt", *PAIRS[6:])


def pretrain(kind: str, tokenizer: Any, texts: list[list[int]], recipe: Recipe, steps: int, folder: Path) -> Trained:
    """Train a "bert", "roberta" or "gpt" on texts that know nothing of pairs, and save it."""
    torch.manual_seed(0)
    model, pad = _fresh(kind, tokenizer, recipe), tokenizer.pad_token_id
    batches = endless_batches([len(text) for text in texts], 2 * recipe.batch, 0)
    generator = torch.Generator().manual_seed(0)

    def loss() -> Tensor:
        ids = padded([texts[row] for row in next(batches)], pad)
        if kind == "gpt":
            return model(input_ids=ids, labels=ids.masked_fill(ids == pad, IGNORED)).loss
        inputs, labels = mask_tokens(ids, tokenizer.mask_token_id, len(tokenizer), recipe.masked, generator)
        return model(input_ids=inputs, attention_mask=ids != pad, labels=labels).loss

    groups = [{"params": model.parameters(), "lr": recipe.pretraining_rate}]
    trained = train(model, loss, groups, Budget(steps=steps))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return trained


def _fresh(kind: str, tokenizer: Any, recipe: Recipe) -> Any:
    positions, pad = recipe.source_length + recipe.summary_length, tokenizer.pad_token_id
    if kind == "gpt":
        return AutoModelForCausalLM.from_config(
            GPT2Config(
                vocab_size=len(tokenizer),
                n_embd=recipe.hidden,
                n_layer=recipe.layers,
                n_head=recipe.heads,
                n_positions=positions,
                initializer_range=recipe.spread,
                **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0),
                bos_token_id=tokenizer.cls_token_id,
                eos_token_id=tokenizer.sep_token_id,
                pad_token_id=pad,
            )
        )
    # What makes a RoBERTa here: one kind of token, and positions that are counted from behind the padding id.
    family, types, offset = (RobertaConfig, 1, pad + 1) if kind == "roberta" else (BertConfig, 2, 0)
    return AutoModelForMaskedLM.from_config(
        family(
            vocab_size=len(tokenizer),
            hidden_size=recipe.hidden,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            intermediate_size=4 * recipe.hidden,
            max_position_embeddings=positions + offset,
            type_vocab_size=types,
            initializer_range=recipe.spread,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            bos_token_id=tokenizer.cls_token_id,
            eos_token_id=tokenizer.sep_token_id,
            pad_token_id=pad,
        )
    )


def build(name: str, folders: dict[str, Path], seed: int) -> Any:
    """A system before its fine-tuning: each half from a checkpoint, or random; cross-attention is random."""
    torch.manual_seed(seed)
    if name == "gpt":
        return AutoModelForCausalLM.from_pretrained(folders["gpt"])
    join = EncoderDecoderModel.from_encoder_decoder_pretrained
    if name.endswith("share"):
        one = folders[name.removesuffix("share")]
        return join(one, one, tie_encoder_decoder=True)
    encoder, _, decoder = name.partition("2")
    known = [folders["bert" if side == "rnd" else side] for side in (encoder, decoder)]
    model = join(*known)
    random = EncoderDecoderModel(config=copy.deepcopy(model.config))
    for side, kind in (("encoder", encoder), ("decoder", decoder)):
        if kind == "rnd":
            getattr(model, side).load_state_dict(getattr(random, side).state_dict())
    return model


def fine_tune(model: Any, tokenizer: Any, examples: Examples, recipe: Recipe, steps: int, seed: int) -> Trained:
    """Train a system on source -> summary: the same batches in the same order for every system of a seed."""
    batches = endless_batches([len(row) for row in examples.together], recipe.batch, seed)
    pad, step = tokenizer.pad_token_id, _decoder_alone if is_alone(model) else _pair
    groups = [{"params": model.parameters(), "lr": recipe.warm_rate}]
    return train(model, lambda: step(model, examples, next(batches), pad), groups, Budget(steps=steps))


def is_alone(model: Any) -> bool:
    """Whether it is a decoder that reads the source as the beginning of its own text."""
    return not hasattr(model, "encoder")


def _pair(model: Any, examples: Examples, rows: list[int], pad: int) -> Tensor:
    ids = padded([examples.sources[row] for row in rows], pad)
    labels = padded([examples.labels[row] for row in rows], IGNORED)
    return model(input_ids=ids, attention_mask=ids != pad, labels=labels).loss


def _decoder_alone(model: Any, examples: Examples, rows: list[int], pad: int) -> Tensor:
    """The source's tokens stand before the summary's and are not learnt."""
    ids = padded([examples.together[row] for row in rows], pad)
    silent = [[IGNORED] * len(examples.sources[row]) + examples.labels[row] for row in rows]
    return model(input_ids=ids, attention_mask=ids != pad, labels=padded(silent, IGNORED)).loss


def loss_of(model: Any, examples: Examples, pad: int) -> float:
    """Cross-entropy of the references in nats per token."""
    step: Callable[..., Tensor] = _decoder_alone if is_alone(model) else _pair
    total = count = 0
    with torch.no_grad():
        for start in range(0, len(examples.sources), 50):
            rows = list(range(start, min(start + 50, len(examples.sources))))
            tokens = sum(len(examples.labels[row]) for row in rows)
            total, count = total + tokens * float(step(model, examples, rows, pad)), count + tokens
    return total / count


def write(model: Any, tokenizer: Any, examples: Examples, recipe: Recipe) -> list[str]:
    """What a system writes for each source, by greedy search; sources of one length go together."""
    written = [""] * len(examples.sources)
    lengths = [len(source) for source in examples.sources]
    options = {"max_new_tokens": recipe.summary_length - 1, "no_repeat_ngram_size": 2, "num_beams": 1}
    for length in sorted(set(lengths)):
        rows = [row for row, other in enumerate(lengths) if other == length]
        ids = torch.tensor([examples.sources[row] for row in rows])
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
        texts = tokenizer.batch_decode(out[:, length:] if is_alone(model) else out, skip_special_tokens=True)
        for row, text in zip(rows, texts, strict=True):
            written[row] = text
    return written
