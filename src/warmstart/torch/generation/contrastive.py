"""Contrastive search in torch: each step looks at the states of all candidates before it chooses one.

Shapes: b sources, k candidates, n length so far, h hidden size, v vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from warmstart.decoding import contrastive, sampling
from warmstart.torch.generation.loops import Call
from warmstart.torch.generation.scores import check_choice


def contrastive_search(call: Call) -> dict[str, Any]:
    """Contrastive search; the call's runner collects hidden states."""
    xp, plan, scorer, runner = call.xp, call.plan, call.scorer, call.scorer.runner
    count, alpha, stop = call.config.top_k, call.config.penalty_alpha, call.stop
    state = sampling.start(xp, call.prompt, plan.max_length, plan.pad)
    call.stream.prompt(state.ids[:, : state.at])
    raw = scorer.raw(state.ids[:, : state.at])
    context, real = _states(runner), runner.mask  # type: ignore[attr-defined]
    while True:
        held = state.ids[:, : state.at]
        scorer.keep("logits", raw)
        scores = scorer.processed(scorer.guided(raw, held), held, state.at)
        scorer.keep("scores", scores)
        check_choice(scores, ~state.done, state.at)
        likely, tokens = torch.topk(torch.softmax(scores, -1), min(count, scores.shape[-1]))
        rows, each = len(tokens), tokens.shape[1]
        scorer.reorder(torch.arange(rows, device=tokens.device).repeat_interleave(each))
        longer = torch.cat([held.repeat_interleave(each, 0), tokens.reshape(-1, 1)], 1)
        after = runner.logits(longer)[:, -1]
        states = _states(runner).reshape(rows, each, -1)
        seen = None if real is None else real[:, : state.at].bool()
        chosen = contrastive.choose(xp, likely, states, context, seen, alpha)
        picked = torch.arange(rows, device=tokens.device) * each + chosen
        state = sampling.step(xp, state, longer[picked, -1], _same, stop, plan.pad)
        call.stream.tokens(state.ids[:, state.at - 1], state.done.nonzero()[:, 0])
        scorer.reorder(picked)
        if state.at >= plan.max_length or bool(state.done.all()):
            runner.crop(state.at - 1)  # as other searches leave it: without the newest token
            break
        raw = after[picked]
        context = torch.cat([context, states[torch.arange(rows, device=tokens.device), chosen][:, None]], 1)
    return {"sequences": state.ids[:, : state.at]}


def _same(tokens: Tensor) -> Tensor:
    return tokens


def _states(runner: Any) -> Tensor:
    """The last layer's states (r, t, h) of the newest pass."""
    passes = runner.seen[f"{runner.prefix}hidden_states"]
    newest: Tensor = passes[-1][-1]
    passes.clear()
    return newest
