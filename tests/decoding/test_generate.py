"""The interface of `generate` in torch: inputs, outputs, the rules it keeps, and what it refuses."""

import pytest
import torch
import transformers

import warmstart
from warmstart import GenerationConfig, TextStreamer
from warmstart.torch.stack import Stack

ALL_OUTPUTS = {
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_logits": True,
    "output_attentions": True,
    "output_hidden_states": True,
}


@pytest.fixture
def model(zoo):
    return zoo.ours("encoder_decoder", 1)


@pytest.fixture
def passes(monkeypatch):
    """The shapes of ids that each pass of a stack gets."""
    seen = []
    states = Stack.states
    monkeypatch.setattr("warmstart.torch.runner.can_run", lambda *arguments: False)  # the stack itself
    monkeypatch.setattr("warmstart.torch.runner.is_plain", lambda *arguments: False)

    def spy(stack, input_ids=None, *arguments, **options):
        seen.append(tuple(input_ids.shape))
        return states(stack, input_ids, *arguments, **options)

    monkeypatch.setattr(Stack, "states", spy)
    return seen


@pytest.fixture
def source(zoo):
    ids, mask = zoo.sources(11, rows=3)
    return {"input_ids": ids, "attention_mask": mask}


def test_encoder_runs_once_and_its_states_are_never_copied(model, source, passes):
    out = model.generate(**source, num_beams=4, max_new_tokens=5, return_dict_in_generate=True)
    assert passes == [tuple(source["input_ids"].shape), (3, 1), *[(12, 1)] * 4]
    for keys, values, source_keys, source_values in out.past_key_values:
        assert len(keys) == len(values) == 12
        assert len(source_keys) == len(source_values) == 3


def test_prompt_of_a_source_passes_once(zoo, passes):
    ids, mask = zoo.sources(4, rows=2, side="left")
    model = zoo.ours("causal", 0)
    model.generate(ids, attention_mask=mask, num_beams=3, max_new_tokens=3)
    assert passes == [(2, ids.shape[1]), (6, 1), (6, 1)]


STRATEGIES = [{}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2, "early_stopping": True}]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_rule_11_cached_uncached_batched_alone_are_the_same(strategy, zoo, source):
    for seed in (0, 1):
        model = zoo.ours("encoder_decoder", seed)
        options = dict(strategy, max_length=12, suppress_tokens=[zoo.PAD])
        together = model.generate(**source, **options)
        assert torch.equal(model.generate(**source, **options, use_cache=False), together)
        count = strategy.get("num_return_sequences", 1)
        for row, (ids, mask) in enumerate(zip(source["input_ids"], source["attention_mask"], strict=True)):
            kept = mask.bool()
            alone = model.generate(input_ids=ids[kept][None], **options)
            rows = together[row * count : (row + 1) * count]
            assert torch.equal(alone, rows[:, : alone.shape[1]])
            assert bool((rows[:, alone.shape[1] :] == zoo.PAD).all())


@pytest.mark.parametrize("seed", [0, 1])
def test_left_padding_changes_nothing_for_a_causal_model(seed, zoo):
    model = zoo.ours("causal", seed)
    ids, mask = zoo.sources(8, rows=3, longest=7, side="left")
    together = model.generate(ids, max_new_tokens=6, num_beams=2, suppress_tokens=[zoo.PAD])
    for row, kept in enumerate(mask.bool()):
        alone = model.generate(ids[row][kept][None], max_new_tokens=6, num_beams=2, suppress_tokens=[zoo.PAD])
        new = together[row, ids.shape[1] :]
        assert torch.equal(alone[0, int(kept.sum()) :], new[: alone.shape[1] - int(kept.sum())])


def test_rule_5_mask_is_derived_by_the_model(model, source):
    given = model.generate(**source, max_new_tokens=8)
    assert torch.equal(model.generate(source["input_ids"], max_new_tokens=8), given)


@pytest.mark.parametrize("missing", ["decoder_start_token_id", "pad_token_id", "eos_token_id"])
def test_rule_1_a_missing_token_id_is_named_with_the_remedy(missing, model, source):
    setattr(model.generation_config, missing, None)
    with pytest.raises(ValueError, match=rf"{missing} is not set.*model\.config\.{missing}.*pass {missing}="):
        model.generate(**source)
    assert model.generate(**source, **{missing: 2}, max_new_tokens=2).shape == (3, 3)


