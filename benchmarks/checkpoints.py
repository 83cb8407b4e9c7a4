"""Makes the checkpoints that the contenders load: random weights, written once to a temporary folder."""

from __future__ import annotations

from pathlib import Path

from benchmarks.tasks import PAIRS, Size, shape_fields


def make(pair: str, size: Size, place: Path) -> Path:
    """Write an encoder-decoder of random weights, as Hugging Face's files; gives its folder."""
    import torch

    import warmstart

    torch.manual_seed(0)
    classes = {"bert": warmstart.BertConfig, "gpt2": warmstart.GPT2Config}
    encoder, decoder = (classes[family](**shape_fields(family, size)) for family in PAIRS[pair])
    config = warmstart.EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    for name, value in {"decoder_start_token_id": 1, "pad_token_id": 0, "eos_token_id": 2, "bos_token_id": 1}.items():
        setattr(config, name, value)
    folder = place / pair
    warmstart.EncoderDecoderModel(config=config).save_pretrained(folder)
    return folder
