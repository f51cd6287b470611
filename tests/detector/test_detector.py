"""The detector's network, the assignment of faces to cells, and its loss, against loops."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.ops import box_iou, generalized_box_iou

from facezoo.models.face_detector import losses
from facezoo.models.face_detector.losses import Annotation, assign, detection_loss, targets_of
from facezoo.preprocess.detector import BASES, STRIDES, Candidates, FaceDetector, cells, decode

CPU = torch.device("cpu")


def faces_at(*boxes, ignored=(), weight=1.0):
    """Faces whose landmarks lie on the diagonals of their boxes."""
    corners = torch.tensor(boxes).float().reshape(-1, 4)
    share = torch.linspace(0.1, 0.9, 5)[:, None]
    points = corners[:, None, :2] + share * (corners[:, None, 2:] - corners[:, None, :2])
    weights = torch.full((len(corners), 5), weight)
    return Annotation(corners, points, weights, torch.tensor(ignored).float().reshape(-1, 4))


def naive_is_positive(cell, box, margin):
    """Test if a cell is assigned to a box, within a margin."""
    x, y, base = cell
    x0, y0, x1, y1 = box
    side = math.sqrt((x1 - x0) * (y1 - y0))
    large_enough = side >= losses._SMALLEST * base / margin or base == BASES[0]
    small_enough = side <= losses._LARGEST * base * margin or base == BASES[-1]
    least = losses._LEAST_REACH * base
    reach_x = margin * max(losses._REACH * (x1 - x0), least)
    reach_y = margin * max(losses._REACH * (y1 - y0), least)
    near = abs(x - (x0 + x1) / 2) <= reach_x and abs(y - (y0 + y1) / 2) <= reach_y
    return large_enough and small_enough and near


def naive_assign(image, centers, bases):
    """The rule of ``assign``, cell by cell and face by face."""
    faces, counts = [], []
    for cell in torch.cat([centers, bases], 1).tolist():
        boxes = image.boxes.tolist()
        own = [i for i, box in enumerate(boxes) if naive_is_positive(cell, box, 1.0)]
        area = [(box[2] - box[0]) * (box[3] - box[1]) for box in boxes]
        faces.append(min(own, key=lambda i: area[i], default=-1))
        nearly = any(naive_is_positive(cell, box, losses._MARGIN) for box in boxes)
        x, y, _ = cell
        hidden = any(a <= x <= c and b <= y <= d for a, b, c, d in image.ignored.tolist())
        counts.append(faces[-1] >= 0 or not (hidden or nearly))
    return torch.tensor(faces), torch.tensor(counts)


def naive_loss(candidates, images, centers, bases, full_iou):
    score = box = landmark = number = 0.0
    for row, image in enumerate(images):
        face, counts = naive_assign(image, centers, bases)
        for cell, slot in enumerate(face.tolist()):
            quality = 0.0
            if slot >= 0:
                number += 1
                guess, truth = candidates.boxes[row, cell], image.boxes[slot]
                quality = float(box_iou(guess[None], truth[None]))
                quality = min(1.0, max(0.1, quality / full_iou))
                box += 1 - float(generalized_box_iou(guess[None], truth[None]))
                x0, y0, x1, y1 = truth.tolist()
                gaps = (candidates.landmarks[row, cell] - image.landmarks[slot]).abs()
                for gap, weight in zip(gaps.tolist(), image.weights[slot].tolist(), strict=True):
                    for part in gap:
                        d = part / math.sqrt((x1 - x0) * (y1 - y0))
                        landmark += weight * (d**2 / 0.02 if d < 0.01 else d - 0.005) / 10
            if counts[cell]:
                p = 1 / (1 + math.exp(-float(candidates.logits[row, cell])))
                entropy = -quality * math.log(p) - (1 - quality) * math.log(1 - p)
                score += (p - quality) ** 2 * entropy
    return (score + box + 12 * landmark) / max(1, number)


def test_cells_are_in_the_middle_of_their_pixels():
    centers, bases = cells(64, 128, CPU)
    expected = [
        ((column + 0.5) * stride - 0.5, (row + 0.5) * stride - 0.5, base)
        for stride, base in zip(STRIDES, BASES, strict=True)
        for row in range(64 // stride)
        for column in range(128 // stride)
    ]
    torch.testing.assert_close(torch.cat([centers, bases], 1), torch.tensor(expected))


def test_a_cell_decodes_to_a_box_and_points_in_pixels():
    centers, bases = torch.tensor([[10.0, 20.0]]), torch.tensor([[48.0]])
    raw = torch.zeros(1, 1, 15)
    raw[..., 1], raw[..., 3], raw[..., 4] = 0.5, math.log(2), math.log(0.5)
    raw[..., 5], raw[..., 14] = 1.0, -0.25
    candidates = decode(raw, centers, bases)
    torch.testing.assert_close(candidates.boxes[0, 0], torch.tensor([-14.0, 8.0, 82.0, 32.0]))
    torch.testing.assert_close(candidates.landmarks[0, 0, 0], torch.tensor([58.0, 20.0]))
    torch.testing.assert_close(candidates.landmarks[0, 0, 4], torch.tensor([10.0, 8.0]))


def test_extreme_sizes_stay_finite():
    raw = torch.full((1, 1, 15), 1e4)
    assert torch.isfinite(decode(raw, torch.zeros(1, 2), torch.ones(1, 1)).boxes).all()


def test_an_untrained_network_predicts_every_cell_and_no_face():
    candidates = FaceDetector(12)(torch.randn(2, 3, 64, 128))
    count = len(cells(64, 128, CPU)[0])
    assert candidates.logits.shape == (2, count)
    assert candidates.boxes.shape == (2, count, 4)
    assert candidates.landmarks.shape == (2, count, 5, 2)
    assert candidates.logits.sigmoid().max() < 0.2


def test_the_network_is_small():
    assert sum(parameter.numel() for parameter in FaceDetector().parameters()) < 500_000


def test_images_of_uneven_sides_raise_with_the_remedy():
    with pytest.raises(ValueError, match="multiples of 64, got 64 x 100; pad"):
        FaceDetector(12)(torch.zeros(1, 3, 64, 100))


def test_every_parameter_of_the_detector_learns_from_the_loss():
    torch.manual_seed(0)
    detector = FaceDetector(12)
    # The head starts so close to zero that nothing behind it would learn anything measurable.
    for head in detector.heads:
        torch.nn.init.normal_(head.output.weight, std=0.3)
    images = [faces_at((10, 10, 34, 34), (60, 20, 110, 75)), faces_at((5, 5, 120, 120))]
    parts = detection_loss(
        detector(torch.randn(2, 3, 128, 128)), targets_of(images, *cells(128, 128, CPU))
    )
    sum(parts.values()).backward()
    assert [n for n, p in detector.named_parameters() if not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("seed", range(4))
def test_assignment_is_the_same_as_in_loops(seed):
    generator = torch.Generator().manual_seed(seed)
    centers, bases = cells(128, 128, CPU)
    for count in range(4):
        corners = torch.rand(count, 2, generator=generator) * 100
        sides = 4 * 2 ** (torch.rand(count, 2, generator=generator) * 5)
        boxes = torch.cat([corners, corners + sides], 1).tolist()
        image = faces_at(*boxes, ignored=[(0, 0, 40, 50), (100, 90, 128, 128)])
        for value, expected in zip(
            assign(image, centers, bases), naive_assign(image, centers, bases), strict=True
        ):
            assert torch.equal(value, expected)


@given(
    middle=st.tuples(st.floats(0, 127), st.floats(0, 127)),
    side=st.floats(4, 700),
    aspect=st.floats(0.7, 1.4),
)
@settings(deadline=None)
def test_every_face_has_a_positive_cell(middle, side, aspect):
    (x, y), (w, h) = middle, (side * aspect / 2, side / aspect / 2)
    face, _ = assign(faces_at((x - w, y - h, x + w, y + h)), *cells(128, 128, CPU))
    assert (face == 0).any()


@pytest.mark.parametrize("side", [56.6, 113.1, 226.3])
def test_a_face_between_two_levels_is_positive_in_both(side):
    centers, bases = cells(256, 256, CPU)
    face, _ = assign(faces_at((20, 20, 20 + side, 20 + side)), centers, bases)
    assert len(bases[face == 0].unique()) == 2


def test_the_smaller_of_two_faces_wins_the_cell():
    centers, bases = cells(128, 128, CPU)
    face, _ = assign(faces_at((34, 34, 94, 94), (40, 40, 88, 88)), centers, bases)
    nearest = (centers - 64).norm(dim=1) + (bases[:, 0] - BASES[0])
    assert face[nearest.argmin()] == 1
    assert set(face.tolist()) == {-1, 0, 1}


@pytest.mark.parametrize(("seed", "full_iou"), [(0, 1.0), (1, 1.0), (2, 0.5)])
def test_the_loss_is_the_same_as_in_loops(seed, full_iou):
    generator = torch.Generator().manual_seed(seed)
    centers, bases = cells(128, 128, CPU)
    images = [
        faces_at((10, 12, 40, 44), (70, 20, 120, 75), ignored=[(0, 60, 50, 128)], weight=0.5),
        faces_at((5, 5, 120, 110)),
        faces_at(),
    ]
    raw = torch.randn(len(images), len(centers), 15, generator=generator) * 0.3
    candidates = decode(raw, centers, bases)
    parts = detection_loss(candidates, targets_of(images, centers, bases), full_iou)
    expected = torch.tensor(naive_loss(candidates, images, centers, bases, full_iou))
    torch.testing.assert_close(sum(parts.values()), expected)


def test_a_batch_without_faces_still_has_a_loss_and_gradients():
    centers, bases = cells(64, 64, CPU)
    raw = torch.randn(1, len(centers), 15, requires_grad=True)
    parts = detection_loss(decode(raw, centers, bases), targets_of([faces_at()], centers, bases))
    sum(parts.values()).backward()
    assert raw.grad[..., 0].abs().sum() > 0
    assert raw.grad[..., 1:].abs().sum() == 0


def test_landmarks_without_weight_and_ignored_cells_cost_nothing():
    centers, bases = cells(64, 64, CPU)
    logits = torch.full((1, len(centers)), 5.0)
    zeros = torch.zeros(1, len(centers), 5, 2)
    candidates = Candidates(logits, torch.zeros(1, len(centers), 4), zeros)
    everywhere = [(-1, -1, 64, 64)]
    targets = targets_of([faces_at(ignored=everywhere)], centers, bases)
    assert sum(detection_loss(candidates, targets).values()) == 0
    targets = targets_of([faces_at((10, 10, 40, 40), weight=0.0)], centers, bases)
    assert detection_loss(candidates, targets)["landmark"] == 0


def test_the_right_answer_costs_next_to_nothing():
    centers, bases = cells(128, 128, CPU)
    image = faces_at((30, 30, 78, 78))
    face, _ = assign(image, centers, bases)
    logits = torch.where(face >= 0, 20.0, -20.0)[None]
    boxes = image.boxes[None].expand(-1, len(centers), -1)
    points = image.landmarks[None].expand(-1, len(centers), -1, -1)
    parts = detection_loss(Candidates(logits, boxes, points), targets_of([image], centers, bases))
    assert sum(parts.values()) < 1e-4


def test_a_detector_with_folded_norms_gives_the_same_and_has_none_left():
    torch.manual_seed(0)
    detector = FaceDetector(12)
    images = torch.randn(4, 3, 64, 128)
    for _ in range(3):
        detector(images)  # moves the statistics of the norms
    whole = detector.eval()(images)
    folded = copy.deepcopy(detector).fold_norms()
    candidates = folded(images)
    torch.testing.assert_close(candidates.logits, whole.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(candidates.landmarks, whole.landmarks, atol=1e-3, rtol=1e-4)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())
    assert not folded.training
