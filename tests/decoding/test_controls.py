"""Controls and outputs beyond settings drawn at random: stop strings, guidance, transition scores, rows that leave."""

import itertools

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from warmstart import DisjunctiveConstraint, GenerationConfig, PhrasalConstraint, PreTrainedTokenizerFast
from warmstart.torch.runner import ModuleRunner


@pytest.fixture
def source(zoo):
    ids, mask = zoo.sources(11, rows=3)
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture
def model(zoo):
    return zoo.ours("encoder_decoder", 1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.0},
        {"do_sample": True, "num_return_sequences": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("normalise", [True, False])
def test_transition_scores_are_those_of_transformers(options, normalise, model, source, zoo):
    wanted = {"return_dict_in_generate": True, "output_scores": True, "max_length": 9}
    torch.manual_seed(0)
    out = model.generate(**source, **options, **wanted, suppress_tokens=[zoo.PAD])
    arguments = (out.sequences, out.scores, out.get("beam_indices"), normalise)
    expected = zoo.encoder_decoder(1).compute_transition_scores(*arguments)
    found = model.compute_transition_scores(*arguments)
    torch.testing.assert_close(found, expected)
    if "num_beams" in options and not normalise:  # with length_penalty 0 they sum to the sequence's score
        torch.testing.assert_close(found.sum(1), out.sequences_scores)
    with pytest.raises(ValueError, match="steps of scores do not fit sequences"):
        model.compute_transition_scores(out.sequences[:, :2], out.scores)  # of rows without beams


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 3, "do_sample": True}], ids=str)
def test_rows_that_have_ended_are_not_computed(options, model, zoo, monkeypatch):
    monkeypatch.setattr("warmstart.torch.runner.can_run", lambda *arguments: False)
    ids, mask = zoo.sources(2, rows=12)
    rows, logits = [], ModuleRunner.logits

    def spy(runner, ids, keep=1):
        rows.append(len(ids))
        return logits(runner, ids, keep)

    monkeypatch.setattr(ModuleRunner, "logits", spy)
    settings = {"max_length": 20, "eos_token_id": [zoo.END, 5, 7, 12, 20, 25], "suppress_tokens": [zoo.PAD], **options}
    torch.manual_seed(0)
    together = model.generate(ids, attention_mask=mask, **settings)
    assert rows[-1] < rows[0]
    torch.manual_seed(0)
    rows.clear()
    whole = model.generate(ids, attention_mask=mask, **settings, return_dict_in_generate=True).sequences
    assert len(set(rows)) == 1 and torch.equal(together, whole)


class TestStopStrings:
    @pytest.fixture
    def tokenizers(self, zoo):
        """One of letters and pieces, ours and that of transformers."""
        pieces = [
            "<unk>",
            "<pad>",
            "<s>",
            "</s>",
            *"abcdefghij",
            "ab",
            "cd",
            "ef.",
            ".",
            " ",
            "gh ",
            "ij.",
            *"klmnopqrs",
        ]
        vocabulary = {piece: i for i, piece in enumerate(pieces[: zoo.VOCABULARY])}
        backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.Fuse()
        theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>")
        return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>"), theirs

    @pytest.mark.parametrize("strings", ["a", ["cd", "gh"], ["bc", "."], ["n", "hi", "d"]], ids=str)
    @pytest.mark.parametrize("options", [{}, {"num_beams": 2}], ids=str)
    def test_rows_end_as_in_transformers(self, strings, options, tokenizers, zoo):
        ours, theirs = tokenizers
        stopped = 0
        for seed in range(6):
            ids, mask = zoo.sources(seed, rows=3)
            settings = {"max_length": 14, "stop_strings": strings, "suppress_tokens": [zoo.PAD, 0], **options}
            expected = zoo.encoder_decoder(seed).generate(ids, attention_mask=mask, tokenizer=theirs, **settings)
            got = zoo.shared("encoder_decoder", seed).generate(ids, attention_mask=mask, tokenizer=ours, **settings)
            assert torch.equal(got, expected)
            plain = zoo.shared("encoder_decoder", seed).generate(
                ids, attention_mask=mask, **{name: x for name, x in settings.items() if name != "stop_strings"}
            )
            stopped += plain.shape != got.shape or not torch.equal(plain, got)
        assert stopped > 0


