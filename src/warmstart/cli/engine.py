"""Runs a saved pair on texts: settings checked first, then loaded, then texts answered a batch at a time.

Shapes: b texts of a batch, s source length, t length of the results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from warmstart.checkpoint.writer import TARGET_TOKENIZER
from warmstart.cli.facts import read_tokenizer
from warmstart.cli.rendering import say
from warmstart.cli.settings import prepare_torch
from warmstart.cli.token_ids import missing, token_ids
from warmstart.decoding.settings import lay_over, resolve
from warmstart.families import family_of
from warmstart.families.auto import AutoConfig
from warmstart.generation_config import GenerationConfig
from warmstart.hub import find_file
from warmstart.tokenization.auto import AutoTokenizer
from warmstart.warm_start import fill_settings, pair_of

FLAX_BUCKET = 64  # sources are padded to a multiple of so many tokens


def check_settings(place: str, hub: Mapping[str, Any], call: Mapping[str, Any]) -> int | None:
    """Check what a model would generate with before its weights are read; gives the length that nobody chose, if so.

    Raises:
        FileNotFoundError: no such folder or repository.
        ValueError: it is no encoder-decoder, lacks a token id, or settings contradict each other or its positions.
    """
    config = pair_of(AutoConfig.from_pretrained(place, **hub))[0]
    if config.model_type != "encoder-decoder":
        raise ValueError(
            f"{place} is a {config.model_type}, not an encoder-decoder; make one with warmstart create --encoder ..."
        )
    if find_file(place, "generation_config.json", required=False, **hub) is not None:
        config.merge_settings(GenerationConfig.from_pretrained(place, **hub))
    fill_settings(config)
    settings, _ = lay_over(config.generation_config, None, call)
    for name in missing(token_ids(settings, [])):
        if name not in call and not (name == "decoder_start_token_id" and settings.bos_token_id is not None):
            raise ValueError(f"{place} has no {name}; give it with --set {name}=ID")
    plan = resolve(settings, call, prompt_length=1, encoder_decoder=True)
    positions = family_of(config.decoder).spec(config.decoder, True).positions
    if positions is not None and plan.max_length - 1 > positions:  # the last token is not read
        raise ValueError(f"results of {plan.max_length} tokens are more than the decoder's {positions} positions take")
    length = settings.DEFAULTS["max_length"]
    is_chosen = settings.max_new_tokens is not None or settings.max_length != length or "max_length" in call
    return None if is_chosen else length


def load_model(
    place: str,
    hub: Mapping[str, Any],
    dtype: str,
    device: str | None,
    threads: int | None,
    seed: int,
    framework: str = "torch",
) -> Any:
    """The model, where it is to run; its framework is told how.

    Raises:
        ImportError: the framework is missing.
        OSError: a file is missing or corrupt.
        ValueError: the weights do not fit the configuration, or there is no such device.
    """
    if framework == "flax":
        return _load_flax(place, hub, dtype, device, threads, seed)
    if framework == "tf":
        return _load_tf(place, hub, dtype, device, threads, seed)
    from warmstart import EncoderDecoderModel

    where = prepare_torch(seed, device, threads)
    return EncoderDecoderModel.from_pretrained(place, dtype=dtype, **hub).to(where)


def _load_flax(
    place: str, hub: Mapping[str, Any], dtype: str, device: str | None, threads: int | None, seed: int
) -> Any:
    """The model in JAX, on the device that is named or JAX's first; sources are padded, so that few shapes compile."""
    from warmstart import FlaxEncoderDecoderModel

    if threads is not None:
        raise ValueError("--threads is torch's; JAX takes the cores that it is given (taskset, XLA_FLAGS)")
    if device is not None:
        _use_device(device)
    if dtype == "auto":
        dtype = AutoConfig.from_pretrained(place, **hub).dtype or "float32"
    return FlaxEncoderDecoderModel.from_pretrained(place, dtype=dtype, seed=seed, **hub)


def _load_tf(place: str, hub: Mapping[str, Any], dtype: str, device: str | None, threads: int | None, seed: int) -> Any:
    """The model in TensorFlow, on the device that TensorFlow chooses."""
    from warmstart import TFEncoderDecoderModel  # first: it says what is missing

    import keras  # isort: skip
    import tensorflow as tf  # isort: skip

    if device is not None:
        raise ValueError(f"--device {device}: TensorFlow takes the devices that it sees (CUDA_VISIBLE_DEVICES)")
    if threads is not None:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    keras.utils.set_random_seed(seed)
    return TFEncoderDecoderModel.from_pretrained(place, dtype=dtype, **hub)


def _use_device(name: str) -> None:
    import jax

    try:
        jax.config.update("jax_default_device", jax.devices(name)[0])
    except RuntimeError as error:
        raise ValueError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from error


