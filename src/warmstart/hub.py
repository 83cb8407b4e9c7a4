"""Finds a file in a local folder or in a repository of the Hugging Face hub, and sends a folder there."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from warmstart.folder import finish_saves

_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download", "subfolder")
_IGNORED = ("proxies", "resume_download")
# The options of `upload_folder` that a save may be given.
UPLOADING = ("token", "revision", "private", "commit_message", "create_pr")
_SHOWN = 12


def hub_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Take the keywords that say where a file comes from out of ``kwargs``, for :func:`find_file`.

    ``use_auth_token`` is the old name of ``token``; ``proxies`` and ``resume_download`` have no effect any more and
    are dropped.

    >>> kwargs = {"revision": "main", "use_auth_token": "hf_x", "resume_download": True, "num_beams": 4}
    >>> hub_options(kwargs)
    {'revision': 'main', 'token': 'hf_x'}
    >>> kwargs
    {'num_beams': 4}
    """
    options = {name: kwargs.pop(name) for name in _OPTIONS if name in kwargs}
    old_token = kwargs.pop("use_auth_token", None)
    if old_token is not None and options.get("token") is None:
        options["token"] = old_token
    for name in _IGNORED:
        kwargs.pop(name, None)
    return options


def inside(folder: str | os.PathLike[str], name: str) -> Path:
    """Join ``name``, a relative path that a file or a user gave, to ``folder``; refuse one that leads out of it.

    The test is on the spelling. Links are not followed, because a hub cache is made of links into its store.

    Raises:
        ValueError: ``name`` is empty, absolute, has a drive or a backslash, or climbs with ``..``.

    >>> inside("model", "onnx/weights.safetensors").as_posix()
    'model/onnx/weights.safetensors'
    >>> inside("model", "../secret")
    Traceback (most recent call last):
    ...
    ValueError: the file name '../secret' points outside its folder 'model'; give a plain relative name
    """
    given: object = name  # it may come out of a file
    spelled = False
    if isinstance(given, str) and not any(mark in given for mark in "\\\0"):
        path = PurePosixPath(given)
        spelled = bool(path.parts) and not path.is_absolute() and ".." not in path.parts and ":" not in path.parts[0]
    if not spelled:
        raise ValueError(
            f"the file name {name!r} points outside its folder {str(folder)!r}; give a plain relative name"
        )
    return Path(folder) / name


def find_file(
    name_or_path: str | os.PathLike[str],
    filename: str,
    *,
    required: bool = True,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    subfolder: str = "",
) -> Path | None:
    """Return the path of ``filename`` in a local folder or, downloaded if need be, in a hub repository.

    A folder that exists is used, after a save into it that was cut short is finished. Any other ``name_or_path`` that
    reads as ``name`` or ``owner/name`` is taken for a hub id and handed to ``huggingface_hub``, with all that it
    honours (``HF_ENDPOINT``, ``HF_HUB_OFFLINE``, ``HF_TOKEN``, ``HF_HOME`` ...). With ``required=False`` a file that is
    not there gives None; a folder, repository or revision that is not there is an error all the same.

    Raises:
        FileNotFoundError: no such folder, repository, revision or file; the message says what is there instead.
        NotADirectoryError: ``name_or_path`` is a file.
        PermissionError: the repository is gated or disabled.
        ConnectionError: offline, and the repository is not in the cache.
        OSError: the hub answered with another error.
        ValueError: ``filename`` or ``subfolder`` points outside the folder, or ``name_or_path`` is empty.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> _ = (Path(folder) / "config.json").write_text("{}")
    >>> find_file(folder, "config.json").name
    'config.json'
    >>> find_file(folder, "model.safetensors", required=False) is None
    True
    """
    given: object = name_or_path
    if not (isinstance(given, (str, os.PathLike)) and os.fspath(given)):
        raise ValueError(f"a folder or a hub id is needed, not {name_or_path!r}")
    place = os.fspath(name_or_path)
    inner = str(PurePosixPath(subfolder) / filename) if subfolder else filename
    inside(place, filename)
    if subfolder:
        inside(place, str(subfolder))
    if os.path.isdir(place):
        path = inside(place, inner)
        for folder in {Path(place), path.parent}:
            finish_saves(folder)
        if path.is_file():
            return path
        if required:
            _not_in_folder(path.parent, filename)
        return None
    _check_hub_id(place)
    options = {"cache_dir": cache_dir, "token": token, "local_files_only": local_files_only}
    return _download(place, inner, required, revision, force_download, options)


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        OSError: the file is not there, is not UTF-8, is not JSON, or holds something other than an object; the message
            names the file.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "config.json"
    >>> _ = path.write_text('{"model_type": "bert"}')
    >>> read_json(path)
    {'model_type': 'bert'}
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise OSError(f"{path} is not UTF-8 text ({error}); it is not the JSON file it should be") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise OSError(f"{path} is not valid JSON ({error}); was it cut off while it was copied?") from error
    if not isinstance(value, dict):
        raise OSError(f"{path} holds a JSON {type(value).__name__}; an object, {{...}}, is expected")
    return value


