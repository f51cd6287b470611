"""A model family of a few numbers, and a Hub on 127.0.0.1 with the protocol of the real one.

HF_ENDPOINT is read when huggingface_hub is imported, so clients run in processes of their own.
"""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from torch import nn

from facezoo.hub import card as cards
from facezoo.hub import tensors as weights
from facezoo.hub.card import Card, Preprocessing
from facezoo.hub.families import FAMILIES
from facezoo.models.pretrained import Pretrained

ROOT = Path(__file__).parent.parent
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "facezoo/tiny-face.first"


class TinyFace(nn.Module, Pretrained):
    """Three inputs, a few classes."""

    model_name = "tiny-face"

    def __init__(self, width: int = 4, num_classes: int = 2):
        super().__init__()
        self.architecture = {"width": width, "num_classes": num_classes}
        self.preprocessing = Preprocessing()
        self.labels = tuple(f"class-{i}" for i in range(num_classes))
        self.body = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width))
        self.head = nn.Linear(width, num_classes)

    def forward(self, batch):
        return self.head(self.body(batch))

    def reset_classifier(self, num_classes):
        self.architecture = {**self.architecture, "num_classes": num_classes}
        self.labels = tuple(f"class-{i}" for i in range(num_classes))
        self.head = nn.Linear(self.head.in_features, num_classes)


class OtherFace(TinyFace):
    """A family without a checkpoint."""

    model_name = "other-face"


class AnyFace(nn.Module, Pretrained):
    """A base class that loads any family, as FaceModel is."""


def card_mapping(**changes):
    """A complete card as JSON."""
    return {
        "schema": 1,
        "model": "tiny-face",
        "tag": "first",
        "default": True,
        "architecture": {"width": 4, "num_classes": 2},
        "preprocessing": {
            "template": "arcface112",
            "size": 112,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.5, 0.5],
            "resampling": "bilinear-box",
        },
        "labels": ["happy", "sad"],
        "weights": {
            "file": "tiny-face.first.safetensors",
            "sha256": "ab" * 32,
            "size": 1000,
            "dtype": "float16",
            "parameters": 34,
        },
        "hub": {"repo": REPO, "revision": COMMIT, "file": "model.safetensors"},
        "licenses": {"code": "Apache-2.0", "weights": "research-only", "data": "unknown"},
        "training": {
            "data": ["Some Faces"],
            "command": "facezoo train tiny-face --seed 0",
            "commit": "f" * 40,
            "recipe": {"epochs": 3},
            "seed": 0,
            "hardware": "1 CPU",
        },
        "metrics": [
            {
                "name": "accuracy",
                "value": 51.5,
                "unit": "%",
                "dataset": "Some Faces",
                "split": "test",
                "protocol": "majority vote",
                "command": "facezoo evaluate tiny-face",
            }
        ],
        "limits": ["Weak: two classes only."],
        "intended_use": "Tests.",
        "citation": "@misc{tiny}",
        **changes,
    }


def write_checkpoint(folder, *, with_weights=True, dtype="float16", **changes):
    """Write a card and its weights in the layout of the package; return the card and the bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    card = Card.parse(card_mapping(**changes))
    card = replace(card, weights=replace(card.weights, file=f"{card.name}.safetensors"))
    path = folder / card.weights.file
    weights.save(TinyFace(**card.architecture), path, dtype)
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    stored = replace(card.weights, sha256=digest, size=len(content), dtype=dtype)
    card = replace(card, weights=stored)
    (folder / f"{card.name}.json").write_text(card.to_json())
    if not with_weights:
        path.unlink()
    return card, content


def use_tiny_families(monkeypatch, folder):
    """Fill a package folder with two checkpoints of tiny-face, a detector and a family without."""
    write_checkpoint(folder)
    write_checkpoint(folder, tag="wide", default=False, architecture={"width": 9})
    write_checkpoint(folder, model="face-detector", tag="v1", labels=[])
    monkeypatch.setattr(cards, "CHECKPOINTS", folder)
    for family in list(FAMILIES):
        monkeypatch.delitem(FAMILIES, family)
    monkeypatch.setitem(FAMILIES, "tiny-face", ("hub_server", "TinyFace"))
    monkeypatch.setitem(FAMILIES, "other-face", ("hub_server", "OtherFace"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return folder


def same_tensors(one, other):
    state = other.state_dict()
    return all(torch.equal(tensor, state[name]) for name, tensor in one.state_dict().items())


CLIENT = """
import sys, time
from pathlib import Path
import facezoo, facezoo.hub.card, facezoo.hub.families
from facezoo.hub import tensors as weights
from facezoo.errors import *
facezoo.hub.card.CHECKPOINTS = Path(sys.argv[1])
facezoo.hub.families.FAMILIES.clear()
facezoo.hub.families.FAMILIES["tiny-face"] = ("hub_server", "TinyFace")
def attempt(call):
    start = time.monotonic()
    try:
        print(call())
    except Exception as error:
        print(type(error).__name__, error, sep=": ")
    print(f"seconds={time.monotonic() - start:.2f}", file=sys.stderr)
