"""Detection in images of all sizes, with a detector that sees white squares."""

import dataclasses
import functools
import math
import shutil

import numpy as np
import pytest
import torch
from packs import FACE, SquareDetector, edges_of, photo_of
from PIL import Image
from torch import nn

from facezoo.data.detection import LabeledImage
from facezoo.errors import UnsupportedError
from facezoo.evaluate.detection import misplaced_faces, rotated_faces
from facezoo.hub.card import CHECKPOINTS
from facezoo.preprocess import detection
from facezoo.preprocess.bundled import load_detector, read_detector
from facezoo.preprocess.detection import DetectionConfig
from facezoo.preprocess.detector import Candidates, FaceDetector

CPU = torch.device("cpu")


@pytest.fixture
def detector():
    return SquareDetector()


def detect(detector, images, config=None):
    """Detect with the first pass alone."""
    config = dataclasses.replace(config or DetectionConfig(), second_pass=False)
    return detection.detect(detector, images, config)


EASY = DetectionConfig(score_threshold=0.5, min_side=160)
SIZES = DetectionConfig(min_side=160)


class Fixed(nn.Module):
    """Predicts the same for every view: rows of score, box."""

    multiple = 64
    smallest_face = 20.0

    def __init__(self, *rows):
        super().__init__()
        self.anywhere = nn.Parameter(torch.zeros(1))
        scores = torch.tensor([score for score, _ in rows])
        self.logits = scores.logit()
        self.boxes = torch.tensor([box for _, box in rows]).float()
        self.points = (FACE + 0.5) / 112

    def forward(self, images):
        extent = (self.boxes[:, 2:] - self.boxes[:, :2])[:, None]
        points = self.boxes[:, None, :2] + extent * self.points
        said = Candidates(self.logits, self.boxes, points)
        return Candidates(
            *(
                getattr(said, f.name).expand(len(images), *getattr(said, f.name).shape)
                for f in dataclasses.fields(said)
            )
        )


def same(first, second):
    names = ("boxes", "landmarks", "scores", "image_index")
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in names)


def test_a_square_comes_back_exactly_in_a_image_that_is_shown_as_it_is(detector):
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
        (480, 640, (350, 200, 150)),
        (1500, 1100, (600, 700, 300)),  # reduced
        (90, 1500, (800, 20, 60)),  # a strip
    ],
)
def test_boxes_are_in_pixels_of_the_image_whatever_its_size(detector, height, width, square):
    faces = detect(detector, [photo_of(square, height=height, width=width)], SIZES)
    assert len(faces) == 1
    longest = max(height, width)
    coarse = max(0.5, longest / 640)  # pixels of the reduced image, and a little
    error = (faces.boxes[0] - torch.tensor(edges_of(*square))).abs().max()
    assert error < 1.1 * coarse, f"{error:.2f} px off"
    x0, y0, x1, y1 = faces.boxes[0].tolist()
    points = faces.landmarks[0]
    wanted = torch.tensor([x0, y0]) + (FACE + 0.5) / 112 * torch.tensor([x1 - x0, y1 - y0])
    torch.testing.assert_close(points, wanted, atol=1e-2, rtol=0)


def test_images_are_enlarged_or_reduced_and_shown_once(detector):
    detect(detector, [photo_of(height=40, width=80)], SIZES)
    assert detector.shown == [(1, 3, 128, 192)]  # 80 x 160, padded
    detector.shown.clear()
    detect(detector, [photo_of(height=1280, width=640)], SIZES)
    assert detector.shown == [(1, 3, 640, 320)]


def test_views_of_one_size_are_shown_together_up_to_the_batch_size(detector):
    photos = [photo_of((9, 9, 40), height=200, width=100 + i) for i in range(5)]
    faces = detect(detector, photos, dataclasses.replace(SIZES, batch_size=2))
    assert detector.shown == [(2, 3, 256, 128)] * 2 + [(1, 3, 256, 128)]
    assert faces.image_index.tolist() == [0, 1, 2, 3, 4]


