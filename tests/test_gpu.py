"""Answers of the first GPU: ``pytest -m gpu`` runs this file and every other GPU test.

Outputs are compared with the stored ones. Speed and memory are printed.
"""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from test_golden import GOLDEN, outputs_of_model
from torch.nn.functional import cosine_similarity

import facezoo
from facezoo.errors import UnsupportedError
from facezoo.hub.card import bundled_cards

PORTRAITS = sorted((Path(__file__).parents[1] / "examples" / "portraits").glob("*.jpg"))
NAMES = [name for name, card in bundled_cards().items() if card.model != "face-detector"]
pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def files():
    """64 encoded images."""
    return [PORTRAITS[n % len(PORTRAITS)].read_bytes() for n in range(64)]


def seconds(function, repeats=5):
    """Return the fastest of some calls, after one to warm up."""
    function()
    results = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        torch.cuda.synchronize()
        results.append(time.perf_counter() - start)
    return min(results)


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_gives_its_stored_outputs(name):
    stored = json.loads((GOLDEN / f"{name}.json").read_text())
    now = outputs_of_model(name, "cuda")
    for key, value in stored.items():
        rows = value["pixels"] if isinstance(value, dict) else value
        if key in ("fingerprint", "labels"):
            assert now[key] == value
            continue
        result = now[key]["pixels"] if isinstance(value, dict) else now[key]
        difference = np.abs(np.array(result) - np.array(rows))
        assert np.median(difference) < 1e-3 * np.abs(rows).max(), key
        assert difference.mean() < 1e-2 * np.abs(rows).max(), key


def test_faces_are_those_of_the_cpu():
    expected, result = (facezoo.detect(PORTRAITS, device) for device in ("cpu", "cuda"))
    torch.testing.assert_close(result.boxes.cpu(), expected.boxes, atol=0.1, rtol=0)
    torch.testing.assert_close(result.landmarks.cpu(), expected.landmarks, atol=0.1, rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_batches_and_single_images_are_faster_than_on_the_cpu(files, dtype, capsys):
    rates = {}
    for device in ("cpu", "cuda"):
        model = facezoo.load("ipd-fer", device=device, dtype=dtype)
        many = seconds(lambda m=model: m.encode_expression(files, faces="largest"))
        crops = torch.randn(256, *model.input_shape)
        crops = crops.to(model.device)
        encode = seconds(lambda m=model, c=crops: m.run(c, "encode_expression", 256))
        one = seconds(lambda m=model: m.encode_expression(files[0], faces="largest"))
        rates[device] = len(files) / many, 256 / encode, 1000 * one
    with capsys.disabled():
        for device, (images, encoded, latency) in rates.items():
            print(
                f"\n{device} {dtype}: {images:.0f} images/s, {encoded:.0f} crops/s, "
                f"one image {latency:.1f} ms",
                end="",
            )
    assert rates["cuda"][1] > 2 * rates["cpu"][1]


def test_nvjpeg_gives_nearly_the_features_of_pillow(files, capsys):
    plain = facezoo.load("ipd-fer", device="cuda")
    try:
        model = facezoo.load("ipd-fer", device="cuda", jpeg="nvjpeg")
    except UnsupportedError as error:
        pytest.skip(str(error))
    expected, result = (m.encode_expression(PORTRAITS, faces="largest") for m in (plain, model))
    assert cosine_similarity(result, expected).min() > 0.99
    rates = [
        len(files) / seconds(lambda m=m: m.encode_expression(files, faces="largest"))
        for m in (plain, model)
    ]
    with capsys.disabled():
        print(f"\nPillow {rates[0]:.0f} images/s, nvJPEG {rates[1]:.0f} images/s", end="")


def test_a_batch_fits_into_little_memory(files, capsys):
    model = facezoo.load("ipd-fer", device="cuda")
    model.encode_expression(files, faces="largest")
    torch.cuda.reset_peak_memory_stats()
    model.encode_expression(files, faces="largest")
    peak = torch.cuda.max_memory_allocated() / 2**20
    with capsys.disabled():
        print(f"\npeak memory of 64 images: {peak:.0f} MB", end="")
    assert peak < 4096
