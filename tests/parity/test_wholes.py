"""Whole encoder-decoders of one family open as pairs: the same outputs, gradients and generated tokens, either half."""

import json

import pytest
import torch
import transformers

import tiny_models
import warmstart
from parity.compare import assert_close, assert_same_outputs
from parity.tiny import (
    EVERYTHING,
    GEMMA2,
    NEWEST,
    START,
    call,
    configuration,
    quiet,
    randomise,
    saved,
    skip_in_5,
    source_batch,
    target_batch,
)
from warmstart import AutoModelForSeq2SeqLM, BertTokenizer, EncoderDecoderModel, T5ForConditionalGeneration
from warmstart.cli.engine import check_settings, load_tokenizers
from warmstart.cli.facts import facts_of

pytestmark = pytest.mark.v5

SETTINGS = {"decoder_start_token_id": START, "forced_bos_token_id": 9, "forced_eos_token_id": 2, "eos_token_id": 2}
# (family, what is odd about it)
CASES = {
    **{
        family: (family, {})
        for family in (
            "bart",
            "mbart",
            "plbart",
            "mvp",
            "blenderbot",
            "blenderbot-small",
            "pegasus",
            "bigbird_pegasus",
            "marian",
            "t5",
            "t5gemma",
        )
    },
    # with logits up to 13, as it starts, what both libraries round away is above the bound on some processors
    "mt5": ("mt5", {"initializer_factor": 0.5}),
    "t5-gated": ("t5", {"feed_forward_proj": "gated-silu", "tie_word_embeddings": False}),
    "t5gemma-untied": ("t5gemma", {"tie_word_embeddings": False, "decoder": {**GEMMA2, "tie_word_embeddings": False}}),
    "marian-apart": ("marian", {"share_encoder_decoder_embeddings": False}),  # and a smaller vocabulary of targets
}


def whole(family, **options):
    """The reference's model of both halves, with settings of its own and a bias on the logits that is not zero."""
    torch.manual_seed(0)
    config = configuration(family, **SETTINGS, **options)
    model = randomise(transformers.AutoModelForSeq2SeqLM.from_config(config, attn_implementation="eager"))
    if not getattr(config, "share_encoder_decoder_embeddings", True):
        with quiet():
            model.resize_decoder_token_embeddings(50)
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias.copy_(torch.randn(model.final_logits_bias.shape))
    return model


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def models(request, tmp_path_factory):
    family, options = request.param
    skip_in_5(next(name for name, case in CASES.items() if case is request.param))
    theirs = whole(family, **options)
    folder = saved(theirs, tmp_path_factory.mktemp("whole"))
    return theirs, folder, EncoderDecoderModel.from_pretrained(folder)


def loss_of(logits, labels):
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


def test_outputs_and_gradients(models):
    theirs, _, ours = models
    ids, mask = source_batch(theirs.config.pad_token_id)
    ids, labels = ids % ours.config.decoder.vocab_size, target_batch() % 50
    labels = labels.masked_fill(target_batch() < 0, -100)
    batch = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": labels.clamp_min(6)}
    found, wanted = call(ours, **batch, **EVERYTHING), call(theirs, **batch, **EVERYTHING)
    names = (
        "logits",
        "encoder_last_hidden_state",
        "encoder_hidden_states",
        "decoder_hidden_states",
        "cross_attentions",
    )
    assert_same_outputs(found, wanted, names)
    loss_of(found.logits, labels).backward()
    loss_of(wanted.logits, labels).backward()
    table = ours.encoder.embeddings.token.weight
    assert_close(table.grad, theirs.get_encoder().get_input_embeddings().weight.grad, "gradient of the embeddings")
    squares = [sum(x.grad.square().sum() for x in model.parameters() if x.grad is not None) for model in (ours, theirs)]
    assert_close(*squares, "all gradients", 1e-4 * squares[1].item())
    assert (table is ours.decoder.embeddings.token.weight) == getattr(ours.config, "share_embeddings", False)


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 3])
def test_generation(models, beams):
    theirs, _, ours = models
    if beams > 1 and ours.config.encoder.vocab_size != ours.config.decoder.vocab_size:
        pytest.skip("the reference's beam search takes the size of the source's vocabulary")
    ids, mask = source_batch(theirs.config.pad_token_id)
    inputs = {"input_ids": ids % ours.config.encoder.vocab_size, "attention_mask": mask}
    # Version 4's cache of T5Gemma keeps no more of the source than a window.
    more = {"use_cache": False} if not NEWEST and theirs.config.model_type == "t5gemma" else {}
    with quiet():
        wanted = theirs.generate(**inputs, num_beams=beams, max_new_tokens=8, **more)
    found = ours.generate(**inputs, num_beams=beams, max_new_tokens=8)
    assert [until_end(row) for row in found.tolist()] == [until_end(row) for row in wanted.tolist()]


