"""`warmstart create`: what it makes, what it tells, and what it leaves alone."""

from __future__ import annotations

import json
import re

import pytest
import torch

from cli.helpers import change_json, command, tensors
from warmstart import AutoTokenizer, EncoderDecoderModel, LlamaConfig, LlamaForCausalLM


def rows(shown: str) -> dict[str, list[str]]:
    """First word (or two) of each row of a table -> its other cells; later rows of a name are added."""
    found: dict[str, list[str]] = {}
    for line in shown.splitlines():
        name, *cells = re.split(r" {2,}", line.strip())
        found.setdefault(name, []).extend(cells)
    return found


@pytest.fixture
def words(checkpoints, tmp_path):
    return ["create", "--encoder", checkpoints / "bert", "--decoder", checkpoints / "gpt2", "-o", tmp_path / "new"]


def test_the_folder_is_what_the_library_makes(run, words, checkpoints, tmp_path):
    run(*words)
    torch.manual_seed(0)
    same = EncoderDecoderModel.from_encoder_decoder_pretrained(checkpoints / "bert", checkpoints / "gpt2")
    same.save_pretrained(tmp_path / "same")
    made, wanted = tensors(tmp_path / "new"), tensors(tmp_path / "same")
    assert made.keys() == wanted.keys() and all(torch.equal(made[name], wanted[name]) for name in wanted)
    assert (tmp_path / "new/config.json").read_text() == (tmp_path / "same/config.json").read_text()


def test_it_tells_what_was_loaded_is_new_and_was_left_out(run, words, checkpoints):
    shown = run(*words).out
    model = EncoderDecoderModel.from_encoder_decoder_pretrained(checkpoints / "bert", checkpoints / "gpt2")
    encoder, decoder, between, whole = re.split(r"\n(?=Decoder|Between|Together)", shown)
    assert encoder.startswith(f"Encoder: bert from {checkpoints / 'bert'}, 2 layers of 16\n")
    assert rows(encoder)["loaded"] == [
        str(len(list(model.encoder.parameters()))),
        f"{model.encoder.num_parameters():,}",
        "embeddings, self-attention, MLP",
    ]
    assert rows(encoder)["left out"] == ["5", "cls.predictions"]
    crossed = [parameter for name, parameter in model.decoder.named_parameters() if ".cross_attention" in name]
    assert rows(decoder)["new"] == [str(len(crossed)), f"{sum(map(torch.numel, crossed)):,}", "cross-attention"]
    assert rows(decoder)["loaded"][2] == "embeddings, self-attention, MLP, final norm"
    assert rows(between)["new"] == ["2", f"{16 * 24 + 24:,}", "projection"]
    together = rows(whole)
    numbers = [int(together[origin][1].replace(",", "")) for origin in ("loaded", "new")]
    assert sum(numbers) == model.num_parameters()
    assert together["new"][2] == f"{numbers[1] / sum(numbers):.1%}"


def test_it_tells_the_token_ids_and_where_they_are_from(run, words, checkpoints, tmp_path):
    shown = rows(run(*words).out)
    assert shown["start"] == ["0", "<|endoftext|>", "decoder's settings, bos_token_id"]
    assert shown["padding"] == ["0", "<|endoftext|>", "decoder's settings, eos_token_id"]
    shown = rows(run(*words[:3], "--decoder", checkpoints / "bert", "-o", tmp_path / "two").out)
    assert shown["start"] == ["2", "[CLS]", "decoder's tokenizer, cls_token_id"]
    assert shown["end"] == ["3", "[SEP]", "decoder's tokenizer, sep_token_id"]
    shown = rows(run(*words[:5], "--set", "decoder_start_token_id=7", "-o", tmp_path / "three").out)
    assert shown["start"][::2] == ["7", "--set, decoder_start_token_id"]