def test_detections_do_not_depend_on_the_other_images(detector):
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


def test_no_images_and_images_without_faces_give_no_faces(detector):
    for photos in ([], [photo_of()], [photo_of(), photo_of(height=500, width=300)]):
        faces = detect(detector, photos)
        assert len(faces) == 0
        assert faces.boxes.shape == (0, 4)
        assert faces.landmarks.shape == (0, 5, 2)
        assert faces.scores.shape == (0,)
        assert faces.image_index.dtype == torch.int64


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2000, 10), (10, 2000), (1, 3000), (64, 1)])
@pytest.mark.parametrize("brightness", [0, 255])
def test_images_of_any_shape_are_looked_at(detector, height, width, brightness):
    photo = torch.full((height, width, 3), brightness, dtype=torch.uint8)
    faces = detect(detector, [photo])
    # The landmarks in a wide strip fit no face.
    assert len(faces) == (1 if brightness and height >= width else 0)
    assert torch.isfinite(faces.boxes).all()


def test_faces_are_ordered_by_image_and_then_by_falling_score(detector):
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
    assert len(detect(SquareDetector(), [photo], DetectionConfig(score_threshold=0.955))) == 1
    assert len(detect(SquareDetector(), [photo])) == 2
    assert len(detect(SquareDetector(), [photo], DetectionConfig(score_threshold=0.99))) == 0


def test_min_face_drops_smaller_faces():
    photo = photo_of((20, 20, 24), (120, 100, 50))
    assert len(detect(SquareDetector(), [photo])) == 2
    assert len(detect(SquareDetector(), [photo], DetectionConfig(min_face=30.0))) == 1


@pytest.mark.parametrize("corner", [(40, 30), (610, 600), (1500, 20), (1960, 1460), (990, 1460)])
def test_min_face_finds_small_faces_anywhere_in_a_large_image(detector, corner):
    image = photo_of((*corner, 28), height=1500, width=2000)
    assert len(detect(detector, [image])) == 0
    faces = detect(detector, [image], DetectionConfig(min_face=24))
    assert len(faces) == 1
    error = (faces.boxes[0] - torch.tensor(edges_of(*corner, 28))).abs().max()
    assert error < 1.5


def test_min_face_still_finds_the_largest_faces(detector):
    image = photo_of((100, 100, 1300), height=1500, width=2000)
    faces = detect(detector, [image], DetectionConfig(min_face=24))
    assert len(faces) == 1
    assert (faces.boxes[0] - torch.tensor(edges_of(100, 100, 1300))).abs().max() < 20


