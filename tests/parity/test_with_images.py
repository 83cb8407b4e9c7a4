"""A checkpoint of texts with images: its language model opens alone, and the plan names what is left out."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from parity.compare import assert_close
from parity.tiny import TINY, call, quiet, randomise, saved
from warmstart import AutoModel, AutoModelForCausalLM, EncoderDecoderModel, Gemma3TextConfig

pytestmark = pytest.mark.v5
VISION = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    text = {**TINY["gemma3_text"], "model_type": "gemma3_text"}
    config = transformers.Gemma3Config(
        text_config=text, vision_config=VISION, mm_tokens_per_image=4, eos_token_id=[1, 7]
    )
    return randomise(transformers.Gemma3ForConditionalGeneration._from_config(config, attn_implementation="eager"))


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    return saved(theirs, tmp_path_factory.mktemp("images"))


@torch.no_grad()
@pytest.mark.parametrize("layout", ["as written", "language_model.model.", "model.language_model."])
def test_the_language_model_opens_alone(theirs, folder, layout, tmp_path):
    """Under the names that this release writes, and under those of the others."""
    if layout != "as written":
        files = load_file(folder / "model.safetensors")
        inner = next(name.partition("embed_tokens")[0] for name in files if "embed_tokens" in name)
        save_file(
            {name.replace(inner, layout): tensor for name, tensor in files.items()}, tmp_path / "model.safetensors"
        )
        (tmp_path / "config.json").write_text((folder / "config.json").read_text())
        folder = tmp_path
    ours = AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(ours.config, Gemma3TextConfig) and ours.config.eos_token_id == [1, 7]
    assert not ours.load_report.new
    left_out = ours.load_report.left_out
    assert left_out and all("vision_tower" in name or "multi_modal_projector" in name for name in left_out)
    ids = torch.randint(8, 60, (2, 7), generator=torch.Generator().manual_seed(0))
    wanted = call(theirs, input_ids=ids, attention_mask=torch.ones_like(ids))
    assert_close(ours(ids).logits, wanted.logits, "logits")


@torch.no_grad()
def test_either_side_of_a_pair(folder, tmp_path):
    model = EncoderDecoderModel.from_encoder_decoder_pretrained(folder, folder)
    assert [name for name in model.load_report.new if "cross_attention" not in name] == []
    ids = torch.tensor([[8, 9, 10]])
    encoder = AutoModel.from_pretrained(folder, is_causal=False)
    assert_close(model.encode(ids).last_hidden_state, encoder(ids).last_hidden_state, "states")
    again = EncoderDecoderModel.from_pretrained(saved(model, tmp_path))
    assert torch.equal(again(ids, decoder_input_ids=ids).logits, model(ids, decoder_input_ids=ids).logits)


def test_without_a_language_model_it_is_refused(folder, tmp_path):
    fields = json.loads((folder / "config.json").read_text())
    del fields["text_config"]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with quiet(), pytest.raises(ValueError, match="text_config, which is missing"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


@torch.no_grad()
def test_a_trocr_opens_as_its_decoder(tmp_path):
    """It was released as half of a model that reads images, and in no other way."""
    torch.manual_seed(0)
    text = transformers.TrOCRConfig(**{**TINY["trocr"], "tie_word_embeddings": False}, is_decoder=True)
    text.add_cross_attention, text.cross_attention_hidden_size = True, 12
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(**{**VISION, "hidden_size": 12}), text
    )
    with quiet():
        theirs = randomise(transformers.VisionEncoderDecoderModel(config))
    folder = saved(theirs, tmp_path / "there")
    ours = AutoModelForCausalLM.from_pretrained(folder)
    assert not ours.load_report.new and all(name.startswith("enc") for name in ours.load_report.left_out)
    ids, source = torch.tensor([[8, 9, 10]]), torch.randn(1, 4, 12)
    wanted = call(theirs.decoder, input_ids=ids, encoder_hidden_states=source).logits
    assert_close(ours(ids, encoder_hidden_states=source).logits, wanted, "logits")
    fields = json.loads((folder / "config.json").read_text())
    fields["decoder"]["model_type"] = "gpt2"
    (folder / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="decoder of this vision-encoder-decoder is a gpt2; only a trocr is read"):
        AutoModelForCausalLM.from_pretrained(folder)
