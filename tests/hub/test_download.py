"""Weights from the Hub: the real client and a server on 127.0.0.1."""

import hashlib
import socket
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from hub_server import COMMIT, REPO, ROOT, Repo, client, outcome, running_hub, write_checkpoint

from facezoo.version import __version__

QUICK = {"HF_HUB_ETAG_TIMEOUT": "1"}
DOWNLOAD = "attempt(lambda: facezoo.download('tiny-face')['tiny-face'])"


@pytest.fixture
def checkpoint(tmp_path):
    """A card in the package whose weights are on the Hub only: (folder, card, content)."""
    folder = tmp_path / "checkpoints"
    card, content = write_checkpoint(folder, with_weights=False)
    return folder, card, content


@pytest.fixture
def hub(checkpoint):
    _, card, content = checkpoint
    files = {"model.safetensors": content, "config.json": card.to_json().encode()}
    with running_hub({REPO: Repo(files)}) as server:
        yield server


def test_weights_come_from_the_hub_at_the_commit_in_the_card(checkpoint, hub, tmp_path):
    folder, _, content = checkpoint
    path = Path(client(DOWNLOAD, folder, home=tmp_path / "home", hub=hub))
    assert path.read_bytes() == content
    assert path.is_relative_to(tmp_path / "home")
    assert {asked for _, asked, _ in hub.requests} == {
        f"/{REPO}/resolve/{COMMIT}/model.safetensors"
    }


def test_library_version_and_token_are_sent(checkpoint, hub, tmp_path):
    client(DOWNLOAD, checkpoint[0], home=tmp_path, hub=hub, HF_TOKEN="hf_abc")
    for _, _, headers in hub.requests:
        sent = {key.lower(): value for key, value in headers.items()}
        assert f"facezoo/{__version__}" in sent["user-agent"]
        assert sent["authorization"] == "Bearer hf_abc"


def test_a_cached_file_needs_no_request_and_no_server(checkpoint, hub, tmp_path):
    folder = checkpoint[0]
    first = client(DOWNLOAD, folder, home=tmp_path, hub=hub)
    hub.requests.clear()
    assert client(DOWNLOAD, folder, home=tmp_path, hub=hub) == first
    assert hub.requests == []
    assert client(DOWNLOAD, folder, home=tmp_path) == first
    assert client(DOWNLOAD, folder, home=tmp_path, HF_HUB_OFFLINE="1") == first


def test_the_package_comes_before_the_cache_and_the_hub(hub, tmp_path):
    write_checkpoint(tmp_path / "full")
    path = client(DOWNLOAD, tmp_path / "full", home=tmp_path, hub=hub)
    assert path == str(tmp_path / "full" / "tiny-face.first.safetensors")
    assert hub.requests == []


def test_an_altered_body_is_rejected_and_the_next_call_succeeds(checkpoint, hub, tmp_path):
    folder, _, content = checkpoint
    hub.repos[REPO].altered = {"model.safetensors"}
    output = client(DOWNLOAD, folder, home=tmp_path, hub=hub)
    assert output.startswith("WeightsCorruptedError: the Hub sent")
    assert "SHA-256" in output
    hub.repos[REPO].altered = set()
    assert Path(client(DOWNLOAD, folder, home=tmp_path, hub=hub)).read_bytes() == content


@pytest.mark.parametrize(
    ("fault", "error"),
    [("cut_off", "HubUnreachableError"), ("shortened", "WeightsCorruptedError")],
)
def test_an_incomplete_body_is_rejected_soon_and_the_next_call_succeeds(
    checkpoint, hub, tmp_path, fault, error
):
    folder, _, content = checkpoint
    setattr(hub.repos[REPO], fault, {"model.safetensors"})
    start = time.monotonic()
    output = client(DOWNLOAD, folder, home=tmp_path, hub=hub)
    assert output.startswith(error), output
    assert time.monotonic() - start < 15
    setattr(hub.repos[REPO], fault, set())
    assert Path(client(DOWNLOAD, folder, home=tmp_path, hub=hub)).read_bytes() == content


def test_a_download_that_always_breaks_off_at_the_same_byte_ends(hub, tmp_path):
    code = """
from huggingface_hub import constants
from facezoo.hub.download import HubOptions, fetch
constants.DOWNLOAD_CHUNK_SIZE = 100  # every part arrives, so that huggingface_hub tries without end
attempt(lambda: fetch("some/one", "large.bin", None, HubOptions()))
"""
    hub.repos["some/one"] = Repo({"large.bin": bytes(1000)}, cut_off={"large.bin"})
    (tmp_path / "empty").mkdir()
    output = client(code, tmp_path / "empty", home=tmp_path, hub=hub)
    assert output.startswith("HubUnreachableError"), output
    assert "breaks off at the same byte" in output