"""


def client(code, checkpoints, *, home, hub=None, wait=True, **environment):
    """Run ``code`` in a process with the tiny family; return its output, or the process."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    environment = {
        **inherited,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HOME": str(home),
        "HF_ENDPOINT": hub.url if hub else "http://127.0.0.1:9",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
        **environment,
    }
    arguments = [sys.executable, "-c", CLIENT + code, str(checkpoints)]
    process = subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    return outcome(process) if wait else process


def outcome(process):
    """Return the output of a client; show its errors if it failed."""
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out.strip()


@dataclass
class Repo:
    """A repository; the last three hold names of files that are sent wrong."""

    files: dict = field(default_factory=dict)
    commit: str = COMMIT
    gated: bool = False
    altered: set = field(default_factory=set)
    cut_off: set = field(default_factory=set)
    shortened: set = field(default_factory=set)


class Hub(ThreadingHTTPServer):
    """The server; ``requests`` holds method, path and headers of each request."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos, self.requests, self.status = {}, [], None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def running_hub(repos=None):
    """Run a server in a thread, with repositories by name."""
    hub = Hub()
    hub.repos.update(repos or {})
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    """Answers ``/{org}/{repo}/resolve/{revision}/{file}``, create_repo and create_commit."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.server.requests.append(("HEAD", self.path, dict(self.headers)))
        self.resolve()

    def do_GET(self):
        if "/resolve/" not in self.path:  # a question of huggingface_hub itself
            return self.reject(404)
        self.server.requests.append(("GET", self.path, dict(self.headers)))
        return self.resolve()

    def reject(self, status, code=None):
        self.answer(status, headers={"X-Error-Code": code} if code else {})

    def answer(self, status, content=b"", headers=None, length=None):
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def resolve(self):
        if self.server.status:
            return self.reject(self.server.status)
        name, _, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        repo = self.server.repos.get(name)
        if repo is None:
            return self.reject(404, "RepoNotFound")
        if repo.gated and not self.headers.get("Authorization"):
            return self.reject(403, "GatedRepo")
        if revision not in ("main", repo.commit):
            return self.reject(404, "RevisionNotFound")
        if file not in repo.files:
            return self.reject(404, "EntryNotFound")
        return self.send_file(repo, file)

    def send_file(self, repo, file):
        content = repo.files[file]
        headers = {
            "X-Repo-Commit": repo.commit,
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
        }
        size = len(content)
        if self.command == "GET" and file in repo.altered:
            content = content[:-1] + bytes([content[-1] ^ 1])
        if self.command == "GET" and file in repo.shortened:
            return self.answer(200, content[: size // 2], headers)
        if self.command == "GET" and file in repo.cut_off:
            self.close_connection = True
            return self.answer(200, content[: size // 2], headers, length=size)
        return self.answer(200, content, headers)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append(("POST", self.path, dict(self.headers)))
        name = "/".join(self.path.split("/")[3:5])
        if self.path == "/api/repos/create":
            request = json.loads(body)
            name = "/".join(filter(None, [request.get("organization"), request["name"]]))
            self.server.repos.setdefault(name, Repo())
            return self.reply({"url": f"{self.server.url}/{name}", "name": name})
        if self.path == "/api/validate-yaml":
            return self.reply({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular"} for f in json.loads(body)["files"]
            ]
            return self.reply({"files": [{**f, "shouldIgnore": False} for f in files]})
        if "/paths-info/" in self.path:
            return self.reply(self.paths_info(name, body.decode()))
        return self.commit(name, body)

    def paths_info(self, name, request):
        files = self.server.repos[name].files
        return [
            {
                "type": "file",
                "path": path,
                "size": len(content),
                "oid": "0" * 40,
                "lfs": {
                    "oid": hashlib.sha256(content).hexdigest(),
                    "size": len(content),
                    "pointerSize": 100,
                },
            }
            for path, content in files.items()
            if path in request
        ]

    def commit(self, name, body):
        lines = [json.loads(line)["value"] for line in body.splitlines()]
        for value in lines[1:]:
            content = base64.b64decode(value["content"])
            self.server.repos[name].files[value["path"]] = content
        url = f"{self.server.url}/{name}/commit/{COMMIT}"
        return self.reply({"success": True, "commitOid": COMMIT, "commitUrl": url})

    def reply(self, content):
        self.answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})
