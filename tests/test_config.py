"""Configurations: the reference's names and defaults, round trips through both libraries, one store of settings."""

import copy
import inspect
import json
import logging
import pickle

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_models
from warmstart import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GenerationConfig,
    GPT2Config,
)
from warmstart.config import PretrainedConfig
from warmstart.families import MODULES, family

VERSION_4 = transformers.__version__.startswith("4.")
FAMILIES = sorted(name for name in MODULES if name in transformers.CONFIG_MAPPING)  # version 4 has no EuroBERT
# Fields of the reference's base class that speak of classifiers, of itself, or of TensorFlow.
NOT_OURS = {"id2label", "label2id", "num_labels", "transformers_version", "tf_legacy_loss", "use_bfloat16"}
NOT_OURS |= {"reference_compile"}  # how the reference compiles itself


def theirs(model_type, **fields):
    return transformers.CONFIG_MAPPING[model_type](**fields)


def parameters(cls):
    found = inspect.signature(cls).parameters.values()
    return [(one.name, one.default) for one in found if one.kind is one.POSITIONAL_OR_KEYWORD and one.name != "self"]


def in_file(folder):
    return json.loads((folder / "config.json").read_text())


# Names and defaults --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not VERSION_4, reason="the defaults are those of version 4")
@pytest.mark.parametrize("model_type", FAMILIES)
def test_fields_and_defaults_are_the_references(model_type):
    ours, reference = family(model_type).config, transformers.CONFIG_MAPPING[model_type]
    assert parameters(ours) == [one for one in parameters(reference) if one[0] not in NOT_OURS]
    expected = {name: value for name, value in reference().to_dict().items() if name not in NOT_OURS}
    assert {name: getattr(ours(), name) for name in expected} == expected
    kept = {"local_attention"} if model_type == "modernbert-decoder" else set()  # `sliding_window` is made of it
    assert ours().to_dict().keys() - kept <= expected.keys()


@pytest.mark.skipif(not VERSION_4, reason="the defaults are those of version 4")
@pytest.mark.parametrize("model_type", FAMILIES)
def test_other_names_of_fields_are_the_references(model_type):
    ours, reference = family(model_type).config(), theirs(model_type)
    common = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "max_position_embeddings")
    for name in (*common, *reference.attribute_map):
        if hasattr(reference, name) and name != "num_labels":
            assert getattr(ours, name) == getattr(reference, name), name
    for name, own in reference.attribute_map.items():
        if name in ("keys_to_ignore_at_inference", "num_labels"):
            continue
        setattr(ours, name, 7)
        assert getattr(ours, own) == 7, name


@pytest.mark.v5
@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_family_name_is_the_references(model_type):
    written = {"gpt-sw3": "gpt2"}.get(model_type, model_type)
    assert family(model_type).config.model_type == theirs(model_type).model_type == written
    assert set(family(model_type).architectures.values()) <= set(dir(transformers))


def test_positional_arguments_and_their_errors():
    assert BertConfig(99, 16).hidden_size == 16
    with pytest.raises(TypeError, match="takes 16 positional arguments, not 17"):
        BertConfig(*range(17))
    with pytest.raises(TypeError, match=r"got \['vocab_size'\] twice"):
        BertConfig(99, vocab_size=98)
    with pytest.raises(AttributeError, match="BertConfig has no field 'hiden_size'"):
        _ = BertConfig().hiden_size


# Round trips ---------------------------------------------------------------------------------------------------------

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
unknown = st.dictionaries(st.text("abcxyz", min_size=1, max_size=5).map("own_{}".format), plain, max_size=3)
sizes = st.fixed_dictionaries(
    {}, optional={"vocab_size": st.integers(1, 10**6), "pad_token_id": st.none() | st.integers(0, 5)}
)
generation = st.fixed_dictionaries(
    {},
    optional={
        "num_beams": st.integers(1, 8),
        "max_length": st.integers(1, 500),
        "no_repeat_ngram_size": st.integers(0, 4),
        "eos_token_id": st.integers(0, 5) | st.lists(st.integers(0, 5), min_size=1, max_size=2),
        "early_stopping": st.booleans(),
        "length_penalty": st.floats(-2, 2),
    },
)


