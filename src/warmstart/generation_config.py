"""The settings of `generate`: how long, which strategy, which processors, which outputs, and the special token ids."""

from __future__ import annotations

import copy
import difflib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from warmstart.folder import write_folder
from warmstart.hub import find_file, hub_options, read_json, upload_folder

CONFIG_FILE = "generation_config.json"

_ARGUMENTS_OF_GENERATE = (
    "logits_processor",
    "stopping_criteria",
    "prefix_allowed_tokens_fn",
    "synced_gpus",
    "assistant_model",
    "streamer",
    "generator",
    "negative_prompt_ids",
    "negative_prompt_attention_mask",
)


class GenerationConfig:
    """Settings of `generate`, under the names of `transformers`' GenerationConfig.

    What was set explicitly is stored, and only that; a setting that was not reads as its default in :attr:`DEFAULTS`.
    So the settings of a checkpoint, of a model and of one call can be laid over each other without a default of the one
    hiding a value of the other. Names outside the table are kept and written back.

    Raises:
        ValueError: a value is out of range, or settings contradict each other; see :meth:`validate`.

    >>> settings = GenerationConfig(num_beams=4, eos_token_id=102)
    >>> settings.num_beams, settings.length_penalty
    (4, 1.0)
    >>> settings.to_diff_dict()
    {'num_beams': 4, 'eos_token_id': 102}
    """

    DEFAULTS: ClassVar[dict[str, Any]] = {
        # length
        "max_length": 20,
        "max_new_tokens": None,
        "min_length": 0,
        "min_new_tokens": None,
        "early_stopping": False,
        "max_time": None,
        "stop_strings": None,
        # strategy
        "do_sample": False,
        "num_beams": 1,
        "num_beam_groups": 1,
        "penalty_alpha": None,
        "dola_layers": None,
        "constraints": None,
        "force_words_ids": None,
        "low_memory": None,
        # cache
        "use_cache": True,
        "cache_implementation": None,
        "cache_config": None,
        "return_legacy_cache": None,
        "prefill_chunk_size": None,
        # logits
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 1.0,
        "min_p": None,
        "typical_p": 1.0,
        "epsilon_cutoff": 0.0,
        "eta_cutoff": 0.0,
        "diversity_penalty": 0.0,
        "repetition_penalty": 1.0,
        "encoder_repetition_penalty": 1.0,
        "length_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "encoder_no_repeat_ngram_size": 0,
        "bad_words_ids": None,
        "renormalize_logits": False,
        "forced_bos_token_id": None,
        "forced_eos_token_id": None,
        "remove_invalid_values": False,
        "exponential_decay_length_penalty": None,
        "suppress_tokens": None,
        "begin_suppress_tokens": None,
        "sequence_bias": None,
        "token_healing": False,
        "guidance_scale": None,
        "watermarking_config": None,
        # outputs
        "num_return_sequences": 1,
        "output_attentions": False,
        "output_hidden_states": False,
        "output_scores": False,
        "output_logits": None,
        "return_dict_in_generate": False,
        # special tokens
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
        "decoder_start_token_id": None,
        # a draft model, or drafting by lookup
        "is_assistant": False,
        "num_assistant_tokens": 20,
        "num_assistant_tokens_schedule": "constant",
        "assistant_confidence_threshold": 0.4,
        "prompt_lookup_num_tokens": None,
        "max_matching_ngram_size": None,
        "assistant_early_exit": None,
        "assistant_lookbehind": 10,
        "target_lookbehind": 10,
        # performance
        "compile_config": None,
        "disable_compile": False,
    }

    # The reference's Seq2SeqTrainer asks for these, version 4 and version 5; defaults are not stored here.
    _from_model_config = False
    _get_default_generation_params: ClassVar[Callable[[], dict[str, Any]]] = staticmethod(dict)

    def __init__(self, **kwargs: Any) -> None:
        self._set(kwargs)
        self.validate()

    def __getattr__(self, name: str) -> Any:
        # called only for what is not in __dict__, so for what was not set
        if name in type(self).DEFAULTS:
            return type(self).DEFAULTS[name]
        if name.startswith("__"):  # copy and pickle ask for these, often
            raise AttributeError(name)
        near = difflib.get_close_matches(name, type(self).DEFAULTS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise AttributeError(f"GenerationConfig has no setting {name!r}{hint}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GenerationConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"GenerationConfig({', '.join(f'{name}={value!r}' for name, value in self.explicit().items())})"

    def _set(self, settings: Mapping[str, Any]) -> None:
        # names with an underscore are another library's notes about its own objects, not settings
        self.__dict__.update({name: value for name, value in settings.items() if not name.startswith("_")})

    def validate(self, strict: bool = False) -> None:
        """Check each value that was set, and those that only make sense together.

        All that is found is an error, with `strict` or without. What depends on the prompt (its length against
        `max_length`) or on the model is checked by `generate`.

        Raises:
            ValueError: names the setting, its value, and what it may be.

        >>> GenerationConfig(num_beams=2, num_return_sequences=3)
        Traceback (most recent call last):
        ...
        ValueError: num_return_sequences=3 is more than num_beams=2: raise num_beams, or ask for fewer sequences
        """
        for name, value in self.__dict__.items():
            if name in _ARGUMENTS_OF_GENERATE:
                raise ValueError(f"{name} is an argument of generate(), not a setting; pass it there")
            if value is not None and name in _CHECKS:
                good, wanted = _CHECKS[name]
                if not good(value):
                    raise ValueError(f"{name}={value!r}: it must be {wanted}")
        wanted_sequences, beams = self.num_return_sequences or 1, self.num_beams or 1
        if wanted_sequences > 1 and beams == 1 and not self.do_sample:
            raise ValueError(
                f"num_return_sequences={wanted_sequences} with num_beams=1 and do_sample=False: greedy search finds "
                "one sequence; set num_beams or do_sample=True"
            )
        if wanted_sequences > beams > 1:
            raise ValueError(
                f"num_return_sequences={wanted_sequences} is more than num_beams={beams}: raise num_beams, or ask for "
                "fewer sequences"
            )

    def update(self, **kwargs: Any) -> dict[str, Any]:
        """Set those of ``kwargs`` that are settings and return the rest; nothing is set if a value is refused.

        >>> GenerationConfig().update(num_beams=4, attention_mask=None)
        {'attention_mask': None}
        """
        known = {name: value for name, value in kwargs.items() if name in self.DEFAULTS or name in self.__dict__}
        changed = self.copy()
        changed._set(known)
        changed.validate()
        self._set(known)
        return {name: value for name, value in kwargs.items() if name not in known}

    def explicit(self) -> dict[str, Any]:
        """What was set, as a new dictionary."""
        return copy.deepcopy(self.__dict__)

    def copy(self) -> GenerationConfig:
        """An independent copy, with the same settings set."""
        return copy.deepcopy(self)

    def to_dict(self) -> dict[str, Any]:
        """Every setting, set or default."""
        return {**copy.deepcopy(self.DEFAULTS), **self.explicit()}

    def to_diff_dict(self) -> dict[str, Any]:
        """What was set to something else than its default, and what is not in the table."""
        unset = object()
        return {name: value for name, value in self.explicit().items() if value != self.DEFAULTS.get(name, unset)}

    def to_json_string(self, use_diff: bool = True) -> str:
        """The settings as JSON with sorted keys: those that differ from their defaults, or all."""
        settings = self.to_diff_dict() if use_diff else self.to_dict()
        return json.dumps(_plain(settings), indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **kwargs: Any) -> Any:
        """Make settings from a dictionary, with ``kwargs`` laid over it.

        With ``return_unused_kwargs=True`` the result is a pair: the settings, and those of ``kwargs`` that are none.
        """
        return_unused = kwargs.pop("return_unused_kwargs", False)
        if not return_unused:
            return cls(**{**config_dict, **kwargs})
        config = cls(**config_dict)
        return config, config.update(**kwargs)

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | os.PathLike[str], config_file_name: str | None = None, **kwargs: Any
    ) -> Any:
        """Read ``generation_config.json`` of a folder or a hub repository.

        ``kwargs``: the hub's (revision, cache_dir, token, local_files_only, force_download, subfolder), settings that
        are laid over the file's, and ``return_unused_kwargs``.

        Raises:
            FileNotFoundError: there is no such file; OSError: it is not JSON; ValueError: a setting is out of range.
        """
        path = find_file(name_or_path, config_file_name or CONFIG_FILE, **hub_options(kwargs))
        assert path is not None
        try:
            return cls.from_dict(read_json(path), **kwargs)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def from_model_config(cls, model_config: Any) -> GenerationConfig:
        """The generation settings that a model's config holds, as a copy."""
        held: GenerationConfig = model_config.generation_config
        return held.copy()

    def to_json_file(self, json_file_path: str | os.PathLike[str], use_diff: bool = True) -> None:
        """Write :meth:`to_json_string` to a file."""
        Path(json_file_path).write_text(self.to_json_string(use_diff), encoding="utf-8")

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        config_file_name: str | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Write ``generation_config.json`` into a folder, which is made if need be. The file is whole or not there.

        ``kwargs``: ``repo_id`` and the options of ``hub.upload_folder``, for ``push_to_hub``.

        Raises:
            ValueError: the settings contradict each other; nothing is written.
            OSError: the folder cannot be written.
        """
        self.validate()
        name = config_file_name or CONFIG_FILE
        write_folder(save_directory, {name: self.to_json_string().encode()})
        if push_to_hub:
            repo_id = kwargs.pop("repo_id", None) or Path(save_directory).name
            upload_folder(save_directory, repo_id, only=[name], **kwargs)


def _is_count(least: int) -> Callable[[Any], bool]:
    return lambda value: hasattr(value, "__index__") and not isinstance(value, bool) and value.__index__() >= least


def _is_number(value: Any) -> bool:
    # numpy's and torch's scalars have __float__ too; strings do not
    return hasattr(value, "__float__") and not isinstance(value, bool) and float(value) == float(value)


def _is_ids(value: Any) -> bool:
    """One token id or several; arrays of a framework are taken as they are."""
    if isinstance(value, (list, tuple, set, frozenset)):
        return len(value) > 0 and all(_is_count(0)(item) for item in value)
    return not isinstance(value, (bool, str, float))


def _is_strings(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(x, str) and x != "" for x in value)


def _is_words(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) > 0
        and all(isinstance(word, (list, tuple)) and len(word) > 0 and _is_ids(word) for word in value)
    )


def _is_bias(value: Any) -> bool:
    """{tokens: bias}, or pairs of tokens and bias."""
    pairs = value.items() if isinstance(value, dict) else value
    return (
        isinstance(value, (dict, list, tuple))
        and len(value) > 0
        and all(
            isinstance(pair, (list, tuple)) and len(pair) == 2 and _is_words([pair[0]]) and _is_number(pair[1])
            for pair in pairs
        )
    )


def _is_force_words(value: Any) -> bool:
    """Words, each a list of token ids or a list of such alternatives."""
    return isinstance(value, (list, tuple)) and all(_is_words([word]) or _is_words(word) for word in value)


def _plain(value: Any) -> Any:
    """The same as JSON can hold it; a dictionary keyed by token sequences becomes a list of pairs."""
    if isinstance(value, dict):
        if any(isinstance(key, tuple) for key in value):
            return [[_plain(key), _plain(item)] for key, item in value.items()]
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "alternatives"):
        raise ValueError(
            "constraints are objects, which a file cannot hold: set force_words_ids, or pass them in the call"
        )
    return _plain(value.to_dict()) if hasattr(value, "to_dict") else value


_COUNT = (_is_count(0), "a whole number, 0 or more")
_POSITIVE_COUNT = (_is_count(1), "a whole number, 1 or more")
_POSITIVE = (lambda value: _is_number(value) and value > 0, "a number above 0")
_SHARE = (lambda value: _is_number(value) and 0 <= value <= 1, "a number from 0 to 1")
_NUMBER = (_is_number, "a number")
_FLAG = (lambda value: isinstance(value, bool), "True or False")
_IDS = (_is_ids, "a token id or a list of them, each 0 or more")

_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_length": _POSITIVE_COUNT,
    "max_new_tokens": _POSITIVE_COUNT,
    "min_length": _COUNT,
    "min_new_tokens": _COUNT,
    "early_stopping": (lambda value: isinstance(value, bool) or value == "never", 'True, False or "never"'),
    "max_time": _POSITIVE,
    "do_sample": _FLAG,
    "num_beams": _POSITIVE_COUNT,
    "num_beam_groups": _POSITIVE_COUNT,
    "num_return_sequences": _POSITIVE_COUNT,
    "use_cache": _FLAG,
    "temperature": (lambda value: _is_number(value) and value >= 0, "a number above 0"),
    "top_k": (_is_count(-(2**63)), "a whole number, 0 for all"),
    "top_p": _SHARE,
    "min_p": _SHARE,
    "typical_p": _SHARE,
    "repetition_penalty": _POSITIVE,
    "encoder_repetition_penalty": _POSITIVE,
    "length_penalty": _NUMBER,
    "no_repeat_ngram_size": _COUNT,
    "encoder_no_repeat_ngram_size": _COUNT,
    "bad_words_ids": (_is_words, "a list of lists of token ids, none of them empty"),
    "suppress_tokens": (lambda value: hasattr(value, "__iter__"), "a list of token ids"),
    "begin_suppress_tokens": (lambda value: hasattr(value, "__iter__"), "a list of token ids"),
    "forced_bos_token_id": _IDS,
    "forced_eos_token_id": _IDS,
    "stop_strings": (
        lambda value: value != "" and (isinstance(value, str) or _is_strings(value)),
        "a string or a list of strings, none of them empty",
    ),
    "penalty_alpha": _SHARE,
    "constraints": (
        lambda value: isinstance(value, (list, tuple)) and all(hasattr(item, "alternatives") for item in value),
        "a list of PhrasalConstraint and DisjunctiveConstraint",
    ),
    "force_words_ids": (_is_force_words, "a list of words, each a list of token ids or a list of such alternatives"),
    "epsilon_cutoff": _SHARE,
    "eta_cutoff": _SHARE,
    "diversity_penalty": (lambda value: _is_number(value) and value >= 0, "a number, 0 or more"),
    "sequence_bias": (_is_bias, "{(token, ...): bias}, or a list of pairs of a list of tokens and a bias"),
    "exponential_decay_length_penalty": (
        lambda value: (
            isinstance(value, (list, tuple)) and len(value) == 2 and _is_count(0)(value[0]) and _POSITIVE[0](value[1])
        ),
        "a pair: how many new tokens it starts after, and a factor above 0",
    ),
    "guidance_scale": _NUMBER,
    "remove_invalid_values": _FLAG,
    "renormalize_logits": _FLAG,
    "prompt_lookup_num_tokens": _POSITIVE_COUNT,
    "max_matching_ngram_size": _POSITIVE_COUNT,
    "num_assistant_tokens": _POSITIVE_COUNT,
    "num_assistant_tokens_schedule": (
        lambda value: value in ("constant", "heuristic", "heuristic_transient"),
        '"constant", "heuristic" or "heuristic_transient"',
    ),
    "assistant_confidence_threshold": _SHARE,
}