def test_both_tokenizers_are_in_the_folder(run, words, checkpoints, tmp_path):
    run(*words)
    text = "Return the numbers."
    for source, made in (("bert", "new"), ("gpt2", "new/decoder_tokenizer")):
        ids = [
            AutoTokenizer.from_pretrained(root)(text)["input_ids"] for root in (checkpoints / source, tmp_path / made)
        ]
        assert ids[0] == ids[1]


def test_one_tokenizer_where_the_checkpoint_is_one(run, checkpoints, tmp_path):
    run("create", "--encoder", checkpoints / "bert", "--decoder", checkpoints / "bert", "-o", tmp_path / "new")
    assert (tmp_path / "new/tokenizer.json").exists() and not (tmp_path / "new/decoder_tokenizer").exists()


def test_tie_all_shares_the_weights_and_needs_no_decoder(run, checkpoints, tmp_path):
    shown = run("create", "--encoder", checkpoints / "bert", "--tie", "all", "-o", tmp_path / "new").out
    model = EncoderDecoderModel.from_pretrained(tmp_path / "new")
    assert model.config.tie_encoder_decoder
    shared = len(list(model.encoder.parameters()))
    assert rows(shown)["shared"][:2] == [str(shared), f"{model.encoder.num_parameters():,}"]
    numbers = [int(cell.replace(",", "")) for name in ("loaded", "new") for cell in rows(shown)[name][-2:-1]]
    assert sum(numbers) == model.num_parameters()


def test_tie_head_makes_the_decoders_head_its_embeddings(run, checkpoints, tmp_path):
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    LlamaForCausalLM(LlamaConfig(vocab_size=90, **size)).save_pretrained(tmp_path / "llama")
    words = ["create", "--encoder", checkpoints / "bert", "--decoder", tmp_path / "llama"]
    for extra, tied in (([], False), (["--tie", "head"], True)):
        folder = tmp_path / f"tied-{tied}"
        assert "the decoder brings no tokenizer" in run(*words, *extra, "-o", folder).err
        assert EncoderDecoderModel.from_pretrained(folder).config.decoder.tie_word_embeddings is tied
        assert ("decoder.lm_head.weight" in tensors(folder)) is not tied


def test_cross_attention_can_be_a_copy(run, checkpoints, tmp_path):
    words = ["create", "--encoder", checkpoints / "bert", "--decoder", checkpoints / "bert"]
    shown = run(*words, "--cross-attention", "copy", "-o", tmp_path / "new").out
    assert rows(shown)["copied"][2] == "cross-attention" and "new" not in rows(shown)
    made = tensors(tmp_path / "new")
    name = "decoder.bert.encoder.layer.0.{}.self.query.weight"
    assert torch.equal(made[name.format("crossattention")], made[name.format("attention")])


def test_the_seed_decides_new_weights(run, words, tmp_path):
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(*words[:5], "-o", tmp_path / folder, "--seed", seed)
    a, b, c = (tensors(tmp_path / folder)["enc_to_dec_proj.weight"] for folder in "abc")
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_type_shards_and_fields_are_as_asked(run, words, tmp_path):
    settings = ["--set", "num_beams=4", "--set", "decoder_resid_pdrop=0.3"]
    run(*words, "--dtype", "bfloat16", "--max-shard-size", "40KB", *settings)
    assert {tensor.dtype for tensor in tensors(tmp_path / "new").values()} == {torch.bfloat16}
    assert len(list((tmp_path / "new").glob("model-*.safetensors"))) > 1
    config = EncoderDecoderModel.from_pretrained(tmp_path / "new").config
    assert (config.num_beams, config.decoder.resid_pdrop) == (4, 0.3)


def test_missing_token_ids_are_warned_of(run, checkpoints, copy_of, tmp_path):
    decoder = copy_of("gpt2")
    for path in decoder.glob("*"):
        if "token" in path.name or path.name in ("vocab.json", "merges.txt", "generation_config.json"):
            path.unlink()
    config = json.loads((decoder / "config.json").read_text()) | {"bos_token_id": None, "eos_token_id": None}
    (decoder / "config.json").write_text(json.dumps(config))
    ran = run("create", "--encoder", checkpoints / "bert", "--decoder", decoder, "-o", tmp_path / "new")
    assert rows(ran.out)["start"] == ["missing"]
    for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id"):
        assert f"warmstart: warning: {name} was not found: give it with --set {name}=ID" in ran.err


