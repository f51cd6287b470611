"""The detector's network, which cell answers for which face, and its loss, against loops."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from facezoo.models.face_detector import losses
from facezoo.models.face_detector.losses import (
    Targets,
    _generalised_iou_loss,
    assign,
    detection_loss,
)
from facezoo.preprocess.boxes import paired_iou
from facezoo.preprocess.detector import BASES, STRIDES, Candidates, FaceDetector, cells, decode

SCORE, BOX, LANDMARK = 2, 2, 12
"""Weights of the three parts of the loss."""


def targets_of(*images, ignored=()):
    """Targets from lists of boxes, one list per image; landmarks lie on the box's diagonal."""
    width = max(1, *(len(boxes) for boxes in images))
    boxes = torch.zeros(len(images), width, 4)
    is_face = torch.zeros(len(images), width, dtype=torch.bool)
    for row, listed in enumerate(images):
        for slot, box in enumerate(listed):
            boxes[row, slot], is_face[row, slot] = torch.tensor(box), True
    share = torch.linspace(0.1, 0.9, 5)[:, None]
    points = boxes[..., None, :2] + share * (boxes[..., None, 2:] - boxes[..., None, :2])
    regions = torch.zeros(len(images), max(1, len(ignored)), 4)
    for slot, region in enumerate(ignored):
        regions[:, slot] = torch.tensor(region)
    return Targets(boxes, points, is_face, regions)


def naive_answers(cell, box, margin):
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


def naive_assign(targets, centres, bases):
    """The rule of ``assign``, cell by cell and face by face."""
    face = torch.full((len(targets.boxes), len(centres)), -1)
    counts = torch.ones(face.shape, dtype=torch.bool)
    for row, boxes in enumerate(targets.boxes):
        for number, cell in enumerate(torch.cat([centres, bases], 1).tolist()):
            x, y, _ = cell
            smallest, nearly = math.inf, False
            for slot, box in enumerate(boxes.tolist()):
                side = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
                if not targets.is_face[row, slot]:
                    continue
                nearly |= naive_answers(cell, box, losses._MARGIN)
                if naive_answers(cell, box, 1.0) and side < smallest:
                    smallest, face[row, number] = side, slot
            hidden = any(
                x0 <= x <= x1 and y0 <= y <= y1 and (x1 - x0) * (y1 - y0) > 0
                for x0, y0, x1, y1 in targets.ignored[row].tolist()
            )
            counts[row, number] = face[row, number] >= 0 or not (hidden or nearly)
    return face, counts


def naive_generalised_iou(a, b):
    shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return shared / union - (hull - union) / hull


def naive_loss(said, targets, centres, bases):
    face, counts = naive_assign(targets, centres, bases)
    score = box = landmark = 0.0
    number = 0
    for row in range(face.shape[0]):
        for cell in range(face.shape[1]):
            quality, slot = 0.0, int(face[row, cell])
            if slot >= 0:
                number += 1
                guess, truth = said.boxes[row, cell], targets.boxes[row, slot]
                quality = max(0.1, float(paired_iou(guess, truth)))
                box += 1 - naive_generalised_iou(guess.tolist(), truth.tolist())
                x0, y0, x1, y1 = truth.tolist()
                unit = max(1.0, math.sqrt((x1 - x0) * (y1 - y0)))
                gaps = (said.landmarks[row, cell] - targets.landmarks[row, slot]) / unit
                for gap in gaps.abs().flatten().tolist():
                    landmark += (gap**2 / 0.04 if gap < 0.02 else gap - 0.01) / 10
            if counts[row, cell]:
                p = 1 / (1 + math.exp(-float(said.logits[row, cell])))
                entropy = -quality * math.log(p) - (1 - quality) * math.log(1 - p)
                score += (p - quality) ** 2 * entropy
    return (SCORE * score + BOX * box + LANDMARK * landmark) / max(1, number)


def said_near(targets, centres, bases, generator):
    """Candidates of moderate size and confidence around every cell."""
    raw = torch.randn(len(targets.boxes), len(centres), 15, generator=generator) * 0.3
    return decode(raw, centres, bases)


