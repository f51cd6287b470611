"""Helpers for tests of extraction: a fake detector, small models, and folders of small images.

The first pixel of an image is the number of its faces.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import facezoo
from facezoo.extraction import extract
from facezoo.extraction.resume import folder_of
from facezoo.results import Faces

DETECT = "facezoo.preprocess.pipeline.detect"
FINGERPRINT = "facezoo.extraction.stages.fingerprint"
PART_IMAGES = "facezoo.extraction.run.PART_IMAGES"
LANDMARKS = torch.tensor([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.8], [0.65, 0.8]])
COUNTS = [1, 0, 2, 1, 1, 0, 0, 2, 1, 1, 2, 0, 1]
EXPECTED = [(f"{n:03d}.png", face) for n, count in enumerate(COUNTS) for face in range(count)]
"""Rows of a folder of images with ``COUNTS`` faces."""


def fake_detect(detector, images, config=None):
    """Return the number of faces in the first pixel, next to each other."""
    boxes, index = [], []
    for number, image in enumerate(images):
        for face in range(int(image[0, 0, 0])):
            boxes.append([4.0 + 3 * face, 5.0, 30.0 + 3 * face, 34.0])
            index.append(number)
    box = torch.tensor(boxes).reshape(-1, 4)
    points = box[:, None, :2] + LANDMARKS * (box[:, None, 2:] - box[:, None, :2])
    return Faces(box, points, torch.full((len(box),), 0.75), torch.tensor(index).long())


def stop_at(call, action):
    """Make a fake detector that does something else first at one of its calls."""
    calls = []

    def detect(*args, **options):
        calls.append(1)
        if len(calls) == call:
            action()
        return fake_detect(*args, **options)

    return detect


def replace_detector(monkeypatch):
    """Use the fake detector, a constant fingerprint, and small parts."""
    monkeypatch.setattr(DETECT, fake_detect)
    monkeypatch.setattr(FINGERPRINT, lambda *_, **__: "0123456789abcdef")
    monkeypatch.setattr(PART_IMAGES, 4)


def tiny_model(seed=0):
    torch.manual_seed(seed)
    # CSV files hold all 8 numbers of features that fill their space.
    options = {"backbone": "test_resnet", "feature_dim": 8, "expression_rank": 8}
    return facezoo.load("ipd-fer", pretrained=False, device="cpu", **options)


def write_image(path, faces, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 44, 3), dtype=np.uint8)
    pixels[0, 0] = faces
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_folder(folder, counts):
    for number, faces in enumerate(counts):
        write_image(folder / f"{number:03d}.png", faces, seed=number)
    return folder


def run(source, output, model, **options):
    return extract(source, output, model=model, batch_size=2, progress=False, **options)


def table(path):
    return pq.read_table(path).to_pylist()


def names_and_faces(path):
    return [(row["file"], row["face"]) for row in table(path)]


def interrupt(source, output, model, monkeypatch, call=4, **options):
    """Start a run and stop it with Ctrl-C at a batch."""
    with monkeypatch.context() as patch:
        patch.setattr(DETECT, stop_at(call, lambda: signal.raise_signal(signal.SIGINT)))
        with pytest.raises(KeyboardInterrupt):
            run(source, output, model, **options)


SLOW_RUN = """
import sys, time
sys.path.insert(0, {tests!r})
import fake_faces, pytest
patch = pytest.MonkeyPatch()
fake_faces.replace_detector(patch)
detect = fake_faces.fake_detect
def slow(*args, **options):
    time.sleep(0.1)
    return detect(*args, **options)
patch.setattr(fake_faces.DETECT, slow)
fake_faces.run({source!r}, {output!r}, fake_faces.tiny_model(), **{options!r})
"""


def kill(source, output, parts, **options):
    """Start a slow run in another process, and kill it when it has written some parts."""
    tests, root = str(Path(__file__).parent), str(Path(facezoo.__file__).parent.parent)
    code = SLOW_RUN.format(tests=tests, source=str(source), output=str(output), options=options)
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    deadline = time.monotonic() + 120
    while len(list(folder_of(output).glob("*.npz"))) < parts:
        assert process.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not output.exists()