def until_end(row):
    """A row's tokens up to the first end."""
    return row[: row.index(2) + 1] if 2 in row else row


@torch.no_grad()
@pytest.mark.parametrize("version", ["4.57.6", "5.23.0"])
def test_an_mt5_of_either_version(version, tmp_path):
    """A tied head of version 4 reads scaled states; version 5 ties every head, scales nothing, and says neither."""
    folder = saved(whole("mt5", tie_word_embeddings=True), tmp_path)
    fields = json.loads((folder / "config.json").read_text())
    del fields["transformers_version"]
    fields |= {"transformers_version": version, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(fields))
    ours = EncoderDecoderModel.from_pretrained(folder)
    assert ours.decoder.spec.head.tied and (ours.decoder.spec.head.scale == 1.0) is (version == "5.23.0")
    again = EncoderDecoderModel.from_pretrained(saved(ours, tmp_path / "again"))
    assert again.decoder.spec == ours.decoder.spec


@torch.no_grad()
@pytest.mark.parametrize("family", ["t5gemma", "t5"])
def test_the_commands_know_a_whole(family, tmp_path):
    """What `inspect` and `generate` find out from the files alone."""
    folder = saved(whole(family), tmp_path)
    facts = facts_of(str(folder), {})
    assert facts["model_type"] == family and not facts["weights"]["unknown"]
    assert [stack["causal"] for stack in facts["stacks"].values()] == [False, True]
    assert facts["weights"]["parameters"] == EncoderDecoderModel.from_pretrained(folder).num_parameters()
    assert check_settings(str(folder), {}, {"max_new_tokens": 3}) is None
    BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}).save_pretrained(folder)
    reads, writes = load_tokenizers(str(folder), {}, None, None)
    assert reads is writes and len(reads) == 5


@torch.no_grad()
def test_saved_and_taken_apart(models, tmp_path):
    """What is saved is a pair's folder, with what is shared once; a new pair takes either half from the whole."""
    theirs, folder, ours = models
    ids, mask = source_batch(theirs.config.pad_token_id)
    batch = {"input_ids": ids % 50, "attention_mask": mask, "decoder_input_ids": ids[:, :4] % 50}
    again = EncoderDecoderModel.from_pretrained(saved(ours, tmp_path))
    assert torch.equal(again(**batch).logits, ours(**batch).logits)
    assert again.num_parameters() == ours.num_parameters()
    assert again.generation_config == ours.generation_config
    taken = EncoderDecoderModel.from_encoder_decoder_pretrained(folder, folder)
    assert not taken.load_report.new
    logits = taken(**batch).logits
    if "head.output.bias" in dict(ours.decoder.named_parameters()):
        logits = logits + ours.decoder.head.output.bias  # the whole's alone
    assert_close(logits, ours(**batch).logits, "logits")


