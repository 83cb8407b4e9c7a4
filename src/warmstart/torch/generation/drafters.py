"""Which drafter a call of `generate` asks for, and whether it fits the model.

Shapes: b sources, r rows, s source length, p prompt length, v vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from warmstart.decoding.drafts import Text
from warmstart.decoding.processors import processors_for
from warmstart.torch.generation.drafts import Assistant, Drafter, LookUp
from warmstart.torch.generation.loops import Call
from warmstart.torch.runner import ModuleRunner, encode_source, runner_for


def check_drafter(model: Any, arguments: dict[str, Any]) -> None:
    """Refuse a draft model that does not fit, or drafts from a source whose ids mean other things than the decoder's.

    Raises:
        ValueError: says what does not fit, and what would.
    """
    assistant = arguments.get("assistant_model")
    if assistant is None:
        _check_source(model, arguments)
        return
    if not hasattr(assistant, "generation_config") or not callable(getattr(assistant, "forward", None)):
        raise ValueError(f"assistant_model is a {type(assistant).__name__}; give a model that can generate")
    if arguments.get("assistant_tokenizer") is not None:
        raise ValueError(
            "assistant_tokenizer: a draft model must have the model's own tokenizer, for what it writes is compared "
            "token by token; leave assistant_tokenizer out if it has, else set prompt_lookup_num_tokens in its place"
        )
    _check_vocabularies(model, assistant)


def drafter_for(call: Call, model: Any, arguments: dict[str, Any], prompt_mask: Tensor | None) -> Drafter:
    """What guesses the tokens of this call.

    Raises:
        ValueError: source or draft model have a vocabulary of their own, and the tokenizers are missing.
    """
    assistant = arguments.get("assistant_model")
    if assistant is not None:
        check_drafter(model, arguments)
        return _assistant(call, model, assistant, arguments, prompt_mask)
    size = call.config.max_matching_ngram_size or 2
    texts: list[Text | None] = [None] * len(call.prompt)
    if (sources := _decoder_sources(call, model, arguments)) is not None:
        texts = [Text(size, ids) for ids in sources]
    return LookUp([text for text in texts for _ in range(call.plan.rows)], size, call.config.prompt_lookup_num_tokens)


def _decoder_sources(call: Call, model: Any, arguments: dict[str, Any]) -> list[list[int]] | None:
    """The ids of each source in the decoder's vocabulary, without padding; None where there is no encoder, or where the
    source is not given by ids.
    """
    if call.scorer.source is None or not hasattr(model, "encode"):
        return None  # without an encoder the prompt is looked up with what was written
    sources = [row[row >= 0].tolist() for row in call.scorer.source[:: call.plan.rows]]
    if _is_read_again(arguments):
        ours, theirs = arguments["tokenizer"], arguments["encoder_tokenizer"]
        texts = [theirs.decode(ids, skip_special_tokens=True) for ids in sources]
        return [ours(text, add_special_tokens=False)["input_ids"] for text in texts]
    _check_source(model, arguments)
    return sources


def _is_read_again(arguments: dict[str, Any]) -> bool:
    return arguments.get("tokenizer") is not None and arguments.get("encoder_tokenizer") is not None


def _check_source(model: Any, arguments: dict[str, Any]) -> None:
    if not hasattr(model, "encode") or _is_read_again(arguments):
        return
    sizes = model.config.encoder.vocab_size, model.config.decoder.vocab_size
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"prompt_lookup_num_tokens drafts from the source, and the encoder's vocabulary of {sizes[0]} is not the "
            f"decoder's of {sizes[1]}: pass tokenizer=... (the decoder's) and encoder_tokenizer=..., so that the "
            "source is encoded again, or set prompt_lookup_num_tokens=None"
        )


def _assistant(
    call: Call, model: Any, assistant: Any, arguments: dict[str, Any], prompt_mask: Tensor | None
) -> Assistant:
    config, plan = call.config, call.plan
    source: dict[str, Any] = {}
    if hasattr(assistant, "encode"):
        if arguments.get("input_ids") is None:
            raise ValueError("assistant_model reads the source itself: give input_ids")
        names = ("input_ids", "attention_mask", "token_type_ids")
        own = {name: arguments[name] for name in names if arguments.get(name) is not None}
        source = encode_source(assistant, own, ())
    mask = None
    if prompt_mask is not None and not bool(prompt_mask.all()):
        mask = torch.cat([prompt_mask, prompt_mask.new_ones(len(prompt_mask), plan.max_length - plan.prompt_length)], 1)
    if source or not hasattr(model, "encode"):
        runner = runner_for(assistant, source, config, rows=plan.rows, length=plan.max_length, mask=mask)
    else:
        runner = ModuleRunner(assistant, {}, rows=plan.rows, mask=mask)
    vocabulary = (model.config.decoder if hasattr(model, "encode") else model.config).vocab_size
    # what the caller wrote is called for the model alone
    processors = processors_for(call.xp, config, plan, vocabulary)
    own_config = assistant.generation_config
    return Assistant(
        call.xp,
        runner,
        processors,
        call.prompt.repeat_interleave(plan.rows, 0),
        call.scorer.source,
        count=_setting("num_assistant_tokens", config, own_config),
        grows=_setting("num_assistant_tokens_schedule", config, own_config) != "constant",
        threshold=_setting("assistant_confidence_threshold", config, own_config) or 0.0,
        generator=call.generator,
        sample=plan.sample,
    )


def _setting(name: str, config: Any, assistant: Any) -> Any:
    """A setting of the call, or if it was not made, of the draft model."""
    return getattr(config if name in config.explicit() else assistant, name)


def _check_vocabularies(model: Any, assistant: Any) -> None:
    def size(of: Any, side: str) -> int:
        return int((getattr(of.config, side) if hasattr(of, "encode") else of.config).vocab_size)

    sides = ["decoder", *(["encoder"] if hasattr(model, "encode") and hasattr(assistant, "encode") else [])]
    if hasattr(assistant, "encode") and not hasattr(model, "encode"):
        raise ValueError("assistant_model has an encoder and the model has none; give a causal language model")
    for side in sides:
        if size(model, side) != size(assistant, side):
            raise ValueError(
                f"assistant_model has a {side} vocabulary of {size(assistant, side)} and the model one of "
                f"{size(model, side)}: their token ids mean different things; give a draft model with the same "
                "tokenizer, or draft from the source with prompt_lookup_num_tokens"
            )
