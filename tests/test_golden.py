"""A fixed input gives a stored output, so that neither weights nor preprocessing drift unnoticed.

After a change that is meant to change outputs, and is marked so in CHANGELOG.md, rewrite the stored
outputs with ``python tests/test_golden.py [CHECKPOINT ...]``.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import facezoo
from facezoo.hub.card import bundled_cards
from facezoo.hub.files import find
from facezoo.hub.tensors import load_into, read_tensors
from facezoo.models.capabilities import STAGES
from facezoo.models.mesh_base import MeshModel
from facezoo.preprocess.bundled import read_detector
from facezoo.preprocess.detection import detect
from facezoo.preprocess.detector import FaceDetector
from facezoo.preprocess.fingerprint import fingerprint
from facezoo.preprocess.images import read_image
from facezoo.preprocess.pipeline import to_device
from facezoo.results import flatten_rows

GOLDEN = Path(__file__).parent / "golden"
PORTRAITS = sorted((Path(__file__).parents[1] / "examples" / "portraits").glob("*.jpg"))
KEPT = 64  # numbers of each feature that are stored


def pattern(size):
    """Smooth colours that need no file, uint8, (size, size, 3)."""
    y, x = np.mgrid[0:size, 0:size] / size
    waves = [np.sin(7 * x + 3 * y), np.cos(5 * x * y + 1), np.sin(9 * y - 4 * x)]
    return np.uint8(127.5 + 120 * np.stack(waves, -1))


def outputs_of_model(name, device="cpu"):
    model = facezoo.load(name, device=device)
    if isinstance(model, MeshModel):
        return outputs_of_meshes(model)
    stored = {"fingerprint": fingerprint(model.preprocessing), "labels": list(model.labels)}
    wanted = [name for name in model.capabilities() if name in STAGES]
    crop = torch.from_numpy(pattern(model.preprocessing.size)).permute(2, 0, 1)[None] / 127.5 - 1
    crop = crop.to(model.device)
    for key, value in model.run(crop, wanted).items():
        stored[f"pattern.{key}"] = thinned(rows_of(value))
    photos = to_device([read_image(path) for path in PORTRAITS], model.device)
    faces = facezoo.detect(PORTRAITS, model.device)
    for key, value in model.encode_faces(photos, faces, wanted).items():
        stored[f"portraits.{key}"] = thinned(rows_of(value))
    return stored


def outputs_of_meshes(model):
    x, y, z = model.template_mm.unbind(1)
    bent = torch.stack([x * 1.03, y + z.sin(), z - (x / 40).square()], 1)
    encoding = model.encode([bent, bent[::2]], units="mm")
    faces = model.synthesize(encoding.identity, encoding.expression)
    return {
        "identity": encoding.identity.tolist(),
        "expression": encoding.expression.tolist(),
        "faces": [face.vertices[::97].flatten().tolist() for face in faces],
    }


def rows_of(result):
    return result if isinstance(result, torch.Tensor) else flatten_rows(result)


def thinned(value):
    """The first numbers of features (F, D), and some pixels of pictures (F, C, H, W)."""
    if value.ndim == 2:
        return value[:, :KEPT].tolist()
    flat = value.flatten(1)
    return {"pixels": flat[:, :: flat.shape[1] // (8 * KEPT)].tolist()}


def outputs_of_detector(name):
    card = bundled_cards()[name]
    detector = FaceDetector(**card.architecture).eval()
    load_into(detector, read_tensors(find(card)))
    with torch.inference_mode():
        image = torch.from_numpy(pattern(128)).permute(2, 0, 1)[None] / 127.5 - 1
        said = detector(image)
    images = [torch.from_numpy(read_image(portrait)) for portrait in PORTRAITS]
    faces = detect(read_detector(name, torch.device("cpu")), images)
    return {
        "pattern.logits": said.logits[:, ::7].tolist(),
        "pattern.landmarks": said.landmarks[:, ::31].tolist(),
        "portraits.boxes": faces.boxes.tolist(),
        "portraits.landmarks": faces.landmarks.tolist(),
        "portraits.scores": faces.scores.tolist(),
    }


def outputs(name):
    is_detector = bundled_cards()[name].model == "face-detector"
    return outputs_of_detector(name) if is_detector else outputs_of_model(name)


@pytest.mark.parametrize("name", bundled_cards())
def test_a_checkpoint_gives_its_stored_outputs(name):
    stored = json.loads((GOLDEN / f"{name}.json").read_text())
    now = outputs(name)
    assert now.keys() == stored.keys()
    for key, value in stored.items():
        if isinstance(value, dict):
            # On another processor a pixel on the outline of a drawn face may not be covered.
            close = np.isclose(now[key]["pixels"], value["pixels"], rtol=1e-4, atol=1e-4)
            assert close.mean() > 0.995, key
        elif isinstance(value, str) or all(isinstance(part, str) for part in value):
            assert now[key] == value, key
        else:
            np.testing.assert_allclose(now[key], value, rtol=1e-4, atol=1e-4, err_msg=key)


def test_every_bundled_checkpoint_has_its_weights_and_stored_outputs():
    for name, card in bundled_cards().items():
        assert find(card).is_file()
        assert (GOLDEN / f"{name}.json").is_file()


if __name__ == "__main__":
    for checkpoint in sys.argv[1:] or bundled_cards():
        text = json.dumps(outputs(checkpoint), indent=1)
        (GOLDEN / f"{checkpoint}.json").write_text(text + "\n")
        print(f"wrote the outputs of {checkpoint}")