@settings(deadline=None, max_examples=60)
@given(model_type=st.sampled_from(FAMILIES), fields=st.tuples(sizes, generation, unknown))
def test_a_configuration_comes_back_as_it_was(tmp_path_factory, model_type, fields):
    fields = {name: value for some in fields for name, value in some.items()}
    config = AutoConfig.for_model(model_type, **fields)
    folder = tmp_path_factory.mktemp("config")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("os.fsync", lambda handle: None)
        config.save_pretrained(folder)
        again = AutoConfig.from_pretrained(folder)
    assert type(again) is type(config)
    assert again == config == copy.deepcopy(config) == pickle.loads(pickle.dumps(config))
    assert {name: getattr(again, name) for name in fields} == fields
    assert fields.items() <= in_file(folder).items()
    assert type(config).from_dict(config.to_dict()) == config == type(config).from_json_file(folder / "config.json")


@pytest.mark.v5
@pytest.mark.parametrize("model_type", FAMILIES)
def test_our_file_opens_there_and_theirs_here(model_type, tmp_path, caplog):
    fields = {"vocab_size": 60000, "own_field": {"kept": [1, None]}, "num_hidden_layers": 3}
    halves = (
        family(model_type).config.attribute_map.get("num_hidden_layers")
        or "encoder_layers" in family(model_type).config.defaults
    )
    fields = {
        name: value
        for name, value in fields.items()
        if not (halves or model_type in ("bart", "gpt_neo")) or "layers" not in name
    }
    ours = AutoConfig.for_model(model_type, **fields)
    ours.save_pretrained(tmp_path / "ours")
    with caplog.at_level(logging.WARNING):
        there = transformers.AutoConfig.from_pretrained(tmp_path / "ours")
    assert caplog.text == ""
    written = ours.to_dict()
    if model_type == "modernbert-decoder":  # the reference keeps what it makes of it, `sliding_window`
        written.pop("local_attention")
    if not VERSION_4:  # it fills in what is open, and has rotary positions under another name
        gone = ("rope_theta", "rope_scaling", "position_embedding_type", "partial_rotary_factor", "rotary_pct")
        gone += ("global_rope_theta", "local_rope_theta", "rope_local_base_freq", "rotary_emb_base")
        gone += ("forced_eos_token_id",) if model_type == "mvp" else ()
        gone += ("tie_word_embeddings",) if model_type == "mt5" else ()  # which it sets itself
        written = {name: value for name, value in written.items() if value is not None and name not in gone}
    assert {name: getattr(there, name) for name in written} == written
    there.save_pretrained(tmp_path / "theirs")
    here = AutoConfig.from_pretrained(tmp_path / "theirs")
    assert type(here) is type(ours)
    assert {name: getattr(here, name) for name in written} == written
    again = tmp_path / "again"
    here.save_pretrained(again)
    lost = in_file(tmp_path / "theirs").keys() - in_file(again).keys() - {"rope_parameters"} - set(here.attribute_map)
    assert lost == set()  # also what means nothing here, such as the version that wrote it


@pytest.mark.v5
def test_the_encoder_decoder_file_opens_there_and_theirs_here(tmp_path):
    ours = EncoderDecoderConfig.from_encoder_decoder_configs(
        tiny_models.config("bert"), tiny_models.config("gpt2"), decoder_start_token_id=4, own_field="kept"
    )
    ours.save_pretrained(tmp_path / "ours")
    there = transformers.EncoderDecoderConfig.from_pretrained(tmp_path / "ours")
    assert there.decoder.is_decoder and there.decoder.add_cross_attention
    assert (there.encoder.hidden_size, there.decoder.n_embd, there.own_field) == (16, 12, "kept")
    there.save_pretrained(tmp_path / "theirs")
    here = AutoConfig.from_pretrained(tmp_path / "theirs")
    for side in ("encoder", "decoder"):
        written = getattr(ours, side).to_dict()
        assert {name: getattr(getattr(here, side), name) for name in written} == written
    assert (here.decoder_start_token_id, here.own_field, here.is_encoder_decoder) == (4, "kept", True)


