"""The settings that many inputs share: checked before an input is read, and fitted to the inputs of one batch.

Shapes: b inputs of a batch, p prompt length, n length so far, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from warmstart.decoding.processors import processors_for
from warmstart.decoding.rules import completed
from warmstart.decoding.settings import laid, lay_over, of_given
from warmstart.generation_config import GenerationConfig
from warmstart.torch.arrays import TorchArrays
from warmstart.torch.generation.drafters import check_drafter
from warmstart.torch.generation.generate import plan_of
from warmstart.torch.generation.inputs import ENCODER_ARGUMENTS, check_arguments, decoder_prompt, listed

_OF_A_BATCH = ("input_ids", "inputs_embeds", "attention_mask", "encoder_outputs", "decoder_attention_mask")
_FUNCTIONS = ("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn")


def checked_settings(
    model: Any, given: GenerationConfig | None, settings: Mapping[str, Any], tokenizers: tuple[Any, Any]
) -> dict[str, Any]:
    """The keywords of each call of `generate`: `settings` over those `given`, with what the tokenizers are needed for.

    Raises:
        ValueError: settings are unknown, contradict each other, hold ids outside the vocabulary, belong to one batch,
            or ask for drafts that do not fit the model.
    """
    settings = laid(of_given(given), settings)
    config, arguments = lay_over(model.generation_config, None, settings)
    if config.return_dict_in_generate:
        raise ValueError("generate_stream gives answers of its own: leave return_dict_in_generate out")
    if settings.get("streamer") is not None:
        raise ValueError(
            "generate_stream answers inputs as they are finished, and takes no streamer; give generate one"
        )
    for name in (*_OF_A_BATCH, *ENCODER_ARGUMENTS):
        if settings.get(name) is not None:
            raise ValueError(f"{name} belongs to one batch, and generate_stream makes its own; leave it out")
    check_arguments({name: value for name, value in arguments.items() if name not in (*_FUNCTIONS, "streamer")})
    for name in _FUNCTIONS:
        listed(name, settings.get(name))
    prompt = settings.get("decoder_input_ids")
    if prompt is not None:
        alone = {"input_ids": torch.zeros(1, 1, dtype=torch.long), "decoder_input_ids": prompt}
        settings["decoder_input_ids"] = prompt = decoder_prompt(model, config, alone)[0]
    plan = plan_of(model, config, settings, 1 if prompt is None else prompt.shape[1], encoder_decoder=True)
    decoder = model.decoder.spec.embedding.vocabulary
    processors_for(TorchArrays(model.device), config, plan, decoder)
    if config.stop_strings is not None or config.prompt_lookup_num_tokens is not None:
        source, target = tokenizers
        settings.setdefault("tokenizer", target or source)
        if target is not None and target is not source:
            settings.setdefault("encoder_tokenizer", source)
    if config.prompt_lookup_num_tokens is not None or settings.get("assistant_model") is not None:
        check_drafter(model, settings)
    if config.stop_strings is not None:
        completed(config.stop_strings, settings["tokenizer"])
    return settings


def settings_of_batch(settings: Mapping[str, Any], places: Sequence[int]) -> dict[str, Any]:
    """The same for the inputs at these places: the prompt for each, and what depends on which input it is."""
    own = dict(settings)
    prompt, starts = settings.get("decoder_input_ids"), settings.get("decoder_start_token_id")
    if isinstance(starts, Tensor):
        starts = starts.tolist()
    allowed = settings.get("prefix_allowed_tokens_fn")
    if prompt is not None:
        own["decoder_input_ids"] = prompt.expand(len(places), -1)
    if isinstance(starts, (list, tuple)) and len(starts) != 1:
        if max(places) >= len(starts):
            raise ValueError(f"decoder_start_token_id has {len(starts)} ids, and none for input {max(places)}")
        own["decoder_start_token_id"] = [starts[place] for place in places]
    if allowed is not None:
        own["prefix_allowed_tokens_fn"] = _of_inputs(allowed, places)
    return own


def _of_inputs(function: Callable[[int, Tensor], Iterable[int]], places: Sequence[int]) -> Callable[[int, Tensor], Any]:
    return lambda row, ids: function(places[row], ids)


def check_inputs(inputs: Any) -> None:
    """Refuse what is one input, or none.

    Raises:
        ValueError: says what it is.
    """
    if isinstance(inputs, (str, bytes, Mapping)) or not hasattr(inputs, "__iter__"):
        raise ValueError(f"inputs is a {type(inputs).__name__}; give a list of texts or of source ids, or an iterator")
