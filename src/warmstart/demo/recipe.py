"""What is trained and how: sizes, the tokenizer, the two small pre-trainings, the warm start and the fine-tuning.

Shapes: b batch, s source length, t target length.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from warmstart import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    BertTokenizer,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GPT2Config,
)
from warmstart.demo.batches import endless_batches, padded
from warmstart.demo.corpus import Pair
from warmstart.demo.loop import Budget, Trained, Watch, train

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
IGNORED = -100
SIDES = ("encoder", "decoder")


@dataclass(frozen=True)
class Recipe:
    """Sizes and rates. The defaults are what a minute on two cores does most with: small, short and many steps."""

    vocabulary: int = 2000
    layers: int = 2
    hidden: int = 128
    heads: int = 4
    source_length: int = 32  # tokens
    summary_length: int = 32
    batch: int = 24
    spread: float = 0.07  # standard deviation of new weights; BERT's 0.02 is for a width of 768
    masked: float = 0.3  # share of the tokens that BERT has to guess
    pretraining_rate: float = 3e-3
    warm_rate: float = 2e-3  # of weights that come from a checkpoint
    new_rate: float = 4e-3  # of weights that start at random


@dataclass(frozen=True)
class Examples:
    """Pairs as ids: the source with its frame (s), the summary (t) without start and with end, and both in one row."""

    sources: list[list[int]]
    labels: list[list[int]]
    together: list[list[int]]


def train_tokenizer(pairs: Iterable[Pair], recipe: Recipe) -> Any:
    """A BERT tokenizer whose word pieces come from the training texts, in alphabetical order."""
    blank = BertTokenizer(vocab=numbered(SPECIAL_TOKENS))
    texts = (text for pair in pairs for text in (pair.source, pair.summary))
    trained = blank.train_new_from_iterator(texts, vocab_size=recipe.vocabulary)
    pieces = sorted(set(trained.get_vocab()) - set(SPECIAL_TOKENS))  # the trainer's order differs from run to run
    return BertTokenizer(vocab=numbered([*SPECIAL_TOKENS, *pieces]), model_max_length=recipe.source_length)


def numbered(tokens: Iterable[str]) -> dict[str, int]:
    """Tokens and their ids, from 0 on."""
    return {token: number for number, token in enumerate(tokens)}


def encode(tokenizer: Any, pairs: list[Pair], recipe: Recipe) -> Examples:
    """Pairs as ids, cut to the recipe's lengths."""
    start = tokenizer.cls_token_id
    options: dict[str, Any] = {"truncation": True, "return_attention_mask": False, "return_token_type_ids": False}
    sources = tokenizer([pair.source for pair in pairs], max_length=recipe.source_length, **options)["input_ids"]
    targets = tokenizer([pair.summary for pair in pairs], max_length=recipe.summary_length, **options)["input_ids"]
    labels = [row[1:] if row[:1] == [start] else row for row in targets]
    return Examples(sources, labels, [source + row for source, row in zip(sources, labels, strict=True)])


def pretrain_encoder(
    tokenizer: Any, examples: Examples, recipe: Recipe, budget: Budget, seed: int, watch: Watch
) -> tuple[Any, Trained]:
    """A small BERT that guesses masked tokens of sources and summaries (arXiv:1810.04805, section 3.1)."""
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        intermediate_size=4 * recipe.hidden,
        max_position_embeddings=recipe.source_length + recipe.summary_length,
        initializer_range=recipe.spread,
        hidden_dropout_prob=0.0,  # less than one epoch: there is nothing to over-fit
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = AutoModelForMaskedLM.from_config(config)
    rows = examples.together
    batches = endless_batches([len(row) for row in rows], recipe.batch, seed)
    generator = torch.Generator().manual_seed(seed)

    def loss() -> Tensor:
        ids = padded([rows[row] for row in next(batches)], tokenizer.pad_token_id)
        inputs, labels = mask_tokens(ids, tokenizer.mask_token_id, len(tokenizer), recipe.masked, generator)
        return model(input_ids=inputs, attention_mask=ids != tokenizer.pad_token_id, labels=labels).loss

    trained = train(model, loss, [{"params": model.parameters(), "lr": recipe.pretraining_rate}], budget, watch)
    return model, trained


