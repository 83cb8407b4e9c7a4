"""The fourteen rules of "Correct by construction", each held by tests that bear its number.

They are the ways in which users of encoder-decoders lose weeks; here they cannot happen.
"""

import errno
import itertools
import json
import pickle
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from tiny_models import (
    END,
    FAMILIES,
    PAD,
    START,
    VOCABULARY,
    assert_equal_gradients,
    batch,
    config,
    gradients,
    pair,
    saved,
    spread_out,
)
from warmstart import AutoModel, AutoModelForCausalLM, BertTokenizer, EncoderDecoderModel, GPT2Tokenizer
from warmstart.families import MODULES
from warmstart.torch import loading

KINDS = ("bert", "roberta", "gpt2", "bart", "llama", "mistral")  # one of each kind of stack
CAUSAL = ("gpt2", "llama", "mistral", "qwen2", "qwen3")
WORDS = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", *"abcdefgh"]


def close(ours, theirs, bound=1e-5):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=bound)


def warm(tmp_path, encoder, decoder, **options):
    """A pair warm-started from two folders."""
    first = saved(tmp_path / "encoder", encoder, decoder=encoder in CAUSAL)
    second = saved(tmp_path / "decoder", decoder, decoder=decoder in (*CAUSAL, "bart"), seed=1)
    return EncoderDecoderModel.from_encoder_decoder_pretrained(first, second, **options)


# 1. After a warm start the model can compute a loss and generate -----------------------------------------------------


def test_rule_01_ids_come_from_the_decoders_tokenizer(tmp_path):
    encoder, decoder = saved(tmp_path / "encoder", "roberta"), saved(tmp_path / "decoder", "bert")
    BertTokenizer(vocab={word: place for place, word in enumerate(WORDS)}).save_pretrained(decoder)
    model = EncoderDecoderModel.from_encoder_decoder_pretrained(encoder, decoder)
    assert (model.config.decoder_start_token_id, model.config.eos_token_id) == (1, 2)
    assert model.config.pad_token_id == 0  # which the decoder's own config sets
    check_loss_and_generation(model)


def test_rule_01_ids_come_from_the_decoders_config(tmp_path):
    model = warm(tmp_path, "bert", "gpt2")
    assert (model.config.decoder_start_token_id, model.config.eos_token_id) == (START, END)
    assert model.config.pad_token_id == END  # GPT-2 has no padding of its own
    check_loss_and_generation(model)


def test_rule_01_ids_of_a_causal_tokenizer(tmp_path):
    unset = {"bos_token_id": None, "eos_token_id": None}
    encoder, decoder = saved(tmp_path / "encoder", "bert"), saved(tmp_path / "decoder", "gpt2", decoder=True, **unset)
    vocabulary = {"a": 0, "b": 1, "<|endoftext|>": 2}
    GPT2Tokenizer(vocab=vocabulary, merges=[]).save_pretrained(decoder)
    model = EncoderDecoderModel.from_encoder_decoder_pretrained(encoder, decoder)
    ids = model.config.decoder_start_token_id, model.config.eos_token_id, model.config.pad_token_id
    assert ids == (2, 2, 2)
    check_loss_and_generation(model)


def check_loss_and_generation(model):
    inputs = batch()
    assert torch.isfinite(model(**inputs).loss)
    assert model.generate(inputs["input_ids"], max_new_tokens=3, num_beams=2).shape[0] == 3


def test_rule_01_what_is_missing_is_named(tmp_path):
    """The first loss or generation says which id to set, and how; then it works."""
    model = warm(tmp_path, "bert", "bert")
    inputs = batch()
    with pytest.raises(ValueError, match=r"Set model\.config\.decoder_start_token_id.*tokenizer\.cls_token_id"):
        model(**inputs)
    with pytest.raises(ValueError, match=r"decoder_start_token_id is not set.*set\s+model\.config\.decoder_start"):
        model.generate(inputs["input_ids"])
    model.config.decoder_start_token_id = START
    with pytest.raises(ValueError, match="eos_token_id"):
        model.generate(inputs["input_ids"])
    model.config.eos_token_id = END
    check_loss_and_generation(model)
    model.config.pad_token_id = None
    with pytest.raises(ValueError, match=r"Set model\.config\.pad_token_id"):
        model(**inputs)


