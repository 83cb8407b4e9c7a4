"""A small HTTP server on loopback that answers as the hub does, and a process of its own to ask it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

COMMIT = "1234567890abcdef1234567890abcdef12345678"
PYTHON = os.environ.get("WARMSTART_TEST_PYTHON", sys.executable)  # another interpreter, with another huggingface_hub


class Hub(BaseHTTPRequestHandler):
    """Serves `repositories`; `owner/secret` is private, `owner/gated` gated, `owner/broken` fails."""

    repositories: ClassVar[dict[str, dict[str, bytes]]] = {}
    tokens: ClassVar[set[str | None]] = set()  # that requests came with
    uploads: ClassVar[list[dict]] = []

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        parts = self.path.split("?")[0].strip("/").split("/")
        if "discussions" in parts:
            return self.answer(200, json.dumps(self.discussion()).encode())
        if parts[:2] == ["api", "models"]:
            repo = "/".join(parts[2:4])
            names = sorted(self.repositories.get(repo, ()))
            tree = [{"type": "file", "path": name, "size": 1, "oid": "0" * 40} for name in names]
            info = {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
            return self.answer(200, json.dumps(tree if "tree" in parts else info).encode())
        repo, revision, name = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        if repo == "owner/gated":
            return self.answer(403, X_Error_Code="GatedRepo", X_Error_Message="Access is restricted")
        if repo == "owner/broken":
            return self.answer(418, X_Error_Message="a teapot")
        token = self.headers.get("Authorization")
        self.tokens.add(token)
        if repo not in self.repositories or (repo == "owner/secret" and token != "Bearer hf_key"):
            return self.answer(401, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        if revision not in ("main", "v1", COMMIT):
            return self.answer(404, X_Error_Code="RevisionNotFound", X_Error_Message="Invalid rev id")
        files = self.repositories[repo]
        if name not in files:
            return self.answer(
                404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found", X_Repo_Commit=COMMIT
            )
        body = files[name]
        return self.answer(200, body, X_Repo_Commit=COMMIT, ETag=f'"{hashlib.sha1(body).hexdigest()}"')

    def discussion(self):
        details = {
            "title": "t",
            "num": 1,
            "status": "draft",
            "isPullRequest": True,
            "filesWithConflicts": [],
            "events": [],
        }
        details |= {
            "createdAt": "2024-01-01T00:00:00.000Z",
            "repo": {"name": "me/model", "type": "model"},
            "changes": {"base": "main"},
        }
        return details | {"author": {"name": "me"}, "diff": ""}

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        here = f"http://{self.headers['Host']}"
        if self.headers.get("Authorization") != "Bearer hf_key":
            return self.answer(403, b'{"error": "no right to write"}')
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            Hub.uploads.append({"create": asked})
            return self.answer(200, json.dumps({"url": f"{here}/{asked['organization']}/{asked['name']}"}).encode())
        if "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            return self.answer(200, json.dumps({"files": modes}).encode())
        if self.path.endswith("/discussions"):
            return self.answer(200, json.dumps(self.discussion()).encode())
        if "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            Hub.uploads.append({"commit": self.path, "title": lines[0]["value"]["summary"], "files": files})
            answer = {"commitUrl": f"{here}/me/model/commit/{COMMIT}", "commitOid": COMMIT}
            if "create_pr=1" in self.path:
                answer["pullRequestUrl"] = f"{here}/me/model/discussions/1"
            return self.answer(200, json.dumps(answer).encode())
        Hub.uploads.append({"post": self.path})
        return self.answer(200, b"{}")


@contextlib.contextmanager
def serving(repositories):
    """Serve repositories, `{"owner/name": {"file": bytes}}`; gives the address."""
    Hub.repositories = repositories
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def run(script, endpoint, home, given=None, timeout=60, **environment):
    """Run a script in a process of its own, which reads the environment anew; JSON in, JSON out."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    env |= {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1", **environment}
    done = subprocess.run(
        [PYTHON, "-c", script],
        check=False,
        input=json.dumps(given),
        env=env,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
