"""The examples of the `EncoderDecoderModel` documentation run with only the import line changed.

Each is the text of the page, `transformers` replaced by `warmstart`, in a folder that holds tiny checkpoints under the
names that the page uses; what it leaves behind is then looked at.
"""

import pytest
import torch
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer

from warmstart import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    EncoderDecoderModel,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

TEXT = [
    "this is a really long text",
    "this is the corresponding summary",
    "PG&E stated it scheduled the blackouts in response to forecasts for high winds amid dry conditions.",
    "the eiffel tower is 324 metres (1,063 ft) tall, about the same height as an 81-storey building.",
]
BERT = "google-bert/bert-base-uncased"
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """The current directory: a tiny BERT, GPT-2 and RoBERTa by their names. A configuration's defaults are tiny too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(BertConfig, "defaults", {**BertConfig.defaults, **SIZES, "vocab_size": 160})
    torch.manual_seed(0)
    words = BertWordPieceTokenizer()
    words.train_from_iterator(TEXT, vocab_size=150, show_progress=False)
    for name in (BERT, "bert-base-uncased"):
        BertForMaskedLM(BertConfig(vocab_size=words.get_vocab_size())).save_pretrained(name)
        words.save_model(name)
    pieces = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>"]
    pieces.train_from_iterator(TEXT, vocab_size=320, special_tokens=special, show_progress=False)
    size, end = pieces.get_vocab_size(), pieces.token_to_id("<|endoftext|>")
    config = GPT2Config(vocab_size=size, n_embd=24, n_layer=2, n_head=2, bos_token_id=end, eos_token_id=end)
    GPT2LMHeadModel(config).save_pretrained("gpt2")
    pieces.save_model("gpt2")
    RobertaForMaskedLM(RobertaConfig(vocab_size=size, **SIZES)).save_pretrained("roberta-base")
    pieces.save_model("roberta-base")
    fine_tuned = EncoderDecoderModel.from_encoder_decoder_pretrained(BERT, BERT)
    tokenizer = AutoTokenizer.from_pretrained(BERT)
    fine_tuned.save_pretrained("patrickvonplaten/bert2bert_cnn_daily_mail", encoder_tokenizer=tokenizer)


def run(example, **names):
    """The names that the page's code leaves behind."""
    assert "from transformers import" in example
    exec(example.replace("from transformers import", "from warmstart import"), names)
    return names


def test_random_from_configurations():
    found = run("""
from transformers import BertConfig, EncoderDecoderConfig, EncoderDecoderModel

config_encoder = BertConfig()
config_decoder = BertConfig()

config = EncoderDecoderConfig.from_encoder_decoder_configs(config_encoder, config_decoder)
model = EncoderDecoderModel(config=config)
""")
    assert found["model"].config.decoder.add_cross_attention and found["model"].training


def test_configuration_page():
    found = run("""
from transformers import BertConfig, EncoderDecoderConfig, EncoderDecoderModel

config_encoder = BertConfig()
config_decoder = BertConfig()

config = EncoderDecoderConfig.from_encoder_decoder_configs(config_encoder, config_decoder)

model = EncoderDecoderModel(config=config)

config_encoder = model.config.encoder
config_decoder = model.config.decoder
config_decoder.is_decoder = True
config_decoder.add_cross_attention = True

model.save_pretrained("my-model")
first = model.eval()

encoder_decoder_config = EncoderDecoderConfig.from_pretrained("my-model")
model = EncoderDecoderModel.from_pretrained("my-model", config=encoder_decoder_config)
""")
    ids = torch.tensor([[5, 6, 7]])
    logits = [found[name](ids, decoder_input_ids=ids).logits for name in ("model", "first")]
    assert torch.equal(*logits)
    assert type(found["config_decoder"]).__name__ == "BertConfig"