# 2. Settings made on model.config survive save and reload ------------------------------------------------------------

SETTINGS = {
    "decoder_start_token_id": 7,
    "eos_token_id": 8,
    "pad_token_id": 9,
    "max_length": 12,
    "min_length": 4,
    "num_beams": 3,
    "no_repeat_ngram_size": 2,
    "early_stopping": True,
    "length_penalty": 2.0,
    "repetition_penalty": 1.3,
    "temperature": 0.7,
    "my_own_field": {"a": [1, 2]},
}


def test_rule_02_settings_on_the_config_survive(tmp_path):
    model = pair()
    for name, value in SETTINGS.items():
        setattr(model.config, name, value)
    inputs = batch()
    tokens, loss = model.generate(inputs["input_ids"]), model(**inputs).loss
    for number in range(2):  # and again from what was reloaded
        model.save_pretrained(tmp_path / str(number))
        model = EncoderDecoderModel.from_pretrained(tmp_path / str(number))
    for name, value in SETTINGS.items():
        assert getattr(model.config, name) == value, name
        if name != "my_own_field":
            assert getattr(model.generation_config, name) == value, name
    assert torch.equal(model.generate(inputs["input_ids"]), tokens) and torch.equal(model(**inputs).loss, loss)


def test_rule_02_settings_of_the_decoder_that_were_taken_back_stay_so(tmp_path):
    """A default that was chosen is written as any choice: the decoder's own setting does not come back."""
    model = pair("bert", config("bart", num_beams=4, no_repeat_ngram_size=3))
    assert (model.config.num_beams, model.config.no_repeat_ngram_size, model.config.forced_eos_token_id) == (4, 3, END)
    model.config.num_beams, model.config.forced_eos_token_id = 1, None
    for number in range(2):
        model.save_pretrained(tmp_path / str(number))
        model = EncoderDecoderModel.from_pretrained(tmp_path / str(number))
        assert (model.config.num_beams, model.config.no_repeat_ngram_size) == (1, 3)
        assert model.config.forced_eos_token_id is None


def test_rule_02_config_and_generation_config_are_one_store(tmp_path):
    model = pair()
    model.generation_config.num_beams, model.config.max_length = 5, 33
    assert (model.config.num_beams, model.generation_config.max_length) == (5, 33)
    model.generation_config.decoder_start_token_id = 9
    assert model.prepare_decoder_input_ids_from_labels(torch.tensor([[5, 6]])).tolist() == [[9, 5]]


# 3. Labels are shifted exactly once ----------------------------------------------------------------------------------


def test_rule_03_labels_are_shifted_once():
    model = pair()
    labels = torch.tensor([[5, 6, END, -100], [7, 8, 9, END]])
    shifted = model.prepare_decoder_input_ids_from_labels(labels)
    assert shifted.tolist() == [[START, 5, 6, END], [START, 7, 8, 9]]
    ids = batch(2)["input_ids"]
    from_labels = model(input_ids=ids, labels=labels)
    given = model(input_ids=ids, decoder_input_ids=shifted, labels=labels)
    close(given.loss, from_labels.loss)
    expected = torch.nn.functional.cross_entropy(from_labels.logits.flatten(0, 1), labels.flatten())
    close(from_labels.loss, expected)


@pytest.mark.parametrize(
    ("inputs", "labels"),
    [
        ([[5, 6, 7, END]], [[5, 6, 7, END]]),
        ([[5, 6, END, PAD]], [[5, 6, END, -100]]),
        ([[START, 5, 6, END]], [[START, 5, 6, END]]),  # as some tokenizers frame them
        ([[5, 6, 7, END]], [[-100, -100, 7, END]]),  # a prompt without loss
        ([[9]], [[9]]),
    ],
)
def test_rule_03_unshifted_inputs_are_refused(inputs, labels):
    model = pair()
    with pytest.raises(ValueError, match=r"decoder_input_ids are equal to labels.*Leave decoder_input_ids out"):
        model(input_ids=torch.tensor([[5, 6]]), decoder_input_ids=torch.tensor(inputs), labels=torch.tensor(labels))