def upload_folder(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    token: str | bool | None = None,
    revision: str | None = None,
    private: bool | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    only: Iterable[str] | None = None,
) -> str:
    """Send the files of ``folder`` to the hub repository ``repo_id``, made if it is not there, in one commit.

    ``only`` names the files to send, relative to the folder; without it all of them are sent. ``revision`` is the
    branch, made too if it is not there. Returns the address of the commit, or of the pull request.

    Raises:
        FileNotFoundError: there is no such folder, or it is empty.
        OSError: the hub refused (no token, no right to write ...).

    >>> upload_folder("no/such/folder", "me/my-model")
    Traceback (most recent call last):
    ...
    FileNotFoundError: there is no folder 'no/such/folder' to upload to 'me/my-model'
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"there is no folder {os.fspath(folder)!r} to upload to {repo_id!r}")
    if not any(path.is_file() for path in Path(folder).rglob("*")):
        raise FileNotFoundError(f"the folder {os.fspath(folder)!r} holds no file to upload to {repo_id!r}")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(token=token, library_name="warmstart")
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/pr"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=os.fspath(folder),
            revision=revision,
            commit_message=commit_message or "Upload with warmstart",
            create_pr=create_pr,
            allow_patterns=None if only is None else list(only),
        )
    except HfHubHTTPError as error:
        raise OSError(
            f"the hub did not take {os.fspath(folder)!r} as {repo_id!r}: {_first_line(error)}; check the name, and "
            "that `token=` or HF_TOKEN may write there"
        ) from error
    return str(commit.pr_url or commit.commit_url)


def _not_in_folder(folder: Path, filename: str) -> NoReturn:
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {str(folder)!r}, where {filename!r} was looked for")
    there = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    raise FileNotFoundError(f"there is no {filename!r} in {str(folder)!r}; there is {_listing(there)}")


def _listing(names: list[str]) -> str:
    if not names:
        return "nothing in it"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _check_hub_id(place: str) -> None:
    if os.path.isfile(place):
        raise NotADirectoryError(
            f"{place!r} is a file; give the folder that holds it, {os.path.dirname(place) or '.'!r}"
        )
    parts = place.split("/")
    if os.path.isabs(place) or parts[0] in ("", ".", "..", "~") or "\\" in place or len(parts) > 2 or parts[-1] == "":
        raise FileNotFoundError(
            f"there is no folder {place!r}; give a folder that exists, or a hub id like 'owner/name'"
        )


def _download(
    repo_id: str, inner: str, required: bool, revision: str | None, force_download: bool, options: dict[str, Any]
) -> Path | None:
    from huggingface_hub import errors, hf_hub_download

    at = f"{repo_id!r}" + (f" at revision {revision!r}" if revision else "")
    try:
        found = hf_hub_download(
            repo_id,
            inner,
            revision=revision,
            force_download=force_download,
            library_name="warmstart",
            **options,
        )
        return Path(found)
    except errors.GatedRepoError as error:
        raise PermissionError(
            f"{at} is gated on the hub; ask for access on its page, then give `token=` or set HF_TOKEN"
        ) from error
    except errors.DisabledRepoError as error:
        raise PermissionError(f"{at} is disabled on the hub: {_first_line(error)}") from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{repo_id!r} is neither a folder here nor a repository on the hub; check the spelling, and if it is "
            "private, give `token=` or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"{repo_id!r} has no revision {revision!r} on the hub; give a branch, a tag or a commit hash that it has"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        if not required and _is_cached(repo_id, revision, options["cache_dir"]):
            return None
        answer = f" ({_first_line(_root(error))})" if error.__cause__ else ""
        raise ConnectionError(
            f"{at} is no folder here, its {inner!r} is not in the local cache, and the hub was not asked or gave no "
            f"file{answer}: go online (see HF_HUB_OFFLINE, HF_ENDPOINT, `local_files_only`), or name a folder"
        ) from error
    except errors.EntryNotFoundError as error:
        if not required:
            return None
        there = _hub_listing(repo_id, revision, options["token"])
        raise FileNotFoundError(f"there is no {inner!r} in {at} on the hub{there}") from error
    except errors.HFValidationError as error:
        raise FileNotFoundError(
            f"{repo_id!r} is neither a folder here nor a hub id like 'owner/name': {_first_line(error)}"
        ) from error
    except errors.HfHubHTTPError as error:
        raise OSError(f"the hub did not give {inner!r} of {at}: {_first_line(error)}") from error


def _is_cached(repo_id: str, revision: str | None, cache_dir: str | os.PathLike[str] | None) -> bool:
    """Whether some file of this revision was downloaded before, so that a missing one may well not exist."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(cache_dir or HF_HUB_CACHE) / ("models--" + repo_id.replace("/", "--"))
    name = revision or "main"
    return (folder / "refs" / name).is_file() or (folder / "snapshots" / name).is_dir()


def _hub_listing(repo_id: str, revision: str | None, token: str | bool | None) -> str:
    from huggingface_hub import HfApi

    with contextlib.suppress(Exception):  # the listing only embellishes an error that is raised anyway
        return "; there is " + _listing(sorted(HfApi(token=token).list_repo_files(repo_id, revision=revision)))
    return ""


def _root(error: BaseException) -> BaseException:
    """What an error came from in the end: "Name or service not known", not the libraries' words around it."""
    while (before := error.__cause__ or error.__context__) is not None:
        error = before
    return error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