class Upright(SquareDetector):
    """Sees only the squares in the upper half of a view."""

    def forward(self, images):
        images = images.clone()
        images[..., images.shape[2] // 2 :, :] = -1
        return super().forward(images)


@pytest.mark.parametrize(("degrees", "square"), [(90, (120, 80, 40)), (180, (60, 130, 40))])
def test_rotations_find_faces_that_the_upright_image_hides(degrees, square):
    image = photo_of(square, height=180, width=170)
    assert len(detect(Upright(), [image], SIZES)) == (1 if square[1] < 90 else 0)
    config = dataclasses.replace(SIZES, rotations=(degrees,))
    faces = detect(Upright(), [image], config)
    torch.testing.assert_close(faces.boxes, torch.tensor([edges_of(*square)]))


def test_landmarks_rotate_with_the_image():
    image = photo_of((60, 130, 40), height=180, width=170)
    upright = detect(SquareDetector(), [image.rot90(2).contiguous()], SIZES)
    faces = detect(Upright(), [image], dataclasses.replace(SIZES, rotations=(0, 180)))
    size = torch.tensor([169.0, 179.0])
    torch.testing.assert_close(faces.landmarks, size - upright.landmarks)


class Tilted(SquareDetector):
    """Sees every square, with the higher score the further down in the view it is."""

    def forward(self, images):
        candidates = super().forward(images)
        height = candidates.boxes[..., 1] / images.shape[2]
        logits = torch.where(candidates.logits > 0, 4 + height, -20.0)
        return dataclasses.replace(candidates, logits=logits)


def test_a_face_has_the_landmarks_of_the_rotation_with_the_highest_score():
    images = [photo_of((60, 20, 50)), photo_of(), photo_of((70, 120, 60))]
    faces = detect(Tilted(), images, DetectionConfig(rotations=(0, 180)))
    assert faces.image_index.tolist() == [0, 2]
    above = faces.landmarks[:, 2, 1] > faces.landmarks[:, 0, 1]
    assert above.tolist() == [False, True]
    boxes = torch.tensor([[60.0, 20, 110, 70], [70, 120, 130, 180]])
    torch.testing.assert_close(faces.boxes, boxes, atol=1.1, rtol=0)


def test_faces_at_several_rotations_of_one_image_are_all_found():
    image = photo_of((60, 20, 40), (60, 130, 40))
    assert len(detect(Upright(), [image])) == 1
    assert len(detect(Upright(), [image], DetectionConfig(rotations=(0, 180)))) == 2


def test_a_box_of_lower_score_around_a_face_is_dropped():
    boxes = [(40, 40, 80, 80), (20, 38, 120, 150), (30, 100, 80, 150)]
    detector = Fixed(*zip((0.9, 0.8, 0.7), boxes, strict=True))
    faces = detect(detector, [photo_of()], EASY)
    assert faces.boxes.round().tolist() == [list(boxes[0]), list(boxes[2])]


def test_a_second_box_with_the_landmarks_of_a_face_is_dropped():
    boxes = [(20, 20, 120, 120), (42, 42, 100, 100), (110, 110, 174, 174)]
    detector = Fixed(*zip((0.9, 0.8, 0.7), boxes, strict=True))
    faces = detect(detector, [photo_of()], EASY)
    assert faces.boxes.round().tolist() == [list(boxes[0]), list(boxes[2])]


def test_a_box_of_higher_score_around_a_smaller_one_stays():
    boxes = [(20, 38, 120, 150), (40, 40, 80, 80)]
    faces = detect(Fixed(*zip((0.9, 0.8), boxes, strict=True)), [photo_of()], EASY)
    assert len(faces) == 2


@pytest.mark.parametrize("fault", ["mirrored", "upside down", "scattered", "in one place"])
def test_a_detection_whose_landmarks_fit_no_face_is_rejected(fault):
    detector = Fixed((0.9, (40, 40, 80, 80)))
    detector.points = {
        "mirrored": detector.points * torch.tensor([-1, 1]) + torch.tensor([1, 0]),
        "upside down": 1 - detector.points,
        "scattered": detector.points[[0, 3, 1, 4, 2]],
        "in one place": torch.full((5, 2), 0.5),
    }[fault]
    assert len(detect(detector, [photo_of()], EASY)) == 0


@pytest.fixture
def network():
    """A network with random weights that sees faces, and an image."""
    torch.manual_seed(0)
    detector = FaceDetector(12).eval()
    for head in detector.heads:
        head.output.weight.data[5:] = 0.0
        head.output.bias.data[0] = 1.0
        head.output.bias.data[5:] = (FACE / 112 - 0.5).flatten()
    return detector, torch.randint(0, 256, (200, 180, 3), dtype=torch.uint8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_faces_do_not_depend_on_autocast(network, dtype):
    detector, image = network
    expected = detect(detector, [image], DetectionConfig(score_threshold=0.1))
    with torch.autocast("cpu", dtype=dtype):
        faces = detect(detector, [image], DetectionConfig(score_threshold=0.1))
    assert len(faces) > 0
    assert faces.boxes.dtype == torch.float32
    assert same(faces, expected)


@pytest.mark.parametrize("count", [0, 1])
def test_faces_do_not_depend_on_the_default_dtype(network, count):
    detector, image = network
    config = DetectionConfig(score_threshold=0.1)
    expected = detect(detector, [image][:count], config)
    torch.set_default_dtype(torch.float64)
    try:
        faces = detect(detector, [image][:count], config)
    finally:
        torch.set_default_dtype(torch.float32)
    assert faces.boxes.dtype == torch.float32
    assert same(faces, expected)


def test_faces_can_enter_a_graph(detector):
    with torch.inference_mode(False):
        faces = detect(detector, [photo_of((30, 50, 60))])
    weight = torch.ones(5, 2, requires_grad=True)
    (faces.landmarks * weight).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score_threshold": 1.5}, "score_threshold must be between 0 and 1, got 1.5"),
        ({"min_face": 0}, "min_face must be at least 1 pixel, got 0"),
        ({"max_side": 100}, "max_side must be at least 320, got 100"),
        ({"rotations": (0, 45)}, "rotations must be multiples of 90 degrees"),
        ({"rotations": ()}, "rotations must be multiples of 90 degrees"),
    ],
)
def test_settings_out_of_range_raise(options, message):
    with pytest.raises(ValueError, match=message):
        DetectionConfig.override(**options)


