"""GenerationConfig: defaults, what is stored, files in both directions, refusals."""

import copy
import json
import pickle

import pytest
import transformers

from warmstart import GenerationConfig


def test_table_has_the_settings_and_defaults_of_transformers():
    reference = transformers.GenerationConfig()
    expected = {name: value for name, value in vars(reference).items() if not name.startswith("_")}
    expected.pop("transformers_version")
    assert expected == GenerationConfig.DEFAULTS


def test_only_what_was_set_is_stored():
    config = GenerationConfig(num_beams=4, max_length=20)
    assert (config.num_beams, config.max_length, config.top_k) == (4, 20, 50)
    assert config.explicit() == {"num_beams": 4, "max_length": 20}
    assert config.to_diff_dict() == {"num_beams": 4}
    assert config.to_dict() == {**GenerationConfig.DEFAULTS, "num_beams": 4}
    config.do_sample = True
    assert config.explicit()["do_sample"] is True
    del config.num_beams
    assert config.num_beams == 1


def test_copies_are_independent():
    config = GenerationConfig(bad_words_ids=[[1]])
    for twin in (config.copy(), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert twin == config and twin is not config
        twin.bad_words_ids.append([2])
        twin.num_beams = 3
        assert config.explicit() == {"bad_words_ids": [[1]]}
    config.explicit()["bad_words_ids"].append([2])
    config.to_dict()["bad_words_ids"].append([2])
    assert config.bad_words_ids == [[1]]


def test_equality_is_of_values():
    assert GenerationConfig(num_beams=1) == GenerationConfig()
    assert GenerationConfig(num_beams=2) != GenerationConfig()
    assert GenerationConfig() != {}


def test_a_misspelt_setting_is_recognised_when_read():
    with pytest.raises(AttributeError, match="no setting 'num_beam'; did you mean 'num_beams'"):
        _ = GenerationConfig().num_beam
    assert not hasattr(GenerationConfig(), "nothing_like_it")


def test_update_returns_what_is_no_setting_and_is_all_or_nothing():
    config = GenerationConfig(num_beams=2, my_own=1)
    assert config.update(num_beams=3, my_own=2, attention_mask=5) == {"attention_mask": 5}
    assert (config.num_beams, config.my_own) == (3, 2)
    with pytest.raises(ValueError, match="max_new_tokens=-1"):
        config.update(num_beams=7, max_new_tokens=-1)
    assert config.explicit() == {"num_beams": 3, "my_own": 2}


def test_from_dict():
    assert GenerationConfig.from_dict({"num_beams": 2}, num_beams=3, other=1).explicit() == {"num_beams": 3, "other": 1}
    config, unused = GenerationConfig.from_dict({"num_beams": 2}, top_k=3, other=1, return_unused_kwargs=True)
    assert config.explicit() == {"num_beams": 2, "top_k": 3} and unused == {"other": 1}


class TestFiles:
    def test_round_trip_keeps_unknown_keys(self, tmp_path):
        config = GenerationConfig(num_beams=4, eos_token_id=[2, 3], early_stopping="never", my_own={"a": [1]})
        config.save_pretrained(tmp_path / "new")
        assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["generation_config.json"]
        again = GenerationConfig.from_pretrained(tmp_path / "new")
        assert again.explicit() == config.explicit()

    def test_transformers_reads_ours_and_we_read_theirs(self, tmp_path):
        settings = {
            "num_beams": 4,
            "no_repeat_ngram_size": 3,
            "eos_token_id": 102,
            "length_penalty": 2.0,
            "suppress_tokens": [1],
        }
        GenerationConfig(**settings).save_pretrained(tmp_path)
        theirs = transformers.GenerationConfig.from_pretrained(tmp_path)
        assert {name: getattr(theirs, name) for name in settings} == settings
        theirs.save_pretrained(tmp_path / "theirs")
        ours = GenerationConfig.from_pretrained(tmp_path / "theirs", num_beams=2, local_files_only=True)
        assert ours.to_diff_dict() == settings | {"num_beams": 2, "transformers_version": transformers.__version__}

    def test_notes_of_other_libraries_about_their_objects_are_dropped(self):
        config = GenerationConfig(_from_model_config=True, _commit_hash="x", num_beams=2)
        assert config.explicit() == {"num_beams": 2}

    def test_sequences_as_keys_become_pairs(self):
        text = GenerationConfig(sequence_bias={(1, 2): -1.5}).to_json_string()
        assert json.loads(text) == {"sequence_bias": [[[1, 2], -1.5]]}

    def test_another_file_name(self, tmp_path):
        GenerationConfig(num_beams=3).save_pretrained(tmp_path, "summary.json")
        assert GenerationConfig.from_pretrained(tmp_path, "summary.json").num_beams == 3

    def test_a_missing_file_is_named(self, tmp_path):
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(FileNotFoundError, match=r"generation_config\.json.*there is config\.json"):
            GenerationConfig.from_pretrained(tmp_path)

    def test_a_bad_value_names_the_file_and_leaves_it(self, tmp_path):
        path = tmp_path / "generation_config.json"
        path.write_text('{"num_beams": 0}')
        with pytest.raises(ValueError, match=r"generation_config\.json: num_beams=0"):
            GenerationConfig.from_pretrained(tmp_path)
        config = GenerationConfig(num_beams=4)
        config.num_return_sequences = 9
        with pytest.raises(ValueError, match="num_return_sequences=9"):
            config.save_pretrained(tmp_path)
        assert path.read_text() == '{"num_beams": 0}'


@pytest.mark.parametrize(
    "settings",
    [
        {"early_stopping": "always"},
        {"max_length": 0},
        {"max_new_tokens": 0},
        {"max_length": 2.5},
        {"min_length": -1},
        {"num_beams": True},
        {"num_beams": "4"},
        {"do_sample": 1},
        {"temperature": -0.5},
        {"temperature": "hot"},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"repetition_penalty": 0.0},
        {"no_repeat_ngram_size": -1},
        {"bad_words_ids": [5]},
        {"bad_words_ids": [[]]},
        {"bad_words_ids": []},
        {"suppress_tokens": 5},
        {"forced_eos_token_id": [-1]},
        {"streamer": print},
    ],
    ids=str,
)
def test_bad_values_are_named(settings):
    (name,) = settings
    with pytest.raises(ValueError, match=name):
        GenerationConfig(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"early_stopping": "never", "length_penalty": -1},
        {"temperature": 0.0},
        {"top_k": None, "top_p": None, "temperature": None, "min_length": None},
        {"num_return_sequences": 3, "do_sample": True},
        {"num_return_sequences": 3, "num_beams": 3},
        {"eos_token_id": [1, 2], "bad_words_ids": [[1, 2], [3]], "suppress_tokens": ()},
        {"pad_token_id": -1},
    ],
    ids=str,
)
def test_values_that_checkpoints_have(settings):
    assert GenerationConfig(**settings).explicit() == settings


def test_a_file_of_its_own_and_a_strict_check(tmp_path):
    config = GenerationConfig(num_beams=4, max_length=20)
    config.validate(strict=True)
    config.to_json_file(tmp_path / "own.json")
    assert json.loads((tmp_path / "own.json").read_text()) == {"num_beams": 4}
    config.to_json_file(tmp_path / "own.json", use_diff=False)
    assert transformers.GenerationConfig.from_pretrained(tmp_path, "own.json").num_beams == 4