def load_tokenizers(place: str, hub: Mapping[str, Any], source: str | None, target: str | None) -> tuple[Any, Any]:
    """The tokenizer of the texts and that of the results: those named, else the model's own.

    Raises:
        FileNotFoundError: there is none.
    """
    reads = AutoTokenizer.from_pretrained(source) if source else AutoTokenizer.from_pretrained(place, **hub)
    if target:
        return reads, AutoTokenizer.from_pretrained(target)
    writes = read_tokenizer(place, TARGET_TOKENIZER, hub)
    if writes is None:
        config = pair_of(AutoConfig.from_pretrained(place, **hub))[0]
        sizes = config.encoder.vocab_size, config.decoder.vocab_size
        if sizes[0] != sizes[1]:
            say(
                f"warning: {place} has no {TARGET_TOKENIZER}/, and its sides have vocabularies of {sizes[0]:,} and "
                f"{sizes[1]:,}: name the tokenizer of the results with --decoder-tokenizer"
            )
    return reads, writes or reads


def longest_source(model: Any, tokenizer: Any, asked: int | None) -> int | None:
    """How many tokens of a text are read: as asked, else as many as encoder and tokenizer are made for.

    Raises:
        ValueError: more were asked for than the encoder has positions.
    """
    spec = model.sides()[0].spec
    if asked is not None:
        if spec.positions is not None and asked > spec.positions:
            raise ValueError(f"--max-source-length {asked} is more than the encoder's {spec.positions} positions")
        return asked
    rotary = spec.attention.rotary
    limits = [spec.positions, rotary.positions if rotary else None, tokenizer.model_max_length]
    longest = min(limit for limit in limits if limit)
    return longest if longest < 10**9 else None


def answer(
    model: Any,
    tokenizers: tuple[Any, Any],
    batch_size: int,
    longest: int | None,
    call: Mapping[str, Any],
    texts: list[str],
    done: Callable[[list[int]], None],
) -> tuple[list[list[str]], int]:
    """For each text its results, and how many texts were cut; as texts are finished, others take their places.

    A text without tokens has one empty result for each that is asked for. `done` is told which texts are finished.
    """
    source = tokenizers[0]
    sequences = lay_over(model.generation_config, None, call)[0].num_return_sequences
    results = [[""] * sequences for _ in texts]
    full = [row for row, text in enumerate(texts) if text.strip()]
    if not full:
        done(list(range(len(texts))))
        return results, 0
    limits = {"truncation": True, "max_length": longest} if longest else {}
    batch = source([texts[row] for row in full], return_attention_mask=False, verbose=False, **limits)
    names = [name for name in ("input_ids", *model.sides()[0].spec.beside_names) if name in batch]
    read = {row: {name: batch[name][place] for name in names} for place, row in enumerate(full)}
    cut = sum(bool(encoding.overflowing) for encoding in batch.encodings)
    order = sorted((row for row in full if read[row]["input_ids"]), key=lambda row: -len(read[row]["input_ids"]))
    done(sorted(set(range(len(texts))) - set(order)))
    run = _streamed if hasattr(model, "generate_stream") else _batched
    for place, found in run(model, tokenizers, [read[row] for row in order], batch_size, sequences, call):
        results[order[place]] = [text.strip() for text in found]
        done([order[place]])
    return results, cut


def _streamed(
    model: Any,
    tokenizers: tuple[Any, Any],
    sources: list[dict[str, list[int]]],
    batch_size: int,
    sequences: int,
    call: Mapping[str, Any],
) -> Iterator[tuple[int, list[str]]]:
    """Which source is answered, and its texts: whenever one is finished another takes its place."""
    import torch

    both = dict(zip(("tokenizer", "decoder_tokenizer"), tokenizers, strict=True))
    for answer in model.generate_stream(sources, batch_size=batch_size, in_order=False, **both, **call):
        if isinstance(answer.error, torch.OutOfMemoryError):
            raise ValueError(
                f"the device has too little memory for {batch_size} texts at once; lower --batch-size"
            ) from answer.error
        if answer.error is not None:
            raise answer.error
        yield answer.index, answer.texts


def _batched(
    model: Any,
    tokenizers: tuple[Any, Any],
    sources: list[dict[str, list[int]]],
    batch_size: int,
    sequences: int,
    call: Mapping[str, Any],
) -> Iterator[tuple[int, list[str]]]:
    """The same, one batch after another; sources are padded to some lengths, since each shape is compiled."""
    for start in range(0, len(sources), batch_size):
        rows = sources[start : start + batch_size]
        lengths = [len(row["input_ids"]) for row in rows]
        shape = len(rows), -(-max(lengths) // FLAX_BUCKET) * FLAX_BUCKET
        positions = model.sides()[0].spec.positions
        if positions is not None:
            shape = len(rows), min(shape[1], positions)
        batch = {name: np.zeros(shape, dtype=np.int64) for name in ("attention_mask", *rows[0])}
        batch["input_ids"][:] = model.config.encoder.pad_token_id or 0
        for row, (values, length) in enumerate(zip(rows, lengths, strict=True)):
            batch["attention_mask"][row, :length] = 1
            for name, ids in values.items():
                batch[name][row, :length] = ids
        found = model.generate(**batch, tokenizer=tokenizers[1], **call)
        texts = tokenizers[1].batch_decode(np.asarray(getattr(found, "sequences", found)), skip_special_tokens=True)
        for place in range(len(rows)):
            yield start + place, texts[place * sequences : (place + 1) * sequences]
