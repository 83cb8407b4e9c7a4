"""What `generate` returns with ``return_dict_in_generate=True``.

Shapes: b sources, m sequences for each, r decoder rows (b times beams, or b times m), n length, v vocabulary.

In all of them `sequences` is (b * m, n). `scores` (with ``output_scores``) and `logits` (with ``output_logits``) are
tuples with one (r, v) for each step, after and before the logits processors. The attentions and hidden states of the
decoder (with ``output_attentions``, ``output_hidden_states``) are tuples with one tuple over the layers for each step.
With beams, `scores` are log-probabilities, `sequences_scores` (b * m,) are those of the sequences after the length
penalty, and `beam_indices` (b * m, new tokens) is the row that each token was appended to, -1 after the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from warmstart.outputs import ModelOutput


@dataclass(eq=False)
class GenerateDecoderOnlyOutput(ModelOutput):
    """Greedy search or sampling without an encoder."""

    sequences: Any = None
    scores: tuple[Any, ...] | None = None
    logits: tuple[Any, ...] | None = None
    attentions: tuple[Any, ...] | None = None
    hidden_states: tuple[Any, ...] | None = None
    past_key_values: Any = None


@dataclass(eq=False)
class GenerateEncoderDecoderOutput(ModelOutput):
    """Greedy search or sampling from an encoder-decoder."""

    sequences: Any = None
    scores: tuple[Any, ...] | None = None
    logits: tuple[Any, ...] | None = None
    encoder_attentions: tuple[Any, ...] | None = None
    encoder_hidden_states: tuple[Any, ...] | None = None
    decoder_attentions: tuple[Any, ...] | None = None
    cross_attentions: tuple[Any, ...] | None = None
    decoder_hidden_states: tuple[Any, ...] | None = None
    past_key_values: Any = None


@dataclass(eq=False)
class GenerateBeamDecoderOnlyOutput(ModelOutput):
    """Beam search without an encoder."""

    sequences: Any = None
    sequences_scores: Any = None
    scores: tuple[Any, ...] | None = None
    logits: tuple[Any, ...] | None = None
    beam_indices: Any = None
    attentions: tuple[Any, ...] | None = None
    hidden_states: tuple[Any, ...] | None = None
    past_key_values: Any = None


@dataclass(eq=False)
class GenerateBeamEncoderDecoderOutput(ModelOutput):
    """Beam search from an encoder-decoder."""

    sequences: Any = None
    sequences_scores: Any = None
    scores: tuple[Any, ...] | None = None
    logits: tuple[Any, ...] | None = None
    beam_indices: Any = None
    encoder_attentions: tuple[Any, ...] | None = None
    encoder_hidden_states: tuple[Any, ...] | None = None
    decoder_attentions: tuple[Any, ...] | None = None
    cross_attentions: tuple[Any, ...] | None = None
    decoder_hidden_states: tuple[Any, ...] | None = None
    past_key_values: Any = None