def test_warm_start_and_save():
    found = run("""
from transformers import EncoderDecoderModel, BertTokenizer

tokenizer = BertTokenizer.from_pretrained("google-bert/bert-base-uncased")
model = EncoderDecoderModel.from_encoder_decoder_pretrained(
    "google-bert/bert-base-uncased", "google-bert/bert-base-uncased"
)
model.save_pretrained("./bert2bert")
again = EncoderDecoderModel.from_pretrained("./bert2bert")
""")
    model, again = found["model"], found["again"]
    assert not model.training and not again.training
    assert any("cross_attention" in name for name in model.load_report.new) and again.load_report.new == []
    inputs = found["tokenizer"](TEXT[:2], padding=True, return_tensors="pt")
    assert torch.equal(model.generate(**inputs, max_length=8), again.generate(**inputs, max_length=8))


def test_load_and_summarise(capsys):
    found = run(
        """
from transformers import AutoTokenizer, EncoderDecoderModel

model = EncoderDecoderModel.from_pretrained("patrickvonplaten/bert2bert_cnn_daily_mail")
tokenizer = AutoTokenizer.from_pretrained("patrickvonplaten/bert2bert_cnn_daily_mail")

input_ids = tokenizer(TEXT[2], return_tensors="pt").input_ids

generated_ids = model.generate(input_ids)
generated_text = tokenizer.batch_decode(generated_ids, skip_special_tokens=True)[0]
print(generated_text)
""",
        TEXT=TEXT,
    )
    assert capsys.readouterr().out == found["generated_text"] + "\n"
    assert found["generated_ids"].shape == (1, 21)  # the start and, by default, 20 more
    assert "[CLS]" not in found["generated_text"]


def test_training():
    found = run(
        """
from transformers import BertTokenizer, EncoderDecoderModel

tokenizer = BertTokenizer.from_pretrained("google-bert/bert-base-uncased")
model = EncoderDecoderModel.from_encoder_decoder_pretrained(
    "google-bert/bert-base-uncased", "google-bert/bert-base-uncased"
)

model.config.decoder_start_token_id = tokenizer.cls_token_id
model.config.pad_token_id = tokenizer.pad_token_id

input_ids = tokenizer(TEXT[3], return_tensors="pt").input_ids
labels = tokenizer(TEXT[1], return_tensors="pt").input_ids

loss = model(input_ids=input_ids, labels=labels).loss
""",
        TEXT=TEXT,
    )
    found["loss"].backward()
    assert all(parameter.grad is not None for parameter in found["model"].parameters())


def test_forward_save_and_generate():
    found = run("""
from transformers import EncoderDecoderModel, BertTokenizer
import torch

tokenizer = BertTokenizer.from_pretrained("google-bert/bert-base-uncased")
model = EncoderDecoderModel.from_encoder_decoder_pretrained(
    "google-bert/bert-base-uncased", "google-bert/bert-base-uncased"
)

model.config.decoder_start_token_id = tokenizer.cls_token_id
model.config.pad_token_id = tokenizer.pad_token_id
model.config.vocab_size = model.config.decoder.vocab_size

input_ids = tokenizer("This is a really long text", return_tensors="pt").input_ids
labels = tokenizer("This is the corresponding summary", return_tensors="pt").input_ids
outputs = model(input_ids=input_ids, labels=labels)
loss, logits = outputs.loss, outputs.logits

model.save_pretrained("bert2bert")
model = EncoderDecoderModel.from_pretrained("bert2bert")

generated = model.generate(input_ids)
""")
    assert found["logits"].shape == (*found["labels"].shape, found["model"].config.vocab_size)
    assert found["generated"][0, 0] == found["tokenizer"].cls_token_id
    again = found["model"](input_ids=found["input_ids"], labels=found["labels"])
    assert torch.equal(again.loss, found["loss"])


# The fine-tuning notebooks and model cards that everybody started from -----------------------------------------------


