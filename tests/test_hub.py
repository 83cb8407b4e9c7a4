"""Finding files in folders and on the hub: against a small HTTP server on loopback that answers as the hub does."""

from __future__ import annotations

from pathlib import Path

import pytest

from hub_server import COMMIT, Hub, run, serving
from warmstart.hub import find_file, hub_options, inside, read_json, upload_folder

FILES = {"config.json": b'{"model_type": "bert"}', "tokenizer/vocab.txt": b"[PAD]\n[UNK]\n"}

SCRIPT = """
import json, sys
from warmstart import hub
answers = []
for name, args, kwargs in json.load(sys.stdin):
    try:
        answers.append({"value": str(getattr(hub, name)(*args, **kwargs))})
    except Exception as error:
        answers.append({"kinds": [kind.__name__ for kind in type(error).__mro__], "message": str(error)})
json.dump(answers, sys.stdout)
"""


@pytest.fixture(scope="module")
def endpoint():
    with serving(dict.fromkeys(("owner/model", "plain", "owner/secret"), FILES)) as address:
        yield address


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


def ask(endpoint, home, calls, **environment):
    """Run calls of `warmstart.hub`."""
    return run(SCRIPT, endpoint, home, calls, **environment)


@pytest.fixture(scope="module")
def online(endpoint, home):
    """Answers of the hub, by a short name for each call."""
    calls = {
        "file": ["find_file", ["owner/model", "config.json"], {}],
        "subfolder": ["find_file", ["owner/model", "vocab.txt"], {"subfolder": "tokenizer", "revision": "v1"}],
        "optional": ["find_file", ["owner/model", "model.safetensors"], {"required": False}],
        "missing file": ["find_file", ["owner/model", "model.safetensors"], {}],
        "missing repository": ["find_file", ["owner/modle", "config.json"], {"required": False}],
        "missing revision": ["find_file", ["owner/model", "config.json"], {"revision": "v9", "required": False}],
        "private": ["find_file", ["owner/secret", "config.json"], {"token": "hf_key"}],
        "private without token": ["find_file", ["owner/secret", "tokenizer/vocab.txt"], {}],
        "gated": ["find_file", ["owner/gated", "config.json"], {}],
        "broken": ["find_file", ["owner/broken", "config.json"], {}],
        "bad id": ["find_file", ["owner--x/..model", "config.json"], {}],
        "hostile": ["find_file", ["owner/model", "../../../etc/passwd"], {}],
        "only cached": ["find_file", ["owner/model", "tokenizer/vocab.txt"], {"local_files_only": True}],
    }
    return dict(zip(calls, ask(endpoint, home, list(calls.values())), strict=True))


def test_downloads_into_the_cache(online, home):
    path = Path(online["file"]["value"])
    assert path.read_bytes() == FILES["config.json"]
    assert home in path.parents
    assert Path(online["subfolder"]["value"]).read_bytes() == FILES["tokenizer/vocab.txt"]
    assert Path(online["private"]["value"]).read_bytes() == FILES["config.json"]
    assert online["optional"] == {"value": "None"}
    assert "ConnectionError" not in online["only cached"].get("kinds", [])


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        ("missing file", "FileNotFoundError", ["model.safetensors", "owner/model", "config.json, tokenizer/vocab.txt"]),
        ("missing repository", "FileNotFoundError", ["owner/modle", "HF_TOKEN"]),
        ("private without token", "FileNotFoundError", ["owner/secret", "private", "token="]),
        ("missing revision", "FileNotFoundError", ["owner/model", "v9"]),
        ("gated", "PermissionError", ["owner/gated", "ask for access"]),
        ("broken", "OSError", ["owner/broken", "config.json", "418"]),
        ("bad id", "FileNotFoundError", ["owner--x/..model"]),
        ("hostile", "ValueError", ["../../../etc/passwd", "outside"]),
    ],
)
def test_errors_of_the_hub_name_value_and_remedy(online, call, kind, words):
    assert kind in online[call]["kinds"]
    for word in words:
        assert word in online[call]["message"]


def test_offline_uses_the_cache_and_says_what_is_not_in_it(endpoint, home, online):
    assert "value" in online["file"]
    calls = [
        ["find_file", ["owner/model", "config.json"], {}],
        ["find_file", ["owner/model", "model.safetensors"], {"required": False}],
        ["find_file", ["owner/model", "model.safetensors"], {}],
        ["find_file", ["owner/other", "config.json"], {"required": False}],
    ]
    by_switch = ask(endpoint, home, calls, HF_HUB_OFFLINE="1")
    by_keyword = ask(endpoint, home, [[name, args, kw | {"local_files_only": True}] for name, args, kw in calls])
    for answers in (by_switch, by_keyword):
        assert answers[0] == online["file"]
        assert answers[1] == {"value": "None"}
        assert "ConnectionError" in answers[2]["kinds"]
        assert "HF_HUB_OFFLINE" in answers[2]["message"]
        assert "ConnectionError" in answers[3]["kinds"]
        assert "owner/other" in answers[3]["message"]


