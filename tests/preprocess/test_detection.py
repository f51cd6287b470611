"""Finding faces in photographs of all sizes, with a detector that sees white squares."""

import dataclasses
import math

import pytest
import torch
from packs import FACE, SquareDetector, edges_of, photo_of
from torch import nn

from facezoo.preprocess.detection import DetectionConfig, detect
from facezoo.preprocess.detector import Candidates

CPU = torch.device("cpu")


@pytest.fixture
def detector():
    return SquareDetector()


EASY = DetectionConfig(score=0.5, smallest_side=160, again_above=256)
SIZES = DetectionConfig(smallest_side=160, again_above=256)


class Saying(nn.Module):
    """Says the same of every view: rows of score, box."""

    def __init__(self, *rows):
        super().__init__()
        self.anywhere = nn.Parameter(torch.zeros(1))
        scores = torch.tensor([score for score, _ in rows])
        self.logits = scores.logit()
        self.boxes = torch.tensor([box for _, box in rows]).float()

    def forward(self, images):
        points = self.boxes[:, None, :2] + torch.arange(5)[:, None]
        said = Candidates(self.logits, self.boxes, points)
        return Candidates(
            *(
                getattr(said, f.name).expand(len(images), *getattr(said, f.name).shape)
                for f in dataclasses.fields(said)
            )
        )


def same(first, second):
    return all(
        torch.equal(getattr(first, f.name), getattr(second, f.name))
        for f in dataclasses.fields(first)
    )


def test_a_square_comes_back_exactly_in_a_photograph_that_is_shown_as_it_is(detector):
    faces = detect(detector, [photo_of((30, 50, 60), height=180, width=220)], SIZES)
    torch.testing.assert_close(faces.boxes, torch.tensor([edges_of(30, 50, 60)]))
    wanted = torch.tensor([29.5, 49.5]) + (FACE + 0.5) * 60 / 112
    torch.testing.assert_close(faces.landmarks[0], wanted)
    assert faces.image_index.tolist() == [0]
    assert faces.image_index.dtype == torch.int64


@pytest.mark.parametrize(
    ("height", "width", "square"),
    [
        (64, 48, (10, 20, 16)),  # enlarged
        (100, 100, (30, 30, 40)),  # enlarged
        (300, 260, (100, 120, 80)),  # shown again in half size
        (480, 640, (350, 200, 150)),  # shown three times
        (1500, 1100, (600, 700, 300)),  # reduced
        (90, 1500, (800, 20, 60)),  # a strip
    ],
)
def test_boxes_are_in_pixels_of_the_photograph_whatever_its_size(detector, height, width, square):
    faces = detect(detector, [photo_of(square, height=height, width=width)], SIZES)
    assert len(faces) == 1
    longest = max(height, width)
    # Half a pixel of the coarsest view that may share in the box's position, and a little.
    coarse = max(1.0, longest / 160) if longest > 256 else 0.5
    error = (faces.boxes[0] - torch.tensor(edges_of(*square))).abs().max()
    assert error < 1.1 * coarse, f"{error:.2f} px off"
    x0, y0, x1, y1 = faces.boxes[0].tolist()
    points = faces.landmarks[0]
    wanted = torch.tensor([x0, y0]) + (FACE + 0.5) / 112 * torch.tensor([x1 - x0, y1 - y0])
    torch.testing.assert_close(points, wanted, atol=1e-2, rtol=0)


def test_photographs_are_shown_enlarged_reduced_and_again_in_half_size(detector):
    detect(detector, [photo_of(height=40, width=80)], SIZES)
    assert detector.shown == [(1, 3, 128, 192)]  # 80 x 160, padded
    detector.shown.clear()
    detect(detector, [photo_of(height=1280, width=640)], SIZES)
    assert detector.shown == [(1, 3, 640, 320), (1, 3, 320, 192), (1, 3, 192, 128)]


def test_views_of_one_size_are_shown_together_up_to_the_batch_size(detector):
    photos = [photo_of((9, 9, 40), height=200, width=100 + i) for i in range(5)]
    faces = detect(detector, photos, dataclasses.replace(SIZES, batch_size=2))
    assert detector.shown == [(2, 3, 256, 128)] * 2 + [(1, 3, 256, 128)]
    assert faces.image_index.tolist() == [0, 1, 2, 3, 4]