class TestGuidance:
    def test_no_guidance_and_full_guidance(self, model, source):
        """A scale of 1 is the model; the same source as the negative one changes nothing at any scale."""
        expected = model.generate(**source, max_length=9)
        assert torch.equal(model.generate(**source, max_length=9, guidance_scale=1.0), expected)
        negative = {
            "negative_prompt_ids": source["input_ids"],
            "negative_prompt_attention_mask": source["attention_mask"],
        }
        for options in ({}, {"num_beams": 3}):
            expected = model.generate(**source, max_length=9, **options)
            assert torch.equal(
                model.generate(**source, max_length=9, guidance_scale=3.0, **negative, **options), expected
            )

    @pytest.mark.parametrize("negative", [True, False])
    def test_scores_by_the_definition(self, negative, model, source, zoo):
        other = torch.tensor([[4, 5, 6]])
        more = {"negative_prompt_ids": other} if negative else {}
        wanted = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "max_length": 7}
        out = model.generate(**source, guidance_scale=2.5, **more, **wanted)
        for step, (scores, logits) in enumerate(zip(out.scores, out.logits, strict=True)):
            ids = out.sequences[:, : step + 1]
            if negative:
                without = model(input_ids=other.expand(3, -1), decoder_input_ids=ids).logits
            else:
                without = model.decoder(input_ids=ids).logits
            u, s = torch.log_softmax(without[:, -1], -1), torch.log_softmax(logits, -1)
            torch.testing.assert_close(scores, u + 2.5 * (s - u), rtol=1e-4, atol=1e-3)

    def test_a_wrong_count_of_negative_prompts(self, model, source):
        with pytest.raises(ValueError, match="negative_prompt_ids has 2 rows for 3 sources"):
            model.generate(**source, guidance_scale=2.0, negative_prompt_ids=torch.full((2, 3), 5))


class TestBadInput:
    def test_a_processor_that_returns_no_numbers_is_named(self, model, source):
        def broken(ids, scores):
            return scores.index_fill(1, torch.tensor([7]), float("nan"))

        for options in ({}, {"num_beams": 2}, {"do_sample": True}, {"prompt_lookup_num_tokens": 2}):
            with pytest.raises(ValueError, match=r"processor broken returned scores that are no numbers \(NaN\)"):
                model.generate(**source, logits_processor=[broken], **options)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({}, "all tokens are forbidden in row 0 at position 1"),
            ({"do_sample": True}, "all tokens are forbidden in row 0 at position 1"),
            ({"penalty_alpha": 0.5, "top_k": 3}, "all tokens are forbidden in row 0 at position 1"),
            ({"prompt_lookup_num_tokens": 3}, "all tokens are forbidden in row 0 at position 1:"),
            ({"num_beams": 2}, "no sequence is possible for source 0"),
            ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0}, "no sequence is possible for source 0"),
            ({"num_beams": 2, "force_words_ids": [[5]]}, "no sequence is possible for source 0"),
        ],
        ids=str,
    )
    def test_all_tokens_forbidden(self, options, message, model, source, zoo):
        with pytest.raises(ValueError, match=message):
            model.generate(**source, **options, suppress_tokens=list(range(zoo.VOCABULARY)), max_length=6)

    def test_weights_that_are_no_numbers(self, model, source):
        model.decoder.get_output_embeddings().weight.data[3] = float("nan")
        for options in ({}, {"do_sample": True}):
            with pytest.raises(ValueError, match="the scores of row 0 at position 1 are no numbers"):
                model.generate(**source, **options, max_length=6)

    def test_what_looks_at_the_source_needs_its_ids_in_the_decoders_vocabulary(self, model, source):
        embeds = model.get_input_embeddings()(source["input_ids"]).detach()
        with pytest.raises(ValueError, match="encoder_repetition_penalty looks at the source's ids: give input_ids"):
            model.generate(inputs_embeds=embeds, encoder_repetition_penalty=2.0)
        model.resize_token_embeddings(60, side="encoder")
        with pytest.raises(ValueError, match="the source holds 55, outside the decoder's vocabulary of 31"):
            model.generate(torch.tensor([[5, 55]]), encoder_no_repeat_ngram_size=2)

    def test_a_prefix_function_is_told_the_source_in_groups_of_beams(self, model, source):
        groups = {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0}
        ids = model.generate(
            **source, **groups, max_length=4, prefix_allowed_tokens_fn=lambda number, ids: [4 + number]
        )
        assert ids[:, 1:].tolist() == [[4 + number] * 3 for number in range(len(ids))]

    def test_a_prefix_function_that_leaves_the_vocabulary(self, model, source):
        with pytest.raises(ValueError, match=r"outside the vocabulary of 31: \[31\]"):
            model.generate(**source, prefix_allowed_tokens_fn=lambda number, ids: [4, 31])

    @pytest.mark.parametrize(
        ("words", "message"),
        [([[3, 5]], "the constraints hold an end token"), ([[5, 31]], r"outside the vocabulary of 31: \[31\]")],
    )
    def test_words_that_cannot_come(self, words, message, model, source):
        with pytest.raises(ValueError, match=message):
            model.generate(**source, num_beams=2, force_words_ids=words)

    def test_constraints_that_make_no_sense(self):
        for words in ([], [[]], [[4, -1]], [["a"]], "ab"):
            with pytest.raises(ValueError, match="token ids"):
                DisjunctiveConstraint(words)
        with pytest.raises(ValueError, match=r"the alternative \[4, 5\] begins with the alternative \[4\]"):
            DisjunctiveConstraint([[4], [4, 5]])
        with pytest.raises(ValueError, match="token ids"):
            PhrasalConstraint([])

    def test_nobody_chose_a_length_and_it_is_clipped(self, model, source):
        prompt = torch.full((3, 30), 5)
        assert model.generate(**source, decoder_input_ids=prompt, eos_token_id=None).shape[1] == 40


