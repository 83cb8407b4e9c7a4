"""The fourteen ways in which users of such libraries lose weeks; here they cannot happen, and a test holds each."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import BertWordPieceTokenizer

from tiny_models import END, FAMILIES, FIRST, PAD, START, VOCABULARY, batch, config, gradients, pair, saved
from warmstart import AutoModelForCausalLM, EncoderDecoderConfig, EncoderDecoderModel

NEAR = {"rtol": 0, "atol": 1e-5}
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES)


def test_rule_01_a_warm_started_model_can_train_and_generate_at_once(tmp_path):
    words = BertWordPieceTokenizer()
    words.train_from_iterator(["a few words to count"], vocab_size=VOCABULARY, show_progress=False)
    folder = saved(tmp_path / "bert", "bert")
    words.save_model(folder)
    model = EncoderDecoderModel.from_encoder_decoder_pretrained(folder, folder)
    ids = model.config
    assert ids.decoder_start_token_id == words.token_to_id("[CLS]")
    assert ids.eos_token_id == words.token_to_id("[SEP]")
    assert ids.pad_token_id == words.token_to_id("[PAD]")
    source = batch()["input_ids"]
    assert model(input_ids=source, labels=source).loss.isfinite()
    assert model.generate(source, max_new_tokens=3)[0, 0] == ids.decoder_start_token_id


def test_rule_01_what_cannot_be_found_is_named_with_the_remedy(tmp_path):
    folder = saved(tmp_path / "bert", "bert")  # no tokenizer, and BERT's configuration has no start
    model = EncoderDecoderModel.from_encoder_decoder_pretrained(folder, folder)
    source = batch()["input_ids"]
    with pytest.raises(ValueError, match=r"decoder_start_token_id is not set.*model\.config\.decoder_start_token_id"):
        model(input_ids=source, labels=source)
    with pytest.raises(ValueError, match=r"_token_id is not set.*set model\.config"):
        model.generate(source)
    model.config.decoder_start_token_id, model.config.eos_token_id = START, END
    model(input_ids=source, labels=source)
    model.generate(source)


def test_rule_02_settings_made_on_the_config_survive_save_and_reload(tmp_path):
    model = pair("bert", "gpt2")
    model.config.decoder_start_token_id = 3
    model.config.num_beams = 2
    model.generation_config.max_length = 9
    model.config.my_own_note = "kept"
    model.save_pretrained(tmp_path)
    again = EncoderDecoderModel.from_pretrained(tmp_path)
    for view in (again.config, again.generation_config):
        assert (view.decoder_start_token_id, view.num_beams, view.max_length) == (3, 2, 9)
    assert again.config.my_own_note == "kept"
    ids = again.generate(batch()["input_ids"], attention_mask=batch()["attention_mask"])
    assert set(ids[:, 0].tolist()) == {3}
    assert again.prepare_decoder_input_ids_from_labels(batch()["labels"])[0, 0] == 3


def test_rule_03_labels_are_shifted_once_and_unshifted_inputs_are_refused():
    model, inputs = pair("bert", "gpt2"), batch()
    labels = inputs["labels"]
    shifted = model.prepare_decoder_input_ids_from_labels(labels)
    assert shifted[:, 0].tolist() == [START] * len(labels)
    assert torch.equal(shifted[:, 1:], labels[:, :-1].masked_fill(labels[:, :-1] == -100, PAD))
    alone = model(**inputs)
    given = model(**inputs, decoder_input_ids=shifted)
    torch.testing.assert_close(given.loss, alone.loss, **NEAR)
    with pytest.raises(ValueError, match="decoder_input_ids are equal to labels"):
        model(**inputs, decoder_input_ids=labels.masked_fill(labels == -100, PAD))


def test_rule_03_inputs_that_shifting_does_not_change_are_no_mistake():
    model = pair("bert", "gpt2")
    labels = torch.full((2, 3), START)
    model(input_ids=batch()["input_ids"][:2], labels=labels, decoder_input_ids=labels.clone())


@EVERY_FAMILY
@pytest.mark.parametrize("special", ["pad is start", "pad is end", "all differ"])
def test_rule_04_training_full_pass_and_cache_give_the_same_logits(family, special):
    pad = {"pad is start": START, "pad is end": END, "all differ": PAD}[special]
    decoder = config(family, pad_token_id=pad)
    model, inputs = pair("bert", decoder), batch()
    model.config.pad_token_id = pad
    labels = inputs.pop("labels")
    labels[0, -1] = END
    training = model(**inputs, labels=labels).logits
    ids = model.prepare_decoder_input_ids_from_labels(labels)
    for row, count in enumerate((labels != -100).sum(1).tolist()):
        source = {name: tensor[row : row + 1] for name, tensor in inputs.items()}
        alone = ids[row : row + 1, :count]
        torch.testing.assert_close(model(**source, decoder_input_ids=alone).logits[0], training[row, :count], **NEAR)
        cache, steps = None, []
        for at in range(count):
            out = model(**source, decoder_input_ids=alone[:, at : at + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            steps.append(out.logits[0, -1])
        torch.testing.assert_close(torch.stack(steps), training[row, :count], **NEAR)


def test_rule_05_the_source_mask_comes_from_the_encoders_own_padding_id():
    encoder_pad = VOCABULARY - 1
    model = pair(config("bert", pad_token_id=encoder_pad), "gpt2")  # the decoder pads with another id
    inputs = batch(encoder_pad=encoder_pad)
    source, mask = inputs["input_ids"], inputs["attention_mask"]
    labels = inputs["labels"]
    torch.testing.assert_close(
        model(input_ids=source, labels=labels).loss, model(input_ids=source, attention_mask=mask, labels=labels).loss
    )
    assert torch.equal(
        model.generate(source, max_new_tokens=5), model.generate(source, attention_mask=mask, max_new_tokens=5)
    )
    all_seen = model(input_ids=source, attention_mask=torch.ones_like(mask), labels=labels).loss
    assert (model(input_ids=source, labels=labels).loss - all_seen).abs() > 1e-4  # the mask matters
    decoder_pads = torch.full_like(source, PAD)
    assert model.encoder_attention_mask(decoder_pads).all()  # the decoder's padding id is a word to the encoder


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_rule_06_accumulated_loss_is_the_mean_over_the_tokens_of_the_whole_batch(parts):
    model = pair("bert", "gpt2").train()
    inputs = batch(rows=8, target=10)
    model(**inputs).loss.backward()
    whole, wanted = model(**inputs).loss.detach(), gradients(model)
    model.zero_grad()
    count, total = (inputs["labels"] != -100).sum(), 0.0
    for rows in torch.arange(8).chunk(parts):
        loss = model(**{name: tensor[rows] for name, tensor in inputs.items()}, num_items_in_batch=count).loss
        loss.backward()
        total += loss.detach()
    torch.testing.assert_close(total, whole, rtol=0, atol=1e-6)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, wanted[name], **NEAR, msg=name)


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "qwen2", "qwen3"])
def test_rule_07_a_causal_language_model_as_the_encoder_attends_both_ways(family, tmp_path):
    encoder, decoder = saved(tmp_path / "a", family, decoder=True), saved(tmp_path / "b", "gpt2", decoder=True)
    source = batch()["input_ids"][:1]
    changed = torch.cat([source[:, :-1], (source[:, -1:] - FIRST + 1) % (VOCABULARY - FIRST) + FIRST], 1)

    def first_state_moves(model):
        before, after = (model.encode(ids).last_hidden_state[0, 0] for ids in (source, changed))
        return not torch.equal(before, after)

    def warm_start(**options):
        return EncoderDecoderModel.from_encoder_decoder_pretrained(encoder, decoder, **options)

    # a sliding window keeps the last token out of the first one's sight
    options = {"encoder_sliding_window": 40} if family == "mistral" else {}
    model = warm_start(**options)
    assert first_state_moves(model)
    assert not first_state_moves(warm_start(encoder_is_causal=True, **options))
    model.save_pretrained(tmp_path / "c")
    assert first_state_moves(EncoderDecoderModel.from_pretrained(tmp_path / "c"))


@EVERY_FAMILY
def test_rule_08_every_decoder_takes_cross_attention(family):
    model, inputs = pair("bert", family), batch()
    other = {**inputs, "input_ids": inputs["input_ids"].roll(1, 0)}
    assert (model(**inputs).logits - model(**other).logits).abs().max() > 1e-3


def test_rule_08_an_unsupported_family_is_refused_with_the_list(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "reformer"}))
    with pytest.raises(ValueError, match=r"'reformer' is not supported; the families are.*bert.*gpt2.*llama"):
        EncoderDecoderModel.from_encoder_decoder_pretrained(tmp_path, tmp_path)


def test_rule_09_hidden_sizes_may_differ(tmp_path):
    model, inputs = pair("bert", "gpt2"), batch()
    assert model.enc_to_dec_proj.weight.shape == (12, 16)
    model.save_pretrained(tmp_path)
    assert "enc_to_dec_proj.weight" in load_file(tmp_path / "model.safetensors")
    assert torch.equal(EncoderDecoderModel.from_pretrained(tmp_path)(**inputs).logits, model(**inputs).logits)
    fresh = EncoderDecoderModel(config=model.config)
    assert fresh.enc_to_dec_proj.bias.eq(0).all()
    assert fresh.enc_to_dec_proj.weight.std().item() == pytest.approx(model.config.decoder.initializer_range, rel=0.4)


@pytest.mark.parametrize("shard", ["5GB", "4KB"])
def test_rule_10_tying_survives_and_is_written_once(shard, tmp_path):
    model, inputs = pair("bert", "bert", tie_encoder_decoder=True), batch()
    assert model.encoder.layers[0].mlp.up.weight is model.decoder.layers[0].mlp.up.weight
    model.save_pretrained(tmp_path, max_shard_size=shard)
    files = [load_file(path) for path in tmp_path.glob("*.safetensors")]
    numbers = sum(tensor.numel() for file in files for tensor in file.values())
    assert numbers == model.num_parameters()
    again = EncoderDecoderModel.from_pretrained(tmp_path)
    assert again.encoder.layers[0].mlp.up.weight is again.decoder.layers[0].mlp.up.weight
    assert again.decoder.head.output.weight is again.encoder.embeddings.token.weight
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)


@EVERY_FAMILY
@pytest.mark.parametrize("beams", [1, 3])
def test_rule_11_cached_is_uncached_and_a_batch_is_one_at_a_time(family, beams):
    model, inputs = pair("bert", family), batch()
    del inputs["labels"]
    options = {"max_new_tokens": 8, "num_beams": beams}
    together = model.generate(**inputs, **options)
    assert torch.equal(together, model.generate(**inputs, **options, use_cache=False))
    for row, length in enumerate(inputs["attention_mask"].sum(1).tolist()):
        alone = model.generate(inputs["input_ids"][row : row + 1, :length], **options)  # without its padding
        ended = alone.shape[1]
        assert torch.equal(together[row, :ended], alone[0])
        assert together[row, ended:].eq(PAD).all()


@pytest.mark.parametrize("side", ["encoder", "decoder", "both"])
@pytest.mark.parametrize("size", [VOCABULARY + 6, VOCABULARY - 6])
def test_rule_12_either_vocabulary_can_be_resized_and_the_configs_follow(side, size, tmp_path):
    model, inputs = pair("bert", "bert"), batch()
    inputs = {name: tensor.clamp(max=VOCABULARY - 7) for name, tensor in inputs.items()}
    before = model(**inputs).logits
    model.resize_token_embeddings(size, side=side)
    sizes = {name: size if side in (name, "both") else VOCABULARY for name in ("encoder", "decoder")}
    assert (model.config.encoder.vocab_size, model.config.decoder.vocab_size) == tuple(sizes.values())
    after = model(**inputs).logits
    kept = min(VOCABULARY, sizes["decoder"])
    assert after.shape[-1] == sizes["decoder"]
    torch.testing.assert_close(after[..., :kept], before[..., :kept], **NEAR)
    model.save_pretrained(tmp_path)
    assert torch.equal(EncoderDecoderModel.from_pretrained(tmp_path)(**inputs).logits, after)


def test_rule_12_tied_sides_are_resized_together():
    model = pair("bert", "bert", tie_encoder_decoder=True)
    model.resize_token_embeddings(VOCABULARY + 3)
    assert model.encoder.embeddings.token.weight is model.decoder.head.output.weight
    with pytest.raises(ValueError, match="share their weights"):
        model.resize_token_embeddings(VOCABULARY, side="decoder")


@pytest.mark.parametrize("encoder", FAMILIES)
@pytest.mark.parametrize("decoder", FAMILIES)
def test_rule_13_no_parameter_is_left_without_a_gradient(encoder, decoder):
    model = pair(encoder, decoder).train()
    model(**batch()).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


class Payload:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_rule_14_no_pickle_is_executed(tmp_path):
    folder = tmp_path / "model"
    pair("bert", "gpt2").save_pretrained(folder, safe_serialization=False)
    EncoderDecoderModel.from_pretrained(folder)  # tensors alone are read
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Payload(tmp_path / "harm")}))
    with pytest.raises(OSError, match=r"pytorch_model\.bin.*never run"):
        EncoderDecoderModel.from_pretrained(folder)
    assert not (tmp_path / "harm").exists()


def test_rule_14_shapes_are_checked_before_memory_is_taken(tmp_path):
    pair("bert", "gpt2").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    values["encoder"]["intermediate_size"] = 10**9  # 64 GB a matrix
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"mlp\.up\.weight.*in the file.*by the config"):
        EncoderDecoderModel.from_pretrained(tmp_path)


def test_rule_14_a_save_is_whole_or_not_there(tmp_path, monkeypatch):
    model = pair("bert", "gpt2")
    model.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        pair("bert", "gpt2", seed=1).save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_every_decoder_alone_is_a_causal_language_model():
    for family in FAMILIES:
        model = AutoModelForCausalLM(config(family, is_decoder=True)).eval()
        ids = batch()["input_ids"]
        torch.testing.assert_close(model(ids).logits[:, :3], model(ids[:, :3]).logits, **NEAR)
        prompt = {"eos_token_id": END, "pad_token_id": PAD, "max_new_tokens": 3, "min_new_tokens": 3}
        assert model.generate(ids, **prompt).shape == (3, ids.shape[1] + 3)


def test_a_pair_is_made_of_its_own_configuration_class():
    with pytest.raises(ValueError, match="needs an EncoderDecoderConfig"):
        EncoderDecoderModel(config=config("bert"))
    assert EncoderDecoderConfig.model_type == "encoder-decoder"