@pytest.mark.parametrize(
    ("inputs", "labels"),
    [
        ([[START, 5, 6, 7]], [[5, 6, 7, END]]),
        ([[START, 5, 5]], [[-100, -100, 5]]),  # a repeated token, rightly shifted
        ([[START, START]], [[START, START]]),
        ([[9, 5, 6]], [[5, 6, END]]),  # a start of the caller's own: a language, say
        ([[5, 6, 7]], [[-100, -100, -100]]),
    ],
)
def test_rule_03_shifted_inputs_are_taken(inputs, labels):
    inputs, labels = torch.tensor(inputs), torch.tensor(labels)
    output = pair()(input_ids=torch.tensor([[5, 6]]), decoder_input_ids=inputs, labels=labels)
    assert output.logits.shape == (*labels.shape, VOCABULARY)


# 4. The decoder's mask in training comes from the lengths of the labels ----------------------------------------------


@pytest.mark.parametrize("decoder", KINDS)
@pytest.mark.parametrize("same", ["", "start", "end", "start and end"])
def test_rule_04_same_logits_in_training_in_one_pass_and_cached(decoder, same):
    """Padding may be the start or the end: what is padding is told by the labels, never by the id."""
    model = pair("bert", config(decoder, pad_token_id=PAD + 3))
    pad = model.config.decoder.pad_token_id
    model.config.pad_token_id = pad
    model.config.decoder_start_token_id = pad if "start" in same else START
    end = model.config.eos_token_id = pad if "end" in same else END
    source = batch(3)["input_ids"]
    rows = [[5, 6, end, -100, -100, -100], [7, 8, 9, 10, 11, end], [pad, 12, end, -100, -100, -100]]
    labels = torch.tensor(rows)
    trained = model(input_ids=source, labels=labels).logits
    inputs = model.prepare_decoder_input_ids_from_labels(labels)
    for row, length in enumerate((labels != -100).sum(1).tolist()):
        alone = inputs[row : row + 1, :length]
        whole = model(input_ids=source[row : row + 1], decoder_input_ids=alone).logits
        close(trained[row, :length], whole[0])
        cache, steps = None, []
        for place in range(length):
            output = model(
                input_ids=source[row : row + 1],
                decoder_input_ids=alone[:, place : place + 1],
                past_key_values=cache,
                use_cache=True,
            )
            cache = output.past_key_values
            steps.append(output.logits[0, 0])
        close(torch.stack(steps), whole[0])


# 5. Without attention_mask it comes from the encoder's padding id, in forward and in generate ------------------------


@pytest.mark.parametrize("encoder", KINDS)
@pytest.mark.parametrize("decoder_pad", [PAD, 9])
def test_rule_05_mask_from_the_encoders_padding(encoder, decoder_pad):
    """The decoder's padding id is an ordinary token of the source."""
    model = pair(config(encoder, pad_token_id=3), "gpt2")
    model.config.pad_token_id = decoder_pad
    inputs = batch(encoder_pad=3)
    inputs["input_ids"][:, 1] = decoder_pad
    mask = inputs.pop("attention_mask")
    assert torch.equal(model.encoder_attention_mask(inputs["input_ids"]), mask)
    derived, given = model(**inputs), model(**inputs, attention_mask=mask)
    close(derived.logits, given.logits)
    short = model(**{name: value[2:3, : -2 if name == "input_ids" else None] for name, value in inputs.items()})
    close(derived.logits[2, :-2], short.logits[0, :-2])
    ids, options = inputs["input_ids"], {"max_new_tokens": 5, "num_beams": 2}
    tokens = model.generate(ids, **options)
    assert torch.equal(tokens, model.generate(ids, attention_mask=mask, **options))
    assert (derived.logits - model(**inputs, attention_mask=torch.ones_like(mask)).logits).abs().max() > 1e-3


def test_rule_05_no_padding_id_masks_nothing():
    model = pair("gpt2", "gpt2")
    inputs = batch(encoder_pad=PAD)
    del inputs["attention_mask"]
    ones = torch.ones_like(inputs["input_ids"])
    assert model.encoder_attention_mask(inputs["input_ids"]) is None
    close(model(**inputs).logits, model(**inputs, attention_mask=ones).logits)


