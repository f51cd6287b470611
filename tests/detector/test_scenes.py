"""Training scenes: a mark on an image must lie where the scene's targets say."""

import math

import numpy as np
import pytest
import torch

from facezoo.data.detection import LabeledImage
from facezoo.models.face_detector import scenes as scenery
from facezoo.models.face_detector.scenes import SMALLEST, Source, close_up, scene

# A lopsided face far from the middle of the image, so that no mistake cancels out.
POINTS = torch.tensor([[165.0, 150], [205, 152], [190, 175], [170, 200], [203, 196]])
BOX = torch.tensor([140.0, 110, 230, 230])
MIRRORED = [1, 0, 2, 4, 3]


def image(faces=1, unsure=False, marked=False):
    """A black image with a white dot of 9 px at every landmark."""
    pixels = torch.zeros(240, 260, 3, dtype=torch.uint8)
    for x, y in POINTS.int().tolist():
        pixels[y - 4 : y + 5, x - 4 : x + 5] = 255
    return LabeledImage(
        pixels,
        BOX[None][:faces],
        POINTS[None][:faces],
        torch.ones(1, 5)[:faces],
        torch.full((1,), marked)[:faces],
        BOX[None] if unsure else torch.zeros(0, 4),
    )


@pytest.fixture
def clean(monkeypatch):
    """Scenes without noise and changes of color, on black."""
    monkeypatch.setattr(scenery, "_degraded", lambda pixels, rng: pixels)
    monkeypatch.setattr(scenery, "_cover", lambda canvas, box, rng: None)
    monkeypatch.setattr(scenery, "_GRAY", 0)


def scenes(source, count, side=256):
    for seed in range(count):
        yield scene([source], side, np.random.default_rng(seed))


def test_landmarks_are_at_the_dots_that_the_scene_shows(clean):
    checked = 0
    for pixels, faces in scenes(Source([image()], 1.0), 60):
        for points in faces.landmarks:
            eyes = points[1] - points[0]
            assert eyes[0] > 0  # mirrored landmarks change places
            radius = 4 * float(eyes.norm()) / 40
            for x, y in points.tolist():
                reach = math.ceil(1.7 * radius) + 1
                top, left = max(0, round(y) - reach), max(0, round(x) - reach)
                patch = pixels[top : round(y) + reach + 1, left : round(x) + reach + 1, 0] / 255.0
                if radius < 2 or abs(patch.sum() / (9 * radius / 4) ** 2 - 1) > 0.05:
                    continue  # cut off by the edge of the tile
                rows, columns = np.indices(patch.shape)
                place = [left + (columns * patch).sum() / patch.sum()]
                place += [top + (rows * patch).sum() / patch.sum()]
                assert np.hypot(place[0] - x, place[1] - y) < 0.1 * radius + 0.3
                checked += 1
    assert checked > 100


def test_boxes_contain_their_landmarks_and_are_not_too_small():
    sides = []
    for _, faces in scenes(Source([image()], 1.0), 60):
        low, high = faces.boxes[:, None, :2], faces.boxes[:, None, 2:]
        assert ((faces.landmarks > low) & (faces.landmarks < high)).all()
        sides += (faces.boxes[:, 2:] - faces.boxes[:, :2]).amax(1).tolist()
    assert min(sides) >= SMALLEST
    assert min(sides) < 40
    assert max(sides) > 150


def test_marks_by_hand_weigh_more_than_a_teacher():
    weights = {}
    for marked in (False, True):
        parts = [f.weights for _, f in scenes(Source([image(marked=marked)], 1.0), 5)]
        weights[marked] = torch.cat(parts).unique().tolist()
    assert weights == {False: [0.5], True: [1.0]}


def test_unsure_regions_and_small_faces_are_ignored(clean):
    for _, faces in scenes(Source([image(faces=0, unsure=True)], 1.0), 10):
        assert len(faces.boxes) == 0
    counts = [len(f.ignored) for _, f in scenes(Source([image(faces=0, unsure=True)], 1.0), 20)]
    assert sum(counts) > 10


def test_sideways_faces_are_no_faces(monkeypatch):
    monkeypatch.setattr(scenery, "_angle", lambda rng: (math.pi / 2, True))
    for _, faces in scenes(Source([image()], 1.0), 10):
        assert len(faces.boxes) == 0


def test_tight_crops_fill_their_tiles():
    shares = []
    for _, faces in scenes(Source([image()], 1.0, tight=(140.0, 230.0)), 40, side=128):
        shares += ((faces.boxes[:, 2:] - faces.boxes[:, :2]).amax(1) / 128).tolist()
    assert sum(share > 0.9 for share in shares) > 5


def test_scenes_repeat_with_their_seed():
    source = Source([image()], 1.0)
    first, second = (scene([source], 192, np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(first[0], second[0])
    assert torch.equal(first[1].boxes, second[1].boxes)


def test_objects_alone_make_scenes_without_faces():
    pixels, faces = scene([Source([image(faces=0)], 1.0)], 256, np.random.default_rng(0))
    assert pixels.shape == (256, 256, 3)
    assert len(faces.boxes) == len(faces.ignored) == 0


def test_close_ups_show_one_face_in_the_middle(clean):
    for seed in range(30):
        pixels, faces = close_up([Source([image()], 1.0)], 128, np.random.default_rng(seed))
        assert pixels.shape == (128, 128, 3)
        points = faces.landmarks[0]
        assert (points.mean(0) - 63.5).abs().max() < 25
        assert 20 < (points[0] - points[1]).norm() < 70
        assert (points[1] - points[0])[0] > 0
        x, y = points[2].round().int().tolist()
        assert pixels[y, x, 0] > 200  # the dot of the nose
