"""`from_encoder_decoder_pretrained` and the other ways to make a pair: every keyword that is documented."""

import json
from pathlib import Path

import pytest
import torch

from tiny_models import END, PAD, START, VOCABULARY, batch, config, pair, saved
from warmstart import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    BertLMHeadModel,
    BertModel,
    EncoderDecoderConfig,
    EncoderDecoderModel,
)

warm = EncoderDecoderModel.from_encoder_decoder_pretrained


@pytest.fixture
def folders(tmp_path):
    """A BERT and a GPT-2."""
    return saved(tmp_path / "bert", "bert"), saved(tmp_path / "gpt2", "gpt2", decoder=True, seed=1)


def same(one, other, but=()):
    """Whether two modules hold the same values, but for parameters with these words in their names."""
    others = dict(other.named_parameters())
    named = [(name, value) for name, value in one.named_parameters() if not any(word in name for word in but)]
    return bool(named) and all(torch.equal(value, others[name]) for name, value in named)


def test_weights_are_those_of_the_folders(folders):
    model = warm(*folders)
    assert not model.training and not any(module.training for module in model.modules())
    assert same(model.encoder, AutoModel.from_pretrained(folders[0]))
    assert same(model.decoder, AutoModelForCausalLM.from_pretrained(folders[1]), ["cross_attention"])
    assert type(model.encoder) is AutoModel and type(model.decoder) is AutoModelForCausalLM
    assert model.config.decoder.is_decoder and model.config.decoder.add_cross_attention
    assert not model.config.encoder.is_decoder and not model.config.encoder.add_cross_attention


def test_report_says_where_each_weight_comes_from(folders):
    report = warm(*folders).load_report
    names = {name for name, _ in warm(*folders).named_parameters()}
    assert set(report.loaded) | set(report.new) == names and not set(report.loaded) & set(report.new)
    assert all("cross_attention" in name or name.startswith("enc_to_dec_proj") for name in report.new)
    assert all(folder in report.place for folder in folders)


def test_same_checkpoint_for_both_sides(folders):
    """A BERT without a head becomes a decoder: the head's layer is new, its matrix the embeddings'."""
    model = warm(folders[0], folders[0])
    assert same(model.decoder, model.encoder, ["cross_attention", "head"])
    new = {name for name in model.load_report.new if "cross_attention" not in name}
    assert new == {f"decoder.head.{name}" for name in ("dense.weight", "dense.bias", "norm.weight", "norm.bias")} | {
        "decoder.head.output.bias"
    }
    assert model.decoder.head.output.weight is model.decoder.embeddings.token.weight
    assert model.encoder.embeddings.token.weight is not model.decoder.embeddings.token.weight


# Keywords ---------------------------------------------------------------------------------------------------------


def test_keywords_with_a_side_before_them(folders):
    model = warm(*folders, encoder_hidden_dropout_prob=0.3, decoder_resid_pdrop=0.4)
    assert (model.config.encoder.hidden_dropout_prob, model.config.decoder.resid_pdrop) == (0.3, 0.4)
    assert (model.encoder.layers[0].dropout.p, model.decoder.layers[0].dropout.p) == (0.3, 0.4)
    with pytest.raises(TypeError, match=r"unknown arguments .*'hiden_size'"):
        warm(*folders, encoder_hiden_size=3)


def test_fewer_layers_than_the_checkpoint_has(folders):
    """The first ones are taken, and the report says what was left out."""
    model = warm(*folders, encoder_num_hidden_layers=1, decoder_n_layer=1)
    assert len(model.encoder.layers) == len(model.decoder.layers) == 1
    assert same(model.encoder, AutoModel.from_pretrained(folders[0]))
    assert any("layer.1." in name for name in model.load_report.left_out)
    assert any("h.1." in name for name in model.load_report.left_out)
    encoder = AutoConfig.from_pretrained(folders[0], num_hidden_layers=1)
    assert len(warm(*folders, encoder_config=encoder).encoder.layers) == 1
    model.config.decoder_start_token_id = START
    model.save_pretrained(folders[0])
    assert len(EncoderDecoderModel.from_pretrained(folders[0]).encoder.layers) == 1