@pytest.mark.v5
@pytest.mark.parametrize("key", ["torch_dtype", "dtype"])
def test_both_spellings_of_the_type(key, tmp_path):
    config = BertConfig.from_dict({key: "bfloat16"})
    assert config.dtype == config.torch_dtype == "bfloat16"
    config.torch_dtype = torch.float16
    assert config.dtype == "float16"
    assert config.to_dict()["dtype"] == "float16"
    assert "torch_dtype" not in config.to_dict()
    config.save_pretrained(tmp_path)
    assert transformers.AutoConfig.from_pretrained(tmp_path).dtype == torch.float16


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.v5
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("scaling", [None, LLAMA3])
def test_both_spellings_of_rotary_positions(model_type, scaling, tmp_path):
    newer = {"rope_parameters": {"rope_theta": 5000.0, **(scaling or {"rope_type": "default"})}}
    older = {"rope_theta": 5000.0, "rope_scaling": scaling}
    one, other = (AutoConfig.for_model(model_type, **fields) for fields in (newer, older))
    assert one == other
    assert one.rope_parameters == other.rope_parameters == newer["rope_parameters"]
    one.save_pretrained(tmp_path)
    there = transformers.AutoConfig.from_pretrained(tmp_path)
    if VERSION_4:
        assert (there.rope_theta, there.rope_scaling) == (5000.0, scaling)
    else:
        assert there.rope_parameters == newer["rope_parameters"]


def test_numbers_of_numpy_and_torch_are_written_as_numbers():
    config = BertConfig(hidden_size=np.int64(8), own_field=torch.tensor([1, 2]), hidden_dropout_prob=np.float32(0.5))
    written = json.loads(config.to_json_string())
    assert (written["hidden_size"], written["own_field"], written["hidden_dropout_prob"]) == (8, [1, 2], 0.5)


def test_keywords_replace_what_the_file_says(tmp_path):
    BertConfig(num_beams=3, own_field=1).save_pretrained(tmp_path)
    config, rest = AutoConfig.from_pretrained(
        tmp_path, hidden_size=32, num_beams=2, own_field=2, other=3, return_unused_kwargs=True
    )
    assert (config.hidden_size, config.num_beams, config.own_field, rest) == (32, 2, 2, {"other": 3})


def test_a_configuration_is_read_from_its_file_too(tmp_path):
    BertConfig(vocab_size=7).save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path / "config.json").vocab_size == 7


# One store -----------------------------------------------------------------------------------------------------------


def test_settings_on_either_side_are_the_same_fact():
    config = GPT2Config(num_beams=4)
    assert config.generation_config.num_beams == 4
    config.generation_config.num_beams = 2
    assert config.num_beams == 2
    config.pad_token_id = 5
    assert config.generation_config.pad_token_id == 5
    config.generation_config = GenerationConfig(max_length=9)
    assert (config.max_length, config.num_beams, config.pad_token_id) == (9, 1, 5)


@given(values=generation)
def test_any_setting_set_on_either_side_reads_the_same_on_both(values):
    for first, second in (("config", "settings"), ("settings", "config")):
        config = BertConfig()
        views = {"config": config, "settings": config.generation_config}
        for name, value in values.items():
            setattr(views[first], name, value)
        for name, value in values.items():
            assert getattr(views[second], name) == value


def test_sub_configurations_are_reachable_and_mutable():
    config = EncoderDecoderConfig.from_encoder_decoder_configs(BertConfig(), GPT2Config())
    config.encoder.hidden_dropout_prob = 0.25
    config.decoder.num_beams = 3
    again = EncoderDecoderConfig.from_dict(config.to_dict())
    assert (again.encoder.hidden_dropout_prob, again.decoder.num_beams, again.num_beams) == (0.25, 3, 1)
    config.decoder = BertConfig(vocab_size=5).to_dict()
    assert isinstance(config.decoder, BertConfig) and config.decoder.vocab_size == 5


