"""Models, tokenizers and settings by their id: from a server on loopback, from its cache offline, and back to it."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load as load_safetensors

import tiny_models
from hub_server import COMMIT, Hub, run, serving
from warmstart import BertTokenizer, EncoderDecoderModel

WORDS = {token: number for number, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"])}

# Runs (name, expression) pairs and says what came, or which error.
SCRIPT = """
import json, sys, warnings
warnings.simplefilter("error")
import torch
from warmstart import *

ids, labels = torch.tensor([[5, 6, 7]]), torch.tensor([[8, 9]])

def seen(model):
    with torch.no_grad():
        if hasattr(model, "decoder"):
            return model(input_ids=ids, labels=labels).logits.flatten().tolist()
        return model(ids)[0].flatten().tolist()

answers = {}
for name, expression in json.load(sys.stdin).items():
    try:
        answers[name] = eval(expression)
    except Exception as error:
        answers[name] = {"kinds": [kind.__name__ for kind in type(error).__mro__], "message": str(error)}
json.dump(answers, sys.stdout)
"""
READS = {
    "sharded": "seen(EncoderDecoderModel.from_pretrained('owner/pair'))",
    "pickled": "seen(AutoModelForCausalLM.from_pretrained('owner/decoder', revision='v1'))",
    "encoder": "seen(AutoModel.from_pretrained('owner/encoder'))",
    "private": "seen(AutoModel.from_pretrained('owner/secret', token='hf_key'))",
    "half of a pair": "seen(AutoModel.from_pretrained('owner/pair'))",
    "config": "AutoConfig.from_pretrained('owner/pair').decoder.model_type",
    "settings": "GenerationConfig.from_pretrained('owner/pair').num_beams",
    "tokenizer": "AutoTokenizer.from_pretrained('owner/encoder')('a b').input_ids",
    "warm start": "len(EncoderDecoderModel.from_encoder_decoder_pretrained('owner/encoder', 'owner/decoder')"
    ".load_report.loaded)",
    "private without a token": "AutoModel.from_pretrained('owner/secret')",
    "no such revision": "AutoModel.from_pretrained('owner/encoder', revision='v9')",
    "no such repository": "AutoModel.from_pretrained('owner/encodr')",
    "no weights": "AutoModel.from_pretrained('owner/empty')",
    "no shard": "EncoderDecoderModel.from_pretrained('owner/halved')",
    "hostile index": "EncoderDecoderModel.from_pretrained('owner/hostile')",
}


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    pair = tiny_models.pair("bert", "gpt2")
    pair.config.num_beams = 3
    pair.save_pretrained(folder / "pair", max_shard_size="8KB")
    tiny_models.saved(folder / "encoder", "bert")
    BertTokenizer(vocab=WORDS).save_pretrained(folder / "encoder")
    decoder = tiny_models.AutoModelForCausalLM(tiny_models.config("gpt2"))
    decoder.save_pretrained(folder / "decoder", safe_serialization=False)
    held = {f"owner/{name}": files(folder / name) for name in ("pair", "encoder", "decoder")}
    held["owner/secret"] = held["owner/encoder"]
    held["owner/empty"] = {"config.json": held["owner/encoder"]["config.json"], "tf_model.h5": b""}
    lost = sorted(name for name in held["owner/pair"] if name.endswith(".safetensors"))[1]
    held["owner/halved"] = {name: content for name, content in held["owner/pair"].items() if name != lost}
    index = json.dumps({"weight_map": {"encoder.x": "../../../../etc/passwd"}}).encode()
    held["owner/hostile"] = held["owner/pair"] | {"model.safetensors.index.json": index}
    return held


@pytest.fixture(scope="module")
def endpoint(repositories):
    with serving(repositories) as address:
        yield address


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def online(endpoint, home):
    return run(SCRIPT, endpoint, home, READS, timeout=240)


@pytest.fixture(scope="module")
def local(repositories, tmp_path_factory):
    """The same from folders."""
    folder = tmp_path_factory.mktemp("folders")
    for repository, held in repositories.items():
        for name, content in held.items():
            (folder / repository / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / repository / name).write_bytes(content)
    return folder


IDS, LABELS = torch.tensor([[5, 6, 7]]), torch.tensor([[8, 9]])


def test_what_is_read_by_id_is_what_a_folder_gives(online, local):
    pair = EncoderDecoderModel.from_pretrained(local / "owner" / "pair")
    with torch.no_grad():
        expected = pair(input_ids=IDS, labels=LABELS).logits.flatten().tolist()
    assert online["sharded"] == expected
    encoder = tiny_models.AutoModel.from_pretrained(local / "owner" / "encoder")
    with torch.no_grad():
        assert online["encoder"] == online["private"] == encoder(IDS)[0].flatten().tolist()
        assert online["half of a pair"] == pair.encoder(IDS)[0].flatten().tolist()
        decoder = tiny_models.AutoModelForCausalLM.from_pretrained(local / "owner" / "decoder")
        assert online["pickled"] == decoder(IDS)[0].flatten().tolist()
    assert (online["config"], online["settings"], online["tokenizer"]) == ("gpt2", 3, [2, 5, 6, 3])
    assert online["warm start"] > 20


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        ("private without a token", "OSError", ["owner/secret", "token="]),
        ("no such revision", "OSError", ["owner/encoder", "v9"]),
        ("no such repository", "OSError", ["owner/encodr", "neither a folder here nor a repository"]),
        ("no weights", "FileNotFoundError", ["owner/empty has no weights", "config.json", "tf_model.h5"]),
        ("no shard", "FileNotFoundError", ["model-00002-of", "owner/halved"]),
        ("hostile index", "ValueError", ["'../../../../etc/passwd' points outside its folder"]),
    ],
)
def test_errors(online, call, kind, words):
    assert kind in online[call]["kinds"]
    for word in words:
        assert word in online[call]["message"]


def test_the_token_goes_to_the_endpoint(online):
    assert "Bearer hf_key" in Hub.tokens


# What was read before is read again without the server, by the switch or by the keyword; what was not is an error.
OFFLINE = {name: READS[name] for name in ("sharded", "encoder", "tokenizer", "settings")}
OFFLINE |= {"never read": "AutoModel.from_pretrained('owner/other')"}


def test_offline_reads_the_cache(online, home):
    keyword = {name: call.replace("')", "', local_files_only=True)", 1) for name, call in OFFLINE.items()}
    nowhere = "http://127.0.0.1:9"
    both = {f"{name} again": call for name, call in OFFLINE.items()}
    switched = run(SCRIPT, nowhere, home, both | keyword, timeout=240, HF_HUB_OFFLINE="1")
    for name in ("sharded", "encoder", "tokenizer", "settings"):
        assert switched[name] == switched[f"{name} again"] == online[name]
    for name in ("never read", "never read again"):
        assert "ConnectionError" in switched[name]["kinds"]
        assert "HF_HUB_OFFLINE" in switched[name]["message"]


PUSHES = {
    "push": "EncoderDecoderModel.from_pretrained(FOLDER).push_to_hub('me/pushed', token='hf_key', private=True)",
    "sharded": "EncoderDecoderModel.from_pretrained(FOLDER).push_to_hub("
    "'me/pushed', token='hf_key', max_shard_size='8KB')",
    "save": "EncoderDecoderModel.from_pretrained(FOLDER).save_pretrained("
    "FOLDER + '-saved', push_to_hub=True, repo_id='me/saved', token='hf_key', commit_message='From a save')",
    "config": "AutoConfig.from_pretrained(FOLDER).save_pretrained("
    "FOLDER + '-config', push_to_hub=True, repo_id='me/config', token='hf_key')",
    "settings": "EncoderDecoderModel.from_pretrained(FOLDER).generation_config.save_pretrained("
    "FOLDER + '-settings', push_to_hub=True, repo_id='me/settings', token='hf_key')",
    "configuration": "EncoderDecoderModel.from_pretrained(FOLDER).config.push_to_hub("
    "'me/configuration', token='hf_key')",
    "refused": "EncoderDecoderModel.from_pretrained(FOLDER).push_to_hub('me/pushed', token='hf_other')",
    "unknown": "EncoderDecoderModel.from_pretrained(FOLDER).push_to_hub('me/pushed', tokn='hf_key')",
}


def test_push(endpoint, home, local):
    Hub.uploads.clear()
    folder = local / "owner" / "pair"
    for other in ("-saved", "-config", "-settings"):
        (local / "owner" / f"pair{other}").mkdir()
        (local / "owner" / f"pair{other}" / "notes.txt").write_text("for nobody else")
    calls = {name: call.replace("FOLDER", repr(str(folder))) for name, call in PUSHES.items()}
    answers = run(SCRIPT, endpoint, home, calls, timeout=240)
    assert answers["push"].endswith(f"/commit/{COMMIT}")
    assert (answers["save"], answers["config"]) == (None, None)
    assert {"OSError"} <= set(answers["refused"]["kinds"]) and "HF_TOKEN" in answers["refused"]["message"]
    assert "TypeError" in answers["unknown"]["kinds"] and "tokn" in answers["unknown"]["message"]
    commits = [upload for upload in Hub.uploads if "commit" in upload]
    whole, sharded, saved, config, settings, configuration = (commit["files"] for commit in commits)
    assert whole.keys() == {"config.json", "generation_config.json", "model.safetensors"}
    tensors = load_safetensors(whole["model.safetensors"])
    for name, tensor in tensors.items():
        shard = json.loads(sharded["model.safetensors.index.json"])["weight_map"][name]
        assert torch.equal(load_safetensors(sharded[shard])[name], tensor)
    assert saved == whole
    assert config.keys() == configuration.keys() == {"config.json"}
    assert settings.keys() == {"generation_config.json"}
    assert commits[2]["title"] == "From a save"
