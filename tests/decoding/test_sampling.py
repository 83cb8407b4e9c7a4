"""Sampling draws from the distribution it should, and repeats itself under a seed."""

import numpy as np
import pytest
import torch

DRAWS = 4000


def entropy(p):
    return -sum(x * np.log(x) for x in p if x > 0)


def expected_distribution(
    logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, typical_p=1.0, epsilon_cutoff=0.0, eta_cutoff=0.0
):
    """By the definitions, in double precision and with plain Python."""
    p = np.exp(np.asarray(logits, float) / temperature)
    p /= p.sum()
    likeliest = np.argsort(-p)
    kept = likeliest[:top_k] if top_k else likeliest
    p = np.where(np.isin(np.arange(len(p)), kept), p, 0)
    p /= p.sum()
    count = int(np.searchsorted(np.cumsum(p[likeliest]), top_p)) + 1 if top_p < 1 else len(p)
    p = np.where(np.isin(np.arange(len(p)), likeliest[:count]), p, 0)
    p /= p.sum()
    p = np.where(p < min_p * p.max(), 0, p)
    p /= p.sum()
    if typical_p < 1:
        with np.errstate(divide="ignore"):
            nearest = np.argsort(np.abs(-np.log(p) - entropy(p)))
        count = int(np.searchsorted(np.cumsum(p[nearest]), typical_p)) + 1
        p = np.where(np.isin(np.arange(len(p)), nearest[:count]), p, 0)
        p /= p.sum()
    p = np.where((p < epsilon_cutoff) & (p < p.max()), 0, p)
    p /= p.sum()
    if eta_cutoff:
        p = np.where((p < min(eta_cutoff, eta_cutoff**0.5 * np.exp(-entropy(p)))) & (p < p.max()), 0, p)
    return p / p.sum()


def next_tokens(zoo, seed, generator=None, **settings):
    """Many draws of the first token, and the logits they were drawn by."""
    ids, mask = zoo.sources(3, rows=1)
    wanted = {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 1, "do_sample": True}
    settings = {"num_return_sequences": DRAWS, "top_k": 0, **settings}
    model = zoo.ours("encoder_decoder", 0)
    torch.manual_seed(seed)
    out = model.generate(ids, attention_mask=mask, generator=generator, **settings, **wanted)
    return out.sequences[:, 1], out.logits[0][0]


@pytest.mark.parametrize(
    "warpers",
    [
        {},
        {"temperature": 2.5},
        {"temperature": 3.0, "top_k": 5},
        {"temperature": 3.0, "top_p": 0.7},
        {"temperature": 4.0, "min_p": 0.1},
        {"temperature": 3.0, "top_k": 12, "top_p": 0.9, "min_p": 0.05},
        {"temperature": 3.0, "typical_p": 0.7},
        {"temperature": 3.0, "epsilon_cutoff": 0.03},
        {"temperature": 3.0, "eta_cutoff": 0.2},
        {"temperature": 3.0, "top_k": 20, "typical_p": 0.9, "epsilon_cutoff": 0.01, "eta_cutoff": 0.1},
    ],
    ids=str,
)
def test_draws_follow_the_distribution(warpers, zoo):
    """Chi-square at a fixed seed, below what chance exceeds once in a million (Wilson and Hilferty 1931)."""
    tokens, logits = next_tokens(zoo, 0, **warpers)
    p = expected_distribution(logits, **warpers)
    counts = np.bincount(tokens, minlength=len(p))
    assert counts[p == 0].sum() == 0
    common = p * DRAWS >= 5
    assert common.sum() >= 3
    observed = np.append(counts[common], counts[~common].sum())
    wanted = np.append(p[common], p[~common].sum()) * DRAWS
    used = wanted > 0
    chi_square = ((observed - wanted)[used] ** 2 / wanted[used]).sum()
    freedom = used.sum() - 1
    spread = 2 / (9 * freedom)
    assert chi_square < freedom * (1 - spread + 4.75 * spread**0.5) ** 3


def test_generator_makes_draws_repeatable_and_leaves_the_global_one_alone(zoo):
    draws = []
    for seed in range(2):
        tokens, _ = next_tokens(zoo, seed, torch.Generator().manual_seed(7), num_return_sequences=20)
        state = torch.get_rng_state()
        torch.manual_seed(seed)
        assert torch.equal(torch.get_rng_state(), state)
        draws.append(tokens)
    assert torch.equal(*draws)


def test_a_seed_of_the_call(zoo):
    ids, mask = zoo.sources(1, rows=2)
    options = {"attention_mask": mask, "do_sample": True, "temperature": 3.0, "max_new_tokens": 8}
    model = zoo.ours("encoder_decoder", 1)
    state = torch.get_rng_state()
    first, second, third = (model.generate(ids, **options, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(first, second) and not torch.equal(first, third)
    assert torch.equal(first, model.generate(ids, **options, generator=torch.Generator().manual_seed(5)))
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="generator and seed both"):
        model.generate(ids, **options, seed=5, generator=torch.Generator())


@pytest.mark.parametrize("beams", [1, 3])
def test_a_seed_decides(beams, zoo):
    ids, mask = zoo.sources(1, rows=2)
    model, results = zoo.ours("encoder_decoder", 1), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        settings = {"do_sample": True, "temperature": 3.0, "num_beams": beams, "max_new_tokens": 8}
        results.append(model.generate(ids, attention_mask=mask, **settings))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
