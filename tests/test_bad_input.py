"""Bad input: the error names value, place and remedy, and comes before memory is taken or a file is touched.

Weight files themselves are in `checkpoint/test_readers.py`, saves in `checkpoint/test_saves.py` and `test_folder.py`.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny_models
from warmstart import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    BertModel,
    Cohere2Config,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    RobertaConfig,
)
from warmstart.families import MODULES, family_of
from warmstart.spec import ACTIVATIONS
from warmstart.torch import elements

SUPPORTED = ", ".join(sorted(MODULES))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("checkpoints")
    tiny_models.saved(place / "bert", "bert")
    tiny_models.saved(place / "gpt2", "gpt2", decoder=True)
    tiny_models.pair("bert", "gpt2").save_pretrained(place / "pair")
    return place


@pytest.fixture
def bert(folders, tmp_path):
    """A copy of a checkpoint, to be spoiled."""
    return shutil.copytree(folders / "bert", tmp_path / "bert")


def change(folder, **fields):
    values = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps({name: x for name, x in values.items() if x != "gone"}))
    return folder


def retensor(folder, function):
    tensors = load_file(folder / "model.safetensors")
    save_file(function(tensors), folder / "model.safetensors")
    return folder


# Folders and their config.json ---------------------------------------------------------------------------------------


def test_a_folder_without_weights_says_what_there_is(bert):
    (bert / "model.safetensors").rename(bert / "model.safetensors.part")
    with pytest.raises(
        FileNotFoundError, match=r"has no weights: none of .*there is config\.json, model\.safetensors\.part"
    ):
        AutoModel.from_pretrained(bert)


def test_a_folder_that_is_not_there_or_empty(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        AutoModel.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no 'config\.json' in .*; there is nothing in it"):
        AutoModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("read", [AutoConfig, AutoModel, BertModel, EncoderDecoderModel])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfe\x00{", "is not UTF-8 text"),
        ('{"model_type": "bèrt"}'.encode("latin-1"), "is not UTF-8 text"),
        (b'{"model_type": "bert", ', "is not valid JSON"),
        (b"", "is not valid JSON"),
        (b'["bert"]', "holds a JSON list; an object"),
        (b"[" * 100_000, "is not valid JSON"),
    ],
)
def test_a_config_that_is_no_json(read, content, words, bert):
    (bert / "config.json").write_bytes(content)
    with pytest.raises(OSError, match=words) as caught:
        read.from_pretrained(bert)
    assert str(bert / "config.json") in str(caught.value)


def test_a_config_without_a_model_type(bert):
    change(bert, model_type="gone")
    for read in (AutoConfig, AutoModel):
        with pytest.raises(ValueError, match=rf"{bert.name}: config\.json has no model_type; .*{SUPPORTED}"):
            read.from_pretrained(bert)
    expected = torch.tensor([[5, 6]])
    model = BertModel.from_pretrained(bert)  # the class says it
    given = AutoModel.from_pretrained(bert, config=BertConfig.from_pretrained(bert))
    assert torch.equal(model(expected)[0], given(expected)[0])


@pytest.mark.parametrize("model_type", ["xlnet", "", None, 3, ["bert"], {}])
def test_a_family_that_is_not_supported_is_named_with_the_list(model_type, bert):
    change(bert, model_type=model_type)
    for read in (AutoConfig, AutoModel, AutoModelForCausalLM):
        with pytest.raises(
            ValueError, match=rf"model_type .* is not supported; the families are {SUPPORTED}"
        ) as caught:
            read.from_pretrained(bert)
        assert repr(model_type) in str(caught.value)


def test_a_decoder_that_is_not_supported(folders, tmp_path):
    """Rule 8: refused by name, with the list."""
    pair = shutil.copytree(folders / "pair", tmp_path / "pair")
    change(pair, decoder={"model_type": "xlnet", "d_model": 8})
    with pytest.raises(ValueError, match=rf"'xlnet' is not supported; the families are {SUPPORTED}"):
        EncoderDecoderModel.from_pretrained(pair)
    (tmp_path / "xlnet").mkdir()
    (tmp_path / "xlnet" / "config.json").write_text('{"model_type": "xlnet"}')
    with pytest.raises(ValueError, match=rf"'xlnet' is not supported; the families are {SUPPORTED}"):
        EncoderDecoderModel.from_encoder_decoder_pretrained(folders / "bert", tmp_path / "xlnet")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"decoder": "gone"}, "needs both `encoder` and `decoder`, and `decoder` is missing"),
        ({"encoder": "bert"}, "`encoder` must be a configuration, or a dict with a `model_type`"),
        ({"encoder": {"hidden_size": 8}}, "`encoder` must be a configuration, or a dict with a `model_type`"),
        (
            {"encoder": {"model_type": "encoder-decoder"}},
            "`encoder` is itself an encoder-decoder; take one of its halves",
        ),
    ],
)
def test_a_pair_whose_config_lacks_a_side(fields, words, folders, tmp_path):
    pair = change(shutil.copytree(folders / "pair", tmp_path / "pair"), **fields)
    with pytest.raises(ValueError, match=words):
        EncoderDecoderModel.from_pretrained(pair)


def test_the_wrong_class_for_a_checkpoint(folders):
    with pytest.raises(TypeError, match="BertModel is built from a BertConfig, not GPT2Config"):
        BertModel.from_pretrained(folders / "gpt2")
    with pytest.raises(ValueError, match=r"of model_type 'gpt2', not 'bert'; read it with AutoConfig"):
        BertConfig.from_pretrained(folders / "gpt2")
    with pytest.raises(
        ValueError, match=r"config is a BertConfig; .*from_encoder_decoder_pretrained\(encoder, decoder\)"
    ):
        EncoderDecoderModel.from_pretrained(folders / "bert")


def test_quantised_checkpoints(bert):
    with pytest.raises(
        ValueError, match=r"config\.json has a quantization_config; quantised weights are not read here"
    ):
        AutoModel.from_pretrained(change(bert, quantization_config={"quant_method": "gptq"}))


# Configurations that contradict themselves ---------------------------------------------------------------------------

BAD_CONFIGS = [
    (
        BertConfig,
        {"hidden_size": 10, "num_attention_heads": 3},
        "hidden_size=10 is not a multiple of num_attention_heads=3",
    ),
    (GPT2Config, {"n_embd": 10, "n_head": 3}, "n_embd=10 is not a multiple of n_head=3; make it one"),
    (
        lambda **fields: tiny_models.config("bart", **fields),
        {"decoder_attention_heads": 3},
        "d_model=16 is not a multiple of decoder_attention_heads=3",
    ),
    (
        LlamaConfig,
        {"hidden_size": 10, "num_attention_heads": 3},
        "hidden_size=10 is not a multiple of num_attention_heads=3",
    ),
    (
        LlamaConfig,
        {"num_attention_heads": 8, "num_key_value_heads": 3, "hidden_size": 64},
        "num_attention_heads=8 is not a multiple of num_key_value_heads=3",
    ),
    (BertConfig, {"pad_token_id": 99, "vocab_size": 99}, "pad_token_id=99 is not in the vocabulary of vocab_size=99"),
    (BertConfig, {"pad_token_id": -1}, "pad_token_id=-1 is not in the vocabulary"),
    (BertConfig, {"pad_token_id": "0"}, "pad_token_id='0' is not in the vocabulary"),
    (LlamaConfig, {"pad_token_id": -2}, "pad_token_id=-2 is not in the vocabulary"),
    (BertConfig, {"hidden_act": "swoosh"}, "hidden_act='swoosh' is not supported; use one of gelu"),
    (GPT2Config, {"activation_function": None}, "activation_function=None is not supported"),
    (LlamaConfig, {"hidden_act": ["silu"]}, r"hidden_act=\['silu'\] is not supported"),
    (
        LlamaConfig,
        {"rope_scaling": {"rope_type": "spiral"}},
        "'spiral'.*not supported; use one of default, linear, llama3",
    ),
    (LlamaConfig, {"rope_scaling": {"rope_type": "linear"}}, "'linear' needs a number above 0 as factor"),
    (LlamaConfig, {"rope_scaling": {"type": "yarn", "factor": "4"}}, "'yarn' needs a number above 0 as factor"),
    (LlamaConfig, {"rope_scaling": {"rope_type": ["linear"]}}, "not supported; use one of"),
    (LlamaConfig, {"rope_scaling": "linear"}, "rope_scaling='linear': it must be an object"),
    (LlamaConfig, {"rope_theta": 0}, "rope_theta=0: it must be a number above 0"),
    (BertConfig, {"hidden_size": "768"}, "hidden_size='768': it must be a whole number from 1"),
    (BertConfig, {"hidden_size": 768.0}, r"hidden_size=768\.0: it must be a whole number"),
    (BertConfig, {"hidden_size": None}, "hidden_size=None: it must be a whole number"),
    (BertConfig, {"vocab_size": 0}, "vocab_size=0: it must be a whole number from 1"),
    (BertConfig, {"num_hidden_layers": True}, "num_hidden_layers=True: it must be a whole number"),
    (
        BertConfig,
        {"num_hidden_layers": 10**9},
        "num_hidden_layers=1000000000: it must be a whole number from 1 to 10000",
    ),
    (Qwen2Config, {"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000: it must be"),
    (MistralConfig, {"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000: it must be"),
    (
        Cohere2Config,
        {"sliding_window_pattern": 0},
        "cohere2 config: sliding_window_pattern=0: it must be a whole number",
    ),
    (GraniteConfig, {"residual_multiplier": 0}, "granite config: residual_multiplier=0: it must be a number above 0"),
    (LlamaConfig, {"head_dim": 10**9}, "head_dim=1000000000: it must be a whole number from 1 to 10000"),
    (LlamaConfig, {"num_attention_heads": 0}, "num_attention_heads=0: it must be a whole number from 1"),
    (BertConfig, {"type_vocab_size": -1}, "type_vocab_size=-1: it must be a number, 0 or more"),
    (BertConfig, {"hidden_dropout_prob": 1.5}, r"hidden_dropout_prob=1\.5: it must be a number from 0 to 1"),
    (GPT2Config, {"attn_pdrop": "0.1"}, r"attn_pdrop='0\.1': it must be a number from 0 to 1"),
    (BertConfig, {"layer_norm_eps": 0}, "layer_norm_eps=0: it must be a number above 0"),
    (BertConfig, {"initializer_range": -0.1}, r"initializer_range=-0\.1: it must be a number, 0 or more"),
    (
        BertConfig,
        {"position_embedding_type": "relative_key"},
        "'relative_key' of a bert is not supported; only 'absolute'",
    ),
    (
        RobertaConfig,
        {"max_position_embeddings": 2},
        "max_position_embeddings=2 leaves no position after .*pad_token_id=1",
    ),
    (
        Qwen2Config,
        {"layer_types": ["full_attention"]},
        "layer_types=.* must name a type for each of num_hidden_layers=32",
    ),
    (
        Qwen2Config,
        {"layer_types": ["full_attention", "odd"], "num_hidden_layers": 2},
        "'odd' is not supported; use full_attention and sliding_attention",
    ),
    (BertConfig, {"pruned_heads": {"12": [0]}}, "pruned_heads=.* there are 12 layers of 12 heads"),
    (BertConfig, {"pruned_heads": {0: list(range(12))}}, "one of them must stay"),
]


@pytest.mark.parametrize(
    ("make", "fields", "words"), BAD_CONFIGS, ids=[str(number) for number in range(len(BAD_CONFIGS))]
)
def test_a_config_that_contradicts_itself(make, fields, words):
    """When the spec is built, in whatever framework."""
    with pytest.raises(ValueError, match=words):
        family_of(config := make(**fields)).spec(config, True)


@pytest.mark.parametrize("value", [3, "0: 1", {"x": [1]}, {0: 1}])
def test_pruned_heads_that_are_none(value):
    with pytest.raises(ValueError, match=r"pruned_heads=.*does not map layers to lists of heads"):
        BertConfig(pruned_heads=value)


def test_a_config_is_checked_before_the_model_is_made(bert):
    with pytest.raises(ValueError, match="hidden_size=16 is not a multiple of num_attention_heads=3"):
        AutoModel.from_pretrained(change(bert, num_attention_heads=3))


def test_every_framework_has_the_activations_that_configs_may_name():
    assert set(elements.ACTIVATIONS) == ACTIVATIONS


def test_the_first_llamas_say_minus_one_for_no_padding():
    config = tiny_models.config("llama", pad_token_id=-1)
    assert family_of(config).spec(config, True).embedding.padding_id is None


# Weights that do not fit ---------------------------------------------------------------------------------------------


def test_shapes_that_differ_from_the_configs(bert):
    change(bert, hidden_size=32, intermediate_size=48)
    with pytest.raises(ValueError, match=r"does not fit its config\.json, \d+ weights have another shape") as caught:
        AutoModel.from_pretrained(bert)
    for words in (
        str(bert),
        "embeddings.token.weight: (37, 16) in the file, (37, 32) by the config",
        "Mend config.json",
    ):
        assert words in str(caught.value)


HUGE = """
import resource, sys
import torch
from warmstart import AutoModel, EncoderDecoderModel, LlamaConfig
limit = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + 500_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    torch.empty(10**9)
    print("there was no limit")
