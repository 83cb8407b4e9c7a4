"""The output class that TensorFlow users know by its own name."""

from __future__ import annotations

from dataclasses import dataclass

from warmstart.outputs import Seq2SeqLMOutput


@dataclass(eq=False)
class TFSeq2SeqLMOutput(Seq2SeqLMOutput):
    """An encoder-decoder's output: as `Seq2SeqLMOutput`, but `loss` (n,) has a value for each label that counts.

    The mean over them is the loss that `fit` minimises.
    """