def test_a_corrupted_file_in_the_cache_is_fetched_again(checkpoint, hub, tmp_path):
    folder, _, content = checkpoint
    path = Path(client(DOWNLOAD, folder, home=tmp_path, hub=hub))
    path.resolve().write_bytes(content[:-8])
    output = client(DOWNLOAD, folder, home=tmp_path)
    assert output.startswith("WeightsCorruptedError")
    assert "truncated" in output
    assert "The Hub cannot replace it" in output
    assert Path(client(DOWNLOAD, folder, home=tmp_path, hub=hub)).read_bytes() == content


def test_missing_and_gated_repositories_files_and_revisions_have_their_own_errors(
    checkpoint, hub, tmp_path
):
    folder = checkpoint[0]
    repo = hub.repos.pop(REPO)
    output = client(DOWNLOAD, folder, home=tmp_path, hub=hub)
    assert output.startswith("WeightsNotFoundError")
    assert f"no repository {REPO}" in output
    assert "HF_TOKEN" in output
    hub.repos[REPO] = Repo(repo.files, gated=True)
    assert "gated" in client(DOWNLOAD, folder, home=tmp_path, hub=hub)
    hub.repos[REPO] = Repo({"README.md": b"x"})
    assert "has no file model.safetensors" in client(DOWNLOAD, folder, home=tmp_path, hub=hub)
    hub.repos[REPO] = Repo(repo.files, commit="9" * 40)
    assert f"has no revision {COMMIT}" in client(DOWNLOAD, folder, home=tmp_path, hub=hub)


def test_an_unreachable_hub_and_offline_mode_are_different_errors_within_ten_seconds(
    checkpoint, tmp_path
):
    start = time.monotonic()
    output = client(DOWNLOAD, checkpoint[0], home=tmp_path)
    assert output.startswith("HubUnreachableError"), output
    assert "HTTPS_PROXY" in output
    output = client(DOWNLOAD, checkpoint[0], home=tmp_path, HF_HUB_OFFLINE="1")
    assert output.startswith("HubOfflineError")
    assert "facezoo.download()" in output
    assert time.monotonic() - start < 10


def test_a_hub_that_fails_or_never_answers_counts_as_unreachable(checkpoint, hub, tmp_path):
    hub.status = 503
    assert "503" in client(DOWNLOAD, checkpoint[0], home=tmp_path, hub=hub)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        start = time.monotonic()
        output = client(DOWNLOAD, checkpoint[0], home=tmp_path, HF_ENDPOINT=endpoint, **QUICK)
        assert output.startswith("HubUnreachableError")
        assert time.monotonic() - start < 10


def test_two_processes_fetching_the_same_checkpoint_both_succeed(checkpoint, hub, tmp_path):
    folder, _, content = checkpoint
    started = [client(DOWNLOAD, folder, home=tmp_path, hub=hub, wait=False) for _ in range(2)]
    first, second = (outcome(process) for process in started)
    assert first == second
    assert Path(first).read_bytes() == content


def test_a_hub_repository_is_loaded_by_its_own_card(hub, tmp_path):
    load = f"""
for revision in "main", "{COMMIT}":
    model = facezoo.load(f"hf-hub:{REPO}@{{revision}}", device="cpu")
    print((type(model).__name__, model.labels, model.card.hub.revision, model.training))
"""
    (tmp_path / "empty").mkdir()
    expected = "\n".join([f"('TinyFace', ('happy', 'sad'), '{COMMIT}', False)"] * 2)
    assert client(load, tmp_path / "empty", home=tmp_path, hub=hub) == expected
    assert client(load, tmp_path / "empty", home=tmp_path) == expected, "cached, server down"


def test_another_version_on_the_hub_leaves_the_weights_of_the_package_alone(hub, tmp_path):
    card, content = write_checkpoint(tmp_path / "full")
    own = tmp_path / "full" / card.weights.file
    code = f"""
attempt(lambda: facezoo.load("hf-hub:{REPO}", device="cpu").card.weights.sha256)
attempt(lambda: facezoo.load("tiny-face", device="cpu").card.weights.sha256)
"""
    output = client(code, tmp_path / "full", home=tmp_path, hub=hub)
    theirs = hashlib.sha256(hub.repos[REPO].files["model.safetensors"]).hexdigest()
    assert output.splitlines() == [theirs, card.weights.sha256]
    assert own.read_bytes() == content