def test_options_that_are_none_keep_the_default():
    assert DetectionConfig.override(min_face=None, max_side=None) == DetectionConfig()
    assert DetectionConfig.override(rotations=[0, 180]).rotations == (0, 180)
    for rotations in (180, "0,90"):
        with pytest.raises(ValueError, match=r"rotations must be a list such as .*, got "):
            DetectionConfig.override(rotations=rotations)


def test_boxes_that_agree_share_in_the_position_by_their_score():
    # IoU of the first two is 0.82, of the first and third 0.54; the fourth lies elsewhere.
    boxes = [(40, 40, 80, 80), (44, 40, 84, 80), (52, 40, 92, 80), (120, 120, 160, 160)]
    detector = Fixed(*zip((0.9, 0.6, 0.8, 0.7), boxes, strict=True))
    faces = detect(detector, [photo_of()], EASY)
    assert faces.scores.tolist() == pytest.approx([0.9, 0.7])
    moved = 40 + 4 * 0.6 / 1.5
    torch.testing.assert_close(
        faces.boxes, torch.tensor([[moved, 40, moved + 40, 80], [120, 120, 160, 160]])
    )
    eye = (FACE[0] + 0.5) / 112 * 40
    torch.testing.assert_close(faces.landmarks[0, 0], torch.tensor([moved, 40.0]) + eye)


def test_a_box_that_is_too_faint_for_a_face_still_shares_in_the_position():
    boxes = [(40, 40, 80, 80), (44, 40, 84, 80)]
    faces = detect(Fixed(*zip((0.9, 0.3), boxes, strict=True)), [photo_of()], EASY)
    assert len(faces) == 1
    assert faces.boxes[0, 0].item() == pytest.approx(40 + 4 * 0.3 / 1.2, abs=1e-4)


def test_two_faces_that_overlap_a_little_are_both_kept():
    boxes = [(40, 40, 80, 80), (65, 40, 105, 80)]  # IoU 0.23
    faces = detect(Fixed(*zip((0.9, 0.8), boxes, strict=True)), [photo_of()], EASY)
    assert len(faces) == 2


def test_scores_stay_between_the_threshold_and_one(detector):
    faces = detect(detector, [photo_of((10, 10, 40), (120, 10, 40, 180))])
    assert ((faces.scores > 0.9) & (faces.scores <= 1)).all()
    assert not math.isnan(float(faces.landmarks.sum()))


