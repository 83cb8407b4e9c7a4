"""Tiny checkpoints with tokenizers, made here, and command lines that are to go well or to be refused."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from cli.helpers import Ran, command

TEXTS = [
    "Return the sum of the numbers.",
    "Open a file and give its lines one by one, without the line ends, until there is none left.",
    "Close it.",
    "Raise an error if the value is not a number, and say which value it was.",
    "Split the text at spaces.",
    "Write the names of all files in the folder.",
]


@pytest.fixture(scope="session")
def run() -> Callable[..., Ran]:
    """Run a command line that is to go well."""

    def go(*words: object, stdin: str | bytes | None = None) -> Ran:
        ran = command(*words, stdin=stdin)
        assert (ran.code, ran.error) == (0, None), ran.err
        return ran

    return go


@pytest.fixture(scope="session")
def refused() -> Callable[..., str]:
    """Run a command line that is to be refused: exit code 2, nothing but one line on stderr, which is returned."""

    def go(*words: object, stdin: str | bytes | None = None) -> str:
        ran = command(*words, stdin=stdin)
        assert (ran.code, ran.error, ran.out) == (2, None, ""), ran
        assert ran.err.count("\n") == 1 and ran.err.startswith("warmstart: error: "), ran.err
        return ran.err.removeprefix("warmstart: error: ").rstrip("\n")

    return go


def word_pieces() -> Tokenizer:
    """Letters, words and ends of words in order; what the trainer of word pieces learns differs from run to run."""
    words = sorted({word for text in TEXTS for word in re.findall(r"\w+|[^\w\s]", text.lower())})
    letters = sorted({letter for word in words for letter in word})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    ends = sorted({word[-size:] for word in words for size in (2, 3) if len(word) > size})
    inside = [f"##{part}" for part in [*letters, *ends]]
    pieces = list(dict.fromkeys([*special, *letters, *words, *inside]))[:150]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def byte_pairs() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "initializer_range": 0.5,  # so that results differ from text to text
}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `bert`, `gpt2` and `pair`, made of the two; not to be changed."""
    import torch

    import warmstart as w

    root = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    reads = w.BertTokenizer(vocab=word_pieces().get_vocab(), model_max_length=48)
    writes = w.GPT2Tokenizer(tokenizer_object=byte_pairs())
    config = w.BertConfig(vocab_size=len(reads), max_position_embeddings=48, **SMALL)
    w.BertForMaskedLM(config).save_pretrained(root / "bert")
    reads.save_pretrained(root / "bert")
    end = writes.eos_token_id
    config = w.GPT2Config(
        vocab_size=len(writes),
        n_embd=24,
        n_layer=2,
        n_head=2,
        n_positions=24,
        initializer_range=0.5,
        bos_token_id=end,
        eos_token_id=end,
    )
    w.GPT2LMHeadModel(config).save_pretrained(root / "gpt2")
    writes.save_pretrained(root / "gpt2")
    pair = w.EncoderDecoderModel.from_encoder_decoder_pretrained(root / "bert", root / "gpt2")
    pair.save_pretrained(root / "pair", encoder_tokenizer=reads, decoder_tokenizer=writes)
    return root


@pytest.fixture
def copy_of(checkpoints: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a checkpoint that a test may spoil."""
    return lambda name: Path(shutil.copytree(checkpoints / name, tmp_path / name))