def test_no_eos_is_possible_when_it_is_said(model, source):
    assert model.generate(**source, eos_token_id=None, max_length=9).shape == (3, 9)


@pytest.mark.parametrize("kind", ["encoder_decoder", "causal"])
@pytest.mark.parametrize("strategy", [*STRATEGIES, {"do_sample": True, "num_return_sequences": 2}], ids=str)
def test_outputs_are_those_of_transformers(kind, strategy, zoo):
    theirs, model = getattr(zoo, kind)(1), zoo.ours(kind, 1)
    theirs.set_attn_implementation("eager") if kind == "causal" else None
    ids, mask = zoo.sources(5, rows=2)
    if kind == "causal":  # what a padded position attends to means nothing
        ids, mask = ids.clamp(min=4), torch.ones_like(mask)
    options = dict(strategy, **ALL_OUTPUTS, max_new_tokens=4, suppress_tokens=[zoo.PAD])
    torch.manual_seed(0)
    expected = theirs.generate(ids, attention_mask=mask, **options)
    torch.manual_seed(0)
    ours = model.generate(ids, attention_mask=mask, **options)
    assert type(ours).__name__ == type(expected).__name__
    assert list(ours) == list(expected)
    rows = len(mask) * max(strategy.get("num_beams", 1), strategy.get("num_return_sequences", 1))
    for name in set(ours) - {"past_key_values"}:
        mine, other = ours[name], expected[name]
        if name.startswith("encoder_"):  # theirs has the rows of the beams
            other = tuple(x[:: rows // len(mask)] if len(x) == rows else x for x in other)
        check_equal(mine, other)
    assert model.generate(ids, attention_mask=mask, **options | {"output_scores": False}).scores is None


def check_equal(mine, other):
    if isinstance(mine, tuple):
        assert len(mine) == len(other)
        for x, y in zip(mine, other, strict=True):
            check_equal(x, y)
    else:
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4, check_dtype=False)


def test_a_plain_call_returns_ids(model, source):
    ids = model.generate(**source, max_new_tokens=3, output_scores=True)
    assert isinstance(ids, torch.Tensor) and ids.dtype == torch.int64


def test_beams_are_filled_with_pad_even_when_pad_is_zero(zoo):
    """Here `transformers` fills with the end token."""
    ends = [zoo.END, *range(20, zoo.VOCABULARY)]
    options = {"num_beams": 2, "max_length": 9, "suppress_tokens": [0], "pad_token_id": 0, "eos_token_id": ends}
    filled = 0
    for seed in range(6):
        ids, mask = zoo.sources(seed, rows=3)
        expected = zoo.encoder_decoder(seed).generate(ids, attention_mask=mask, **options)
        got = zoo.ours("encoder_decoder", seed).generate(ids, attention_mask=mask, **options)
        after = torch.isin(expected, torch.tensor(ends)).int().cumsum(1).cumsum(1) > 1
        assert torch.equal(got, expected.masked_fill(after, 0))
        filled += int(after.sum())
    assert filled > 0


class TestSettings:
    def test_call_over_given_over_model(self, model, source):
        model.generation_config.update(max_new_tokens=3, num_beams=2)
        assert model.generate(**source).shape[1] == 4
        given = GenerationConfig(max_new_tokens=5, eos_token_id=[29])
        assert model.generate(**source, generation_config=given).shape[1] == 6
        assert model.generate(**source, generation_config=given, max_new_tokens=2).shape[1] == 3
        assert model.generation_config.explicit()["max_new_tokens"] == 3

    def test_an_explicit_default_counts(self, model, source):
        model.generation_config.num_beams = 2
        out = model.generate(**source, generation_config=GenerationConfig(num_beams=1), return_dict_in_generate=True)
        assert type(out).__name__ == "GenerateEncoderDecoderOutput"

    def test_none_leaves_what_cannot_be_off(self, model, source):
        model.generation_config.max_new_tokens = 3
        settings = {
            "num_beams": None,
            "do_sample": None,
            "max_length": None,
            "top_k": None,
            "temperature": None,
            "min_length": None,
        }
        assert model.generate(**source, **settings).shape[1] == 4

    def test_a_length_replaces_one_of_the_other_name_below_it(self, model, source):
        model.generation_config.update(max_new_tokens=9, eos_token_id=None)
        options = {**source, "eos_token_id": None}
        assert model.generate(**options, max_length=4).shape[1] == 4
        assert model.generate(**options, generation_config=GenerationConfig(max_length=5)).shape[1] == 5
        with pytest.warns(UserWarning, match="max_length has no effect beside max_new_tokens"):
            assert model.generate(**options, max_length=4, max_new_tokens=2).shape[1] == 3

    def test_twenty_new_tokens_where_nothing_is_said(self, model, source, zoo):
        assert model.generate(**source, eos_token_id=None).shape[1] == 21
        assert model.generate(**source, eos_token_id=None, max_length=None).shape[1] == 21
        assert zoo.encoder_decoder(1).generate(**source, eos_token_id=None).shape[1] == 21

    def test_an_explicit_length_of_the_default_counts(self, model, source):
        assert model.generate(**source, eos_token_id=None, max_length=20).shape[1] == 20

    def test_positions_bound_the_default_length_of_a_causal_model(self, zoo):
        model = zoo.ours("causal", 1)
        ids = torch.full((1, 50), 5)
        assert model.generate(ids, eos_token_id=None).shape[1] == 60
        with pytest.warns(UserWarning, match="num_beams above 1"):
            model.generate(ids, length_penalty=2.0, max_new_tokens=1)

    def test_a_setting_without_effect_warns_only_in_the_call(self, model, source):
        model.generation_config.update(temperature=0.5, length_penalty=2.0)
        model.generate(**source, max_new_tokens=1)
        with pytest.warns(UserWarning, match="temperature, top_p has no effect without do_sample=True"):
            model.generate(**source, max_new_tokens=1, temperature=0.5, top_p=0.9, top_k=None)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"num_beam": 4}, r"knows no argument 'num_beam'; did you mean 'num_beams'\?"),
            ({"generation_config": GenerationConfig(num_beam=4)}, r"has 'num_beam', which.*did you mean 'num_beams'\?"),
            ({"num_return_sequences": 3, "num_beams": 2}, "num_return_sequences=3 is more than num_beams=2"),
            ({"num_return_sequences": 2}, "num_return_sequences=2 with num_beams=1 and do_sample=False"),
            ({"max_length": 1}, "max_length=1 leaves no room.*decoder_input_ids already holds 1"),
            ({"max_length": 5, "min_length": 9}, "min_length is 9 tokens, more than max_length, 5"),
            ({"max_new_tokens": 2, "min_new_tokens": 3}, "min_new_tokens plus the prompt is 4 .* 3"),
            ({"early_stopping": "always"}, "early_stopping='always'.*never"),
            ({"max_new_tokens": 0}, "max_new_tokens=0: it must be a whole number, 1 or more"),
            ({"num_beams": 2.5}, "num_beams=2.5"),
            ({"num_beam_groups": 2, "num_beams": 4}, "num_beam_groups=2 with diversity_penalty=0.0"),
            ({"num_beam_groups": 2, "num_beams": 3, "diversity_penalty": 1.0}, "does not divide num_beams=3"),
            ({"num_beam_groups": 2, "diversity_penalty": 1.0}, "does not divide num_beams=1"),
            (
                {"num_beam_groups": 2, "num_beams": 4, "diversity_penalty": 1.0, "do_sample": True},
                "num_beam_groups=2 is a beam search: set num_beams above 1 and do_sample=False",
            ),
            (
                {"num_beam_groups": 2, "num_beams": 4, "diversity_penalty": 1.0, "force_words_ids": [[5]]},
                "num_beam_groups=2 and force_words_ids are different ways to search",
            ),
            ({"force_words_ids": [[5]]}, "force_words_ids is a beam search"),
            ({"force_words_ids": [[]], "num_beams": 2}, "force_words_ids=.*a list of words"),
            ({"constraints": [1], "num_beams": 2}, "constraints=.*PhrasalConstraint"),
            ({"penalty_alpha": 0.6, "num_beams": 4}, "penalty_alpha=0.6 carries one sequence at a time"),
            ({"penalty_alpha": 0.6, "top_k": 1}, "contrastive search.*top_k=1"),
            ({"penalty_alpha": 0.6, "do_sample": True}, "contrastive search.*do_sample=True"),
            ({"penalty_alpha": 0.6, "use_cache": False}, "penalty_alpha=0.6 needs use_cache=True"),
            ({"penalty_alpha": 1.6}, "penalty_alpha=1.6: it must be a number from 0 to 1"),
            ({"prompt_lookup_num_tokens": 3, "num_beams": 2}, "prompt_lookup_num_tokens=3 carries one sequence"),
            ({"prompt_lookup_num_tokens": 3, "penalty_alpha": 0.5}, "are different ways to search"),
            ({"prompt_lookup_num_tokens": 0}, "prompt_lookup_num_tokens=0: it must be a whole number, 1 or more"),
            ({"prompt_lookup_num_tokens": 3, "guidance_scale": 2.0}, "guidance_scale and drafts"),
            ({"assistant_model": object()}, "assistant_model is a object; give a model"),
            ({"past_key_values": object()}, "does not support 'past_key_values': the prompt is computed anew"),
            ({"watermarking_config": {"bias": 2.0}}, "watermarking_config=.* is not supported: .*logits_processor"),
            ({"stop_strings": ["."]}, "stop_strings are looked for in text: pass the decoder's tokenizer"),
            ({"max_length": 99}, "max_length=99 makes sequences of 99 tokens.* 40 positions: set max_length to 41"),
            ({"max_new_tokens": 99}, "40 positions: set max_new_tokens to 40 or less"),
            ({"decoder_input_ids": torch.full((3, 41), 5)}, "decoder_input_ids holds 42 tokens, more than the 40"),
            ({"sequence_bias": {(3,): "a"}}, "sequence_bias="),
            ({"exponential_decay_length_penalty": 3}, "exponential_decay_length_penalty=3: it must be a pair"),
            ({"suppress_tokens": [31]}, r"suppress_tokens has token ids outside the vocabulary: \[31\]"),
            ({"eos_token_id": -1}, "eos_token_id=-1: token ids are whole numbers"),
            ({"streamer": TextStreamer(None), "num_beams": 2}, "a streamer with num_beams=2"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_bad_settings_are_named_before_the_encoder_runs(self, settings, message, model, source, passes):
        with pytest.raises(ValueError, match=message):
            model.generate(**source, **settings)
        late = {"suppress_tokens", "assistant_model", "stop_strings", "guidance_scale"}
        assert passes == [] or late & set(settings)


class TestInputs:
    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            ({}, "it got neither"),
            ({"input_ids": torch.ones(1, 2).long(), "inputs_embeds": torch.ones(1, 2, 16)}, "it got both"),
            ({"inputs": torch.ones(1, 2).long(), "input_ids": torch.ones(1, 2).long()}, "given twice"),
            ({"input_ids": torch.ones(0, 4).long()}, r"input_ids is empty, \(0, 4\)"),
            ({"input_ids": torch.ones(2, 0).long()}, "input_ids is empty"),
            ({"input_ids": torch.ones(2, 3)}, "float32; it must be whole numbers"),
            ({"input_ids": [[1, 2]]}, "input_ids is a list"),
            ({"inputs_embeds": torch.ones(2, 16)}, r"\(batch, source_length, hidden\)"),
            (
                {"input_ids": torch.full((2, 3), 5), "decoder_input_ids": torch.full((3, 1), 5)},
                "decoder_input_ids has 3 rows and the source 2",
            ),
            (
                {"input_ids": torch.full((2, 3), 5), "decoder_attention_mask": torch.ones(2, 3)},
                "decoder_attention_mask belongs to decoder_input_ids",
            ),
            (
                {"input_ids": torch.full((2, 3), 5), "decoder_start_token_id": [4, 5, 6]},
                "decoder_start_token_id has 3 ids for 2 sources",
            ),
        ],
    )
    def test_bad_inputs_are_named(self, inputs, message, model):
        with pytest.raises(ValueError, match=message):
            model.generate(**inputs)

    def test_encoder_outputs_and_embeddings_in_place_of_ids(self, model, source):
        expected = model.generate(**source, max_new_tokens=6)
        mask = source["attention_mask"]
        states = model.encode(**source)
        for outputs in (states, (states.last_hidden_state,)):
            assert torch.equal(model.generate(encoder_outputs=outputs, attention_mask=mask, max_new_tokens=6), expected)
        embeds = model.get_input_embeddings()(source["input_ids"])
        assert torch.equal(model.generate(inputs_embeds=embeds, attention_mask=mask, max_new_tokens=6), expected)

    def test_token_types_reach_the_encoder_and_labels_do_nothing(self, model, source, zoo):
        types = (source["input_ids"] > 9).long()
        expected = zoo.encoder_decoder(1).generate(**source, token_type_ids=types, max_new_tokens=6)
        assert torch.equal(model.generate(**source, token_type_ids=types, labels=types, max_new_tokens=6), expected)
        assert not torch.equal(model.generate(**source, max_new_tokens=6), expected)

    def test_a_start_token_for_each_source(self, model, source):
        ids = model.generate(**source, decoder_start_token_id=[4, 5, 6], max_new_tokens=4)
        assert ids[:, 0].tolist() == [4, 5, 6]
        for row in range(3):
            alone = {name: value[row : row + 1] for name, value in source.items()}
            one = model.generate(**alone, decoder_start_token_id=4 + row, max_new_tokens=4)
            assert torch.equal(one[0], ids[row, : one.shape[1]])

    def test_a_prompt_needs_no_start_token(self, model, source):
        model.generation_config.decoder_start_token_id = None
        ids = model.generate(**source, decoder_input_ids=torch.full((3, 2), 7), max_new_tokens=2)
        assert ids[:, :2].tolist() == [[7, 7]] * 3

    def test_a_start_token_in_one_row_means_that_no_row_gets_one(self, model, source, zoo):
        prompt = torch.tensor([[zoo.START, 7], [8, 9], [8, 7]])
        options = {**source, "decoder_input_ids": prompt, "max_new_tokens": 4, "suppress_tokens": [zoo.PAD]}
        ids = model.generate(**options)
        assert torch.equal(ids[:, :2], prompt)
        assert torch.equal(ids, zoo.encoder_decoder(1).generate(**options))

    @pytest.mark.parametrize("starts", [True, False])
    @pytest.mark.parametrize("seed", [0, 1])
    def test_prompts_of_different_lengths_are_padded_on_the_left(self, seed, starts, source, zoo):
        model, start = zoo.ours("encoder_decoder", seed), [zoo.START] * starts
        prompts = [[*start, 7], [*start, 8, 9, 10], [*start, 11, 12]]
        longest = max(map(len, prompts))
        padded = torch.tensor([[zoo.PAD] * (longest - len(prompt)) + prompt for prompt in prompts])
        options = {"num_beams": 2, "max_new_tokens": 5, "eos_token_id": None}
        ids = model.generate(
            **source, decoder_input_ids=padded, decoder_attention_mask=(padded != zoo.PAD).long(), **options
        )
        for row, prompt in enumerate(prompts):
            alone = {name: value[row : row + 1] for name, value in source.items()}
            one = model.generate(**alone, decoder_input_ids=torch.tensor([prompt]), **options)
            assert one[0, 0] == zoo.START and torch.equal(one[0], ids[row, -one.shape[1] :])

    def test_a_causal_model_without_pad_or_prompt(self, zoo):
        model = zoo.ours("causal", 1)
        model.generation_config.pad_token_id = None
        ids = model.generate(max_new_tokens=4)
        assert ids[0, 0] == zoo.START and ids.shape[0] == 1

    def test_right_padding_of_a_prompt_is_refused(self, model, source, zoo):
        prompt = torch.full((3, 2), 5)
        with pytest.raises(ValueError, match="pad it on the left"):
            model.generate(
                **source, decoder_input_ids=prompt, decoder_attention_mask=torch.tensor([[1, 0], [1, 1], [1, 1]])
            )
        ids, mask = zoo.sources(4, rows=2)
        with pytest.raises(ValueError, match="pad it on the left"):
            zoo.ours("causal", 1).generate(ids, attention_mask=mask)