class Imprecise(SquareDetector):
    """Landmarks are too far right in images, by a share of the side of the face, not in crops."""

    def __init__(self, shift=0.0, crop_logits=(4.0,)):
        super().__init__()
        self.shift, self.crop_logits = shift, list(crop_logits)

    def forward(self, images):
        right = torch.tensor([1.0, 0.0])
        if images.shape[-2:] != (detection._CROP, detection._CROP):
            candidates = super().forward(images)
            sides = (candidates.boxes[..., 2] - candidates.boxes[..., 0])[..., None, None]
            landmarks = candidates.landmarks + self.shift * sides * right
            return dataclasses.replace(candidates, landmarks=landmarks)
        points = detection.second_pass_points(detection._CROP)
        side = 112 * (points[1] - points[0]).norm() / (FACE[1] - FACE[0]).norm()
        box = torch.tensor([0.2, 0.2, 0.8, 0.8]) * (detection._CROP - 1)
        count = len(images)
        logits = torch.tensor(self.crop_logits).expand(count)[:, None]
        return Candidates(
            logits,
            box.expand(count, 1, 4),
            (points - self.shift * side * right).expand(count, 1, 5, 2),
        )


def test_the_second_pass_improves_landmarks_of_small_faces():
    images = [photo_of((30, 50, 50), height=180, width=220), photo_of((40, 40, 100))]
    exact = detect(SquareDetector(), images)
    faces = detection.detect(Imprecise(0.08), images)
    distance = (faces.landmarks - exact.landmarks).norm(dim=-1)
    # Large upright faces of high score are not detected again.
    expected = torch.tensor([[0.0], [0.08 * 100]]).expand(2, 5)
    torch.testing.assert_close(distance, expected, atol=0.05, rtol=0)
    assert torch.equal(faces.boxes, exact.boxes)


def test_a_score_is_the_mean_of_both_passes():
    image = photo_of((30, 50, 60))
    (first,) = detect(SquareDetector(), [image]).scores.tolist()
    (score,) = detection.detect(Imprecise(crop_logits=[2.0]), [image]).scores.tolist()
    assert score == pytest.approx((first + torch.tensor(2.0).sigmoid().item()) / 2)
    assert len(detection.detect(Imprecise(crop_logits=[-2.0]), [image])) == 0


def test_a_doubtful_face_that_scores_higher_upside_down_is_rejected(monkeypatch):
    monkeypatch.setattr(detection, "_CERTAIN", 0.99)
    image = photo_of((30, 50, 60, 140))  # a score of 0.96 in the first pass
    for upright, flipped, count in ((3.0, 1.0, 1), (1.0, 3.0, 0)):
        detector = Imprecise(crop_logits=[upright, flipped])
        assert len(detection.detect(detector, [image])) == count


def test_a_small_face_that_is_upside_down_is_rejected_whatever_its_first_score():
    image = photo_of((30, 50, 40, 140))  # a score of 0.96 in the first pass
    for upright, flipped, count in ((3.0, 2.9, 1), (2.9, 3.0, 0)):
        detector = Imprecise(crop_logits=[upright, flipped])
        assert len(detection.detect(detector, [image])) == count


def test_faces_are_ordered_by_the_score_of_both_passes():
    image = photo_of((10, 10, 40, 180), (120, 10, 40, 255), (10, 120, 40, 220))
    scores = detection.detect(Imprecise(), [image, image]).scores.view(2, 3)
    assert torch.equal(scores, scores.sort(1, descending=True).values)


