"""The less common arguments of loading and saving do what they do in the reference, or say what to use instead."""

import json
import pickle

import pytest
import torch

import tiny_models
from warmstart import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BertModel,
    EncoderDecoderModel,
    PreTrainedModel,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("checkpoints")
    tiny_models.saved(place / "bert", "bert")
    tiny_models.pair("bert", "bert").save_pretrained(place / "pair")
    return place


def same(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("device_map", [None, "cpu", "auto", {"": "cpu"}, torch.device("cpu")])
def test_a_device_map_of_one_device(device_map, folders):
    model = EncoderDecoderModel.from_pretrained(folders / "pair", device_map=device_map)
    wanted = "cuda" if device_map == "auto" and torch.cuda.is_available() else "cpu"
    assert model.device.type == wanted and not model.training


@pytest.mark.parametrize(
    ("device_map", "words"),
    [
        ("nowhere", "device_map='nowhere' is no device"),
        ({"encoder": "cpu", "decoder": "meta"}, "puts parts of the model on different devices"),
        ({}, "puts parts of the model on different devices"),
    ],
)
def test_a_device_map_that_is_none(device_map, words, folders):
    with pytest.raises(ValueError, match=words):
        EncoderDecoderModel.from_pretrained(folders / "pair", device_map=device_map)


def test_options_that_scripts_hand_on_ask_for_nothing(folders):
    nothing = {"quantization_config": None, "load_in_8bit": False, "max_memory": None, "state_dict": None}
    nothing |= {"attn_implementation": {"encoder": "eager", "decoder": "sdpa"}, "low_cpu_mem_usage": True}
    model = EncoderDecoderModel.from_pretrained(folders / "pair", **nothing)
    assert same(model, EncoderDecoderModel.from_pretrained(folders / "pair"))
    BertModel.from_pretrained(folders / "bert", add_pooling_layer=False)
    BertModel(model.config.encoder, add_pooling_layer=False)
    EncoderDecoderModel.from_encoder_decoder_pretrained(
        folders / "bert", folders / "bert", attn_implementation="sdpa", encoder_add_pooling_layer=False
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"load_in_8bit": True}, r"load_in_8bit \(True\) is not done here; use dtype='int8'"),
        ({"quantization_config": {"bits": 4}}, r"quantization_config \(a dict\) is not done here; use dtype='int8'"),
        ({"add_pooling_layer": True}, "no pooler"),
        ({"state_dict": {}}, "use from_config"),
    ],
)
def test_options_of_what_is_not_here_say_what_is(options, words, folders):
    with pytest.raises(TypeError, match=words):
        BertModel.from_pretrained(folders / "bert", **options)


def test_from_config_makes_the_type_that_is_asked_for(folders):
    config = tiny_models.config("gpt2", dtype="bfloat16")
    assert AutoModelForCausalLM.from_config(config).dtype == torch.float32
    for asked in (torch.bfloat16, "bfloat16", "auto"):
        model = AutoModelForCausalLM.from_config(config, torch_dtype=asked, attn_implementation="sdpa")
        assert model.dtype == torch.bfloat16 and model.config.dtype == "bfloat16"
    with pytest.raises(ValueError, match="'flash_attention_2' is not known here"):
        AutoModel.from_config(config, attn_implementation="flash_attention_2")


@pytest.mark.parametrize("shard", ["5GB", "15KB"])
@pytest.mark.parametrize("safe", [True, False])
def test_variants_stand_side_by_side(shard, safe, folders, tmp_path):
    """Whole and sharded ones open in the reference, and the reference's here."""
    transformers = pytest.importorskip("transformers")
    model = EncoderDecoderModel.from_pretrained(folders / "pair")
    model.save_pretrained(tmp_path)
    options = {"variant": "fp16", "safe_serialization": safe, "max_shard_size": shard}
    model.half().save_pretrained(tmp_path, **options)
    names = {path.name for path in tmp_path.iterdir()}
    stem, suffix = ("model", "safetensors") if safe else ("pytorch_model", "bin")
    assert "model.safetensors" in names
    assert (f"{stem}.fp16.{suffix}" if shard == "5GB" else f"{stem}.{suffix}.index.fp16.json") in names
    reading = {"variant": "fp16", "dtype": "auto", "use_safetensors": safe}
    assert same(EncoderDecoderModel.from_pretrained(tmp_path, **reading), model)
    theirs = transformers.EncoderDecoderModel.from_pretrained(tmp_path, **reading)
    theirs.save_pretrained(tmp_path / "theirs", **options)
    assert same(EncoderDecoderModel.from_pretrained(tmp_path / "theirs", **reading), model)
    assert EncoderDecoderModel.from_pretrained(tmp_path, dtype="auto").dtype == torch.float32
    model.save_pretrained(tmp_path, variant="fp16")  # in one file: what the shards held is gone
    left = {path.name for path in tmp_path.iterdir() if "fp16" in path.name}
    assert left == {"model.fp16.safetensors"}


