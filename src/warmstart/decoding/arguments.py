"""The arguments of `generate` that are no settings, where a search is compiled: those there are, and those refused."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from warmstart.generation_config import GenerationConfig
from warmstart.spec import BESIDE

_ARGUMENTS = (
    "input_ids",
    "inputs_embeds",
    "attention_mask",
    "encoder_outputs",
    "decoder_input_ids",
    "decoder_attention_mask",
    "token_type_ids",
    "position_ids",
    "global_attention_mask",
    *BESIDE.values(),
    "negative_prompt_ids",
    "negative_prompt_attention_mask",
    "tokenizer",
)
_WITHOUT_EFFECT = ("labels", "return_dict", "use_model_defaults", "trace")  # as a batch or an older call may hold them
_DRAFTS = "each row would accept another number of drafted tokens, and rows of one compiled search are of one age"
_REFUSED = {
    "prompt_lookup_num_tokens": _DRAFTS,
    "assistant_model": _DRAFTS,
    "past_key_values": "the prompt is read anew; give what came before as decoder_input_ids",
    "decoder_inputs_embeds": "the decoder's prompt is given as decoder_input_ids",
}


def check_arguments(
    config: GenerationConfig, arguments: Mapping[str, Any], framework: str, own: Mapping[str, str]
) -> None:
    """Refuse the arguments of `generate` that it does not know, and those that it cannot honour.

    `own` are arguments that this framework alone has no use for, each with the reason.

    Raises:
        ValueError: names the argument, and the reason or the nearest name.
    """
    refused = {**_REFUSED, **own}
    given = {**arguments, "prompt_lookup_num_tokens": config.prompt_lookup_num_tokens}
    for name, reason in refused.items():
        if given.get(name) is not None:
            raise ValueError(
                f"{name} is not supported by generate() in {framework}: {reason}; EncoderDecoderModel has it"
            )
    for name in arguments:
        if name not in (*_ARGUMENTS, *refused, *_WITHOUT_EFFECT):
            near = difflib.get_close_matches(name, [*GenerationConfig.DEFAULTS, *_ARGUMENTS], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"generate() knows no argument {name!r}{hint}")


def wanted(config: GenerationConfig) -> tuple[str, ...]:
    """What is to be returned of each step."""
    names = ("scores", "logits", "attentions", "hidden_states")
    return tuple(name for name in names if config.return_dict_in_generate and getattr(config, f"output_{name}"))


def listed(functions: Any) -> tuple[Any, ...]:
    """One function, several or none, as a tuple."""
    return () if functions is None else tuple(functions) if isinstance(functions, Iterable) else (functions,)