def test_rule_05_padding_that_is_the_end_cannot_be_told_apart():
    """Then a mask must be given; rows that seem padded give a warning, in forward and in generate."""
    model = pair(config("gpt2", pad_token_id=END), "gpt2")
    inputs = batch(encoder_pad=END)
    mask = inputs.pop("attention_mask")
    with pytest.warns(UserWarning, match="pass attention_mask"):
        model(**inputs)
    with pytest.warns(UserWarning, match="pass attention_mask"):
        model.generate(inputs["input_ids"], max_new_tokens=2)
    model(**inputs, attention_mask=mask)
    model(input_ids=torch.tensor([[5, 6, END]]), labels=inputs["labels"][:1])  # one end is no padding


# 6. Loss under accumulation is the token-weighted mean over the whole batch ------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", [int, torch.tensor])
def test_rule_06_one_batch_of_8_is_4_of_2_is_8_of_1(smoothing, kind):
    model = pair("bert", "gpt2").train()
    whole = batch(rows=8, source=12, target=11)
    count = kind(int((whole["labels"] != -100).sum()))
    found = {}
    for size in (8, 2, 1):
        model.zero_grad()
        losses = []
        for start in range(0, 8, size):
            part = {name: value[start : start + size] for name, value in whole.items()}
            loss = model(**part, num_items_in_batch=count, label_smoothing=smoothing).loss
            loss.backward()
            losses.append(loss.item())
        found[size] = sum(losses), gradients(model)
    model.zero_grad()
    plain = model(**whole, label_smoothing=smoothing).loss
    plain.backward()
    for total, gradient in found.values():
        assert abs(total - plain.item()) < 1e-5
        assert_equal_gradients(gradient, gradients(model))


# 7. A causal language model used as the encoder attends both ways ----------------------------------------------------


def first_state(model, last):
    ids = torch.tensor([[5, 6, 7, last]])
    return model.encode(ids).last_hidden_state[0, 0]


@pytest.mark.parametrize("family", CAUSAL)
def test_rule_07_causal_model_as_encoder_attends_both_ways(family, tmp_path):
    model = warm(tmp_path, family, "bert")
    assert (first_state(model, 8) - first_state(model, 9)).abs().max() > 1e-3
    causal = warm(tmp_path, family, "bert", encoder_is_causal=True)
    assert torch.equal(first_state(causal, 8), first_state(causal, 9))
    for one in (model, causal):
        one.save_pretrained(tmp_path / "saved")
        close(first_state(EncoderDecoderModel.from_pretrained(tmp_path / "saved"), 8), first_state(one, 8))
    alone = AutoModel.from_pretrained(tmp_path / "encoder")(torch.tensor([[5, 6, 7, 8]])).last_hidden_state[0, 0]
    close(first_state(causal, 8), alone)


# 8. Every supported decoder takes cross-attention; others are refused by name ----------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_rule_08_every_decoder_reads_the_source(family, tmp_path):
    model = warm(tmp_path, "bert", family)
    new = {name.split(".")[3] for name in model.load_report.new if name.startswith("decoder.layers")}
    assert "cross_attention" in new and new <= {f"cross_attention{rest}" for rest in ("", "_norm", "_output_norm")}
    spread_out(model)
    inputs = torch.tensor([[START, 5, 6]])
    logits = [model(input_ids=torch.tensor([[5, 6, last]]), decoder_input_ids=inputs).logits for last in (7, 8)]
    assert (logits[0] - logits[1]).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_rule_08_other_families_are_refused_by_name(side, tmp_path):
    folders = {"encoder": saved(tmp_path / "encoder", "bert"), "decoder": saved(tmp_path / "decoder", "bert")}
    Path(folders[side], "config.json").write_text(json.dumps({"model_type": "xlnet"}))
    with pytest.raises(ValueError, match="'xlnet' is not supported") as caught:
        EncoderDecoderModel.from_encoder_decoder_pretrained(folders["encoder"], folders["decoder"])
    assert all(family in str(caught.value) for family in MODULES)


# 9. Hidden sizes may differ: the projection is made, initialised one way, and saved ----------------------------------