def test_fine_tuning_notebook():
    found = run(
        """
from transformers import BertTokenizerFast, EncoderDecoderModel

tokenizer = BertTokenizerFast.from_pretrained("bert-base-uncased")
tokenizer.bos_token = tokenizer.cls_token
tokenizer.eos_token = tokenizer.sep_token

encoder_max_length = 12
decoder_max_length = 8

def process_data_to_model_inputs(batch):
    inputs = tokenizer(batch["article"], padding="max_length", truncation=True, max_length=encoder_max_length)
    outputs = tokenizer(batch["highlights"], padding="max_length", truncation=True, max_length=decoder_max_length)

    batch["input_ids"] = inputs.input_ids
    batch["attention_mask"] = inputs.attention_mask
    batch["labels"] = outputs.input_ids.copy()

    pad = tokenizer.pad_token_id
    batch["labels"] = [[-100 if token == pad else token for token in labels] for labels in batch["labels"]]
    return batch

bert2bert = EncoderDecoderModel.from_encoder_decoder_pretrained("bert-base-uncased", "bert-base-uncased")

bert2bert.config.decoder_start_token_id = tokenizer.bos_token_id
bert2bert.config.eos_token_id = tokenizer.eos_token_id
bert2bert.config.pad_token_id = tokenizer.pad_token_id

bert2bert.config.vocab_size = bert2bert.config.decoder.vocab_size
bert2bert.config.max_length = 14
bert2bert.config.min_length = 5
bert2bert.config.no_repeat_ngram_size = 3
bert2bert.config.early_stopping = True
bert2bert.config.length_penalty = 2.0
bert2bert.config.num_beams = 4

batch = process_data_to_model_inputs({"article": TEXT[2:], "highlights": TEXT[:2]})
tensors = {name: torch.tensor(batch[name]) for name in ("input_ids", "attention_mask", "labels")}
optimizer = torch.optim.AdamW(bert2bert.parameters(), lr=1e-2)
losses = []
for step in range(8):
    loss = bert2bert(**tensors).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
bert2bert.save_pretrained("checkpoint-8")
tokenizer.save_pretrained("checkpoint-8")

tokenizer = BertTokenizerFast.from_pretrained("checkpoint-8")
model = EncoderDecoderModel.from_pretrained("checkpoint-8")
model.to("cpu")

def generate_summary(batch):
    inputs = tokenizer(batch["article"], padding="max_length", truncation=True, max_length=12, return_tensors="pt")
    outputs = model.generate(inputs.input_ids, attention_mask=inputs.attention_mask)
    batch["pred_summary"] = tokenizer.batch_decode(outputs, skip_special_tokens=True)
    batch["outputs"] = outputs
    return batch

results = generate_summary({"article": TEXT[2:]})
""".replace("import BertTokenizerFast", "import BertTokenizerFast", 1),
        TEXT=TEXT,
        torch=torch,
    )
    assert found["losses"][-1] < 0.7 * found["losses"][0]
    model, outputs = found["model"], found["results"]["outputs"]
    settings = {
        "max_length": 14,
        "min_length": 5,
        "no_repeat_ngram_size": 3,
        "early_stopping": True,
        "length_penalty": 2.0,
        "num_beams": 4,
    }
    for view in (model.config, model.generation_config):
        assert {name: getattr(view, name) for name in settings} == settings
    # The same as with the settings given to `generate` of a model that has none.
    tensors = {name: found["tensors"][name] for name in ("input_ids", "attention_mask")}
    ids = {"decoder_start_token_id": found["tokenizer"].cls_token_id, "eos_token_id": found["tokenizer"].sep_token_id}
    model.generation_config = type(model.generation_config)()
    assert torch.equal(model.generate(**tensors, **settings, **ids), outputs)
    assert 5 <= outputs.shape[1] <= 14 and len(found["results"]["pred_summary"]) == 2


def test_notebook_that_gives_the_labels_as_inputs():
    """Its first versions did; since the model shifts labels, that teaches to copy. It is refused, with the reason."""
    example = """
from transformers import BertTokenizerFast, EncoderDecoderModel
tokenizer = BertTokenizerFast.from_pretrained("bert-base-uncased")
outputs = tokenizer(TEXT[:2], padding="max_length", truncation=True, max_length=8, return_tensors="pt")
labels = outputs.input_ids.clone()
labels[labels == tokenizer.pad_token_id] = -100
bert2bert = EncoderDecoderModel.from_encoder_decoder_pretrained("bert-base-uncased", "bert-base-uncased")
bert2bert(
    input_ids=outputs.input_ids,
    decoder_input_ids=outputs.input_ids,
    decoder_attention_mask=outputs.attention_mask,
    labels=labels,
)
"""
    with pytest.raises(ValueError, match=r"decoder_input_ids are equal to labels.*Leave decoder_input_ids out"):
        run(example, TEXT=TEXT)


