"""The TensorFlow examples of the old `TFEncoderDecoderModel` documentation run with only the import line changed."""

import numpy as np
import pytest
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer

from warmstart import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    EncoderDecoderModel,
    GPT2Config,
    GPT2LMHeadModel,
    TFEncoderDecoderModel,
)

TEXT = ["Hello, my dog is cute", "(CNN)Sigma Alpha Epsilon is under fire for a video", "a summary of the article"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """The current directory, with tiny checkpoints under the names that the pages use."""
    monkeypatch.chdir(tmp_path)
    words = BertWordPieceTokenizer()
    words.train_from_iterator(TEXT, vocab_size=120, show_progress=False)
    for name in ("google-bert/bert-base-cased", "google-bert/bert-base-uncased"):
        BertForMaskedLM(BertConfig(vocab_size=words.get_vocab_size(), **SIZES)).save_pretrained(name)
        words.save_model(name)
    pieces = ByteLevelBPETokenizer()
    pieces.train_from_iterator(TEXT, vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False)
    config = GPT2Config(
        vocab_size=pieces.get_vocab_size(), n_embd=24, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained("openai-community/gpt2")
    pieces.save_model("openai-community/gpt2")
    bert = "google-bert/bert-base-uncased"
    pair = EncoderDecoderModel.from_encoder_decoder_pretrained(bert, bert)
    pair.save_pretrained(
        "patrickvonplaten/bert2bert-cnn_dailymail-fp16", encoder_tokenizer=AutoTokenizer.from_pretrained(bert)
    )


def run(example):
    """The names that the page's code leaves behind."""
    names = {}
    exec(example.replace("from transformers import", "from warmstart import"), names)
    return names


def test_pytorch_parts_saved_apart():
    found = run("""
from transformers import EncoderDecoderModel, TFEncoderDecoderModel, AutoTokenizer

_model = EncoderDecoderModel.from_pretrained("patrickvonplaten/bert2bert-cnn_dailymail-fp16")
_model.encoder.save_pretrained("./encoder")
_model.decoder.save_pretrained("./decoder")
model = TFEncoderDecoderModel.from_encoder_decoder_pretrained(
    "./encoder", "./decoder", encoder_from_pt=True, decoder_from_pt=True
)
# This is only for copying some specific attributes of this particular model.
model.config = _model.config

tokenizer = AutoTokenizer.from_pretrained("patrickvonplaten/bert2bert-cnn_dailymail-fp16")
input_ids = tokenizer("a video", return_tensors="tf").input_ids
output = model.generate(input_ids, max_length=6)
""")
    ids = found["input_ids"].numpy()
    import torch

    wanted = found["_model"].generate(torch.tensor(ids), max_length=6)
    assert np.array_equal(found["output"].numpy(), wanted.numpy())
    direct = TFEncoderDecoderModel.from_pretrained("patrickvonplaten/bert2bert-cnn_dailymail-fp16")
    assert np.array_equal(direct.generate(ids, max_length=6).numpy(), wanted.numpy())


@pytest.mark.filterwarnings("ignore:decoder_input_ids are equal to labels")
def test_forward_loss_save_load_generate():
    found = run("""
from transformers import TFEncoderDecoderModel, BertTokenizer

model = TFEncoderDecoderModel.from_encoder_decoder_pretrained("google-bert/bert-base-cased", "openai-community/gpt2")
tokenizer = BertTokenizer.from_pretrained("google-bert/bert-base-cased")

# forward
input_ids = tokenizer.encode(
    "Hello, my dog is cute", add_special_tokens=True, return_tensors="tf"
)  # Batch size 1
outputs = model(input_ids=input_ids, decoder_input_ids=input_ids)

# training
outputs = model(input_ids=input_ids, decoder_input_ids=input_ids, labels=input_ids)
loss, logits = outputs.loss, outputs.logits

# save and load from pretrained
model.save_pretrained("bert2gpt2")
model = TFEncoderDecoderModel.from_pretrained("bert2gpt2")

# generation
generated = model.generate(input_ids, decoder_start_token_id=model.config.decoder.bos_token_id)
""")
    length = found["input_ids"].shape[1]
    assert found["loss"].shape == (length,) and found["logits"].shape[:2] == (1, length)
    assert found["generated"].numpy()[0, 0] == 0
    again = found["model"](input_ids=found["input_ids"], decoder_input_ids=found["input_ids"])
    assert np.array_equal(again.logits, found["logits"])


def test_warm_start_save_load():
    found = run("""
from transformers import TFEncoderDecoderModel

# initialize a bert2gpt2 from two pretrained models. Note that the cross-attention layers will be randomly initialized
model = TFEncoderDecoderModel.from_encoder_decoder_pretrained("google-bert/bert-base-uncased", "openai-community/gpt2")
# saving model after fine-tuning
model.save_pretrained("./bert2gpt2")
first = model
# load fine-tuned model
model = TFEncoderDecoderModel.from_pretrained("./bert2gpt2")
""")
    ids = np.array([[5, 6]])
    one, two = (model(ids, decoder_input_ids=ids).logits for model in (found["first"], found["model"]))
    assert np.array_equal(one, two)
    assert found["model"].config.decoder.add_cross_attention
