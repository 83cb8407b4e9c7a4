"""The recipe: who learns how fast, the first phase, freezing, dropout, and what is refused."""

import pytest

import tiny_models
from warmstart import AutoConfig
from warmstart.training.recipe import PARTS, Recipe, parameter_groups, part_of, set_dropout, set_trained


@pytest.mark.parametrize("pair", tiny_models.PAIRS)
def test_every_parameter_is_in_one_group(pair):
    model = tiny_models.pair(*pair)
    groups = parameter_groups(model, Recipe())
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())
    assert {group["part"] for group in groups} == set(PARTS)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in groups:
        assert (group["weight_decay"] > 0) == all(parameter.dim() > 1 for parameter in group["params"])
        assert {part_of(names[id(parameter)]) for parameter in group["params"]} == {group["part"]}


def test_tied_sides_learn_as_the_decoder():
    groups = parameter_groups(tiny_models.pair("bert", "bert", tie_encoder_decoder=True), Recipe())
    assert {group["part"] for group in groups} == {"decoder", "cross_attention"}


def test_papers_rates():
    """Liu & Lapata 2019, section 3.2: peaks of 2e-3 / sqrt(20000) and 0.1 / sqrt(10000), 70 times apart."""
    recipe = Recipe()
    assert recipe.encoder_rate == pytest.approx(2e-3 / 20000**0.5, rel=0.02)
    assert recipe.cross_attention_rate == pytest.approx(0.1 / 10000**0.5)
    assert 50 <= recipe.cross_attention_rate / recipe.encoder_rate <= 72
    assert recipe.label_smoothing == 0.1


@pytest.mark.parametrize("schedule", ["linear", "inverse_sqrt", "constant"])
def test_rates_rise_once_and_never_again(schedule):
    recipe, steps = Recipe(schedule=schedule), 1000
    for part in PARTS:
        begin = 0 if part == "cross_attention" else recipe.first_phase(steps)
        rates = [recipe.rate(part, step, steps) for step in range(begin, steps)]
        top = rates.index(max(rates))
        highest = getattr(recipe, f"{part}_rate")
        assert max(rates) == pytest.approx(highest, rel=0.01)
        assert top + 1 == pytest.approx(getattr(recipe, f"{part}_warmup") * (steps - begin), abs=1)
        assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)
        assert rates[0] > 0 and min(rates) > 0
        if schedule == "linear":
            assert rates[-1] < 0.002 * highest
        if schedule == "inverse_sqrt":  # Vaswani et al. 2017, equation 3
            assert rates[-1] == pytest.approx(highest * ((top + 1) / len(rates)) ** 0.5, rel=0.02)


def test_short_runs_have_rates():
    for steps in (1, 2, 5):
        assert all(Recipe().rate(part, step, steps) > 0 for part in PARTS for step in range(steps))


def test_cross_attention_is_trained_alone_at_first():
    model, recipe = tiny_models.pair(), Recipe(cross_attention_first=0.2)
    trained = [recipe.trained_parts(step, 10) for step in range(4)]
    assert trained == [{"cross_attention"}] * 2 + [set(PARTS)] * 2
    for parts in ({"cross_attention"}, set(PARTS)):
        set_trained(model, parts)
        assert all(p.requires_grad == (part_of(name) in parts) for name, p in model.named_parameters())


def test_frozen_parts_are_in_no_group():
    model = tiny_models.pair()
    recipe = Recipe(freeze=("encoder", "decoder"))
    assert {group["part"] for group in parameter_groups(model, recipe)} == {"cross_attention"}
    assert recipe.trained_parts(99, 100) == {"cross_attention"}
    assert Recipe(freeze=("cross_attention",)).trained_parts(0, 100) == {"encoder", "decoder"}


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_dropout_reaches_every_layer(family):
    model = tiny_models.pair(family, family if family != "gpt2" else "bert")
    set_dropout(model.config, 0.25)
    model = type(model)(config=model.config)
    attention = {module.dropout for module in model.modules() if type(module).__name__ == "Attention"}
    layers = {module.dropout.p for module in model.modules() if type(module).__name__ == "Layer"}
    assert attention == {0.25}
    # Llama and its like have none but in attention; the other side is the same, or BERT.
    assert layers == ({0.0} if "rms_norm_eps" in AutoConfig.for_model(family).to_dict() else {0.25})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schedule": "cosine"}, "'cosine' is not known; use one of linear"),
        ({"freeze": ("head",)}, r"freeze \['head'\]: there is no such part"),
        ({"freeze": PARTS}, "nothing would be trained"),
        ({"label_smoothing": 1.0}, "label_smoothing 1.0 is not a share"),
        ({"decoder_warmup": -0.1}, "decoder_warmup -0.1 is not a share"),
        ({"encoder_rate": float("nan")}, "encoder_rate nan is not a number"),
        ({"clip": -1.0}, "clip -1.0"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**fields)
