"""The code of docs/flax.md, and the Flax examples of the `EncoderDecoderModel` documentation, import line changed."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

import tiny_models
from test_guides import ROOT, checkpoints
from warmstart import AutoTokenizer, EncoderDecoderModel, FlaxEncoderDecoderModel

__all__ = ["checkpoints"]

REFERENCE = "from transformers import"


def test_the_code_of_the_page_runs(checkpoints, capsys):
    text = (ROOT / "docs/flax.md").read_text(encoding="utf-8")
    names = {}
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", text, flags=re.S | re.M), 1):
        exec(compile(block, f"docs/flax.md, block {number}", "exec"), names)
    assert names["losses"][-1] < names["losses"][0]


@pytest.fixture
def hub(checkpoints):
    """The names that the documentation's examples use."""
    import torch

    torch.manual_seed(0)
    pair = EncoderDecoderModel.from_encoder_decoder_pretrained("bert-base-uncased", "gpt2").half()
    for name in ("bert-base-uncased", "gpt2"):
        tokenizer = AutoTokenizer.from_pretrained(name)
        target = {"bert-base-uncased": "google-bert/bert-base-cased", "gpt2": "openai-community/gpt2"}[name]
        side = {"bert-base-uncased": "AutoModelForMaskedLM", "gpt2": "AutoModelForCausalLM"}[name]
        import warmstart

        getattr(warmstart, side).from_pretrained(name).save_pretrained(target)
        tokenizer.save_pretrained(target)
    tiny_models.spread_out(pair.float(), 0.2).half().save_pretrained("patrickvonplaten/bert2gpt2-cnn_dailymail-fp16")


def run(example):
    """The names that the page's code leaves behind."""
    assert REFERENCE in example
    names = {}
    exec(example.replace(REFERENCE, "from warmstart import"), names)
    return names


def test_summary_in_half_precision(hub):
    found = run("""
from transformers import FlaxEncoderDecoderModel, BertTokenizer, GPT2Tokenizer

# load a fine-tuned bert2gpt2 model
model = FlaxEncoderDecoderModel.from_pretrained("patrickvonplaten/bert2gpt2-cnn_dailymail-fp16")
# load input & output tokenizer
tokenizer_input = BertTokenizer.from_pretrained("google-bert/bert-base-cased")
tokenizer_output = GPT2Tokenizer.from_pretrained("openai-community/gpt2")

article = '''Sigma Alpha Epsilon is under fire for a video showing party-bound fraternity members
singing a racist chant. SAE's national chapter suspended the students,
but University of Oklahoma President David Boren took it a step further,
saying the university's affiliation with the fraternity is permanently done.'''

input_ids = tokenizer_input(article, add_special_tokens=True, return_tensors="np").input_ids

# use GPT2's eos_token as the pad as well as eos token
model.config.eos_token_id = model.config.decoder.eos_token_id
model.config.pad_token_id = model.config.eos_token_id

sequences = model.generate(input_ids, num_beams=4, max_length=12).sequences

summary = tokenizer_output.batch_decode(sequences, skip_special_tokens=True)[0]
""")
    assert found["sequences"].shape == (1, 12) and isinstance(found["summary"], str)
    assert found["model"].params["decoder"]["layers"]["0"]["mlp"]["up"]["kernel"].dtype == jnp.float16


def test_warm_start_save_and_load(hub):
    found = run("""
from transformers import FlaxEncoderDecoderModel

# initialize a bert2gpt2 from pretrained BERT and GPT2 models
model = FlaxEncoderDecoderModel.from_encoder_decoder_pretrained("google-bert/bert-base-cased", "openai-community/gpt2")
first = model
# saving model after fine-tuning
model.save_pretrained("./bert2gpt2")
# load fine-tuned model
model = FlaxEncoderDecoderModel.from_pretrained("./bert2gpt2")
""")
    assert np.array_equal(
        found["first"].params["decoder"]["layers"]["1"]["cross_attention"]["key"]["kernel"],
        found["model"].params["decoder"]["layers"]["1"]["cross_attention"]["key"]["kernel"],
    )
    assert isinstance(found["model"], FlaxEncoderDecoderModel)


def test_encode_and_decode(hub):
    found = run("""
from transformers import FlaxEncoderDecoderModel, BertTokenizer
import jax.numpy as jnp

model = FlaxEncoderDecoderModel.from_encoder_decoder_pretrained("google-bert/bert-base-cased", "openai-community/gpt2")

tokenizer = BertTokenizer.from_pretrained("google-bert/bert-base-cased")

text = "My friends are cool but they eat too many carbs."
input_ids = tokenizer.encode(text, max_length=1024, return_tensors="np")
encoder_outputs = model.encode(input_ids)

decoder_start_token_id = model.config.decoder.bos_token_id
decoder_input_ids = jnp.ones((input_ids.shape[0], 1), dtype="i4") * decoder_start_token_id

outputs = model.decode(decoder_input_ids, encoder_outputs)
logits = outputs.logits
""")
    assert found["logits"].shape == (1, 1, found["model"].config.decoder.vocab_size)