def test_a_configuration_file_of_another_depth_is_a_mistake(folders):
    """Who asks for fewer layers gets them; a file that does not fit its configuration is refused."""
    path = Path(folders[0], "config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 1}))
    with pytest.raises(ValueError, match=r"16 weights are not known.*layer\.1\."):
        warm(*folders)


def test_plain_keywords_are_of_the_pair(folders):
    """`decoder_start_token_id` belongs to the pair although it begins with a side's name."""
    model = warm(*folders, decoder_start_token_id=7, num_beams=3, max_length=11)
    assert (model.config.decoder_start_token_id, model.config.num_beams) == (7, 3)
    assert model.generation_config.max_length == 11
    assert model.config.decoder.decoder_start_token_id is None
    assert model.generate(torch.tensor([[5, 6]]))[0, 0] == 7


def test_configurations_given(folders):
    encoder = AutoConfig.from_pretrained(folders[0], hidden_dropout_prob=0.25)
    decoder = AutoConfig.from_pretrained(folders[1], is_decoder=True, add_cross_attention=True, attn_pdrop=0.35)
    before = encoder.to_dict(), decoder.to_dict()
    model = warm(*folders, encoder_config=encoder, decoder_config=decoder)
    assert (model.config.encoder.hidden_dropout_prob, model.config.decoder.attn_pdrop) == (0.25, 0.35)
    assert (encoder.to_dict(), decoder.to_dict()) == before, "what was given has changed"
    assert model.encoder.config is model.config.encoder and model.decoder.config is model.config.decoder
    assert same(model.encoder, AutoModel.from_pretrained(folders[0]))


def test_decoder_configuration_that_would_not_see_the_source(folders):
    with pytest.raises(ValueError, match=r"is_decoder=False and\s+add_cross_attention=False.*set both to True"):
        warm(*folders, decoder_config=AutoConfig.from_pretrained(folders[1], is_decoder=False))


def test_models_given(folders):
    encoder = BertModel.from_pretrained(folders[0])
    decoder = AutoModelForCausalLM.from_pretrained(folders[1], is_decoder=True, add_cross_attention=True)
    model = warm(encoder_model=encoder, decoder_model=decoder)
    assert model.encoder is encoder and model.decoder is decoder and not model.training
    model = warm(folders[0], decoder_model=decoder)
    assert model.decoder is decoder and same(model.encoder, encoder)
    assert model(**batch()).loss.isfinite()


def test_a_side_that_is_missing(folders):
    with pytest.raises(ValueError, match="folder or hub id for the encoder, or a model as `encoder_model`"):
        warm(decoder_pretrained_model_name_or_path=folders[1])
    with pytest.raises(ValueError, match="folder or hub id for the decoder, or a model as `decoder_model`"):
        warm(folders[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16"])
def test_types(folders, dtype):
    model = warm(*folders, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    model = warm(*folders, encoder_dtype=dtype, decoder_dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_ids_and_settings_come_from_the_decoder(folders):
    model = warm(*folders)
    assert (model.config.decoder_start_token_id, model.config.eos_token_id) == (START, END)
    assert model.config.pad_token_id == END
    assert warm(*folders, pad_token_id=9).config.pad_token_id == 9


# Cross-attention --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "qwen3", "bart"])
def test_cross_attention_starts_as_a_copy(family, tmp_path):
    encoder = saved(tmp_path / "encoder", "bert")
    decoder = saved(tmp_path / "decoder", family, decoder=True)
    model = warm(encoder, decoder, cross_attention_init="copy")
    assert len(model.load_report.copied) > 0 and set(model.load_report.copied) <= set(model.load_report.new)
    for layer in model.decoder.layers:
        assert same(layer.cross_attention, layer.attention)
        assert same(layer.cross_attention_norm, layer.attention_norm)
        assert layer.cross_attention.query.weight is not layer.attention.query.weight
    model(**{**batch(), "labels": None, "decoder_input_ids": torch.full((3, 2), START)})


def test_cross_attention_starts_at_random_unless_told(folders):
    model = warm(*folders)
    assert model.load_report.copied == []
    weights = [layer.cross_attention.query.weight for layer in model.decoder.layers]
    assert not any(same(layer.cross_attention, layer.attention) for layer in model.decoder.layers)
    assert abs(torch.stack(weights).std().item() / model.config.decoder.initializer_range - 1) < 0.2
    with pytest.raises(ValueError, match="cross_attention_init 'self' is not known; use 'random' or 'copy'"):
        warm(*folders, cross_attention_init="self")


def test_cross_attention_of_a_tied_pair_is_copied_from_the_shared_stack(folders):
    model = warm(folders[0], folders[0], tie_encoder_decoder=True, cross_attention_init="copy")
    for encoder, decoder in zip(model.encoder.layers, model.decoder.layers, strict=True):
        assert same(decoder.cross_attention, encoder.attention)


# From configurations and models -----------------------------------------------------------------------------------


def test_from_two_models():
    encoder, decoder = (
        BertModel(config("bert")),
        BertLMHeadModel(config("bert", is_decoder=True, add_cross_attention=True)),
    )
    model = EncoderDecoderModel(encoder=encoder, decoder=decoder)
    assert model.encoder is encoder and model.decoder is decoder
    assert model.encoder.config is model.config.encoder and model.decoder.config is model.config.decoder
    model.config.decoder_start_token_id = START
    assert model(**batch()).loss.isfinite()


def test_models_that_do_not_fit_their_side():
    plain = AutoModelForCausalLM(config("bert", is_decoder=True))
    with pytest.raises(ValueError, match=r"add_cross_attention=False|without cross-attention"):
        EncoderDecoderModel(encoder=BertModel(config("bert")), decoder=plain)
    with pytest.raises(ValueError, match=r"encoder is a .*AutoModel"):
        EncoderDecoderModel(encoder=plain, decoder=pair().decoder)
    with pytest.raises(ValueError, match="needs a config, or an encoder and a decoder"):
        EncoderDecoderModel(encoder=BertModel(config("bert")))
    with pytest.raises(ValueError, match="needs an EncoderDecoderConfig"):
        EncoderDecoderModel(config("bert"))


def test_random_from_configurations():
    joint = EncoderDecoderConfig.from_encoder_decoder_configs(config("bert"), config("gpt2"))
    torch.manual_seed(0)
    one = EncoderDecoderModel(config=joint)
    torch.manual_seed(0)
    two = EncoderDecoderModel.from_config(joint)
    assert same(one, two) and one.training
    assert not torch.equal(one.encoder.layers[0].mlp.up.weight, one.encoder.layers[1].mlp.up.weight)


def test_width_of_cross_attention_given():
    """`cross_attention_hidden_size` lets cross-attention read the encoder's width without a projection."""
    model = pair("bert", config("gpt2", cross_attention_hidden_size=16))
    assert not hasattr(model, "enc_to_dec_proj")
    assert model.decoder.layers[0].cross_attention.key.weight.shape == (12, 16)
    assert model(**batch()).loss.isfinite()
    with pytest.raises(ValueError, match="cross_attention_hidden_size 20 is not the encoder's hidden_size 16"):
        pair("bert", config("gpt2", cross_attention_hidden_size=20))


# What comes back --------------------------------------------------------------------------------------------------


def test_outputs_as_record_and_as_tuple():
    model, inputs = pair(), batch()
    wants = {"output_attentions": True, "output_hidden_states": True, "use_cache": True}
    record = model(**inputs, **wants)
    assert list(record) == [
        "loss",
        "logits",
        "past_key_values",
        "decoder_hidden_states",
        "decoder_attentions",
        "cross_attentions",
        "encoder_last_hidden_state",
        "encoder_hidden_states",
        "encoder_attentions",
    ]
    assert record.logits is record["logits"] is record[1] and len(record[:2]) == 2
    given = model(**inputs, **wants, return_dict=False)
    assert type(given) is tuple and len(given) == 9
    torch.testing.assert_close(given[1], record.logits)
    loss, logits = model(**inputs, return_dict=False)[:2]
    assert loss.shape == () and logits.shape == (3, 6, VOCABULARY)
    model.config.return_dict = False
    assert type(model(**inputs)) is tuple
    assert model.generate(inputs["input_ids"], max_new_tokens=2).shape[0] == 3
    model.config.return_dict = True
    model.config.output_attentions = True
    assert model(**inputs).cross_attentions[0].shape == (3, 2, 6, 7)


@pytest.mark.parametrize("kind", ["record", "tuple", "list"])
def test_encoder_outputs_given(kind):
    model, inputs = pair(), batch()
    expected = model(**inputs)
    source = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    encoded = model.encode(**source)
    encoded = {"record": encoded, "tuple": encoded.to_tuple(), "list": list(encoded.to_tuple())}[kind]
    given = model(encoder_outputs=encoded, attention_mask=inputs["attention_mask"], labels=inputs["labels"])
    assert torch.equal(given.logits, expected.logits)
    same_encoder = model.get_encoder()(**source)
    assert torch.equal(same_encoder.last_hidden_state, expected.encoder_last_hidden_state)
    assert model.get_decoder() is model.decoder


def test_keywords_of_forward_go_to_their_side():
    model = pair("bert", "bert")
    inputs = batch()
    expected = model(**inputs)
    kinds = {"token_type_ids": torch.ones_like(inputs["input_ids"])}
    one = model(**inputs, **kinds)
    other = model(**inputs, decoder_token_type_ids=torch.ones_like(inputs["labels"]))
    assert not torch.equal(one.encoder_last_hidden_state, expected.encoder_last_hidden_state)
    assert torch.equal(other.encoder_last_hidden_state, expected.encoder_last_hidden_state)
    assert not torch.equal(other.logits, expected.logits)
    vectors = model.encoder.embeddings.token(inputs["input_ids"])
    given = model(inputs_embeds=vectors, attention_mask=inputs["attention_mask"], labels=inputs["labels"])
    torch.testing.assert_close(given.logits, expected.logits)
    ids = model.prepare_decoder_input_ids_from_labels(inputs["labels"])
    vectors = model.decoder.embeddings.token(ids)
    source = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    given = model(**source, decoder_inputs_embeds=vectors, labels=inputs["labels"])
    torch.testing.assert_close(given.loss, expected.loss)


# Loss -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing_is_torchs(smoothing):
    model, inputs = pair(), batch()
    output = model(**inputs, label_smoothing=smoothing)
    expected = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)(
        output.logits.flatten(0, 1), inputs["labels"].flatten()
    )
    torch.testing.assert_close(output.loss, expected)
    total = model(**inputs, label_smoothing=smoothing, num_items_in_batch=100).loss
    torch.testing.assert_close(total, expected * (inputs["labels"] != -100).sum() / 100)


# Bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": torch.tensor([[5, VOCABULARY]])}, rf"token id {VOCABULARY} at row 0, column 1.*{VOCABULARY}"),
        ({"input_ids": torch.tensor([[-1, 5]])}, r"token id -1 at row 0, column 0"),
        ({"input_ids": torch.tensor([[0.5]])}, r"torch\.float32.*integers"),
        ({"input_ids": torch.ones(1, 41, dtype=torch.long)}, r"41 tokens.*40 positions of the bert.*max_length=40"),
        ({"labels": torch.ones(1, 41, dtype=torch.long)}, r"41 tokens.*40 positions of the gpt2"),
        ({"labels": torch.tensor([[5, VOCABULARY]])}, rf"label {VOCABULARY} is neither -100 nor"),
        ({"labels": torch.tensor([[5, -1]])}, r"label -1 is neither -100 nor"),
        ({"input_ids": torch.ones(1, 0, dtype=torch.long)}, r"empty input"),
        ({"input_ids": torch.ones(0, 3, dtype=torch.long)}, r"empty input"),
        ({"labels": torch.ones(1, 0, dtype=torch.long)}, r"empty"),
        ({"input_ids": torch.tensor([5, 6])}, r"not \(batch, length\)"),
        ({"input_ids": None}, r"either input ids or input vectors"),
        ({"labels": None}, r"the decoder has nothing to read"),
        ({"attention_mask": torch.ones(1, 4)}, r"attention_mask of shape \(1, 4\).*must be \(1, 3\)"),
    ],
)
def test_bad_input_is_named(change, message):
    inputs = {"input_ids": torch.tensor([[5, 6, 7]]), "labels": torch.tensor([[8, 9]]), **change}
    with pytest.raises(ValueError, match=message):
        pair()(**inputs)


def test_padding_id_of_the_pair_may_differ_from_the_decoders():
    model = pair("bert", config("bert", pad_token_id=9))
    assert (model.config.pad_token_id, model.config.decoder.pad_token_id) == (PAD, 9)