def test_upload(endpoint, home, tmp_path):
    (tmp_path / "config.json").write_bytes(FILES["config.json"])
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "vocab.txt").write_bytes(FILES["tokenizer/vocab.txt"])
    Hub.uploads.clear()
    token = {"token": "hf_key"}
    plain, branch, request, refused = ask(
        endpoint,
        home,
        [
            ["upload_folder", [str(tmp_path), "me/model"], token | {"private": True, "commit_message": "First"}],
            ["upload_folder", [str(tmp_path), "me/model"], token | {"revision": "dev"}],
            ["upload_folder", [str(tmp_path), "me/model"], token | {"create_pr": True}],
            ["upload_folder", [str(tmp_path), "me/model"], {"token": "hf_other"}],
        ],
    )
    assert plain["value"].endswith(f"/me/model/commit/{COMMIT}")
    assert branch == plain
    assert request["value"].endswith("/me/model/discussions/1")
    assert "OSError" in refused["kinds"]
    assert "HF_TOKEN" in refused["message"]
    assert "me/model" in refused["message"]
    asked = Hub.uploads[0]["create"]
    assert asked.get("private") is True or asked["visibility"] == "private"  # huggingface_hub 0.36, 2
    commits = [upload for upload in Hub.uploads if "commit" in upload]
    assert all(commit["files"] == FILES for commit in commits)
    assert commits[0]["title"] == "First"
    assert "/commit/dev" in commits[1]["commit"]
    assert any("branch/dev" in upload.get("post", "") for upload in Hub.uploads)


def test_local_folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "vocab.txt").write_text("x")
    assert find_file(tmp_path, "vocab.txt", subfolder="sub") == tmp_path / "sub" / "vocab.txt"
    assert find_file(str(tmp_path), "sub/vocab.txt") == tmp_path / "sub" / "vocab.txt"
    assert find_file(tmp_path, "vocab.txt", required=False) is None
    with pytest.raises(FileNotFoundError, match=r"config\.json.*there is sub/"):
        find_file(tmp_path, "config.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="there is nothing in it"):
        find_file(tmp_path / "empty", "config.json")
    with pytest.raises(FileNotFoundError, match=r"no folder .*other"):
        find_file(tmp_path, "config.json", subfolder="other")
    with pytest.raises(NotADirectoryError, match="is a file"):
        find_file(tmp_path / "sub" / "vocab.txt", "vocab.txt")


def test_many_files_are_not_all_listed(tmp_path):
    for number in range(30):
        (tmp_path / f"part-{number:02}").touch()
    with pytest.raises(FileNotFoundError, match=r"part-00, .*part-11 and 18 more$"):
        find_file(tmp_path, "config.json")


@pytest.mark.parametrize("place", ["/no/such/folder", "./model", "../model", "~/model", "a/b/c", "model/", "a\\b"])
def test_a_path_that_is_not_there_is_not_asked_for_on_the_hub(place):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        find_file(place, "config.json", required=False)


@pytest.mark.parametrize("place", ["", None, 3, b""])
def test_an_empty_or_odd_place_is_refused(place):
    with pytest.raises(ValueError, match="folder or a hub id"):
        find_file(place, "config.json")


@pytest.mark.parametrize("name", ["", ".", "./", "..", "../x", "a/../../x", "/x", "a\\..\\x", "C:/x", "a\0b", None, 3])
def test_names_that_lead_out_of_the_folder_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match="outside its folder"):
        inside(tmp_path, name)
    with pytest.raises(ValueError, match="outside its folder"):
        find_file(tmp_path, name, required=False)


def test_links_of_a_cache_are_followed(tmp_path):
    (tmp_path / "blob").write_text("x")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "config.json").symlink_to("../blob")
    assert find_file(tmp_path / "snapshot", "config.json").read_text() == "x"


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"\xff\xfe{", "not UTF-8"), (b'{"a": ', "not valid JSON"), (b"[1]", "list"), (b"[" * 100_000, "not valid JSON")],
)
def test_read_json_names_the_file(tmp_path, content, words):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(OSError, match=words) as caught:
        read_json(path)
    assert str(path) in str(caught.value)


def test_hub_options_take_their_own_and_leave_the_rest():
    kwargs = {"cache_dir": "c", "token": "new", "use_auth_token": "old", "proxies": {}, "dtype": "auto"}
    assert hub_options(kwargs) == {"cache_dir": "c", "token": "new"}
    assert kwargs == {"dtype": "auto"}
    assert find_file.__kwdefaults__.keys() >= set(hub_options({"revision": "x", "subfolder": "y", "force_download": 1}))


def test_uploading_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file to upload"):
        upload_folder(tmp_path, "me/model")


def test_a_hub_that_cannot_be_reached_says_why_in_few_words(monkeypatch):
    from huggingface_hub import errors

    def unreachable(*args, **kwargs):
        try:
            try:
                raise OSError(-2, "Name or service not known")
            except OSError as error:
                raise RuntimeError("HTTPSConnectionPool(host=...): Max retries exceeded with url: ...") from error
        except RuntimeError as error:
            raise errors.LocalEntryNotFoundError("cannot find the requested files") from error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    with pytest.raises(ConnectionError, match=r"gave no file \(\[Errno -2\] Name or service not known\): go online"):
        find_file("owner/model", "config.json")
