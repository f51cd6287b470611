"""Extraction with several processes and with Ray gives the rows of one process."""

import sys
from pathlib import Path

import pytest
import torch
from two_processes import launch

import facezoo
from facezoo.extraction import extract, run
from facezoo.training.processes import Processes

PORTRAITS = Path(__file__).parents[2] / "examples" / "portraits"

SCRIPT = """
import atexit, os, signal, sys
import torch
from facezoo import extract
from facezoo.extraction import run
atexit.register(lambda: print(f"left: {not torch.distributed.is_initialized()}"))
run.PART_IMAGES = 2
source, output, model, *stop = sys.argv[1:]
if stop:
    append, calls = run.Parts.append, []
    def killed(self, block):
        calls.append(1)
        if len(calls) > int(stop[0]):
            os.kill(os.getpid(), signal.SIGKILL)
        append(self, block)
    run.Parts.append = killed
report = extract(source, output, model=model, device="cpu", batch_size=2, progress=False)
print(f"{report.rows} rows, {report.resumed} resumed")
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Nine names of two portraits, and a file that is not an image."""
    folder = tmp_path_factory.mktemp("images")
    portraits = sorted(PORTRAITS.glob("*.jpg"))
    for number in range(9):
        (folder / f"{number}.jpg").symlink_to(portraits[number % 2])
    (folder / "4b.jpg").write_bytes(b"not an image")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small checkpoint in a folder."""
    torch.manual_seed(0)
    options = {"backbone": "test_resnet.r160_in1k", "feature_dim": 8, "device": "cpu"}
    net = facezoo.load("ipd-fer", pretrained=False, **options)
    return str(net.save_pretrained(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def whole(images, model, tmp_path_factory):
    """The file that one process writes."""
    output = tmp_path_factory.mktemp("whole") / "f.parquet"
    extract(images, output, model=model, device="cpu", batch_size=2, progress=False)
    return output


@pytest.mark.slow
def test_two_processes_write_the_file_of_one_also_after_a_kill(images, model, whole, tmp_path):
    pytest.importorskip("accelerate")
    script, output = tmp_path / "script.py", tmp_path / "f.parquet"
    script.write_text(SCRIPT)
    assert launch(script, images, output, model, 2).returncode != 0
    assert not output.exists()
    done = launch(script, images, output, model)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("9 rows, 4 resumed") == 2
    assert done.stdout.count("left: True") == 2  # else threads of the group can abort the exit
    assert output.read_bytes() == whole.read_bytes()


def test_processes_with_different_images_are_an_error(images, tmp_path, model, monkeypatch):
    monkeypatch.setattr(Processes, "gather", lambda self, value: [value, "another"])
    with pytest.raises(ValueError, match="different images, models or options"):
        extract(images, tmp_path / "f.csv", model=model, device="cpu")


def test_without_ray_its_extra_is_named(images, tmp_path, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"facezoo\[ray\]"):
        extract(images, tmp_path / "f.csv", model=model, engine="ray", device="cpu")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Ray has warnings of its own
def test_the_actors_of_a_ray_cluster_write_the_file_of_one_process(
    images, model, whole, tmp_path, monkeypatch
):
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(run, "PART_IMAGES", 2)
    output = tmp_path / "f.parquet"
    memory = {"object_store_memory": 200 * 2**20, "include_dashboard": False}
    ray.init(num_cpus=2, _node_ip_address="127.0.0.1", **memory)
    try:
        report = extract(
            images, output, model=model, device="cpu", batch_size=2, engine="ray", progress=False
        )
    finally:
        ray.shutdown()
    assert output.read_bytes() == whole.read_bytes()
    assert [name for name, _ in report.unreadable] == ["4b.jpg"]
    assert report.seconds["encode"] > 0