def test_a_folder_that_is_not_empty_is_left_alone(refused, words, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new/mine.txt").write_text("mine")
    assert (
        refused(*words) == f"--output {tmp_path / 'new'} is not empty; give another folder, or --force to write into it"
    )
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["mine.txt"]


def test_force_writes_into_it_and_leaves_no_old_tokenizer(run, words, checkpoints, tmp_path):
    run(*words)
    (tmp_path / "new/mine.txt").write_text("mine")
    run("create", "--encoder", checkpoints / "bert", "--tie", "all", "-o", tmp_path / "new", "--force")
    assert (tmp_path / "new/mine.txt").read_text() == "mine"
    assert not (tmp_path / "new/decoder_tokenizer").exists()
    assert EncoderDecoderModel.from_pretrained(tmp_path / "new").config.tie_encoder_decoder


def test_an_encoder_without_tokenizer_does_not_get_the_decoders(run, checkpoints, copy_of, tmp_path):
    encoder = copy_of("bert")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        (encoder / name).unlink()
    ran = run("create", "--encoder", encoder, "--decoder", checkpoints / "gpt2", "-o", tmp_path / "new")
    assert "the encoder brings no tokenizer" in ran.err
    assert not (tmp_path / "new/tokenizer.json").exists()
    assert (tmp_path / "new/decoder_tokenizer/tokenizer.json").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--decoder"], "--decoder is missing; give a folder or a hub id (only --tie all does without)"),
        (["--set", "num_beam=2"], "there is no setting 'num_beam'; did you mean 'num_beams'?"),
        (["--set", "num_beams"], "--set num_beams: give a name and a value, such as num_beams=4"),
        (["--set", "num_beams=none"], "num_beams='none': it must be a whole number, 1 or more"),
        (["--set", "decoder_layers=1"], "there is no setting 'decoder_layers'"),
        (["--max-shard-size", "large"], "max_shard_size 'large' is not a size"),
        (["--tie", "all"], "tie_encoder_decoder needs an encoder and a decoder of one shape"),
        (["--tie", "none"], "'none' is not one of 'all', 'head'"),
        (["--cross-attention", "zero"], "'zero' is not one of 'random', 'copy'"),
        (["--encoder", "no/such/folder"], "there is no folder 'no/such/folder'"),
    ],
)
def test_bad_options_make_nothing(refused, words, tmp_path, change, said):
    if change == ["--decoder"]:
        words = words[:3] + words[5:]
        change = []
    assert said in refused(*words, *change)
    assert not (tmp_path / "new").exists()


def test_bad_checkpoints_make_nothing(refused, words, copy_of, tmp_path):
    decoder = copy_of("gpt2")
    words[4] = decoder
    whole = (decoder / "model.safetensors").read_bytes()
    (decoder / "model.safetensors").write_bytes(whole[:-100])
    assert "is not a sound safetensors file" in refused(*words)
    (decoder / "model.safetensors").unlink()
    assert "has no weights" in refused(*words)
    change_json(decoder / "config.json", model_type="xlnet")
    assert "model_type 'xlnet' is not supported; the families are albert, bart, bert" in refused(*words)
    (decoder / "config.json").write_text("{")
    assert "is not valid JSON" in refused(*words)
    assert not (tmp_path / "new").exists()


def test_a_failed_save_is_told_and_leaves_the_folder(words, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, f"nothing was saved to {tmp_path}, it is as it was: No space left on device")

    monkeypatch.setattr("warmstart.torch.pretrained.write_folder", full)
    ran = command(*words)
    assert ran.code == 2 and ran.err.endswith("it is as it was: No space left on device\n")
    assert "Saved" not in ran.out