def without_complaint(cls, folder, caplog):
    caplog.clear()
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_warning()
    try:
        model = cls.from_pretrained(folder)
    finally:
        transformers.logging.set_verbosity(before)
    assert [record.message for record in caplog.records] == []
    return model


def ids_in(model):
    """The start and padding that the loss uses, as seen in the decoder's inputs."""
    return model.prepare_decoder_input_ids_from_labels(torch.tensor([[9, 8, -100, -100]])).tolist()[0]


@pytest.mark.v5
@pytest.mark.parametrize("view", ["config", "generation_config"])
def test_what_is_set_on_a_model_is_used_saved_and_opens_there(view, tmp_path, caplog):
    """Rule 2: settings made after creation survive save and reload."""
    model = tiny_models.pair("bert-generation", "gpt2")  # a BERT there has a pooler, and says that it is new
    store = getattr(model, view)
    store.decoder_start_token_id, store.pad_token_id, store.eos_token_id = 6, 7, 3
    store.max_length, store.min_length, store.num_beams = 9, 4, 3
    store.no_repeat_ngram_size, store.early_stopping, store.length_penalty = 2, True, 0.5
    model.config.encoder.hidden_dropout_prob = 0.3
    batch = tiny_models.batch()
    assert ids_in(model) == [6, 9, 8, 7]
    made = model.generate(batch["input_ids"], attention_mask=batch["attention_mask"])
    assert made.shape[1] <= 9
    assert set(made[:, 0].tolist()) == {6}
    loss = model(**batch).loss
    model.save_pretrained(tmp_path)

    again = EncoderDecoderModel.from_pretrained(tmp_path)
    assert ids_in(again) == [6, 9, 8, 7]
    assert again.config.encoder.hidden_dropout_prob == 0.3
    for both in (again.config, again.generation_config):
        assert (both.num_beams, both.max_length, both.early_stopping, both.eos_token_id) == (3, 9, True, 3)
    assert torch.equal(again(**batch).loss, loss)
    assert torch.equal(again.generate(batch["input_ids"], attention_mask=batch["attention_mask"]), made)

    there = without_complaint(transformers.EncoderDecoderModel, tmp_path, caplog)
    assert (there.generation_config.num_beams, there.generation_config.max_length) == (3, 9)
    assert there.config.decoder_start_token_id == there.generation_config.decoder_start_token_id == 6
    assert there.config.encoder.hidden_dropout_prob == 0.3
    theirs = there.generate(batch["input_ids"], attention_mask=batch["attention_mask"])
    assert torch.equal(theirs, made)
    there.save_pretrained(tmp_path / "theirs")
    back = EncoderDecoderModel.from_pretrained(tmp_path / "theirs")
    assert ids_in(back) == [6, 9, 8, 7]
    assert torch.equal(back.generate(batch["input_ids"], attention_mask=batch["attention_mask"]), made)


@pytest.mark.v5
def test_settings_of_a_single_decoder_survive_too(tmp_path, caplog):
    folder = tiny_models.saved(tmp_path / "first", "gpt2", decoder=True)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.config.num_beams = 3
    model.generation_config.max_length = 11
    model.save_pretrained(tmp_path / "second")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "second")
    assert (again.generation_config.num_beams, again.config.max_length) == (3, 11)
    there = without_complaint(transformers.GPT2LMHeadModel, tmp_path / "second", caplog)
    assert (there.generation_config.num_beams, there.generation_config.max_length) == (3, 11)


def test_settings_inside_an_old_config_are_read(tmp_path):
    """The first checkpoints keep the settings of `generate` in config.json alone."""
    folder = tiny_models.saved(tmp_path, "gpt2", decoder=True)
    values = in_file(tmp_path) | {"num_beams": 4, "max_length": 17, "no_repeat_ngram_size": 3}
    (tmp_path / "config.json").write_text(json.dumps(values))
    settings = AutoModelForCausalLM.from_pretrained(folder).generation_config
    assert (settings.num_beams, settings.max_length, settings.no_repeat_ngram_size) == (4, 17, 3)


def test_the_base_class_knows_no_family():
    assert PretrainedConfig(own=1).to_dict() == {"model_type": "", "own": 1}