def test_rule_09_projection_is_made_and_saved(tmp_path):
    model = warm(tmp_path, config("bert", hidden_size=64).model_type, "gpt2")
    assert model.enc_to_dec_proj.weight.shape == (12, 16)
    assert {name for name in model.load_report.new if "proj" in name} == {
        "enc_to_dec_proj.weight",
        "enc_to_dec_proj.bias",
    }
    inputs = batch()
    model(**inputs).loss.backward()
    assert model.enc_to_dec_proj.weight.grad.abs().max() > 0
    model.save_pretrained(tmp_path / "saved")
    tensors = load_file(tmp_path / "saved" / "model.safetensors")
    assert torch.equal(tensors["enc_to_dec_proj.weight"], model.enc_to_dec_proj.weight)
    assert torch.equal(EncoderDecoderModel.from_pretrained(tmp_path / "saved")(**inputs).logits, model(**inputs).logits)
    assert not hasattr(warm(tmp_path, "bert", "roberta"), "enc_to_dec_proj")


def test_rule_09_projection_starts_as_documented():
    """Normal with the decoder's initializer_range, its bias 0."""
    wide, range_ = {"hidden_size": 200, "num_attention_heads": 2}, 0.05
    sides = config("bert", **wide), config("gpt2", n_embd=300, initializer_range=range_)
    projection = pair(*sides, spread=0.0).enc_to_dec_proj
    assert abs(projection.weight.std().item() / range_ - 1) < 0.02 and abs(projection.weight.mean().item()) < 0.001
    assert torch.equal(projection.bias, torch.zeros(300))


# 10. Tying survives save and load, is written once, and is read from folders of transformers -------------------------


def same_parameters(one, other):
    return [name for name, value in one.named_parameters() if value is dict(other.named_parameters()).get(name)]


@pytest.mark.parametrize(("family", "shard"), [("bert", "5GB"), ("roberta", "4KB"), ("bert-generation", "5GB")])
def test_rule_10_tied_stacks_are_written_once(family, shard, tmp_path):
    folder = saved(tmp_path / "both", family)
    model = EncoderDecoderModel.from_encoder_decoder_pretrained(folder, folder, tie_encoder_decoder=True)
    untied = EncoderDecoderModel.from_encoder_decoder_pretrained(folder, folder)
    count = AutoModel.from_pretrained(folder).num_parameters()
    assert untied.num_parameters() - model.num_parameters() == count
    spread_out(model)
    model.config.decoder_start_token_id = START
    model.save_pretrained(tmp_path / "saved", max_shard_size=shard)
    files = [load_file(path) for path in (tmp_path / "saved").glob("*.safetensors")]
    assert sum(tensor.numel() for file in files for tensor in file.values()) == model.num_parameters()
    assert (len(files) == 1) == (shard == "5GB")
    loaded = EncoderDecoderModel.from_pretrained(tmp_path / "saved")
    for one in (model, loaded):
        assert one.config.tie_encoder_decoder
        assert len(same_parameters(one.encoder, one.decoder)) == len(list(one.encoder.parameters()))
        assert one.decoder.head.output.weight is one.encoder.embeddings.token.weight
    inputs = batch()
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    # One step moves both sides alike.
    loaded(**inputs).loss.backward()
    torch.optim.SGD(loaded.parameters(), 0.1).step()
    assert torch.equal(loaded.encoder.layers[0].mlp.up.weight, loaded.decoder.layers[0].mlp.up.weight)


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_rule_10_heads_tied_or_not_survive(family, tied, tmp_path):
    model = pair("bert", config(family, tie_word_embeddings=tied))
    model.save_pretrained(tmp_path)
    loaded = EncoderDecoderModel.from_pretrained(tmp_path)
    for one in (model, loaded):
        assert (one.decoder.head.output.weight is one.decoder.embeddings.token.weight) == tied
    tensors = load_file(tmp_path / "model.safetensors")
    matrices = [tensor for tensor in tensors.values() if VOCABULARY in tensor.shape and tensor.dim() == 2]
    assert len(matrices) == 2 + (not tied)
    assert torch.equal(loaded(**batch()).logits, model(**batch()).logits)


