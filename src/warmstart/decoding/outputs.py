"""What `generate` returns with ``return_dict_in_generate=True``, and the scores of its tokens.

Shapes: b sources, m sequences for each, r decoder rows (b times beams, or b times m), n length, v vocabulary.

In all of them `sequences` is (b * m, n). `scores` (with ``output_scores``) and `logits` (with ``output_logits``) are
tuples with one (r, v) for each step, after and before the logits processors. The attentions and hidden states of the
decoder (with ``output_attentions``, ``output_hidden_states``) are tuples with one tuple over the layers for each step.
With beams, `scores` are log-probabilities, `sequences_scores` (b * m,) are those of the sequences after the length
penalty, and `beam_indices` (b * m, new tokens) is the row that each token was appended to, -1 after the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from warmstart.decoding.arrays import Array, Arrays
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


def transition_scores(
    xp: Arrays, sequences: Array, scores: Sequence[Array], beam_indices: Array | None, normalize_logits: bool
) -> Array:
    """The score of each generated token (b * m, new tokens), 0 behind the end of a beam; see `outputs` for the shapes.

    Raises:
        ValueError: there are no scores, or more steps of them than tokens.
    """
    if not scores or (beam_indices is None and len(scores) > sequences.shape[1]):
        raise ValueError(
            f"{len(scores or ())} steps of scores do not fit sequences of {sequences.shape[1]} tokens: give the "
            "`scores` and `sequences` of one output, made with output_scores=True and return_dict_in_generate=True"
        )
    rows = sequences.shape[0]
    if beam_indices is None:
        beam_indices = xp.arange(rows)[:, None] + xp.full((rows, len(scores)), 0)
    longest = int(xp.max(xp.sum(beam_indices >= 0, 1)))
    tokens = sequences[:, sequences.shape[1] - longest :]
    found = []
    for step in range(longest):
        origins = beam_indices[:, step : step + 1]
        of_step = xp.log_softmax(scores[step]) if normalize_logits else scores[step]
        of_rows = xp.take(of_step[None], xp.reshape(xp.where(origins < 0, 0, origins), (1, rows)))[0]
        found.append(xp.where(origins < 0, 0.0, xp.take(of_rows, tokens[:, step : step + 1])))
    return xp.concat(found, 1)
