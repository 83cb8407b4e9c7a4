"""From the settings of a model and of one call to what `generate` does: lengths, strategy and token ids, filled in."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from warmstart.generation_config import GenerationConfig

_REFUSED = {
    "dola_layers": "it reads the logits of inner layers, which decoders with cross-attention are not trained for; use "
    "contrastive search (penalty_alpha, top_k)",
    "token_healing": "it cuts the end off a prompt of text; give whole tokens as the prompt",
    "watermarking_config": "no watermark is built in; pass your own as a logits_processor",
    "assistant_early_exit": "a stack has no head of its own on its inner layers; pass a smaller assistant_model, or "
    "set prompt_lookup_num_tokens",
    "return_legacy_cache": "past_key_values is always a KeyValueCache, which can be read as the tuples of old",
}
_ONLY_SAMPLING = ("temperature", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
_ONLY_BEAMS = ("length_penalty", "early_stopping")

_SAME_LIMIT = {
    "max_length": "max_new_tokens",
    "max_new_tokens": "max_length",
    "min_length": "min_new_tokens",
    "min_new_tokens": "min_length",
}
_KEPT_IF_NONE = ("max_length", "num_beams", "num_return_sequences", "do_sample", "early_stopping", "use_cache")


@dataclass(frozen=True)
class Plan:
    """One call of `generate`. Lengths count the prompt (a start token, or more)."""

    prompt_length: int
    max_length: int
    min_length: int
    beams: int
    sequences: int  # returned for each source
    sample: bool
    eos: tuple[int, ...]
    pad: int
    strategy: str = "rows"  # "rows" one by one, "beams", "groups" of beams, "constrained", "contrastive" or "drafted"
    groups: int = 1

    @property
    def rows(self) -> int:
        """Rows of the decoder for each source."""
        return self.beams if self.beams > 1 else self.sequences


def lay_over(
    model: GenerationConfig, given: GenerationConfig | None, call: Mapping[str, Any]
) -> tuple[GenerationConfig, dict[str, Any]]:
    """The settings of a call: its keywords, over the `generation_config` it was given, over the model's own.

    None switches off a setting that can be off (`top_k=None`), and is passed over where it cannot (`num_beams=None`).
    A length, in whichever of its two names, replaces that of a lower layer. Returned with the settings: the keywords
    that are none.

    >>> model, given = GenerationConfig(num_beams=4, max_new_tokens=9), GenerationConfig(num_beams=2)
    >>> lay_over(model, given, {"max_length": 20, "top_k": None, "attention_mask": ...})
    (GenerationConfig(num_beams=2, max_length=20, top_k=0), {'attention_mask': Ellipsis})
    """
    merged = model.explicit()
    layers = [of_given(given)]
    rest = {name: value for name, value in call.items() if name not in GenerationConfig.DEFAULTS}
    layers.append(
        {name: x for name, x in call.items() if name not in rest and (x is not None or name not in _KEPT_IF_NONE)}
    )
    for layer in layers:
        merged = laid(merged, layer)
    for name, value in merged.items():
        default = GenerationConfig.DEFAULTS.get(name)
        if value is None and default is not None:
            merged[name] = 0 if name == "top_k" else default
    return GenerationConfig(**merged), rest


def of_given(given: GenerationConfig | None) -> dict[str, Any]:
    """What a call's `generation_config` says; None there says nothing.

    Raises:
        ValueError: it has a name that is nearly one of a setting; other names that are none are passed over.
    """
    found = {} if given is None else {name: x for name, x in given.explicit().items() if x is not None}
    for name in found.keys() - GenerationConfig.DEFAULTS.keys():
        if near := difflib.get_close_matches(name, GenerationConfig.DEFAULTS, n=1, cutoff=0.8):
            raise ValueError(f"generation_config has {name!r}, which is no setting; did you mean {near[0]!r}?")
    return found


def laid(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Settings over others; a length replaces that of the other name.

    >>> laid({"max_new_tokens": 9, "num_beams": 2}, {"max_length": 20})
    {'num_beams': 2, 'max_length': 20}
    """
    replaced = {other for name, other in _SAME_LIMIT.items() if upper.get(name) is not None and other not in upper}
    return {name: value for name, value in lower.items() if name not in replaced} | dict(upper)