def test_cells_are_in_the_middle_of_their_pixels():
    centres, bases = cells(64, 128, torch.device("cpu"))
    wanted = [
        ((column + 0.5) * stride - 0.5, (row + 0.5) * stride - 0.5, base)
        for stride, base in zip(STRIDES, BASES, strict=True)
        for row in range(64 // stride)
        for column in range(128 // stride)
    ]
    torch.testing.assert_close(torch.cat([centres, bases], 1), torch.tensor(wanted))


def test_a_cell_decodes_to_a_box_and_points_in_pixels():
    centres, bases = torch.tensor([[10.0, 20.0]]), torch.tensor([[48.0]])
    raw = torch.zeros(1, 1, 15)
    raw[..., 1], raw[..., 3], raw[..., 4] = 0.5, math.log(2), math.log(0.5)
    raw[..., 5], raw[..., 14] = 1.0, -0.25
    said = decode(raw, centres, bases)
    torch.testing.assert_close(said.boxes[0, 0], torch.tensor([-14.0, 8.0, 82.0, 32.0]))
    torch.testing.assert_close(said.landmarks[0, 0, 0], torch.tensor([58.0, 20.0]))
    torch.testing.assert_close(said.landmarks[0, 0, 4], torch.tensor([10.0, 8.0]))


def test_absurd_sizes_stay_finite():
    raw = torch.full((1, 1, 15), 1e4)
    assert torch.isfinite(decode(raw, torch.zeros(1, 2), torch.ones(1, 1)).boxes).all()


def test_the_network_has_an_output_for_every_cell_and_low_scores_at_first():
    said = FaceDetector(16)(torch.randn(2, 3, 64, 128))
    count = len(cells(64, 128, torch.device("cpu"))[0])
    assert said.logits.shape == (2, count)
    assert said.boxes.shape == (2, count, 4)
    assert said.landmarks.shape == (2, count, 5, 2)
    assert said.logits.sigmoid().max() < 0.2


def test_images_that_are_not_square_raise_an_error_with_the_remedy():
    with pytest.raises(ValueError, match="multiples of 64, got 64 x 100; pad"):
        FaceDetector(16)(torch.zeros(1, 3, 64, 100))


def test_every_parameter_of_the_detector_learns_from_the_loss():
    detector = FaceDetector(16)
    # The head starts so close to zero that nothing behind it would learn anything measurable.
    for output in (detector.box_output, detector.landmark_output):
        torch.nn.init.normal_(output.weight, std=0.3)
    targets = targets_of([(10, 10, 34, 34), (60, 20, 110, 75)], [(5, 5, 120, 120)])
    said = detector(torch.randn(2, 3, 128, 128))
    detection_loss(said, targets, *cells(128, 128, torch.device("cpu"))).backward()
    silent = [n for n, p in detector.named_parameters() if not p.grad.abs().sum() > 0]
    assert silent == []


@pytest.mark.parametrize("seed", range(6))
def test_assignment_is_what_loops_give(seed):
    draw = torch.Generator().manual_seed(seed)
    centres, bases = cells(128, 128, torch.device("cpu"))
    images = []
    for _ in range(3):
        corners = torch.rand(4, 2, generator=draw) * 100
        sides = 4 * 2 ** (torch.rand(4, 2, generator=draw) * 5)
        images.append(torch.cat([corners, corners + sides], 1).tolist()[: 1 + seed % 4])
    targets = targets_of(*images, [], ignored=[(0, 0, 40, 50), (100, 90, 128, 128)])
    face, counts = assign(targets, centres, bases)
    wanted_face, wanted_counts = naive_assign(targets, centres, bases)
    assert torch.equal(face, wanted_face)
    assert torch.equal(counts, wanted_counts)


@given(
    middle=st.tuples(st.floats(0, 127), st.floats(0, 127)),
    side=st.floats(4, 400),
    aspect=st.floats(0.7, 1.4),
)
@settings(deadline=None)
def test_every_face_has_a_cell_that_answers_for_it(middle, side, aspect):
    (x, y), (w, h) = middle, (side * aspect / 2, side / aspect / 2)
    face, _ = assign(targets_of([(x - w, y - h, x + w, y + h)]), *cells(128, 128, "cpu"))
    assert (face == 0).any()


def test_of_two_faces_the_smaller_one_wins_the_cell():
    centres, bases = cells(128, 128, torch.device("cpu"))
    face, _ = assign(targets_of([(34, 34, 94, 94), (40, 40, 88, 88)]), centres, bases)
    nearest = (centres - 64).norm(dim=1) + (bases[:, 0] - BASES[0])
    assert face[0, nearest.argmin()] == 1
    assert set(face[0].tolist()) == {-1, 0, 1}


def test_cells_just_outside_a_face_are_neither_asked_nor_blamed():
    centres, bases = cells(128, 128, torch.device("cpu"))
    face, counts = assign(targets_of([(30, 30, 94, 94)]), centres, bases)
    silent = (face[0] < 0) & ~counts[0]
    assert silent.any()
    assert (centres[silent] - 62).abs().max() < 64 * 0.5


def test_padding_is_never_a_face_and_hides_nothing():
    face, counts = assign(targets_of([], []), *cells(64, 64, "cpu"))
    assert (face == -1).all()
    assert counts.all()


@pytest.mark.parametrize("seed", range(4))
def test_detection_loss_is_what_loops_give(seed):
    draw = torch.Generator().manual_seed(seed)
    centres, bases = cells(128, 128, torch.device("cpu"))
    targets = targets_of(
        [(10, 12, 40, 44), (70, 20, 120, 75)], [(5, 5, 120, 110)], [], ignored=[(0, 60, 50, 128)]
    )
    said = said_near(targets, centres, bases, draw)
    wanted = torch.tensor(naive_loss(said, targets, centres, bases))
    torch.testing.assert_close(detection_loss(said, targets, centres, bases), wanted)


def test_a_batch_without_faces_still_has_a_loss_and_gradients():
    centres, bases = cells(64, 64, torch.device("cpu"))
    raw = torch.randn(1, len(centres), 15, requires_grad=True)
    loss = detection_loss(decode(raw, centres, bases), targets_of([]), centres, bases)
    loss.backward()
    assert torch.isfinite(loss)
    assert raw.grad[..., 0].abs().sum() > 0
    assert raw.grad[..., 1:].abs().sum() == 0


def test_ignored_cells_cost_nothing():
    centres, bases = cells(64, 64, torch.device("cpu"))
    targets = targets_of([], ignored=[(-1, -1, 64, 64)])
    logits = torch.full((1, len(centres)), 5.0)
    said = Candidates(logits, torch.zeros(1, len(centres), 4), torch.zeros(1, len(centres), 5, 2))
    assert detection_loss(said, targets, centres, bases).item() == 0


coordinate = st.floats(0, 50, width=32)


@given(*[st.tuples(coordinate, coordinate, st.floats(1, 40), st.floats(1, 40))] * 2)
@settings(deadline=None)
def test_generalised_iou_is_what_its_definition_gives(first, second):
    a, b = ((x, y, x + w, y + h) for x, y, w, h in (first, second))
    boxes, truth = torch.tensor([a]).double(), torch.tensor([b]).double()
    loss = _generalised_iou_loss(boxes, truth, paired_iou(boxes, truth))
    wanted = torch.tensor([1 - naive_generalised_iou(boxes[0].tolist(), truth[0].tolist())])
    torch.testing.assert_close(loss, wanted.double(), atol=1e-6, rtol=1e-6)


def test_the_right_answer_costs_next_to_nothing():
    centres, bases = cells(128, 128, torch.device("cpu"))
    targets = targets_of([(30, 30, 78, 78)])
    face, _ = assign(targets, centres, bases)
    logits = torch.where(face >= 0, 20.0, -20.0)
    boxes = targets.boxes[:, :1].expand(-1, len(centres), -1)
    points = targets.landmarks[:, :1].expand(-1, len(centres), -1, -1)
    assert detection_loss(Candidates(logits, boxes, points), targets, centres, bases) < 1e-4


def test_a_detector_with_folded_norms_gives_the_same_output_without_norms():
    detector = FaceDetector(16)
    images = torch.randn(4, 3, 64, 128)
    for _ in range(3):
        detector(images)  # gives the norms something to do
    whole = detector.eval()(images)
    folded = copy.deepcopy(detector).fold_norms()
    said = folded(images)
    torch.testing.assert_close(said.logits, whole.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(said.landmarks, whole.landmarks, atol=1e-3, rtol=1e-4)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())
    assert not folded.training