def test_outputs_of_contrastive_search(model, source, zoo):
    wanted = dict.fromkeys(("return_dict_in_generate", "output_scores", "output_logits"), True)
    wanted |= {"output_attentions": True, "output_hidden_states": True, "max_length": 8, "eos_token_id": None}
    out = model.generate(**source, penalty_alpha=0.5, top_k=4, **wanted)
    greedy = model.generate(**source, **wanted)
    assert list(out) == list(greedy)
    states = model.encode(**source)
    whole = model(
        encoder_outputs=states,
        attention_mask=source["attention_mask"],
        decoder_input_ids=out.sequences[:, :-1],
        output_hidden_states=True,
        output_attentions=True,
    )
    for step in range(7):
        torch.testing.assert_close(out.logits[step], whole.logits[:, step], rtol=1e-4, atol=1e-3)
        for mine, other in zip(out.decoder_hidden_states[step], whole.decoder_hidden_states, strict=True):
            torch.testing.assert_close(mine, other[:, step : step + 1], rtol=1e-4, atol=1e-3)
        for name in ("decoder_attentions", "cross_attentions"):
            shapes = [tuple(layer.shape) for layer in out[name][step]]
            assert shapes == [tuple(layer.shape) for layer in greedy[name][step]]


def test_a_search_that_finds_too_few_fills_up(model, source):
    def only_one(number, ids):
        return [9] if len(ids) == 1 else [3]

    options = {"num_beams": 3, "num_return_sequences": 2, "return_dict_in_generate": True, "output_scores": True}
    out = model.generate(**source, **options, prefix_allowed_tokens_fn=only_one, max_length=6)
    assert out.sequences[::2, :3].tolist() == [[2, 9, 3]] * 3
    assert (out.sequences_scores[::2] > -100).all() and (out.sequences_scores[1::2] <= -1e8).all()


def test_constraints_are_not_written_to_a_file(tmp_path):
    config = GenerationConfig(num_beams=2, constraints=[PhrasalConstraint([5])])
    with pytest.raises(ValueError, match="constraints are objects, which a file cannot hold: set force_words_ids"):
        config.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("beams", [2, 5])
def test_constraints_are_met(beams, model, source):
    constraints = [PhrasalConstraint([9, 10]), DisjunctiveConstraint([[11], [12, 13]])]
    ids = model.generate(**source, num_beams=beams, constraints=constraints, max_length=14)
    for row in ids.tolist():
        pairs = list(itertools.pairwise(row))
        assert (9, 10) in pairs and (11 in row or (12, 13) in pairs)
    words = model.generate(**source, num_beams=beams, force_words_ids=[[9, 10], [[11], [12, 13]]], max_length=14)
    assert torch.equal(ids, words)


CALLS = {
    "beams": {"num_beams": 3},
    "groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0},
    "constrained": {"num_beams": 3, "force_words_ids": [[5]]},
    "contrastive": {"penalty_alpha": 0.5, "top_k": 3},
    "sampling": {"do_sample": True, "num_return_sequences": 2, "seed": 1},
}


@pytest.mark.parametrize("search", CALLS)
def test_guidance_by_the_same_source_changes_no_search(search, model, source):
    negative = {"negative_prompt_ids": source["input_ids"], "negative_prompt_attention_mask": source["attention_mask"]}
    expected = model.generate(**source, max_length=8, **CALLS[search])
    for more in (negative, {}):
        ids = model.generate(**source, max_length=8, guidance_scale=3.0, **more, **CALLS[search])
        assert torch.equal(ids, expected) is bool(more)