def test_what_is_found_does_not_depend_on_the_other_photographs(detector):
    photos = [
        photo_of((30, 50, 60), (120, 20, 40)),
        photo_of((10, 20, 16), height=64, width=48),
        photo_of(height=300, width=300),
        photo_of((350, 200, 150), height=480, width=640),
        photo_of((100, 90, 70)),
    ]
    together = detect(detector, photos, dataclasses.replace(SIZES, batch_size=3))
    assert together.image_index.tolist() == [0, 0, 1, 3, 4]
    for index, photo in enumerate(photos):
        alone = detect(detector, [photo], SIZES)
        mine = together[together.image_index == index]
        assert same(mine, dataclasses.replace(alone, image_index=mine.image_index))


def test_no_photographs_and_photographs_without_faces_give_no_faces(detector):
    for photos in ([], [photo_of()], [photo_of(), photo_of(height=500, width=300)]):
        faces = detect(detector, photos)
        assert len(faces) == 0
        assert faces.boxes.shape == (0, 4)
        assert faces.landmarks.shape == (0, 5, 2)
        assert faces.scores.shape == (0,)
        assert faces.image_index.dtype == torch.int64


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2000, 10), (10, 2000), (1, 3000), (64, 1)])
@pytest.mark.parametrize("brightness", [0, 255])
def test_photographs_of_any_shape_are_looked_at(detector, height, width, brightness):
    photo = torch.full((height, width, 3), brightness, dtype=torch.uint8)
    faces = detect(detector, [photo])
    assert len(faces) == (1 if brightness else 0)
    assert torch.isfinite(faces.boxes).all()


def test_faces_are_ordered_by_photograph_and_then_by_falling_score(detector):
    photos = [
        photo_of((10, 10, 40, 180), (120, 10, 40, 255), (10, 120, 40, 220)),
        photo_of((50, 50, 40, 200), (130, 130, 40, 240)),
    ]
    faces = detect(detector, photos)
    assert faces.image_index.tolist() == [0, 0, 0, 1, 1]
    assert faces.boxes[:, 0].round().tolist() == [120, 10, 10, 130, 50]
    wanted = [torch.tensor(16 * b / 255 - 5.6).sigmoid().item() for b in (255, 220, 180, 240, 200)]
    assert faces.scores.tolist() == pytest.approx(wanted, abs=1e-4)


def test_faint_faces_are_left_out():
    photo = photo_of((10, 10, 40, 134), (120, 10, 40, 140))  # scores 0.94 and 0.96
    assert len(detect(SquareDetector(), [photo])) == 1
    assert len(detect(SquareDetector(), [photo], DetectionConfig(score=0.9))) == 2
    assert len(detect(SquareDetector(), [photo], DetectionConfig(score=0.99))) == 0


def test_faces_that_are_shown_too_small_are_left_out():
    photo = photo_of((20, 20, 24), (120, 100, 50))
    assert len(detect(SquareDetector(), [photo])) == 2
    assert len(detect(SquareDetector(), [photo], DetectionConfig(smallest_face=30.0))) == 1


def test_boxes_that_agree_share_in_the_position_by_their_score():
    # IoU of the first two is 0.82, of the first and third 0.54; the fourth lies elsewhere.
    boxes = [(40, 40, 80, 80), (44, 40, 84, 80), (52, 40, 92, 80), (120, 120, 160, 160)]
    detector = Saying(*zip((0.9, 0.6, 0.8, 0.7), boxes, strict=True))
    faces = detect(detector, [photo_of()], EASY)
    assert faces.scores.tolist() == pytest.approx([0.9, 0.7])
    moved = 40 + 4 * 0.6 / 1.5
    torch.testing.assert_close(
        faces.boxes, torch.tensor([[moved, 40, moved + 40, 80], [120, 120, 160, 160]])
    )
    torch.testing.assert_close(faces.landmarks[0, 0], torch.tensor([moved, 40.0]))


def test_a_box_that_is_too_faint_for_a_face_still_shares_in_the_position():
    boxes = [(40, 40, 80, 80), (44, 40, 84, 80)]
    faces = detect(Saying(*zip((0.9, 0.3), boxes, strict=True)), [photo_of()], EASY)
    assert len(faces) == 1
    assert faces.boxes[0, 0].item() == pytest.approx(40 + 4 * 0.3 / 1.2, abs=1e-4)


def test_two_faces_that_overlap_a_little_are_both_kept():
    boxes = [(40, 40, 80, 80), (65, 40, 105, 80)]  # IoU 0.23
    faces = detect(Saying(*zip((0.9, 0.8), boxes, strict=True)), [photo_of()], EASY)
    assert len(faces) == 2


def test_scores_stay_between_the_threshold_and_one(detector):
    faces = detect(detector, [photo_of((10, 10, 40), (120, 10, 40, 180))])
    assert ((faces.scores > 0.9) & (faces.scores <= 1)).all()
    assert not math.isnan(float(faces.landmarks.sum()))
