"""The examples of the `EncoderDecoderModel` documentation, with only the import line changed, on tiny checkpoints."""

import pytest
import torch
from tokenizers import BertWordPieceTokenizer

TEXT = [
    "this is a really long text",
    "this is the corresponding summary",
    "PG&E stated it scheduled the blackouts in response to forecasts for high winds amid dry conditions.",
    "The tower is 324 metres (1,063 ft) tall, about the same height as an 81-storey building.",
]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The current directory, with a tiny BERT under the documentation's name."""
    from warmstart import BertConfig, BertForMaskedLM

    monkeypatch.chdir(tmp_path)
    words = BertWordPieceTokenizer()
    words.train_from_iterator(TEXT, vocab_size=150, show_progress=False)
    config = BertConfig(
        vocab_size=words.get_vocab_size(),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    )
    torch.manual_seed(0)
    BertForMaskedLM(config).save_pretrained("google-bert/bert-base-uncased")
    words.save_model("google-bert/bert-base-uncased")


@pytest.fixture
def small(monkeypatch):
    """BERT's default configuration, made small enough to build in no time."""
    from warmstart import BertConfig

    sizes = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    monkeypatch.setattr(BertConfig, "defaults", {**BertConfig.defaults, **sizes, "intermediate_size": 32})


def test_random_from_two_configurations(small, tmp_path, monkeypatch):
    from warmstart import BertConfig, EncoderDecoderConfig, EncoderDecoderModel

    monkeypatch.chdir(tmp_path)
    config_encoder = BertConfig()
    config_decoder = BertConfig()

    config = EncoderDecoderConfig.from_encoder_decoder_configs(config_encoder, config_decoder)
    model = EncoderDecoderModel(config=config)

    config_encoder = model.config.encoder
    config_decoder = model.config.decoder
    config_decoder.is_decoder = True
    config_decoder.add_cross_attention = True

    model.save_pretrained("my-model")

    encoder_decoder_config = EncoderDecoderConfig.from_pretrained("my-model")
    again = EncoderDecoderModel.from_pretrained("my-model", config=encoder_decoder_config)
    ids = torch.tensor([[5, 6, 7]])
    model.eval()
    assert torch.equal(again(ids, decoder_input_ids=ids).logits, model(ids, decoder_input_ids=ids).logits)


def test_two_models_from_a_warm_start(hub):
    from warmstart import BertTokenizer, EncoderDecoderModel

    tokenizer = BertTokenizer.from_pretrained("google-bert/bert-base-uncased")
    model = EncoderDecoderModel.from_encoder_decoder_pretrained(
        "google-bert/bert-base-uncased", "google-bert/bert-base-uncased"
    )
    assert not model.training
    assert model.config.decoder_start_token_id == tokenizer.cls_token_id
    assert any("cross_attention" in name for name in model.load_report.new)


def test_training(hub):
    from warmstart import BertTokenizer, EncoderDecoderModel

    tokenizer = BertTokenizer.from_pretrained("google-bert/bert-base-uncased")
    model = EncoderDecoderModel.from_encoder_decoder_pretrained(
        "google-bert/bert-base-uncased", "google-bert/bert-base-uncased"
    )

    model.config.decoder_start_token_id = tokenizer.cls_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.vocab_size = model.config.decoder.vocab_size

    input_ids = tokenizer(TEXT[3], return_tensors="pt").input_ids
    labels = tokenizer("this is the corresponding summary", return_tensors="pt").input_ids

    # the forward function automatically creates the correct decoder_input_ids
    loss = model(input_ids=input_ids, labels=labels).loss
    loss.backward()
    assert loss.isfinite()

    outputs = model(input_ids=input_ids, labels=labels)
    loss, logits = outputs.loss, outputs.logits
    assert logits.shape == (*labels.shape, model.config.vocab_size)

    model.save_pretrained("bert2bert")
    model = EncoderDecoderModel.from_pretrained("bert2bert")
    generated = model.generate(input_ids)
    assert generated[0, 0] == tokenizer.cls_token_id


def test_load_and_summarise(hub):
    from warmstart import AutoTokenizer, EncoderDecoderModel

    pair = EncoderDecoderModel.from_encoder_decoder_pretrained(*["google-bert/bert-base-uncased"] * 2)
    own = AutoTokenizer.from_pretrained("google-bert/bert-base-uncased")
    pair.save_pretrained("patrickvonplaten/bert2bert_cnn_daily_mail", encoder_tokenizer=own)

    model = EncoderDecoderModel.from_pretrained("patrickvonplaten/bert2bert_cnn_daily_mail")
    tokenizer = AutoTokenizer.from_pretrained("patrickvonplaten/bert2bert_cnn_daily_mail")
    input_ids = tokenizer(TEXT[2], return_tensors="pt").input_ids
    generated_ids = model.generate(input_ids)
    generated_text = tokenizer.batch_decode(generated_ids, skip_special_tokens=True)[0]
    assert isinstance(generated_text, str)


def test_the_settings_of_the_fine_tuning_notebook_survive(hub):
    from warmstart import BertTokenizerFast, EncoderDecoderModel

    tokenizer = BertTokenizerFast.from_pretrained("google-bert/bert-base-uncased")
    tokenizer.bos_token = tokenizer.cls_token
    tokenizer.eos_token = tokenizer.sep_token
    bert2bert = EncoderDecoderModel.from_encoder_decoder_pretrained(*["google-bert/bert-base-uncased"] * 2)

    bert2bert.config.decoder_start_token_id = tokenizer.bos_token_id
    bert2bert.config.eos_token_id = tokenizer.eos_token_id
    bert2bert.config.pad_token_id = tokenizer.pad_token_id
    bert2bert.config.vocab_size = bert2bert.config.encoder.vocab_size
    settings = {
        "max_length": 14,
        "min_length": 5,
        "no_repeat_ngram_size": 3,
        "early_stopping": True,
        "length_penalty": 2.0,
        "num_beams": 4,
    }
    for name, value in settings.items():
        setattr(bert2bert.config, name, value)

    bert2bert.save_pretrained("fine-tuned")
    again = EncoderDecoderModel.from_pretrained("fine-tuned")
    assert {name: getattr(again.config, name) for name in settings} == settings
    assert {name: getattr(again.generation_config, name) for name in settings} == settings
    ids = tokenizer(TEXT[:2], padding=True, return_tensors="pt")
    asked = {**settings, "decoder_start_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
    plain = EncoderDecoderModel.from_pretrained("fine-tuned")
    plain.generation_config = type(plain.generation_config)()
    assert torch.equal(again.generate(**ids), plain.generate(**ids, **asked))
    assert again.generate(**ids).shape[1] <= 14