@torch.no_grad()
def test_saved_as_a_whole_again(models, tmp_path):
    """The reference's own class opens what is saved as a whole, with the same logits and tokens; so do we."""
    theirs, _, ours = models
    here = saved(ours, tmp_path / "here", as_whole=True)
    assert json.loads((here / "config.json").read_text())["model_type"] == theirs.config.model_type
    if not getattr(theirs.config, "share_encoder_decoder_embeddings", True):
        return  # whose own files it cannot open either, where the halves' vocabularies differ
    with quiet():
        opened, info = type(theirs).from_pretrained(here, attn_implementation="eager", output_loading_info=True)
    lost = [name for name in info["missing_keys"] if "embed_positions" not in name]  # which are computed
    assert not lost and not info["unexpected_keys"]
    ids, mask = source_batch(theirs.config.pad_token_id)
    batch = {"input_ids": ids % 50, "attention_mask": mask, "decoder_input_ids": ids[:, :4].clamp_min(6) % 50}
    wanted = call(theirs, **batch).logits
    assert_close(call(opened, **batch).logits, wanted, "logits there")
    assert torch.equal(EncoderDecoderModel.from_pretrained(here)(**batch).logits, ours(**batch).logits)
    for name in ("decoder_start_token_id", "eos_token_id", "forced_bos_token_id"):
        assert getattr(opened.generation_config, name) == getattr(theirs.generation_config, name), name


@torch.no_grad()
def test_by_its_familiar_name(models, tmp_path):
    """The reference's name of the whole opens its folder, generates as it does, and saves what the reference opens."""
    theirs, folder, _ = models
    name = type(theirs).__name__
    named, any_whole = getattr(warmstart, name).from_pretrained(folder), AutoModelForSeq2SeqLM.from_pretrained(folder)
    ids, mask = source_batch(theirs.config.pad_token_id)
    inputs = {"input_ids": ids % named.config.encoder.vocab_size, "attention_mask": mask, "max_new_tokens": 6}
    tokens = EncoderDecoderModel.from_pretrained(folder).generate(**inputs)
    assert torch.equal(named.generate(**inputs), tokens) and torch.equal(any_whole.generate(**inputs), tokens)
    other = "T5ForConditionalGeneration" if name[:2] != "T5" else "MarianMTModel"
    with pytest.raises(ValueError, match=rf"is a {name} and no {other}; open it with EncoderDecoderModel or"):
        getattr(warmstart, other).from_pretrained(folder)
    for place, model in (("named", named), ("any", any_whole)):
        here = saved(model, tmp_path / place)
        written = json.loads((here / "config.json").read_text())
        assert (written["model_type"], written["architectures"]) == (theirs.config.model_type, [name])
        if getattr(theirs.config, "share_encoder_decoder_embeddings", True):
            with quiet():
                opened = type(theirs).from_pretrained(here, attn_implementation="eager")
            batch = {**inputs, "decoder_input_ids": inputs["input_ids"][:, :4]}
            del batch["max_new_tokens"]
            assert_close(call(opened, **batch).logits, call(theirs, **batch).logits, "logits there")
        assert torch.equal(type(model).from_pretrained(here).generate(**inputs), tokens)
    pair = saved(named, tmp_path / "pair", as_whole=False)
    assert json.loads((pair / "config.json").read_text())["model_type"] == "encoder-decoder"
    assert torch.equal(type(named).from_pretrained(pair).generate(**inputs), tokens)


def test_a_whole_from_its_configuration(tmp_path):
    """Made at random, and trained a step; a pair of two families is no whole, and opens and saves as the pair it is."""
    model = T5ForConditionalGeneration(tiny_models.config("t5", decoder_start_token_id=0))
    model.train()(input_ids=torch.tensor([[6, 7]]), labels=torch.tensor([[8, 1]])).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    folder = saved(tiny_models.pair("bert", "gpt2"), tmp_path / "pair")
    saved(AutoModelForSeq2SeqLM.from_pretrained(folder), tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["model_type"] == "encoder-decoder"
    with pytest.raises(ValueError, match="this encoder-decoder is no whole of one family and no T5For"):
        T5ForConditionalGeneration.from_pretrained(folder)


def test_what_is_no_whole_is_not_saved_as_one(tmp_path):
    model = tiny_models.pair("bert", "gpt2")
    with pytest.raises(ValueError, match="this pair of bert and gpt2 is not the whole of one family"):
        model.save_pretrained(tmp_path / "new", as_whole=True)
    with pytest.raises(ValueError, match="a bert is no encoder-decoder"):
        model.encoder.save_pretrained(tmp_path / "new", as_whole=True)
    assert not (tmp_path / "new").exists()