def resolve(
    config: GenerationConfig,
    call: Mapping[str, Any],
    *,
    prompt_length: int,
    encoder_decoder: bool,
    positions: int | None = None,
    exact_positions: bool = False,
) -> Plan:
    """Work out one call. `call` holds its arguments; `positions` is how many tokens the decoder was made for, if that
    is bounded, and `exact_positions` says that it cannot read more.

    Raises:
        ValueError: a setting is not supported, settings contradict each other, the prompt or the model's positions, or
            a token id is missing; the message names them and says what to set.
    """
    _refuse_unsupported(config)
    strategy = _strategy(config, call)
    _warn_of_idle(config, call)
    max_length = _max_length(config, call, prompt_length, encoder_decoder, positions)
    if positions is not None and exact_positions:
        _check_positions(config, prompt_length, max_length, positions, encoder_decoder)
    min_length = config.min_length
    if config.min_new_tokens is not None:
        min_length = prompt_length + config.min_new_tokens
    if min_length > max_length:
        least = "min_length" if config.min_new_tokens is None else "min_new_tokens plus the prompt"
        most = "max_length" if config.max_new_tokens is None else "max_new_tokens plus the prompt"
        raise ValueError(
            f"{least} is {min_length} tokens, more than {most}, {max_length}: lower the one or raise the other"
        )
    _check_penalty(config, int(max_length) - prompt_length)
    eos = _eos(config, call)
    return Plan(
        prompt_length=prompt_length,
        max_length=int(max_length),
        min_length=int(min_length),
        beams=int(config.num_beams),
        sequences=int(config.num_return_sequences),
        sample=bool(config.do_sample),
        eos=eos,
        pad=_pad(config, eos, encoder_decoder),
        strategy=strategy,
        groups=int(config.num_beam_groups),
    )


def start_ids(config: GenerationConfig) -> list[int] | int:
    """The token a decoder starts with, or one for each source.

    Raises:
        ValueError: neither `decoder_start_token_id` nor `bos_token_id` is set.
    """
    start = config.decoder_start_token_id
    if start is None:
        start = config.bos_token_id
    if start is None:
        raise ValueError(
            "decoder_start_token_id is not set, so there is no token for the decoder to start with: set "
            "model.config.decoder_start_token_id to the id of the decoder tokenizer's start token (its cls or bos "
            "token), or pass decoder_start_token_id=... to generate()"
        )
    ids = token_ids(start, "decoder_start_token_id")
    return ids[0] if not hasattr(start, "__len__") else list(ids)


def token_ids(value: Any, name: str) -> tuple[int, ...]:
    """One id, a sequence or an array of them, as a tuple."""
    value = value.tolist() if hasattr(value, "tolist") else value
    ids = tuple(value) if isinstance(value, (list, tuple, set, frozenset)) else (value,)
    if not all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in ids):
        raise ValueError(f"{name}={value!r}: token ids are whole numbers, 0 or more")
    return ids


def _refuse_unsupported(config: GenerationConfig) -> None:
    for name, reason in _REFUSED.items():
        value = getattr(config, name)
        if value is not None and value is not False:
            raise ValueError(f"{name}={value!r} is not supported: {reason}")


def _strategy(config: GenerationConfig, call: Mapping[str, Any]) -> str:
    """Which search the settings ask for; those that exclude each other are an error."""
    beams, sample = config.num_beams, config.do_sample
    asked = []
    if config.num_beam_groups > 1:
        asked.append(("groups", f"num_beam_groups={config.num_beam_groups}"))
    for name in ("constraints", "force_words_ids"):
        if getattr(config, name) is not None and ("constrained" not in dict(asked)):
            asked.append(("constrained", name))
    if config.penalty_alpha:
        asked.append(("contrastive", f"penalty_alpha={config.penalty_alpha}"))
    if config.prompt_lookup_num_tokens is not None:
        asked.append(("drafted", f"prompt_lookup_num_tokens={config.prompt_lookup_num_tokens}"))
    if call.get("assistant_model") is not None:
        asked.append(("drafted", "assistant_model"))
    if len(asked) > 1:
        raise ValueError(f"{asked[0][1]} and {asked[1][1]} are different ways to search; set one of them to None")
    if not asked:
        return "beams" if beams > 1 else "rows"
    strategy, setting = asked[0]
    if strategy == "groups":
        if beams % config.num_beam_groups != 0:
            raise ValueError(f"{setting} does not divide num_beams={beams}: each group has as many beams")
        if config.diversity_penalty <= 0:
            raise ValueError(
                f"{setting} with diversity_penalty={config.diversity_penalty}: all groups would find the same; set "
                "diversity_penalty above 0"
            )
    with_beams = strategy in ("groups", "constrained")
    if with_beams and (beams == 1 or sample):
        raise ValueError(f"{setting} is a beam search: set num_beams above 1 and do_sample=False")
    if not with_beams and beams > 1:
        raise ValueError(f"{setting} carries one sequence at a time: set num_beams=1, or {setting.split('=')[0]}=None")
    if strategy == "contrastive" and (sample or config.top_k < 2):
        raise ValueError(
            f"{setting} (contrastive search) with do_sample={sample} and top_k={config.top_k}: it chooses among the "
            "top_k likeliest tokens, and draws none; set do_sample=False and top_k of 2 or more"
        )
    if strategy == "drafted" and config.guidance_scale not in (None, 1):
        raise ValueError("guidance_scale and drafts are not supported together; set one of them to None")
    if not with_beams and not config.use_cache:
        raise ValueError(f"{setting} needs use_cache=True")
    return strategy


