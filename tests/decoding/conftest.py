"""Tiny random models, ours and those of `transformers` with the same weights, and the array functions in numpy."""

import copy
import functools
import random
import sys
import tempfile

import numpy as np
import pytest
import torch
import transformers

from warmstart import AutoModelForCausalLM, EncoderDecoderModel
from warmstart.decoding.settings import resolve
from warmstart.torch.arrays import TorchArrays

__all__ = ["resolve"]

VOCABULARY = 31
PAD, START, END = 1, 2, 3

transformers.logging.set_verbosity_error()


@pytest.fixture(scope="session")
def zoo():
    """This module: tests are no package, so what they share comes as a fixture."""
    return sys.modules[__name__]


@pytest.fixture(params=["numpy", "strict", "torch"])
def xp(request):
    return {"numpy": NumpyArrays, "strict": StrictArrays, "torch": TorchArrays}[request.param]()


class NumpyArrays:
    """The array functions of decoding over numpy alone."""

    arange = staticmethod(np.arange)
    any, all, sum, max, min = (staticmethod(f) for f in (np.any, np.all, np.sum, np.max, np.min))

    def array(self, values):
        x = np.array(values)
        return x.astype(np.float32) if x.dtype.kind == "f" else x

    def full(self, shape, value):
        return np.full(shape, value, np.float32 if isinstance(value, float) else None)

    def reshape(self, x, shape):
        return np.reshape(x, shape)

    def concat(self, parts, axis):
        return np.concatenate(parts, axis)

    def where(self, condition, yes, no):
        return np.where(condition, yes, no)

    def to_float(self, x):
        return np.asarray(x, np.float32) if isinstance(x, np.ndarray) else float(x)

    def argmax(self, x):
        return np.argmax(x, -1)

    def top_k(self, x, k):
        index = np.argsort(-x, axis=-1, kind="stable")[..., :k]
        return np.take_along_axis(x, index, -1), index

    def sort(self, x):
        return np.sort(x, -1)

    def cumsum(self, x):
        return np.cumsum(x, -1, dtype=x.dtype)

    def softmax(self, x):
        return np.exp(self.log_softmax(x))

    def log_softmax(self, x):
        x = x - x.max(-1, keepdims=True)
        with np.errstate(divide="ignore"):
            return x - np.log(np.exp(x).sum(-1, keepdims=True))

    def take(self, x, index):
        return np.take_along_axis(x, index.reshape(index.shape + (1,) * (x.ndim - 2)), 1)

    def mark(self, tokens, valid, size):
        marked = np.zeros((len(tokens), size + 1), bool)
        np.put_along_axis(marked, np.where(valid, tokens, size), True, 1)
        return marked[:, :size]


class Strict(np.ndarray):
    """An array that has no value yet, as inside a compiled loop: Python may not branch on it or index with it."""

    def __array_wrap__(self, array, context=None, return_scalar=False):
        return array.view(Strict)

    def __getitem__(self, key):
        return np.asarray(super().__getitem__(key)).view(Strict)

    def _refuse(self, *_):
        raise TypeError("the value of an array is not known while a loop is compiled")

    __bool__ = __int__ = __float__ = __index__ = __iter__ = __len__ = __contains__ = _refuse


class StrictArrays:
    """The numpy functions again, giving arrays whose values Python cannot see."""

    def __getattr__(self, name):
        function = getattr(NumpyArrays(), name)

        def call(*arguments, **options):
            return strict(function(*map(plain, arguments), **options))

        return call


def strict(x):
    if isinstance(x, tuple):
        return tuple(map(strict, x))
    return np.asarray(x).view(Strict) if isinstance(x, (np.ndarray, np.generic)) else x


def plain(x):
    if isinstance(x, (tuple, list)):
        return type(x)(map(plain, x))
    return x.view(np.ndarray) if isinstance(x, np.ndarray) else x


def as_array(xp, x):
    """A numpy array as one of the framework of `xp`."""
    if isinstance(xp, TorchArrays):
        return torch.as_tensor(x)
    return strict(np.asarray(x)) if isinstance(xp, StrictArrays) else np.asarray(x)