@pytest.mark.parametrize("whole", [True, False])
def test_rule_10_tied_folders_of_transformers_are_read(whole, tmp_path):
    """Version 4 writes one copy of each tied tensor, under the name of the side that it met first."""
    fields = {name: value for name, value in config("bert").to_dict().items() if name != "model_type"}
    sides = [transformers.BertConfig(**fields) for _ in range(2)]
    joint = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(*sides, tie_encoder_decoder=whole)
    torch.manual_seed(0)
    theirs = transformers.EncoderDecoderModel(joint).eval()
    theirs.config.decoder_start_token_id, theirs.config.pad_token_id = START, PAD
    theirs.save_pretrained(tmp_path)
    ours = EncoderDecoderModel.from_pretrained(tmp_path)
    inputs = batch()
    inputs["decoder_input_ids"] = inputs.pop("labels").clamp_min(START)
    close(ours(**inputs).logits, theirs(**inputs).logits)
    assert bool(same_parameters(ours.encoder, ours.decoder)) == whole


# 11. Cached = uncached = one full pass; padded = unpadded; batch = one at a time -------------------------------------


@pytest.mark.parametrize("decoder", KINDS)
@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "num_return_sequences": 2}], ids=["greedy", "beams"])
def test_rule_11_token_for_token(decoder, options):
    model = pair(KINDS[KINDS.index(decoder) - 2], decoder, spread=0.5)
    model.config.forced_eos_token_id = None  # BART's configuration asks for it
    inputs = batch(rows=4, source=9)
    source = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    options = {"max_new_tokens": 8, "min_new_tokens": 3, **options}
    tokens = model.generate(**source, **options)
    assert len({tuple(row) for row in tokens.tolist()}) > 1
    assert torch.equal(model.generate(**source, **options, use_cache=False), tokens)
    each = len(tokens) // 4
    for row in range(4):
        length = int(source["attention_mask"][row].sum())
        alone = model.generate(source["input_ids"][row : row + 1, :length], **options)
        together = tokens[row * each : (row + 1) * each]
        assert torch.equal(alone, together[:, : alone.shape[1]]) and (together[:, alone.shape[1] :] == PAD).all()
    # What was generated is what one full pass would choose.
    if not options.get("num_beams"):
        logits = model(**source, decoder_input_ids=tokens[:, :-1]).logits
        logits[:, :3, END] = -torch.inf
        going = torch.cat([torch.ones(4, 1), (tokens[:, 1:-1] != END).cumprod(1)], 1).bool()
        assert torch.equal(logits.argmax(-1)[going], tokens[:, 1:][going])


# 12. Resizing works on the model, for either side, and the configs follow --------------------------------------------


@pytest.mark.parametrize("side", ["encoder", "decoder", "both"])
@pytest.mark.parametrize("tied", [True, False])
def test_rule_12_either_side_is_resized(side, tied, tmp_path):
    model = pair("bert", config("llama", tie_word_embeddings=tied))
    inputs = batch()
    before = model(**inputs).logits
    model.resize_token_embeddings(VOCABULARY + 5, side=side)
    sizes = {name: VOCABULARY + 5 * (side in (name, "both")) for name in ("encoder", "decoder")}
    for one in (model, reloaded(model, tmp_path)):
        assert {name: getattr(one.config, name).vocab_size for name in sizes} == sizes
        assert one.encoder.embeddings.token.weight.shape[0] == sizes["encoder"]
        assert one.decoder.embeddings.token.weight.shape[0] == sizes["decoder"]
        logits = one(**inputs).logits
        assert logits.shape[-1] == sizes["decoder"]
        close(logits[..., :VOCABULARY], before)
        ids, labels = inputs["input_ids"].clone(), inputs["labels"].clone()
        ids[:, 0], labels[:, 0] = sizes["encoder"] - 1, sizes["decoder"] - 1
        one(input_ids=ids, labels=labels).loss.backward()
        with pytest.raises(ValueError, match=f"{sizes['decoder']}"):
            one(input_ids=ids, labels=labels + 1)