class TestOwnFunctions:
    def test_processors_stand_before_the_warpers(self, zoo, source):
        def seven(ids, scores):
            assert ids.shape[0] == scores.shape[0]
            return scores.index_fill(1, torch.tensor([7]), 100.0 * (ids.shape[1] % 2))

        theirs, ours = zoo.encoder_decoder(1), zoo.ours("encoder_decoder", 1)
        for options in ({"num_beams": 3}, {"do_sample": True, "top_k": 2}):
            options = dict(options, max_length=8, suppress_tokens=[zoo.PAD])
            torch.manual_seed(0)
            expected = theirs.generate(**source, **options, logits_processor=transformers.LogitsProcessorList([seven]))
            for given in ([seven], seven, transformers.LogitsProcessorList([seven])):
                torch.manual_seed(0)
                assert torch.equal(ours.generate(**source, **options, logits_processor=given), expected)

    def test_code_written_for_classes_of_transformers_runs_with_ours(self, zoo, source):
        """What changes is the library that the names come from."""

        def found(library, model):
            class Even(library.LogitsProcessor):
                def __call__(self, input_ids, scores):
                    return scores.masked_fill(torch.arange(scores.shape[-1]) % 2 == 1, float("-inf"))

            class AfterFour(library.StoppingCriteria):
                def __call__(self, input_ids, scores, **kwargs):
                    return input_ids[:, -1] % 4 == 0

            processors = library.LogitsProcessorList([Even()])
            processors.append(lambda ids, scores: scores / 2)
            ends = library.StoppingCriteriaList([AfterFour()])
            ids = model.generate(**source, max_length=9, logits_processor=processors, stopping_criteria=ends)
            scores = torch.randn(3, 31, generator=torch.Generator().manual_seed(0))
            return ids, processors(source["input_ids"], scores), ends(source["input_ids"], scores)

        theirs = found(transformers, zoo.encoder_decoder(1))
        ours = found(warmstart, zoo.ours("encoder_decoder", 1))
        for x, y in zip(ours, theirs, strict=True):
            assert torch.equal(x, y)
        for given in (warmstart.LogitsProcessor(), warmstart.StoppingCriteria()):
            with pytest.raises(NotImplementedError, match=f"{type(given).__name__} must define __call__"):
                given(None, None)

    def test_a_processor_with_a_wrong_result_is_named(self, model, source):
        def short(ids, scores):
            return scores[:, :5]

        with pytest.raises(ValueError, match=r"processor short must return scores \(3, 31\); it returned \(3, 5\)"):
            model.generate(**source, logits_processor=[short])

    @pytest.mark.parametrize("beams", [1, 3])
    def test_stopping_criteria(self, beams, zoo, source):
        seen = []

        def at_length_four(ids, scores, **kwargs):
            seen.append((ids.shape, None if scores is None else len(scores)))
            return torch.full((len(ids),), ids.shape[1] >= 4)

        options = {"num_beams": beams, "max_length": 9, "suppress_tokens": [zoo.PAD]}
        theirs, ours = zoo.encoder_decoder(1), zoo.ours("encoder_decoder", 1)
        expected = theirs.generate(**source, **options, stopping_criteria=[at_length_four])
        rows = len(seen) and seen[0][0]
        seen.clear()
        ours = ours.generate(**source, **options, stopping_criteria=[at_length_four])
        assert torch.equal(ours, expected) and ours.shape[1] == 4
        assert seen[0] == (rows, None)

    def test_max_time_ends_after_the_first_token(self, model, source):
        assert model.generate(**source, max_time=1e-9, max_length=9).shape == (3, 2)

    @pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"do_sample": True}], ids=str)
    def test_prefix_function(self, options, zoo, source):
        def allowed(source_index, ids):
            return [4 + source_index, 9, 10] if len(ids) % 2 else [11, 12]

        theirs, ours = zoo.encoder_decoder(1), zoo.ours("encoder_decoder", 1)
        options = dict(options, max_length=8, prefix_allowed_tokens_fn=allowed)
        torch.manual_seed(0)
        expected = theirs.generate(**source, **options)
        torch.manual_seed(0)
        assert torch.equal(ours.generate(**source, **options), expected)
        with pytest.raises(ValueError, match="allows no token for source 0"):
            ours.generate(**source, prefix_allowed_tokens_fn=lambda source_index, ids: [])

    def test_streamer_gets_the_prompt_and_each_token(self, model, source):
        class Streamer:
            def __init__(self):
                self.parts, self.ended = [], False

            def put(self, ids):
                assert ids.device.type == "cpu" and not self.ended
                self.parts.append(ids.reshape(3, -1))

            def end(self):
                self.ended = True

        streamer = Streamer()
        ids = model.generate(**source, max_new_tokens=5, streamer=streamer)
        assert streamer.ended and torch.equal(torch.cat(streamer.parts, 1), ids)