@pytest.mark.parametrize("more", [CALLS["contrastive"], {"prompt_lookup_num_tokens": 3}], ids=str)
def test_the_cache_that_is_returned_holds_what_was_read(more, model, source, zoo):
    """A token behind the sequences has the logits that it has without a cache."""
    wanted = {"return_dict_in_generate": True, "max_length": 8, "suppress_tokens": [zoo.PAD]}
    out = model.generate(**source, **wanted, **more)
    going = out.sequences[:, -1] != zoo.PAD  # of rows that have ended, only the tokens mean something
    assert out.past_key_values.length == 7 and 0 < going.sum() < len(going)
    states = {"encoder_outputs": model.encode(**source), "attention_mask": source["attention_mask"]}
    new = model(**states, decoder_input_ids=out.sequences[:, -1:], past_key_values=out.past_key_values).logits
    whole = model(**states, decoder_input_ids=out.sequences).logits[:, -1:]
    torch.testing.assert_close(new[going], whole[going], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"stopping_criteria": lambda ids, scores: None},
            "stopping rule <lambda> must return a boolean.*returned None",
        ),
        ({"stopping_criteria": lambda ids, scores: torch.zeros(7).bool()}, r"a tensor of 3, .*\(7,\) of torch.bool"),
        ({"stopping_criteria": lambda ids, scores: ids[:, :1] > 5}, r"one for each row; it returned \(3, 1\)"),
        ({"stopping_criteria": lambda ids, scores: ids[:, -1]}, r"it returned \(3,\) of torch.int64"),
        ({"stopping_criteria": [3]}, "stopping_criteria holds 3, which is no function"),
        ({"logits_processor": ["top"]}, "logits_processor holds 'top', which is no function"),
        ({"prefix_allowed_tokens_fn": lambda row, ids: None}, "returned None for source 0; it must be token ids"),
        ({"streamer": object()}, r"streamer is a object; it must have put\(ids\) and end\(\)"),
        ({"seed": "a"}, "seed='a': it must be a whole number"),
        ({"negative_prompt_ids": torch.tensor([[5]])}, "negative_prompt_ids are what guidance_scale leads away from"),
        ({"pad_token_id": []}, r"pad_token_id=\[\]: rows are filled with one token"),
        ({"forced_bos_token_id": []}, r"forced_bos_token_id=\[\]: it must be a token id"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan: it must be a number"),
        ({"num_beams": 2, "length_penalty": float("nan")}, "length_penalty=nan: it must be a number"),
        ({"num_beams": 2, "length_penalty": 1e6}, "length_penalty=1000000.0: scores are divided by the length"),
        ({"num_beams": 2, "length_penalty": -1e6}, "length_penalty=-1000000.0: scores are divided by the length"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_makes_no_sense_is_named(options, message, model, source):
    with pytest.raises(ValueError, match=message):
        model.generate(**source, max_length=6, **options)


def test_an_end_token_that_cannot_come_is_named(model, source):
    with pytest.warns(UserWarning, match=r"eos_token_id=\[50256\]: .* end at max_length=6; set eos_token_id"):
        ids = model.generate(**source, max_length=6, eos_token_id=50256)
    assert ids.shape == (3, 6)
    model.generate(**source, max_length=6, eos_token_id=[50256, 7])  # one of them can


def test_an_infinite_score_is_refused_where_it_has_no_probability(model, source):
    def sure(ids, scores):
        return scores.index_fill(1, torch.tensor([7]), float("inf"))

    assert model.generate(**source, logits_processor=sure, max_length=5)[:, 1:].tolist() == [[7] * 4] * 3
    for options in ({"do_sample": True}, {"num_beams": 2}, {"do_sample": True, "prompt_lookup_num_tokens": 2}):
        with pytest.raises(ValueError, match="processor sure returned an infinite score in row 0"):
            model.generate(**source, logits_processor=sure, max_length=5, **options)


@pytest.mark.parametrize("negative", [{}, {"negative_prompt_ids": torch.tensor([[6, 9]])}], ids=["decoder", "source"])
@pytest.mark.parametrize("search", [{}, *(CALLS[name] for name in ("beams", "groups", "contrastive"))], ids=str)
def test_guidance_of_prompts_padded_on_the_left(search, negative, model, source, zoo):
    prompts = [[zoo.START, 7], [zoo.START, 8, 9, 10], [zoo.START]]
    padded = torch.tensor([[zoo.PAD] * (4 - len(prompt)) + prompt for prompt in prompts])
    options = {"guidance_scale": 2.0, "max_new_tokens": 5, "eos_token_id": None, **search, **negative}
    mask = (padded != zoo.PAD).long()
    together = model.generate(**source, decoder_input_ids=padded, decoder_attention_mask=mask, **options)
    for row, prompt in enumerate(prompts):
        own = {name: value[row : row + 1] for name, value in source.items()}
        one = model.generate(**own, decoder_input_ids=torch.tensor([prompt]), **options)
        assert torch.equal(one[0], together[row, 4 - len(prompt) :])
