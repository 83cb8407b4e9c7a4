"""The familiar names of whole encoder-decoders (`T5ForConditionalGeneration` ...): pairs, saved as wholes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from warmstart import warm_start
from warmstart.config import PretrainedConfig
from warmstart.torch.encoder_decoder import EncoderDecoderModel


class AutoModelForSeq2SeqLM(EncoderDecoderModel):
    """An encoder-decoder, of one family or a pair; a whole of one family is saved as the whole that it is.

    >>> from warmstart import T5Config
    >>> model = AutoModelForSeq2SeqLM(T5Config(9, 8, 4, 8, 1, num_heads=2, decoder_start_token_id=0))
    >>> import torch
    >>> model(torch.tensor([[4, 5]]), labels=torch.tensor([[6, 7, 1]])).logits.shape
    torch.Size([1, 3, 9])
    """

    whole: ClassVar[str] = ""  # the reference's name of the whole, where it has to be that one

    def __init__(self, config: PretrainedConfig | None = None, encoder: Any = None, decoder: Any = None) -> None:
        super().__init__(None if config is None else self.part_of(config)[0], encoder, decoder)

    @classmethod
    def part_of(cls, config: PretrainedConfig) -> tuple[PretrainedConfig, str | None]:
        warm_start.check_whole(config, cls.whole)
        return super().part_of(config)

    def save_pretrained(self, save_directory: str | Path, *options: Any, **named: Any) -> None:
        named.setdefault("as_whole", bool(self.whole or warm_start.whole_of(self.config)))
        super().save_pretrained(save_directory, *options, **named)


def __getattr__(name: str) -> Any:
    """The familiar name of a family's whole: the class above, bound to that family."""
    if name.startswith("_") or name not in warm_start.wholes():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    doc = f"An `AutoModelForSeq2SeqLM` that has to be a `{name}`."
    globals()[name] = type(name, (AutoModelForSeq2SeqLM,), {"whole": name, "__doc__": doc, "__module__": __name__})
    return globals()[name]


__all__ = ["AutoModelForSeq2SeqLM"]