except RuntimeError:
    pass
for cls, folder in ((AutoModel, sys.argv[1]), (EncoderDecoderModel, sys.argv[2])):
    try:
        cls.from_pretrained(folder)
    except ValueError as error:
        print(str(error).splitlines()[0])
"""


def test_shapes_are_compared_before_memory_is_taken(folders, tmp_path):
    """Rule 14: by their configs these would need terabytes; the process may have half a gigabyte more than it has."""
    huge = {"hidden_size": 2**17, "num_attention_heads": 2**10, "intermediate_size": 2**19, "vocab_size": 10**8}
    one = change(shutil.copytree(folders / "bert", tmp_path / "bert"), **huge)
    pair = shutil.copytree(folders / "pair", tmp_path / "pair")
    encoder = json.loads((pair / "config.json").read_text())["encoder"]
    change(pair, encoder=encoder | huge)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", HUGE, str(one), str(pair)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert len(said) == 2
    for line, folder in zip(said, (one, pair), strict=True):
        assert line.startswith(str(folder)) and "does not fit its config.json" in line


def test_missing_weights(bert):
    retensor(bert, lambda tensors: {name: x for name, x in tensors.items() if "layer.1.output" not in name})
    with pytest.raises(ValueError, match=r"4 weights are missing: layers\.1\.mlp\.down\.weight") as caught:
        AutoModel.from_pretrained(bert)
    assert str(bert) in str(caught.value)
    assert "pass strict=False" in str(caught.value)
    model, info = AutoModel.from_pretrained(bert, strict=False, output_loading_info=True)
    assert len(info["missing_keys"]) == 4
    assert model(torch.tensor([[5, 6]]))[0].isfinite().all()


def test_half_of_a_part_that_may_be_new_is_missing(folders, tmp_path):
    """A decoder may lack its cross-attention whole, as any that was none does; not a part of it."""
    pair = shutil.copytree(folders / "pair", tmp_path / "pair")
    retensor(pair, lambda tensors: {name: x for name, x in tensors.items() if "1.crossattention" not in name})
    for cls in (EncoderDecoderModel, AutoModelForCausalLM):
        with pytest.raises(ValueError, match=r"weights are missing: .*layers\.1\.cross_attention\."):
            cls.from_pretrained(pair)


def test_unexpected_weights(bert):
    retensor(bert, lambda tensors: {**tensors, "encoder.layer.0.adapter.weight": torch.ones(2, 2)})
    with pytest.raises(ValueError, match=r"1 weights are not known to this model: encoder\.layer\.0\.adapter\.weight"):
        AutoModel.from_pretrained(bert)
    assert "encoder.layer.0.adapter.weight" in AutoModel.from_pretrained(bert, strict=False).load_report.left_out


def test_weights_of_another_family(folders, tmp_path):
    """Even leniently: a model of nothing but new weights is no loaded model."""
    gpt2 = shutil.copytree(folders / "gpt2", tmp_path / "gpt2")
    shutil.copy(folders / "bert" / "config.json", gpt2)
    with pytest.raises(ValueError, match=r"weights are missing: embeddings\.token\.weight"):
        AutoModel.from_pretrained(gpt2)
    with pytest.raises(ValueError, match="holds none of this model's weights; is it of another family"):
        AutoModel.from_pretrained(gpt2, strict=False)


def test_weights_that_an_index_forgot(bert):
    names = list(load_file(bert / "model.safetensors"))
    (bert / "model.safetensors").rename(bert / "shard.safetensors")
    index = {"weight_map": dict.fromkeys(names[2:], "shard.safetensors")}
    (bert / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        ValueError, match=r"2 weights are missing: .*its shards hold 2 more that it does not name"
    ) as caught:
        AutoModel.from_pretrained(bert)
    assert names[0] in str(caught.value)


@pytest.mark.parametrize("kind", [torch.int32, torch.int8, torch.bool, torch.float8_e4m3fn, torch.complex64])
def test_weights_that_are_no_real_numbers(kind, bert):
    retensor(bert, lambda tensors: tensors | {"embeddings.LayerNorm.weight": torch.ones(16).to(kind)})
    for dtype in (None, "auto"):
        with pytest.raises(ValueError, match=rf"embeddings\.LayerNorm\.weight is of type {kind}; .*not quantised"):
            AutoModel.from_pretrained(bert, dtype=dtype)


# Arguments -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda x: AutoModel.from_pretrained(x / "bert", hiden_size=3),
            TypeError,
            r"unknown arguments \['hiden_size'\]",
        ),
        (lambda x: AutoModel.from_config(BertConfig(), hiden_size=3), TypeError, r"unknown arguments \['hiden_size'\]"),
        (lambda x: AutoModel.from_config({"model_type": "bert"}), TypeError, "needs a configuration, not a dict"),
        (lambda x: AutoModel({"model_type": "bert"}), TypeError, "built from a configuration .*not from a dict"),
        (lambda x: AutoModel(AutoConfig.from_pretrained(x / "pair")), ValueError, "one stack.*use EncoderDecoderModel"),
        (lambda x: AutoModel.from_pretrained(None), ValueError, "a folder or a hub id is needed, not None"),
        (lambda x: AutoModel.from_pretrained(3), ValueError, "a folder or a hub id is needed, not 3"),
        (lambda x: AutoModel.from_pretrained(""), ValueError, "a folder or a hub id is needed, not ''"),
        (lambda x: AutoConfig.from_pretrained({"a": 1}), ValueError, "a folder or a hub id is needed, not {'a': 1}"),
        (
            lambda x: AutoModel.from_pretrained(x / "bert", dtype="int4"),
            ValueError,
            "dtype 'int4' is not a floating-point",
        ),
        (lambda x: AutoModel.from_pretrained(x / "bert", dtype=3), ValueError, "dtype 3 is not a floating-point type"),
        (
            lambda x: AutoModel.from_pretrained(x / "bert", attn_implementation="flash"),
            ValueError,
            "attn_implementation 'flash' is not known here",
        ),
        (lambda x: AutoModel.from_pretrained(x / "bert", subfolder="../gpt2"), ValueError, "points outside its folder"),
        (lambda x: EncoderDecoderModel(), ValueError, "needs a config, or an encoder and a decoder"),
        (lambda x: EncoderDecoderModel(config={}), ValueError, "config is a dict; .*needs an EncoderDecoderConfig"),
        (lambda x: AutoConfig.for_model("gpt9"), ValueError, rf"'gpt9' is not supported; the families are {SUPPORTED}"),
        (lambda x: AutoConfig(), OSError, r"use AutoConfig\.from_pretrained"),
    ],
)
def test_arguments(call, error, words, folders):
    with pytest.raises(error, match=words):
        call(folders)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (
            {"tie_encodr_decoder": True},
            TypeError,
            r"unknown arguments \['tie_encodr_decoder'\]: .*put encoder_ or decoder_",
        ),
        ({"encoder_hiden_size": 3}, TypeError, r"AutoModel\.from_pretrained got unknown arguments \['hiden_size'\]"),
        ({"decoder_hiden_size": 3}, TypeError, r"AutoModelForCausalLM\.from_pretrained got unknown.*\['hiden_size'\]"),
        (
            {"cross_attention_init": "zero"},
            ValueError,
            "cross_attention_init 'zero' is not known; use 'random' or 'copy'",
        ),
        ({"decoder_config": tiny_models.config("gpt2")}, ValueError, "is_decoder=False and add_cross_attention=False"),
        (
            {"encoder_model": AutoModelForMaskedLM(tiny_models.config("bert"))},
            ValueError,
            r"the encoder is a AutoModelForMaskedLM with a language model head.*AutoModel\.from_pretrained",
        ),
        (
            {"decoder_model": AutoModel(tiny_models.config("bert"))},
            ValueError,
            r"the decoder is a AutoModel without a head.*is_decoder=True, add_cross_attention=True",
        ),
        ({"tie_encoder_decoder": True}, ValueError, "tie_encoder_decoder needs an encoder and a decoder of one shape"),
    ],
)
def test_arguments_of_a_warm_start(options, error, words, folders):
    with pytest.raises(error, match=words):
        EncoderDecoderModel.from_encoder_decoder_pretrained(folders / "bert", folders / "gpt2", **options)


def test_a_warm_start_without_a_side(folders):
    with pytest.raises(ValueError, match="a folder or hub id for the encoder, or a model as `encoder_model`"):
        EncoderDecoderModel.from_encoder_decoder_pretrained(None, folders / "gpt2")
    with pytest.raises(ValueError, match="a folder or hub id for the decoder, or a model as `decoder_model`"):
        EncoderDecoderModel.from_encoder_decoder_pretrained(folders / "bert")


def test_a_pair_that_would_not_see_the_source():
    config = EncoderDecoderConfig(encoder=tiny_models.config("bert"), decoder=tiny_models.config("gpt2"))
    with pytest.raises(
        ValueError, match=r"\(gpt2\) has is_decoder=False and add_cross_attention=False.*set both to True"
    ):
        EncoderDecoderModel(config=config)
    config = EncoderDecoderConfig.from_encoder_decoder_configs(tiny_models.config("bert"), tiny_models.config("gpt2"))
    config.decoder.cross_attention_hidden_size = 5
    with pytest.raises(
        ValueError, match="cross_attention_hidden_size 5 is not the encoder's hidden_size 16; leave it None"
    ):
        EncoderDecoderModel(config=config)


# Batches -------------------------------------------------------------------------------------------------------------

IDS = torch.tensor([[5, 6, 7], [8, 9, 10], [11, 12, 13]])
LABELS = torch.tensor([[5, 6], [7, -100], [8, 9]])
LONG = torch.full((3, tiny_models.POSITIONS + 1), 5)
PLAIN = {"input_ids": IDS, "labels": LABELS}

BAD_BATCHES = {
    "id too large": (PLAIN | {"input_ids": IDS + 27}, "token id 40 at row 2, column 2 .*bert stack's vocabulary of 37"),
    "negative id": (
        PLAIN | {"input_ids": IDS - 6},
        "token id -1 at row 0, column 0 .*use the tokenizer that belongs to",
    ),
    "ids that are no whole numbers": (PLAIN | {"input_ids": IDS.float()}, r"ids of type torch\.float32 .*are integers"),
    "ids of one row without a batch": (PLAIN | {"input_ids": IDS[0]}, r"shape \(3,\) is not \(batch, length\)"),
    "no token": (PLAIN | {"input_ids": IDS[:, :0]}, r"bert stack got an empty input of shape \(3, 0\)"),
    "no row": ({"input_ids": IDS[:0], "labels": LABELS[:0]}, r"empty input of shape \(0, 3\)"),
    "nothing": ({"labels": LABELS}, "either input ids or input vectors"),
    "ids and vectors": (PLAIN | {"inputs_embeds": torch.ones(3, 3, 16)}, "either input ids or input vectors"),
    "vectors of another width": (
        {"inputs_embeds": torch.ones(3, 3, 15), "labels": LABELS},
        "inputs_embeds are 15 wide and the bert stack's embeddings 16",
    ),
    "states of another width": (
        {"encoder_outputs": (torch.ones(3, 3, 15),), "labels": LABELS},
        "encoder_outputs are 15 wide and the encoder's states 16",
    ),
    "source longer than the positions": (
        PLAIN | {"input_ids": LONG},
        "41 tokens are more than the 40 positions of the bert stack; truncate to max_length=40",
    ),
    "labels longer than the positions": (
        PLAIN | {"labels": LONG},
        "41 tokens are more than the 40 positions of the gpt2 stack; truncate to max_length=40",
    ),
    "label too large": (PLAIN | {"labels": LABELS + 100}, "token id 10[0-9] .*gpt2 stack's vocabulary of 37"),
    "last label too large": (
        PLAIN | {"labels": LABELS.masked_fill(LABELS == 6, 37)},
        "label 37 is neither -100 nor in the",
    ),
    "negative label": (
        PLAIN | {"labels": LABELS.masked_fill(LABELS == 6, -1)},
        "label -1 is neither -100 nor in",
    ),
    "labels that are no whole numbers": (PLAIN | {"labels": LABELS.float()}, r"not \(3, 2\) of torch\.float32"),
    "labels in a list": (PLAIN | {"labels": LABELS.tolist()}, "labels must be a tensor of token ids.*not list"),
    "labels without a batch": (PLAIN | {"labels": LABELS[0]}, r"labels must be .*\(batch, target_length\), not \(2,\)"),
    "no label": (PLAIN | {"labels": LABELS[:, :0]}, r"labels of shape \(3, 0\) are empty"),
    "fewer labels than sources": (PLAIN | {"labels": LABELS[:2]}, "the decoder has 2 rows for 3 sources"),
    "labels for other positions": (
        PLAIN | {"decoder_input_ids": IDS},
        r"labels of shape \(3, 2\) do not fit logits for \(3, 3\) positions",
    ),
    "labels that are not shifted": (
        PLAIN | {"decoder_input_ids": LABELS.clamp_min(0)},
        r"decoder_input_ids are equal to labels.*prepare_decoder_input_ids_from_labels",
    ),
    "nothing for the decoder": ({"input_ids": IDS}, "the decoder has nothing to read: give labels, decoder_input_ids"),
    "mask of another length": (PLAIN | {"attention_mask": IDS[:, :2]}, r"\(3, 2\) does not cover 0 cached and 3 new"),
    "mask of other rows": (PLAIN | {"attention_mask": IDS[:2]}, r"\(2, 3\) does not cover .*it must be \(3, 3\)"),
    "mask without a batch": (PLAIN | {"attention_mask": IDS[0]}, r"\(3,\) does not cover .*it must be \(3, 3\)"),
    "mask of the labels": (PLAIN | {"decoder_attention_mask": IDS}, r"\(3, 3\) does not cover 0 cached and 2 new"),
    "token type that is none": (
        PLAIN | {"token_type_ids": IDS},
        "token_type_ids holds 13, and the model has rows for 0 to 1",
    ),
    "position that is none": (
        PLAIN | {"position_ids": IDS + 40},
        "position_ids holds 53, and the model has rows for 0 to 39",
    ),
}


@pytest.fixture(scope="module")
def pair():
    return tiny_models.pair("bert", "gpt2")


@pytest.mark.parametrize("kind", BAD_BATCHES)
def test_batches_that_do_not_fit(kind, pair):
    batch, words = BAD_BATCHES[kind]
    with pytest.raises(ValueError, match=words):
        pair(**batch)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (PLAIN | {"input_ids": IDS.tolist()}, "input_ids is a list; give a tensor"),
        (
            PLAIN | {"past_key_values": ((1, 2),)},
            "past_key_values must be a KeyValueCache that a model returned, not tuple",
        ),
        (PLAIN | {"hiden_states": 1}, "unexpected keyword argument 'hiden_states'"),
        (PLAIN | {"decoder_hiden_states": 1}, "unexpected keyword argument 'hiden_states'"),
    ],
)
def test_arguments_of_a_pass_that_are_none(batch, words, pair):
    with pytest.raises(TypeError, match=words):
        pair(**batch)


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (IDS + 27, "token id 40 at row 2"),
        (IDS[:, :0], "input_ids is empty"),
        (IDS[:0], "input_ids is empty"),
        (LONG, "41 tokens are more than the 40 positions"),
        (None, "needs either input_ids or inputs_embeds"),
    ],
)
def test_sources_of_generate_that_do_not_fit(ids, words, pair):
    with pytest.raises(ValueError, match=words):
        pair.generate(ids)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (
            "decoder_start_token_id",
            None,
            r"decoder_start_token_id is not set.*[Ss]et model\.config\.decoder_start_token_id",
        ),
        ("pad_token_id", None, r"pad_token_id is not set.*[Ss]et model\.config\.pad_token_id"),
        ("decoder_start_token_id", 99, "token id 99 at row 0, column 0 is outside the gpt2 stack's vocabulary of 37"),
        ("decoder_start_token_id", "1", "decoder_start_token_id='1'"),
    ],
)
def test_ids_that_are_not_set_or_none(name, value, words):
    """Rule 1: the first loss or `generate` says which to set and how."""
    model = tiny_models.pair("bert", "gpt2")
    for config in (model.config, model.config.decoder):
        config.bos_token_id, config.eos_token_id = None, 2
    setattr(model.config, name, value)
    for call in (lambda: model(**PLAIN), lambda: model.generate(IDS)):
        with pytest.raises(ValueError, match=words):
            call()


def test_a_prompt_of_one_token_has_no_label():
    model = AutoModelForCausalLM(tiny_models.config("gpt2"))
    with pytest.raises(ValueError, match="there is nothing to predict"):
        model(IDS[:, :1], labels=IDS[:, :1])
    with pytest.raises(ValueError, match="label 50 is neither -100 nor in the decoder's vocabulary of 37"):
        model(IDS, labels=IDS + 37)


def test_a_loss_is_divided_by_a_count():
    with pytest.raises(ValueError, match="num_items_in_batch=0: give the number of labels"):
        AutoModelForCausalLM(tiny_models.config("gpt2"))(IDS, labels=IDS, num_items_in_batch=0)


def test_limits_of_this_process_are_as_they_were():
    """The tests that take memory or file size away do it in processes of their own."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
