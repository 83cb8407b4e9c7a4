"""`warmstart inspect`: what it says is what the loaded model is, and it reads no weights to say it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from safetensors.torch import load_file, save_file

import warmstart as w
from cli.helpers import change_json, command
from warmstart.cli.parts import PARTS, part_of

SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
CONFIGS = {
    "bert": w.BertConfig(vocab_size=30, max_position_embeddings=20, **SIZE),
    "roberta": w.RobertaConfig(vocab_size=30, max_position_embeddings=20, **SIZE),
    "bert-generation": w.BertGenerationConfig(vocab_size=30, max_position_embeddings=20, **SIZE),
    "gpt2": w.GPT2Config(vocab_size=30, n_positions=20, n_embd=16, n_layer=2, n_head=4),
    "llama": w.LlamaConfig(vocab_size=30, num_key_value_heads=2, max_position_embeddings=20, **SIZE),
    "qwen3": w.Qwen3Config(vocab_size=30, num_key_value_heads=2, tie_word_embeddings=True, **SIZE),
    "bart": w.BartConfig(
        vocab_size=30,
        d_model=16,
        max_position_embeddings=20,
        **{f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")},
        **{f"{side}_ffn_dim": 24 for side in ("encoder", "decoder")},
    ),
}


def facts_of(run, *words):
    return json.loads(run("inspect", *words, "--json").out)


def parts_of(model, prefix=""):
    """Part -> numbers in the parameters under a prefix, in the order in which parts are shown."""
    sizes = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        if name.startswith(prefix):
            sizes[part_of(name)] += parameter.numel()
    return {part: size for part, size in sizes.items() if size}


def test_a_pair_is_told_as_it_is(run, checkpoints):
    facts = facts_of(run, checkpoints / "pair")
    model = w.EncoderDecoderModel.from_pretrained(checkpoints / "pair")
    assert facts["weights"]["parameters"] == model.num_parameters()
    parts = facts["weights"]["parts"]
    assert parts["encoder"] == parts_of(model, "encoder.") and parts["decoder"] == parts_of(model, "decoder.")
    assert parts[""] == {"projection": 16 * 24 + 24} and facts["projection"] == [16, 24]
    encoder, decoder = facts["stacks"]["encoder"], facts["stacks"]["decoder"]
    told = ("family", "layers", "hidden_size", "heads", "vocabulary", "positions", "causal", "head")
    assert [encoder[name] for name in told] == ["bert", 2, 16, 2, 150, 48, False, None]
    assert [decoder[name] for name in told] == ["gpt2", 2, 24, 2, 300, 24, True, "tied"]
    assert decoder["cross_attention"] == {"added": False, "hidden_size": 24}
    assert (facts["tied"], facts["notes"]) == (False, [])
    sizes = {path.name: path.stat().st_size for path in (checkpoints / "pair").iterdir() if path.is_file()}
    assert facts["files"].items() >= sizes.items() and "decoder_tokenizer/tokenizer.json" in facts["files"]
    assert facts["weights"]["files"] == {"model.safetensors": ["float32"]}


def test_a_pair_is_shown_in_tables(run, checkpoints):
    shown = run("inspect", checkpoints / "pair").out
    for line in (
        r"\S+/pair: encoder-decoder \(EncoderDecoderModel\), 34,728 parameters",
        r"family +bert +gpt2",
        r"hidden size +16 +24",
        r"heads +2 of 8 +2 of 12",
        r"attends +both ways +backwards",
        r"cross-attention +- +its own, reads 24",
        r"head +- +tied to the embeddings",
        r"projection +- +- +408",
        r"start +0 +<\|endoftext\|> +config.json, decoder_start_token_id",
        r"decoder's +GPT2Tokenizer +300 +-",
        r"model.safetensors +\S+ kB +float32",
        r"A projection takes the encoder's states from 16 to the decoder's 24.",
    ):
        assert re.search(rf"^{line} *$", shown, re.MULTILINE), (line, shown)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("kind", ["base", "causal"])
def test_parameters_of_one_stack_are_those_of_the_model(run, tmp_path, name, kind):
    config = CONFIGS[name] if kind == "base" or name != "bart" else as_decoder(CONFIGS[name])
    model = (w.AutoModel if kind == "base" else w.AutoModelForCausalLM)(config)
    model.save_pretrained(tmp_path)
    weights = facts_of(run, tmp_path)["weights"]
    told = sum((Counter(parts) for parts in weights["parts"].values()), Counter())
    assert told == parts_of(model)
    assert (weights["parameters"], weights["unknown"], weights["left_out"]) == (model.num_parameters(), [], [])


@pytest.mark.parametrize(
    ("name", "kind", "new"),
    [
        ("bert", w.AutoModel, ["cross-attention", "head"]),
        ("bert", w.AutoModelForMaskedLM, ["cross-attention"]),
        ("gpt2", w.AutoModel, ["cross-attention"]),
        ("llama", w.AutoModel, ["cross-attention", "head"]),
        ("llama", w.AutoModelForCausalLM, ["cross-attention"]),
    ],
)
def test_what_would_be_new_as_a_decoder_is_what_a_warm_start_makes_new(run, tmp_path, name, kind, new):
    kind(CONFIGS[name]).save_pretrained(tmp_path)
    facts = facts_of(run, tmp_path)
    assert facts["serves"]["decoder"]["new"] == new
    pair = w.EncoderDecoderModel.from_encoder_decoder_pretrained(tmp_path, tmp_path)
    made = {part_of(name) for name in pair.load_report.new}
    assert {part for part in PARTS if part in made} == set(new)
    ids = {name: facts["token_ids"][name]["id"] for name in ("start", "end", "padding")}
    config = pair.config
    assert ids == {"start": config.decoder_start_token_id, "end": config.eos_token_id, "padding": config.pad_token_id}


def test_a_bart_has_two_halves(run, tmp_path):
    encoder, decoder = w.AutoModel(CONFIGS["bart"]), w.AutoModelForCausalLM(as_decoder(CONFIGS["bart"]))
    encoder.save_pretrained(tmp_path)
    decoder.save_pretrained(tmp_path / "decoder")
    halves = [load_file(folder / "model.safetensors") for folder in (tmp_path, tmp_path / "decoder")]
    save_file({f"model.{name}": x for name, x in halves[0].items()} | halves[1], tmp_path / "model.safetensors")
    facts = facts_of(run, tmp_path)
    assert list(facts["stacks"]) == ["encoder", "decoder"]
    assert facts["stacks"]["decoder"]["cross_attention"] == {"added": False, "hidden_size": 16}
    assert facts["weights"]["parts"]["decoder"]["cross-attention"] == parts_of(decoder)["cross-attention"]
    assert (facts["weights"]["unknown"], facts["serves"]["decoder"]["new"]) == ([], [])
    assert "Serves as decoder; nothing would be new.\n" in run("inspect", tmp_path).out


def as_decoder(config):
    return w.BartConfig(**config.to_dict() | {"is_decoder": True, "add_cross_attention": True})


def test_a_real_files_oddities_are_told_apart(run, copy_of):
    folder = copy_of("bert")
    weights = load_file(folder / "model.safetensors")
    table = weights["bert.embeddings.word_embeddings.weight"]
    extra = {
        "bert.pooler.dense.weight": torch.zeros(16, 16),
        "bert.embeddings.position_ids": torch.zeros(1, 48, dtype=torch.int64),
        "cls.predictions.decoder.weight": table.clone(),
        "mystery": torch.zeros(3),
    }
    before = facts_of(run, folder)["weights"]
    save_file({name: x.half() for name, x in weights.items()} | extra, folder / "model.safetensors")
    after = facts_of(run, folder)
    assert after["weights"]["parameters"] == before["parameters"]  # the tied table counts once
    assert after["weights"]["left_out"] == ["bert.embeddings.position_ids", "bert.pooler.dense.weight"]
    assert after["weights"]["unknown"] == ["mystery"] and after["notes"] == ["no bert has the weights mystery"]
    assert set(after["weights"]["files"]["model.safetensors"]) == {"float16", "float32", "int64"}
    assert "not wanted here: bert.embeddings, bert.pooler.dense" in run("inspect", folder).out.replace("\n", " ")


def test_shards_and_pickles_are_read_alike(run, checkpoints, tmp_path):
    model = w.EncoderDecoderModel.from_pretrained(checkpoints / "pair")
    whole = facts_of(run, checkpoints / "pair")["weights"]
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    model.save_pretrained(tmp_path / "pickle", safe_serialization=False)
    for name, least in (("shards", 4), ("pickle", 1)):
        weights = facts_of(run, tmp_path / name)["weights"]
        assert weights["parts"] == whole["parts"]
        assert len(weights["files"]) >= least and {*map(tuple, weights["files"].values())} == {("float32",)}


def test_shared_weights_count_once(run, checkpoints, tmp_path):
    run("create", "--encoder", checkpoints / "bert", "--tie", "all", "-o", tmp_path / "new")
    facts = facts_of(run, tmp_path / "new")
    model = w.EncoderDecoderModel.from_pretrained(tmp_path / "new")
    assert facts["tied"] and facts["weights"]["parameters"] == model.num_parameters()
    assert "Encoder and decoder share their weights." in run("inspect", tmp_path / "new").out
    path = tmp_path / "new/model.safetensors"
    weights = load_file(path)
    names = {name: name.replace("decoder.bert.", "encoder.", 1) for name in weights if "crossattention" not in name}
    copies = {theirs: weights[name].clone() for name, theirs in names.items() if theirs != name}
    assert copies and not copies.keys() & weights.keys()
    save_file(weights | copies, path)  # as some releases write them
    told = facts_of(run, tmp_path / "new")["weights"]
    assert (told["parameters"], told["unknown"]) == (model.num_parameters(), [])


def test_added_cross_attention_is_told_as_added(run, checkpoints, tmp_path):
    w.LlamaForCausalLM(CONFIGS["llama"]).save_pretrained(tmp_path / "llama")
    words = ["--encoder", checkpoints / "bert", "--decoder", tmp_path / "llama", "-o", tmp_path / "new"]
    run("create", *words)
    shown = run("inspect", tmp_path / "new").out
    assert re.search(r"cross-attention +- +added, reads 16", shown)
    assert re.search(r"heads +2 of 8 +4 of 4, 2 for keys and values", shown)
    assert re.search(r"positions +48 +20, rotary", shown)


def test_no_weight_is_read(run, checkpoints, monkeypatch):
    def fail(*_):
        raise AssertionError("a weight was read")

    monkeypatch.setattr("warmstart.checkpoint.readers.SafetensorsFile.read", fail)
    assert "encoder-decoder" in run("inspect", checkpoints / "pair").out


def test_missing_token_ids_and_settings_are_told(run, copy_of):
    folder = copy_of("pair")
    config = json.loads((folder / "config.json").read_text())
    for part in (config, config["decoder"]):
        part["eos_token_id"] = None
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text('{"num_beams": 4, "max_length": 30, "pad_token_id": 0}')
    facts = facts_of(run, folder)
    assert facts["token_ids"]["end"]["id"] is None
    assert facts["notes"] == ["eos_token_id is not set: training and generate will ask for it"]
    assert facts["generation"] == {"num_beams": 4, "max_length": 30}
    assert "Generates with num_beams=4, max_length=30." in run("inspect", folder).out


def test_a_tokenizer_that_is_too_large_is_noted(run, copy_of):
    folder = copy_of("bert")
    change_json(folder / "config.json", vocab_size=100)
    assert "the tokenizer has 150 tokens, more than the 100 of the model" in facts_of(run, folder)["notes"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "config.json").unlink(), "there is no 'config.json' in"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff"), "is not UTF-8 text"),
        (
            lambda folder: change_json(folder / "config.json", model_type="xlnet"),
            "model_type 'xlnet' is not supported",
        ),
        (lambda folder: change_json(folder / "config.json", model_type=None), "config.json has no model_type"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights: none of model.safetensors, "),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"12345678"), "is not a sound safetensors file"),
    ],
)
def test_a_spoilt_checkpoint_is_refused(refused, copy_of, spoil, said):
    folder = copy_of("bert")
    spoil(folder)
    assert said in refused("inspect", folder)


def test_neither_folder_nor_id(refused):
    assert "there is no folder './nowhere'" in refused("inspect", "./nowhere")
    assert command("inspect", "someone/no-model", "--offline").code == 2


class Hub(BaseHTTPRequestHandler):
    """Serves the files of one folder as the repository `owner/model`, whole or in part, and counts what it sent."""

    folder = None
    sent = 0

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0]
        if path.startswith("/api/models/owner/model"):
            files = [{"rfilename": file.name, "size": file.stat().st_size} for file in Hub.folder.iterdir()]
            return self.answer(200, json.dumps({"id": "owner/model", "sha": "0" * 40, "siblings": files}).encode())
        file = Hub.folder / path.rpartition("/")[2]
        if not file.is_file():
            return self.answer(404, **{"X-Error-Code": "EntryNotFound"})
        body, etag = file.read_bytes(), {"ETag": f'"{file.name}"', "X-Repo-Commit": "0" * 40}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or ""):
            first, last = int(wanted[1]), min(int(wanted[2]), len(body) - 1)
            etag |= {"Content-Range": f"bytes {first}-{last}/{len(body)}"}
            return self.answer(206, body[first : last + 1], **etag)
        return self.answer(200, body, **etag)

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            Hub.sent += len(body)


def test_of_a_hub_repository_no_weights_are_downloaded(run, tmp_path):
    config = w.BertConfig(vocab_size=3000, **{**SIZE, "hidden_size": 64})
    model = w.AutoModel(config)
    model.save_pretrained(tmp_path / "model")
    Hub.folder, Hub.sent = tmp_path / "model", 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_XET": "1",
        "PATH": "",
    }
    try:
        words = [sys.executable, "-c", "from warmstart.cli import main; main()", "inspect", "owner/model", "--json"]
        done = subprocess.run(words, env=environment, capture_output=True, text=True)
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["weights"]["parameters"] == model.num_parameters()
    assert facts["weights"]["files"] == {"model.safetensors": ["float32"]}
    assert facts["files"]["model.safetensors"] > 700_000
    assert Hub.sent < 300_000