def test_a_variant_is_a_word(folders, tmp_path):
    model = EncoderDecoderModel.from_pretrained(folders / "pair")
    with pytest.raises(ValueError, match=r"variant='\.\./x' is not a word"):
        model.save_pretrained(tmp_path, variant="../x")
    with pytest.raises(ValueError, match=r"variant='\.\./x' is not a word"):
        EncoderDecoderModel.from_pretrained(folders / "pair", variant="../x")
    assert not list(tmp_path.iterdir())


def test_values_gathered_elsewhere_are_saved(folders, tmp_path):
    """As accelerate's examples save: the state comes from many devices, one process writes."""
    model = EncoderDecoderModel.from_pretrained(folders / "pair")
    state = {name: value + 1 for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path / "none", False, state)
    assert not (tmp_path / "none").exists()
    model.save_pretrained(tmp_path, is_main_process=True, save_function=torch.save, state_dict=state)
    loaded = EncoderDecoderModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    half = {name: value.half() for name, value in state.items()}
    model.save_pretrained(tmp_path / "half", state_dict=half)
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "float16"
    wrong = {**state, "encoder.embeddings.token.weight": torch.zeros(3, 3)}
    for given, words in ((wrong, r"it has \(3, 3\)"), ({}, "it does not hold it")):
        with pytest.raises(ValueError, match=f"state_dict is not this model's: .*{words}"):
            model.save_pretrained(tmp_path / "wrong", state_dict=given)
    assert not (tmp_path / "wrong").exists()


def test_facts_of_a_model(folders):
    model = AutoModelForSeq2SeqLM.from_pretrained(folders / "pair")
    assert isinstance(model, PreTrainedModel) and isinstance(model.encoder, PreTrainedModel)
    assert model.name_or_path == str(folders / "pair")
    assert model.get_memory_footprint(return_buffers=False) == 4 * model.num_parameters()
    assert model.supports_gradient_checkpointing


def test_gradients_reach_the_embeddings_where_their_tables_are_frozen(folders):
    model = EncoderDecoderModel.from_pretrained(folders / "pair").requires_grad_(False)
    batch = tiny_models.batch()
    model.enable_input_require_grads()
    assert model(**batch).logits.requires_grad
    assert pickle.loads(pickle.dumps(model))(**batch).logits.requires_grad
    model.disable_input_require_grads()
    assert not model(**batch).logits.requires_grad


def test_labels_of_32_bits(folders):
    model = EncoderDecoderModel.from_pretrained(folders / "pair")
    batch = tiny_models.batch()
    expected = model(**batch).loss
    assert torch.equal(model(**{name: value.int() for name, value in batch.items()}).loss, expected)


def test_states_of_a_source_as_a_tuple_or_alone(folders):
    model = EncoderDecoderModel.from_pretrained(folders / "pair")
    ids, mask, labels = tiny_models.batch().values()
    expected, tokens = model(ids, mask, labels=labels).loss, model.generate(ids, attention_mask=mask, max_new_tokens=4)
    encoded = model.get_encoder()(ids, attention_mask=mask)
    for given in (encoded, encoded.to_tuple()[:1], encoded.last_hidden_state):
        assert torch.equal(model(encoder_outputs=given, attention_mask=mask, labels=labels).loss, expected)
        found = model.generate(encoder_outputs=given, attention_mask=mask, max_new_tokens=4)
        assert torch.equal(found, tokens)