class TurnedCrops(Imprecise):
    """Gives crops of boxes other scores at each quarter turn."""

    def __init__(self, *logits):
        super().__init__()
        self.turn_logits = torch.tensor(logits)

    def forward(self, images):
        count = len(images)
        self.crop_logits = [4.0] * (count - count // 2) + [0.0] * (count // 2)  # and upside down
        side = detection._TURNED_CROP + 2 * detection._TURNED_PAD
        if images.shape[-2:] != (side, side):
            return super().forward(images)
        box = torch.tensor([0.2, 0.2, 0.8, 0.8]) * (side - 1)
        logits = self.turn_logits.repeat_interleave(count // 4)[:, None]
        points = torch.zeros(count, 1, 5, 2)
        return Candidates(logits, box.expand(count, 1, 4), points)


@pytest.mark.parametrize(
    ("logits", "count"),
    [
        ((2.0, 0.0, -1.0, 0.0), 2),
        ((0.0, 4.0, 0.0, 0.0), 0),
        ((0.0, 0.0, 4.0, 0.0), 0),
        ((0.0, 0.0, 0.0, 4.0), 0),
        ((2.0, 2.5, 2.0, 2.0), 2),
    ],
)
def test_a_doubtful_face_that_scores_higher_when_it_is_turned_is_rejected(
    monkeypatch, logits, count
):
    monkeypatch.setattr(detection, "_CERTAIN", 0.99)
    image = photo_of((30, 20, 40, 140), (30, 100, 40, 140))  # scores of 0.96 in the first pass
    assert len(detection.detect(TurnedCrops(*logits), [image])) == count


def test_a_certain_face_is_not_shown_turned():
    image = photo_of((30, 20, 40, 140))
    assert len(detection.detect(TurnedCrops(0.0, 4.0, 0.0, 0.0), [image])) == 1


def test_a_face_found_at_another_rotation_is_compared_with_that_rotation(monkeypatch):
    monkeypatch.setattr(detection, "_CERTAIN", 0.99)
    monkeypatch.setattr(detection, "_CERTAIN_TILTED", 0.99)
    image = photo_of((30, 20, 40, 140))
    config = DetectionConfig(rotations=(180,))
    for logits, count in (((0.0, 0.0, 4.0, 0.0), 1), ((4.0, 0.0, 0.0, 0.0), 0)):
        assert len(detection.detect(TurnedCrops(*logits), [image], config)) == count


@pytest.mark.parametrize("name", ["grace_hopper", "eileen_collins"])
def test_landmarks_of_portraits_at_any_rotation_are_right_or_missing(name):
    image = Image.open(f"examples/portraits/{name}.jpg").convert("RGB").resize((300, 350))
    pixels = torch.from_numpy(np.array(image))
    detector = load_detector(CPU)
    (truth,) = detection.detect(detector, [pixels]).landmarks
    labeled = LabeledImage(
        pixels,
        torch.cat([truth.amin(0) - 30, truth.amax(0) + 30])[None],
        truth[None],
        torch.ones(1, 5),
        torch.zeros(1, dtype=torch.bool),
        torch.zeros(0, 4),
    )
    find = functools.partial(detection.detect, detector)
    for degrees in range(75, 286, 15):
        assert misplaced_faces(find, [labeled], degrees) == 0, f"{degrees} degrees"
    config = DetectionConfig(rotations=(0, 90, 180, 270))
    everywhere = functools.partial(detection.detect, detector, config=config)
    for degrees in (75, 90, 180, 240, 270):
        assert rotated_faces(everywhere, [labeled], degrees)[0] == 1, f"{degrees} degrees"


def test_a_detector_is_read_by_name_or_from_its_file_as_it_is_now(tmp_path):
    path = tmp_path / "own.safetensors"

    def boxes_of(name):
        for suffix in (".json", ".safetensors"):
            shutil.copy(CHECKPOINTS / f"{name}{suffix}", path.with_suffix(suffix))
        return [detection.detect(read_detector(n, CPU), [image]).boxes for n in (name, path)]

    image = torch.from_numpy(np.array(Image.open("examples/portraits/grace_hopper.jpg")))
    default, own = boxes_of("face-detector.wild")
    assert own.equal(default)
    assert detection.detect(load_detector(CPU), [image]).boxes.equal(default)
    other, replaced = boxes_of("face-detector.wild-ferplus")
    assert replaced.equal(other)
    assert not replaced.equal(own)
    with pytest.raises(UnsupportedError, match="is a checkpoint of ipd-fer; expected one of face"):
        read_detector("ipd-fer", CPU)


def test_the_network_takes_few_large_images_at_once_on_a_cpu(detector, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    images = [photo_of(height=640, width=640)] * 3 + [photo_of(height=250, width=250)] * 9
    detect(detector, images, SIZES)
    assert detector.shown == [(1, 3, 640, 640)] * 3 + [(8, 3, 256, 256), (1, 3, 256, 256)]