@functools.cache
def encoder_decoder(seed):
    """A random model, BERT to BERT (odd) or to GPT-2 (even), RoBERTa to RoBERTa (6) or BERT to BART (7).

    Big weights make its distributions uneven.
    """
    torch.manual_seed(seed + 8)
    # with a tied head a random model mostly repeats its last token
    sizes = {"vocab_size": VOCABULARY, "initializer_range": 0.7, "tie_word_embeddings": False}
    bert = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 40,
    }
    encoder = transformers.BertConfig(**sizes, **bert, pad_token_id=PAD)
    if seed == 6:
        roberta = {**sizes, **bert, "pad_token_id": PAD, "max_position_embeddings": 42, "type_vocab_size": 1}
        encoder = transformers.RobertaConfig(**roberta)
        decoder = transformers.RobertaConfig(**roberta, is_decoder=True, add_cross_attention=True)
    elif seed == 7:
        decoder = transformers.BartConfig(
            vocab_size=VOCABULARY,
            init_std=0.7,
            tie_word_embeddings=False,
            d_model=16,
            decoder_layers=2,
            decoder_attention_heads=2,
            decoder_ffn_dim=24,
            max_position_embeddings=40,
            pad_token_id=PAD,
            forced_eos_token_id=None,
            is_decoder=True,
            add_cross_attention=True,
        )
    elif seed % 2:
        decoder = transformers.BertConfig(**sizes, **bert, is_decoder=True, add_cross_attention=True, pad_token_id=PAD)
    else:
        decoder = transformers.GPT2Config(**sizes, n_embd=16, n_layer=2, n_head=2, n_positions=40)
        decoder.bos_token_id = decoder.eos_token_id = None
        decoder.add_cross_attention = True
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.encoder._attn_implementation = config.decoder._attn_implementation = "eager"
    model = transformers.EncoderDecoderModel(config).eval()
    # what a random decoder writes should depend on its source, on the position and on what it wrote
    for name, parameter in model.decoder.named_parameters():
        if any(part in name for part in ("word_embeddings", "position_embeddings", "wte", "wpe")):
            parameter.data *= 3
        elif name.startswith(("bert.encoder", "roberta.encoder")) and name.endswith("output.dense.weight"):
            parameter.data *= 0.1
    for store in (model.config, model.generation_config):
        store.decoder_start_token_id, store.pad_token_id, store.eos_token_id = START, PAD, END
    return model


@functools.cache
def causal(seed):
    """A random GPT-2 or Llama model."""
    torch.manual_seed(seed)
    if seed % 2:
        config = transformers.GPT2Config(
            vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=60, initializer_range=0.7
        )
        model = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=60,
            initializer_range=0.7,
        )
        model = transformers.LlamaForCausalLM(config)
    for store in (model.config, model.generation_config):
        store.bos_token_id, store.pad_token_id, store.eos_token_id = START, PAD, END
    return model.eval()


@functools.cache
def _loaded(kind, seed):
    with tempfile.TemporaryDirectory() as folder:
        globals()[kind](seed).save_pretrained(folder)
        return {"encoder_decoder": EncoderDecoderModel, "causal": AutoModelForCausalLM}[kind].from_pretrained(folder)


def ours(kind, seed):
    """Our model with the weights of `encoder_decoder(seed)` or `causal(seed)`, a new copy each time."""
    return copy.deepcopy(_loaded(kind, seed))


def shared(kind, seed):
    """The same, one for all tests that change nothing."""
    return _loaded(kind, seed)


def sources(seed, rows=None, longest=9, side="right"):
    """Random ids (b, s) of different lengths, padded, and their mask."""
    draw = random.Random(seed)
    lengths = [draw.randint(1, longest) for _ in range(rows or draw.randint(1, 4))]
    ids = torch.full((len(lengths), max(lengths)), PAD)
    for row, length in zip(ids, lengths, strict=True):
        values = torch.tensor([draw.randrange(4, VOCABULARY) for _ in range(length)])
        if side == "right":
            row[:length] = values
        else:
            row[len(row) - length :] = values
    return ids, (ids != PAD).long()