@pytest.mark.parametrize("side", ["encoder", "decoder", "both"])
def test_rule_12_a_vocabulary_may_shrink(side, tmp_path):
    model, size = pair("bert", "bert"), VOCABULARY - 6
    inputs = {name: value.clamp(max=size - 1) for name, value in batch().items()}
    before = model(**inputs).logits
    model.resize_token_embeddings(size, side=side)
    for one in (model, reloaded(model, tmp_path)):
        left = VOCABULARY if side == "encoder" else size
        close(one(**inputs).logits, before[..., :left])


def test_rule_12_tied_stacks_are_resized_together(tmp_path):
    model = pair("bert", "bert", tie_encoder_decoder=True)
    with pytest.raises(ValueError, match=r"share their weights.*use 'both'"):
        model.resize_token_embeddings(VOCABULARY + 3, side="decoder")
    model.resize_token_embeddings(VOCABULARY + 3)
    for one in (model, reloaded(model, tmp_path)):
        assert one.encoder.embeddings.token.weight is one.decoder.head.output.weight
        assert one.config.encoder.vocab_size == one.config.decoder.vocab_size == VOCABULARY + 3
        assert one(**batch()).logits.shape[-1] == VOCABULARY + 3


def reloaded(model, folder):
    model.save_pretrained(folder)
    return EncoderDecoderModel.from_pretrained(folder)


# 13. No parameter is left without a gradient -------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", FAMILIES)
def test_rule_13_every_parameter_has_a_gradient(encoder):
    for decoder in FAMILIES:
        model = pair(encoder, decoder).train()
        model(**batch()).loss.backward()
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == [], decoder


def test_rule_13_skipped_layers_have_a_gradient_too():
    """BART's LayerDrop: a layer that is skipped takes part in the graph, and moves by nothing."""
    model = pair(config("bart", encoder_layerdrop=1.0), config("bart", decoder_layerdrop=0.5)).train()
    torch.manual_seed(0)
    model(**batch()).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(parameter.grad.abs().max() == 0 for parameter in model.encoder.layers.parameters())
    ids = batch()["input_ids"]
    states = model.encoder(ids, output_hidden_states=True).hidden_states
    assert torch.equal(states[0], states[-1])
    assert not torch.equal(*(model.eval().encoder(ids, output_hidden_states=True).hidden_states[i] for i in (0, -1)))
    logits = {tuple(model.train()(**batch()).logits.flatten().tolist()) for _ in range(40)}
    assert len(logits) == 4  # either of two layers, skipped or not


@pytest.mark.parametrize("family", FAMILIES)
def test_rule_13_in_single_stacks_too(family):
    model = AutoModelForCausalLM(config(family, is_decoder=True))
    ids = batch()["input_ids"]
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


# 14. No pickle is executed; shapes are checked before memory is taken; a save is whole or not there ------------------


class Harm:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_rule_14_no_pickle_is_executed(write, tmp_path):
    folder = Path(saved(tmp_path / "bert", "bert"))
    (folder / "model.safetensors").unlink()
    trace = tmp_path / "harmed"
    write({"weight": Harm(trace)}, folder / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"pytorch_model\.bin.*code"):
        AutoModel.from_pretrained(folder)
    assert not trace.exists()


@pytest.mark.parametrize("field", ["vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings"])
def test_rule_14_shapes_are_checked_before_memory_is_taken(field, tmp_path):
    """A config that would need terabytes is refused by the shapes in the file."""
    folder = Path(saved(tmp_path / "bert", "bert"))
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, field: 10**9}))
    with pytest.raises(ValueError, match=r"in the file, \(.*1000000000.*\) by the config"):
        AutoModel.from_pretrained(folder)


def test_rule_14_a_save_is_whole_or_not_there(tmp_path, monkeypatch):
    """The disk is full after the first of three shards: the folder, an earlier save in it, is as it was."""
    folder = tmp_path / "model"
    pair(seed=1).save_pretrained(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write, calls = loading.write_tensors, itertools.count()

    def full_disk(*arguments):
        if next(calls):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*arguments)

    monkeypatch.setattr(loading, "write_tensors", full_disk)
    with pytest.raises(OSError, match=r"nothing was saved.*No space left"):
        pair(seed=2).save_pretrained(folder, max_shard_size="20KB")
    assert next(calls) == 2
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
