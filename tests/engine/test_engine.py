"""The engine gives what the modules give: every family, padding, prompts, beams; and it sees what changes."""

import pytest
import torch

from engine_helpers import difference
from tiny_models import FAMILIES, FIRST, PAIRS, RELATED, VOCABULARY, batch, config, generated, pair, spread_out, trained
from warmstart import AutoModelForCausalLM
from warmstart.torch import runner
from warmstart.torch.engine.int8 import Int8Linear
from warmstart.torch.engine.runner import can_run

STRATEGIES = [{}, {"num_beams": 3, "num_return_sequences": 2}, {"num_beams": 2, "early_stopping": True}]
LOGITS = {"return_dict_in_generate": True, "output_logits": True}


def sources(model, rows=3):
    inputs = batch(rows, encoder_pad=model.config.encoder.pad_token_id)
    inputs.pop("labels")
    return inputs


@pytest.mark.parametrize("strategy", STRATEGIES, ids=["greedy", "beams", "beams that stop early"])
@pytest.mark.parametrize("sides", [*PAIRS, *RELATED, *(("bert", family) for family in FAMILIES)], ids="-".join)
def test_tokens_and_logits_are_the_modules(sides, strategy, kernels, by_modules):
    model = pair(*sides)
    inputs = sources(model)

    def run():
        return model.generate(**inputs, **strategy, **LOGITS, max_new_tokens=9)

    assert difference(run(), by_modules(run)) <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_each_encoder(family, kernels, by_modules):
    model = pair(family, "bert")
    inputs = sources(model)

    def run():
        return model.generate(**inputs, **LOGITS, max_new_tokens=4)

    assert difference(run(), by_modules(run)) <= 1e-5


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "roberta"])
def test_prompts_with_padding_on_the_left(family, beams, kernels, by_modules):
    model = pair("bert", family)
    prompt = torch.randint(FIRST, VOCABULARY, (3, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(prompt)
    mask[0, :3], mask[1, :1] = 0, 0
    inputs = sources(model) | {"decoder_input_ids": prompt * mask, "decoder_attention_mask": mask}

    def run():
        return model.generate(**inputs, **LOGITS, num_beams=beams, max_new_tokens=7)

    assert difference(run(), by_modules(run)) <= 1e-5


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_models_without_an_encoder(family, kernels, by_modules):
    torch.manual_seed(0)
    model = spread_out(AutoModelForCausalLM(config(family, is_decoder=True))).eval()
    ids = torch.randint(FIRST, VOCABULARY, (2, 5), generator=torch.Generator().manual_seed(1))

    def run():
        return model.generate(ids, **LOGITS, num_beams=2, max_new_tokens=7, eos_token_id=2, pad_token_id=0)

    assert difference(run(), by_modules(run)) <= 1e-5


def test_a_masks_holes_are_left_to_the_modules():
    model = pair("bert", "gpt2")
    assert can_run(model, torch.tensor([[0, 1, 1]])) and not can_run(model, torch.tensor([[1, 0, 1]]))


def test_past_key_values_are_what_the_modules_hold(kernels, by_modules):
    model = pair("bert", "llama")
    inputs = sources(model)

    def run():
        return model.generate(**inputs, **LOGITS, num_beams=2, max_new_tokens=5, min_new_tokens=5).past_key_values

    for ours, theirs in zip(run(), by_modules(run), strict=True):
        for own, other in zip(ours[:2], theirs[:2], strict=True):
            assert (own - other).abs().max() <= 1e-5


def test_training_after_generating_and_generating_after_training(kernels, by_modules):
    model = pair("bert", "gpt2")
    inputs = batch(encoder_pad=0)
    before = generated(model, inputs)
    assert len(trained(model, inputs)) == 2
    after = generated(model, inputs)
    assert torch.equal(after, by_modules(lambda: generated(model, inputs)))
    with torch.no_grad():
        model.decoder.head.output.weight.mul_(-1.0)
    changed = generated(model, inputs)
    assert torch.equal(changed, by_modules(lambda: generated(model, inputs)))
    assert not (torch.equal(before, after) and torch.equal(after, changed))


class Counted(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x) * 0


def test_what_is_not_plain_goes_through_its_modules():
    def hooked(model):
        model.decoder.layers[0].mlp.register_forward_hook(lambda *arguments: None)

    def replaced(model):
        model.decoder.layers[0].mlp.up = Counted(16, 24)

    def training(model):
        model.train()

    def own_forward(model):
        model.decoder.forward = lambda *arguments, **options: None

    def half(model):
        model.half()

    assert can_run(pair("bert", "bert"), None)
    for change in (hooked, replaced, training, own_forward, half):
        model = pair("bert", "bert")
        change(model)
        assert not can_run(model, None), change.__name__
    model = pair("bert", "bert")
    with torch.autocast("cpu"):
        assert not can_run(model, None)


def test_lower_precision_is_near(kernels):
    model = pair("bert", "bert", spread=0.1)
    inputs = sources(model)
    forced = {"max_new_tokens": 1, **LOGITS}
    exact = model.generate(**inputs, **forced).logits[0]
    spread = float(exact.std())
    brain = pair("bert", "bert", spread=0.1).to(torch.bfloat16).generate(**inputs, **forced).logits[0]
    assert 0 < (brain - exact).abs().max() <= 0.1 * spread
    model.quantize("int8")
    assert isinstance(model.decoder.head.output, Int8Linear)
    small = model.generate(**inputs, **forced).logits[0]
    assert 0 < (small - exact).abs().max() <= 0.1 * spread


def test_int8_engine_is_the_int8_modules(kernels, by_modules):
    model = pair("bert", "llama", spread=0.1)
    model.quantize("int8")
    inputs = sources(model)

    def run():
        return model.generate(**inputs, **LOGITS, max_new_tokens=5)

    ours, theirs = run(), by_modules(run)
    # the engine keeps keys and values in bfloat16, and inputs in 7 bits where the processor asks for it
    assert (ours.logits[0] - theirs.logits[0]).abs().max() <= 0.1 * theirs.logits[0].std()
    assert runner.is_plain(model)


def test_more_tokens_than_positions(kernels):
    model = pair("bert", "gpt2")
    with pytest.raises(ValueError, match="positions"):
        model.generate(**sources(model), max_new_tokens=60, min_new_tokens=60)