def test_a_repository_of_pickles_is_rejected_without_fetching_them(hub, tmp_path):
    hub.repos["some/one"] = Repo({"pytorch_model.bin": b"PK\x03\x04" + bytes(300)})
    code = "attempt(lambda: facezoo.download('hf-hub:some/one'))"
    (tmp_path / "empty").mkdir()
    assert "has no file config.json" in client(code, tmp_path / "empty", home=tmp_path, hub=hub)
    assert not any("bin" in path for _, path, _ in hub.requests)


def test_pushing_a_model_sends_card_weights_and_readme_which_load_again(hub, tmp_path):
    write_checkpoint(tmp_path / "full")
    code = """
from hub_server import TinyFace
import torch
model = facezoo.load("tiny-face", device="cpu")
model.push_to_hub("me/mine", token="hf_abc")
again = TinyFace.from_pretrained("me/mine", revision="main")
there = again.state_dict()
print(all(torch.equal(tensor, there[name]) for name, tensor in model.state_dict().items()))
print(again.card.hub.repo, len(again.card.metrics), again.labels)
"""
    output = client(code, tmp_path / "full", home=tmp_path, hub=hub)
    assert output.splitlines() == ["True", "me/mine 1 ('happy', 'sad')"]
    assert set(hub.repos["me/mine"].files) == {"config.json", "model.safetensors", "README.md"}
    agents = [h.get("User-Agent") or h.get("user-agent") for m, _, h in hub.requests if m == "POST"]
    assert all(f"facezoo/{__version__}" in agent for agent in agents)


@pytest.mark.skipif(sys.platform != "linux", reason="takes root's right to write away")
def test_a_read_only_package_and_a_read_only_cache_are_enough(checkpoint, hub, tmp_path):
    folder, card, _ = checkpoint
    home, full = tmp_path / "home", tmp_path / "full"
    write_checkpoint(full)
    path = Path(client(DOWNLOAD, folder, home=home, hub=hub))
    with read_only(folder, full, home):
        loads = DOWNLOAD + "\nprint(facezoo.load('tiny-face', device='cpu').card.name)"
        output = client(WITHOUT_POWERS + loads, folder, home=home)
        assert output.splitlines() == [str(path), "tiny-face.first"]
        output = client(WITHOUT_POWERS + DOWNLOAD, full, home=home)
        assert output == str(full / card.weights.file)


@pytest.mark.skipif(sys.platform != "linux", reason="takes root's right to write away")
def test_a_corrupted_file_in_a_read_only_folder_is_passed_over(checkpoint, hub, tmp_path):
    folder, card, content = checkpoint
    home, full = tmp_path / "home", tmp_path / "full"
    write_checkpoint(full)
    (full / card.weights.file).write_bytes(content[:-1] + b"x")
    (full / f"{card.name}.json").write_text(card.to_json())
    with read_only(full):
        path = Path(client(WITHOUT_POWERS + DOWNLOAD, full, home=home, hub=hub))
        assert path.read_bytes() == content, "the Hub replaces the file in the package"
    path.resolve().write_bytes(content[:-1] + b"x")
    with read_only(home):
        output = client(WITHOUT_POWERS + DOWNLOAD, folder, home=home, hub=hub)
        assert output.startswith("WeightsCorruptedError")
        assert "could not be written to the cache" in output


# Root may write anything (CAP_DAC_OVERRIDE), so a client that runs as root gives that up first.
WITHOUT_POWERS = """
import ctypes, os
if os.getuid() == 0:
    libc = ctypes.CDLL(None)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    sets[0] &= ~0b10
    assert libc.capset(header, sets) == 0
"""


@contextmanager
def read_only(*folders):
    """Take away the right to write from everything in some folders."""
    paths = [path for folder in folders for path in [folder, *folder.rglob("*")]]
    modes = {path: path.stat().st_mode for path in paths}
    for path, mode in modes.items():
        path.chmod(mode & 0o555)
    try:
        yield
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


@pytest.mark.parametrize("module", ["hub/card", "hub/files", "hub/names", "registry"])
def test_no_environment_variable_of_our_own_is_read(module):
    source = (ROOT / "facezoo" / f"{module}.py").read_text(encoding="utf-8")
    assert "os.environ" not in source
    assert "getenv" not in source


def test_downloading_imports_no_torch(tmp_path):
    write_checkpoint(tmp_path / "full")
    code = DOWNLOAD + "\nprint('torch' in sys.modules)"
    assert client(code, tmp_path / "full", home=tmp_path).endswith("False")