def mask_tokens(
    ids: Tensor, mask: int, vocabulary: int, share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Inputs and labels (b, t): of the chosen tokens 80 % are masked, 10 % another token, 10 % as they were."""
    chosen = (torch.rand(ids.shape, generator=generator) < share) & (ids >= len(SPECIAL_TOKENS))
    kind = torch.rand(ids.shape, generator=generator)
    others = torch.randint(len(SPECIAL_TOKENS), vocabulary, ids.shape, generator=generator)
    inputs = torch.where(chosen & (kind < 0.8), mask, ids)
    inputs = torch.where(chosen & (kind >= 0.9), others, inputs)
    return inputs, ids.masked_fill(~chosen, IGNORED)


def pretrain_decoder(
    tokenizer: Any, examples: Examples, recipe: Recipe, budget: Budget, seed: int, watch: Watch, encoder: Any = None
) -> tuple[Any, Trained]:
    """A small GPT-2 that writes summaries word by word; its token vectors start as those of `encoder`."""
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=recipe.hidden,
        n_layer=recipe.layers,
        n_head=recipe.heads,
        n_positions=recipe.summary_length + 1,
        initializer_range=recipe.spread,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = AutoModelForCausalLM.from_config(config)
    if encoder is not None:
        with torch.no_grad():
            model.get_input_embeddings().weight.copy_(encoder.get_input_embeddings().weight)
    rows = [[tokenizer.cls_token_id, *row] for row in examples.labels]
    batches = endless_batches([len(row) for row in rows], 2 * recipe.batch, seed)

    def loss() -> Tensor:
        batch = [rows[row] for row in next(batches)]
        return model(input_ids=padded(batch, tokenizer.pad_token_id), labels=padded(batch, IGNORED)).loss

    trained = train(model, loss, [{"params": model.parameters(), "lr": recipe.pretraining_rate}], budget, watch)
    return model, trained


def warm_started(encoder: Path, decoder: Path) -> Any:
    """The pair of two checkpoint folders, as any user would make it."""
    return EncoderDecoderModel.from_encoder_decoder_pretrained(encoder, decoder, cross_attention_init="copy")


def parameters_by_origin(model: Any) -> dict[str, int]:
    """How many parameters of a warm-started pair come from either checkpoint, and how many are new."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    loaded = set(model.load_report.loaded)
    count = {side: sum(sizes[name] for name in loaded & set(sizes) if name.startswith(side)) for side in SIDES}
    return count | {"new": sum(sizes.values()) - sum(count.values())}


def from_random_weights(config: EncoderDecoderConfig, seed: int) -> Any:
    """The same architecture with nothing learned."""
    torch.manual_seed(seed)
    return EncoderDecoderModel(config=EncoderDecoderConfig.from_dict(config.to_dict())).eval()


def set_generation(model: Any, recipe: Recipe) -> None:
    """How the model writes, saved with it: `generate` and the command line take it from there."""
    settings = model.generation_config
    settings.max_length, settings.no_repeat_ngram_size = recipe.summary_length, 2


def fine_tune(model: Any, examples: Examples, recipe: Recipe, budget: Budget, seed: int, watch: Watch) -> Trained:
    """Train a pair on source -> summary; weights that come from a checkpoint move at their own, lower rate."""
    pad = model.config.encoder.pad_token_id
    lengths = [len(row) for row in examples.together]
    batches = endless_batches(lengths, recipe.batch, seed)

    def loss() -> Tensor:
        rows = next(batches)
        ids = padded([examples.sources[row] for row in rows], pad)
        labels = padded([examples.labels[row] for row in rows], IGNORED)
        return model(input_ids=ids, labels=labels).loss

    loaded = set(model.load_report.loaded) if model.load_report is not None else set()
    warm = [parameter for name, parameter in model.named_parameters() if name in loaded]
    new = [parameter for name, parameter in model.named_parameters() if name not in loaded]
    groups = [{"params": warm, "lr": recipe.warm_rate}, {"params": new, "lr": recipe.new_rate}]
    return train(model, loss, [group for group in groups if group["params"]], budget, watch)