def _warn_of_idle(config: GenerationConfig, call: Mapping[str, Any]) -> None:
    """Warn of arguments that change nothing; those of a checkpoint's file may well be meant for another strategy."""
    idle = [(name, "do_sample=True") for name in _ONLY_SAMPLING if not config.do_sample]
    if not config.do_sample and not config.penalty_alpha and config.top_k != 0:
        idle.append(("top_k", "do_sample=True or penalty_alpha"))
    idle += [(name, "num_beams above 1") for name in _ONLY_BEAMS if config.num_beams == 1]
    if config.num_beam_groups == 1:
        idle.append(("diversity_penalty", "num_beam_groups above 1"))
    if config.prompt_lookup_num_tokens is None:
        idle.append(("max_matching_ngram_size", "prompt_lookup_num_tokens"))
    idle = [(x, needs) for x, needs in idle if x in call and getattr(config, x) != GenerationConfig.DEFAULTS[x]]
    if idle:
        names = ", ".join(name for name, needs in idle if needs == idle[0][1])
        warnings.warn(f"{names} has no effect without {idle[0][1]}", UserWarning, stacklevel=5)
    for name, other in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        if call.get(name) is not None and call.get(other) is not None:
            warnings.warn(f"{name} has no effect beside {other}", UserWarning, stacklevel=5)


def _check_positions(
    config: GenerationConfig, prompt_length: int, max_length: float, positions: int, encoder_decoder: bool
) -> None:
    """The decoder must have a position for every token but the last, which it does not read."""
    if prompt_length > positions:
        prompt = "decoder_input_ids" if encoder_decoder else "input_ids"
        raise ValueError(
            f"{prompt} holds {prompt_length} tokens, more than the {positions} positions of the decoder: shorten it"
        )
    if max_length - 1 > positions:
        name = "max_length" if config.max_new_tokens is None else "max_new_tokens"
        most = positions + 1 - (prompt_length if name == "max_new_tokens" else 0)
        raise ValueError(
            f"{name}={getattr(config, name)} makes sequences of {max_length} tokens, and the decoder has {positions} "
            f"positions: set {name} to {most} or less, or use a decoder with more positions"
        )


def _check_penalty(config: GenerationConfig, longest: int) -> None:
    """Sums of log-probabilities are divided by the length to this power, which must be a number."""
    try:
        power = float(longest) ** config.length_penalty if config.num_beams > 1 else 1.0
    except OverflowError:
        power = 0.0
    if not 1e-30 < power < 1e30:
        raise ValueError(
            f"length_penalty={config.length_penalty}: scores are divided by the length to this power, and {longest} "
            "tokens are out of range; usual are -2 to 2"
        )


def _max_length(
    config: GenerationConfig, call: Mapping[str, Any], prompt_length: int, encoder_decoder: bool, positions: int | None
) -> int:
    default = GenerationConfig.DEFAULTS["max_length"]
    if config.max_new_tokens is not None:
        return prompt_length + int(config.max_new_tokens)
    if call.get("max_length") is None and config.max_length == default:
        # not chosen by anyone: so many new tokens, as far as the model's positions go
        return max(prompt_length + 1, min(prompt_length + default, positions or prompt_length + default))
    if config.max_length <= prompt_length:
        prompt = "decoder_input_ids" if encoder_decoder else "input_ids"
        raise ValueError(
            f"max_length={config.max_length} leaves no room for new tokens: {prompt} already holds {prompt_length}; "
            "raise it, or set max_new_tokens"
        )
    return int(config.max_length)


def _eos(config: GenerationConfig, call: Mapping[str, Any]) -> tuple[int, ...]:
    if config.eos_token_id is not None:
        return token_ids(config.eos_token_id, "eos_token_id")
    if "eos_token_id" in call:
        return ()
    raise ValueError(
        "eos_token_id is not set, so generation would not know where to end: set model.config.eos_token_id to the id "
        "of the decoder tokenizer's end token (its sep or eos token), or pass eos_token_id=... to generate() (None "
        "there goes on to the maximal length)"
    )


def _pad(config: GenerationConfig, eos: tuple[int, ...], encoder_decoder: bool) -> int:
    if config.pad_token_id is not None:
        ids = token_ids(config.pad_token_id, "pad_token_id")
        if len(ids) != 1:
            raise ValueError(f"pad_token_id={config.pad_token_id!r}: rows are filled with one token; give its id")
        return ids[0]
    if eos and not encoder_decoder:
        return eos[0]  # causal language models often have none; here it only fills what ended early
    raise ValueError(
        "pad_token_id is not set, so there is nothing to fill rows with that end early: set model.config.pad_token_id "
        "to the id of the decoder tokenizer's pad token (its eos token, if it has no other), or pass pad_token_id=... "
        "to generate()"
    )
