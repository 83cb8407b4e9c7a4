"""`EncoderDecoderConfig`: two configurations, one of each side, and what they share."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from warmstart.config import SHARED, TOKEN_IDS, PretrainedConfig
from warmstart.families import family_of
from warmstart.families.auto import AutoConfig
from warmstart.generation_config import GenerationConfig


class EncoderDecoderConfig(PretrainedConfig):
    """The configuration of an `EncoderDecoderModel`; `encoder` and `decoder` are configurations of their own.

    >>> from warmstart import BertConfig
    >>> config = EncoderDecoderConfig.from_encoder_decoder_configs(BertConfig(), BertConfig())
    >>> config.decoder.is_decoder, config.decoder.add_cross_attention, config.encoder.is_decoder
    (True, True, False)
    """

    model_type = "encoder-decoder"

    def __init__(self, **kwargs: Any) -> None:
        sides = [_side(kwargs, "encoder"), _side(kwargs, "decoder")]
        super().__init__(**{"is_encoder_decoder": True, **kwargs, "encoder": sides[0], "decoder": sides[1]})

    @classmethod
    def from_encoder_decoder_configs(
        cls, encoder_config: PretrainedConfig, decoder_config: PretrainedConfig, **kwargs: Any
    ) -> EncoderDecoderConfig:
        """Join two configurations; sets `is_decoder` and `add_cross_attention` on the decoder's.

        A causal language model taken as the encoder attends both ways (Zhang et al. 2025, "T5Gemma", section 2):
        its `is_causal` becomes False in the new configuration unless it was set.
        """
        decoder_config.is_decoder = True
        decoder_config.add_cross_attention = True
        config = cls(encoder=encoder_config.to_dict(), decoder=decoder_config.to_dict(), **kwargs)
        if config.encoder.is_causal is None and family_of(config.encoder).causal:
            config.encoder.is_causal = False
        return config

    @classmethod
    def from_whole(cls, whole: PretrainedConfig) -> EncoderDecoderConfig:
        """The pair that an encoder-decoder of one family is: its two halves, and its settings of `generate`.

        `share_embeddings` says that both halves have one table of token embeddings, `logits_bias` in the decoder's
        configuration that the whole adds a bias to the logits which the decoder alone has not.

        >>> from warmstart import BartConfig
        >>> EncoderDecoderConfig.from_whole(BartConfig(encoder_layers=2)).encoder.encoder_layers
        2
        """
        sides = {side: copy.deepcopy(whole) for side in ("encoder", "decoder")}
        for side, config in sides.items():
            set_side(config, side)
            config.generation_config = GenerationConfig()  # token ids stay
        if "head.output.bias" in family_of(whole).names:
            sides["decoder"].logits_bias = True
        shared = getattr(whole, "share_encoder_decoder_embeddings", True)
        return cls(**sides, share_embeddings=shared, **whole.generation_config.explicit())

    def as_whole(self) -> PretrainedConfig:
        """The configuration of the whole of one family that this pair is: what `from_whole` has taken apart.

        Raises:
            ValueError: it is none, or shares what the family does not share, or the other way round.
        """
        entry = family_of(self.decoder)
        if entry.whole and self.encoder.model_type == self.decoder.model_type and not self.tie_encoder_decoder:
            whole = self._whole() if entry.join is None else entry.join(self)
            pair = EncoderDecoderConfig.from_whole(whole) if entry.join is None else whole.joined()
            same = all(
                entry.spec(getattr(self, side), headed) == entry.spec(getattr(pair, side), headed)
                for side, headed in (("encoder", False), ("decoder", True))
            )
            if same and bool(getattr(self, "share_embeddings", False)) is bool(
                getattr(pair, "share_embeddings", False)
            ):
                return whole
        raise ValueError(
            f"this pair of {self.encoder.model_type} and {self.decoder.model_type} is not the whole of one family, as "
            "a model is that was opened from such a checkpoint; save it without as_whole=True"
        )

    def _whole(self) -> PretrainedConfig:
        whole = copy.deepcopy(self.decoder)
        for name in ("is_decoder", "add_cross_attention", "logits_bias", "is_causal"):
            whole.__dict__.pop(name, None)
        if whole.has("decoder_vocab_size"):
            whole.decoder_vocab_size = self.decoder.vocab_size
        whole.vocab_size = self.encoder.vocab_size
        for name, value in self.generation_config.explicit().items():
            setattr(whole.generation_config, name, value)
        return whole

    def joined(self) -> EncoderDecoderConfig:
        """The pair that it is; of a whole whose halves have a configuration each, that pair."""
        return self

    def merge_settings(self, settings: GenerationConfig, only_unset: bool = False) -> None:
        """Take in what a `generation_config.json` says; token ids that this configuration sets stay.

        A pair has no default ids, so those in its `config.json` were set by somebody, and the loss uses them; the
        reference writes a `generation_config.json` beside them that may still hold the decoder's own. Settings that the
        file leaves out have their defaults: it speaks for the whole pair, and the decoder's settings do not come back.
        """
        own = {name: value for name in TOKEN_IDS if (value := getattr(self, name)) is not None}
        super().merge_settings(settings, only_unset)
        if settings.explicit():
            left_out = self.decoder.generation_config.explicit().keys() - self.generation_config.explicit().keys()
            self.update(
                {name: GenerationConfig.DEFAULTS[name] for name in left_out.intersection(SHARED) - {*TOKEN_IDS}}
            )
        self.update(own)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("encoder", "decoder") and isinstance(value, Mapping):
            value = _configuration(value, name)
        super().__setattr__(name, value)


def set_side(config: PretrainedConfig, side: str) -> None:
    """Say in a configuration which side it is: the encoder reads both ways, the decoder has cross-attention.

    Raises:
        ValueError: the family cannot be that side.
    """
    family = family_of(config)
    if not (family.encoder if side == "encoder" else family.decoder):
        other = "decoder" if side == "encoder" else "encoder"
        raise ValueError(f"{config.model_type} can only be the {other}; `warmstart families` lists what can be what")
    config.is_decoder = config.add_cross_attention = side == "decoder"
    if side == "decoder" and config.has("decoder_vocab_size"):  # Marian's halves may have a vocabulary each
        config.vocab_size = config.decoder_vocab_size


def _side(kwargs: dict[str, Any], side: str) -> PretrainedConfig:
    if side not in kwargs:
        raise ValueError(
            f"EncoderDecoderConfig needs both `encoder` and `decoder`, and `{side}` is missing from {sorted(kwargs)}; "
            "use EncoderDecoderConfig.from_encoder_decoder_configs(encoder_config, decoder_config)"
        )
    return _configuration(kwargs[side], side)


def _configuration(value: Any, side: str) -> PretrainedConfig:
    if isinstance(value, PretrainedConfig):
        return value
    if not isinstance(value, Mapping) or "model_type" not in value:
        raise ValueError(f"`{side}` must be a configuration, or a dict with a `model_type`, not {value!r}")
    if value["model_type"] == EncoderDecoderConfig.model_type:
        raise ValueError(
            f"`{side}` is itself an encoder-decoder; take one of its halves, config.encoder or config.decoder"
        )
    return AutoConfig.for_model(**value)
