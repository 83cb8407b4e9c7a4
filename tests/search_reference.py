"""References for searches: the scorers that `transformers` 4 still has, driven as its loops did, and a definition.

The oracle moved the loops of group beam search, constrained beam search and contrastive search out of its package, but
kept the classes that decide in them; what remains of a loop is running the model and putting tokens in rows.
"""

import torch
import transformers
from transformers.generation.beam_constraints import DisjunctiveConstraint, PhrasalConstraint
from transformers.generation.beam_search import BeamSearchScorer, ConstrainedBeamSearchScorer
from transformers.generation.logits_process import HammingDiversityLogitsProcessor


class _Setup:
    """What a call of the oracle would search with: its settings, processors, and the rows of beams."""

    def __init__(self, model, ids, mask, settings):
        self.model = model
        self.config, _ = model._prepare_generation_config(transformers.GenerationConfig(), **settings)
        self.beams = self.config.num_beams
        start = settings.get("decoder_input_ids")
        self.encoder = model.get_encoder()(ids, attention_mask=mask, return_dict=True).last_hidden_state
        self.mask = mask
        if start is None:
            start = torch.full((len(ids), 1), self.config.decoder_start_token_id)
        self.prompt = start
        model._prepare_special_tokens(self.config, True)
        self.config.max_length = settings["max_length"]
        self.processors = model._get_logits_processor(
            self.config, input_ids_seq_length=start.shape[1], encoder_input_ids=ids, logits_processor=None, device="cpu"
        )

    def log(self, rows):
        """Log-probabilities of what follows rows (b * k, n)."""
        each = len(rows) // len(self.encoder)
        logits = self.model(
            encoder_outputs=(self.encoder.repeat_interleave(each, 0),),
            attention_mask=self.mask.repeat_interleave(each, 0),
            decoder_input_ids=rows,
        ).logits[:, -1]
        return torch.log_softmax(logits.float(), -1)

    def candidates(self, scores, beams):
        sources, vocabulary = len(self.prompt), scores.shape[-1]
        count = max(2, 1 + len(self.config._eos_token_tensor)) * beams
        best, index = torch.topk(scores.view(sources, beams * vocabulary), count)
        return best, index % vocabulary, index // vocabulary

    def ends(self):
        return {"pad_token_id": self.config.pad_token_id, "eos_token_id": self.config._eos_token_tensor}


@torch.no_grad()
def group_beam_search(model, ids, mask, settings):
    """Sequences and their scores."""
    setup = _Setup(
        model, ids, mask, {k: v for k, v in settings.items() if k not in ("num_beam_groups", "diversity_penalty")}
    )
    config, beams, groups = setup.config, setup.beams, settings["num_beam_groups"]
    size, sources, prompt = beams // groups, len(ids), setup.prompt.shape[1]
    scorer = BeamSearchScorer(
        sources,
        beams,
        "cpu",
        config.length_penalty,
        config.early_stopping,
        config.num_return_sequences,
        groups,
        config.max_length,
    )
    diversity = HammingDiversityLogitsProcessor(settings["diversity_penalty"], beams, groups)
    at = 1 if config.sequence_bias is not None else 0  # where the oracle has it in its order
    rows = setup.prompt.repeat_interleave(beams, 0)
    sums = torch.full((sources, beams), -1e9)
    sums[:, ::size] = 0
    sums = sums.view(-1)
    while True:
        newest, order = torch.zeros(len(rows), dtype=torch.long), torch.zeros(len(rows), dtype=torch.long)
        log = setup.log(rows)
        for group in range(groups):
            mine = (torch.arange(sources)[:, None] * beams + group * size + torch.arange(size)).flatten()
            held, scores = rows[mine], log[mine]
            for number, processor in enumerate([*setup.processors[:at], diversity, *setup.processors[at:]]):
                more = (newest, group) if number == at else ()
                scores = processor(held, scores, *more)
            scores = scores + sums[mine][:, None]
            found = scorer.process(
                held, *setup.candidates(scores, size), **setup.ends(), group_index=group, decoder_prompt_len=prompt
            )
            sums[mine], newest[mine] = found["next_beam_scores"], found["next_beam_tokens"]
            back = found["next_beam_indices"]
            rows[mine] = held[back]
            order[mine] = back
        rows = torch.cat([rows, newest[:, None]], 1)
        if scorer.is_done or rows.shape[1] >= config.max_length:
            break
    out = scorer.finalize(rows, sums, newest, order, config.max_length, **setup.ends(), decoder_prompt_len=prompt)
    return out["sequences"], out["sequence_scores"]