def test_shared_weights():
    found = run("""
from transformers import EncoderDecoderModel
roberta2roberta = EncoderDecoderModel.from_encoder_decoder_pretrained("roberta-base", "roberta-base")
roberta_shared = EncoderDecoderModel.from_encoder_decoder_pretrained(
    "roberta-base", "roberta-base", tie_encoder_decoder=True
)
roberta_shared.save_pretrained("shared")
again = EncoderDecoderModel.from_pretrained("shared")
""")
    shared, again = found["roberta_shared"], found["again"]
    saved = found["roberta2roberta"].num_parameters() - shared.num_parameters()
    assert saved == shared.encoder.num_parameters()
    assert again.num_parameters() == shared.num_parameters()


def test_bert_to_gpt2():
    """The pair of the model card: GPT-2 has no padding, and its tokenizer puts nothing around a text."""
    found = run(
        """
from transformers import AutoTokenizer, BertTokenizer, EncoderDecoderModel, GPT2Tokenizer

model = EncoderDecoderModel.from_encoder_decoder_pretrained("bert-base-uncased", "gpt2")
model.decoder.config.use_cache = False
bert_tokenizer = BertTokenizer.from_pretrained("bert-base-uncased")

bert_tokenizer.bos_token = bert_tokenizer.cls_token
bert_tokenizer.eos_token = bert_tokenizer.sep_token

gpt2_tokenizer = GPT2Tokenizer.from_pretrained("gpt2")
gpt2_tokenizer.pad_token = gpt2_tokenizer.unk_token

model.config.decoder_start_token_id = gpt2_tokenizer.bos_token_id
model.config.eos_token_id = gpt2_tokenizer.eos_token_id
model.config.max_length = 14
model.config.min_length = 6
model.config.no_repeat_ngram_size = 3
model.early_stopping = True
model.length_penalty = 2.0
model.num_beams = 4

inputs = bert_tokenizer(TEXT[2:], padding=True, return_tensors="pt")
outputs = model.generate(inputs.input_ids, attention_mask=inputs.attention_mask)
texts = gpt2_tokenizer.batch_decode(outputs, skip_special_tokens=True)
""",
        TEXT=TEXT,
    )
    end = found["gpt2_tokenizer"].eos_token_id
    assert found["outputs"][:, 0].tolist() == [end, end] and found["outputs"].shape[1] <= 14
    assert found["model"].config.pad_token_id == end and found["model"].enc_to_dec_proj.out_features == 24
    assert len(found["texts"]) == 2


def test_decoding_methods():
    """Each strategy of the text-generation pages, on a pair."""
    found = run(
        """
from transformers import AutoTokenizer, EncoderDecoderModel, GenerationConfig
tokenizer = AutoTokenizer.from_pretrained("patrickvonplaten/bert2bert_cnn_daily_mail")
model = EncoderDecoderModel.from_pretrained("patrickvonplaten/bert2bert_cnn_daily_mail")
inputs = tokenizer(TEXT[2], return_tensors="pt")

greedy = model.generate(**inputs, max_new_tokens=6)
beams = model.generate(**inputs, max_new_tokens=6, num_beams=5, early_stopping=True, num_return_sequences=3)
torch.manual_seed(0)
sampled = model.generate(**inputs, max_new_tokens=6, do_sample=True, top_k=50, top_p=0.95, temperature=0.9)
generation_config = GenerationConfig(num_beams=2, max_new_tokens=6)
configured = model.generate(**inputs, generation_config=generation_config)
scored = model.generate(**inputs, max_new_tokens=6, return_dict_in_generate=True, output_scores=True)
""",
        TEXT=TEXT,
        torch=torch,
    )
    assert found["beams"].shape[0] == 3 and found["greedy"].shape == found["sampled"].shape == (1, 7)
    assert torch.equal(found["scored"].sequences, found["greedy"]) and len(found["scored"].scores) == 6
    assert found["configured"].shape[0] == 1
