"""What `generate` returns with ``return_dict_in_generate=True``, and the scores of its tokens.

Shapes: b sources, m sequences for each, r decoder rows (b times beams, or b times m), n length, v vocabulary.

In all of them `sequences` is (b * m, n). `scores` (with ``output_scores``) and `logits` (with ``output_logits``) are
tuples with one (r, v) for each step, after and before the logits processors. The attentions and hidden states of the
decoder (with ``output_attentions``, ``output_hidden_states``) are tuples with one tuple over the layers for each step.
With beams, `scores` are log-probabilities, `sequences_scores` (b * m,) are those of the sequences after the length
penalty, and `beam_indices` (b * m, new tokens) is the row that each token was appended to, -1 after the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from warmstart.decoding.arrays import Array, Arrays
from warmstart.decoding.settings import Plan
from warmstart.generation_config import GenerationConfig
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


def output_of(
    found: dict[str, Any],
    plan: Plan,
    config: GenerationConfig,
    new: int,
    steps: int,
    source: dict[str, Any] | None,
    join: Callable[[Any, Any], Any],
) -> Any:
    """What a compiled search found as one of the output classes, `new` tokens long, of so many `steps`.

    `source` are the arguments of the call where there is an encoder; `join` puts the states of the prompt's tokens but
    the last (b, ..., p - 1, size) before those of the last (r, ..., 1, size), for each row of a source.
    """
    fields: dict[str, Any] = {
        "sequences": found["sequences"][:, : plan.prompt_length + new],
        "past_key_values": found["cache"],
    }
    if plan.beams > 1:
        fields["sequences_scores"] = found["sequences_scores"] if config.output_scores else None
        fields["beam_indices"] = found["beam_indices"][:, :new]
    for name, kept in found["kept"].items():
        if name in ("scores", "logits"):
            fields[name] = tuple(kept[step] for step in range(steps))
            continue
        of_step = [tuple(x[step] for x in kept) for step in range(steps)]
        if name in found["of_prompt"]:
            of_step[0] = tuple(join(*pair) for pair in zip(found["of_prompt"][name], of_step[0], strict=True))
        if name == "attentions":  # over the places that were filled
            of_step = [tuple(x[..., : plan.prompt_length + i] for x in layers) for i, layers in enumerate(of_step)]
        own = name if source is None or name.startswith("cross") else f"decoder_{name}"
        fields[own] = tuple(of_step)
    if source is None:
        return (GenerateBeamDecoderOnlyOutput if plan.beams > 1 else GenerateDecoderOnlyOutput)(**fields)
    for name in ("attentions", "hidden_states"):
        given = getattr(source.get("encoder_outputs"), name, None)
        fields[f"encoder_{name}"] = found["encoder"].get(name, given)
    return (GenerateBeamEncoderDecoderOutput if plan.beams > 1 else GenerateEncoderDecoderOutput)(**fields)