class Disjunctive(DisjunctiveConstraint):
    """The oracle's, but that a copy of its state is a copy: there a beam's alternatives grow in one shared list."""

    def copy(self, stateful=False):
        new = Disjunctive(self.token_ids)
        if stateful:
            new.current_seq, new.completed = list(self.current_seq), self.completed
        return new


@torch.no_grad()
def constrained_beam_search(model, ids, mask, settings):
    """Sequences and their scores."""
    setup = _Setup(model, ids, mask, {k: v for k, v in settings.items() if k != "force_words_ids"})
    config, beams, sources, prompt = setup.config, setup.beams, len(ids), setup.prompt.shape[1]
    constraints = [
        Disjunctive(words) if isinstance(words[0], list) else PhrasalConstraint(words)
        for words in settings["force_words_ids"]
    ]
    scorer = ConstrainedBeamSearchScorer(
        sources,
        beams,
        constraints,
        "cpu",
        config.length_penalty,
        config.early_stopping,
        config.num_return_sequences,
        config.max_length,
    )
    rows = setup.prompt.repeat_interleave(beams, 0)
    sums = torch.full((sources, beams), -1e9)
    sums[:, 0] = 0
    sums = sums.view(-1)
    while True:
        scores = setup.processors(rows, setup.log(rows)) + sums[:, None]
        found = scorer.process(
            rows, *setup.candidates(scores, beams), scores.clone(), **setup.ends(), decoder_prompt_len=prompt
        )
        sums, newest, back = (found[f"next_beam_{name}"] for name in ("scores", "tokens", "indices"))
        rows = torch.cat([rows[back], newest[:, None]], 1)
        if scorer.is_done or rows.shape[1] >= config.max_length:
            break
    out = scorer.finalize(rows, sums, newest, back, config.max_length, **setup.ends(), decoder_prompt_len=prompt)
    return out["sequences"], out["sequence_scores"]


@torch.no_grad()
def contrastive_search(model, ids, mask, settings):
    """By the definition (Su et al. 2022, equation 5), one row at a time, every step from scratch."""
    alpha, k, start = settings["penalty_alpha"], settings["top_k"], settings.get("decoder_input_ids")
    results = []
    for row in range(len(ids)):
        own = {name: value for name, value in settings.items() if name not in ("penalty_alpha", "top_k")}
        own |= {} if start is None else {"decoder_input_ids": start[row : row + 1]}
        setup = _Setup(model, ids[row : row + 1], mask[row : row + 1], own)
        tokens, ends = setup.prompt[0].tolist(), setup.config._eos_token_tensor.tolist()
        while len(tokens) < setup.config.max_length:
            logits, before = _states(setup, tokens)
            scores = setup.processors(torch.tensor([tokens]), logits[None])[0]
            chances, likely = torch.softmax(scores, -1).topk(k)
            values = []
            for chance, token in zip(chances, likely.tolist(), strict=True):
                state = _states(setup, [*tokens, token])[1][-1]
                similarity = torch.cosine_similarity(state[None], before, dim=-1).max()
                values.append((1 - alpha) * chance - alpha * similarity)
            tokens.append(int(likely[int(torch.stack(values).argmax())]))
            if tokens[-1] in ends:
                break
        results.append(tokens)
    width = max(map(len, results))
    return torch.tensor([row + [setup.config.pad_token_id] * (width - len(row)) for row in results])


def _states(setup, tokens):
    """The logits after these tokens, and the last layer's state of each."""
    out = setup.model(
        encoder_outputs=(setup.encoder,),
        attention_mask=setup.mask,
        decoder_input_ids=torch.tensor([tokens]),
        output_hidden_states=True,
    )
    return out.logits[0, -1].float(), out.decoder_hidden_states[-1][0]
