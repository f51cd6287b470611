"""Measurements of a detector: faces, unexplained detections, landmarks, crops and rotations."""

import math
from functools import partial

import pyarrow as pa
import pytest
import torch
from packs import (
    SquareDetector,
    face_at,
    photo_of,
    png,
    write_faces_wild,
    write_ferplus,
    write_groups,
    write_lfw,
)

from facezoo.data.detection import labeled_image
from facezoo.data.packs import read_pack
from facezoo.evaluate.detection import (
    Comparison,
    central_faces,
    compare,
    detection,
    misplaced_faces,
    rotate,
    rotated_faces,
    share_with_face,
    tight_crops,
)
from facezoo.preprocess.detection import DetectionConfig, detect
from facezoo.results import Faces

find = partial(detect, SquareDetector(), config=DetectionConfig(second_pass=False))


def image_of(squares, faces, unsure=(), marks=None):
    """An image with bright squares, and its faces."""
    labels = [face_at(*face) | {"marks": marks} for face in faces]
    for label in labels:  # the edges of a square of pixels lie half a pixel off their centers
        label["box"] = [value - 0.5 for value in label["box"]]
    regions = [[x - 0.5, y - 0.5, x + s - 0.5, y + s - 0.5] for x, y, s in unsure]
    return labeled_image(photo_of(*squares), labels, regions)


def measured(*images, **options):
    return compare(find, images, **options)


def test_faces_in_the_right_place_are_detected_without_error():
    result = measured(image_of([(20, 30, 40), (120, 100, 60)], [(20, 30, 40), (120, 100, 60)]))
    assert result.recall() == 1
    assert result.unexplained_share() == 0
    assert result.error() == pytest.approx(0, abs=1e-3)
    assert result.sizes.tolist() == [40, 60]


def test_a_missed_face_lowers_recall():
    result = measured(image_of([(20, 30, 40)], [(20, 30, 40), (120, 100, 60)]))
    assert result.recall() == pytest.approx(1 / 2)
    assert result.recall(sizes=(50, math.inf)) == 0
    assert result.unexplained_share() == 0


def test_a_detection_without_a_face_is_unexplained():
    result = measured(
        image_of([(20, 30, 40), (120, 100, 60)], [(20, 30, 40)]), image_of([(50, 50, 50)], [])
    )
    assert result.recall() == 1
    assert result.unexplained_share() == pytest.approx(2 / 3)


def test_half_an_overlap_is_needed():
    # A square of 40 moved by 13 keeps 0.51 of the union, by 14 only 0.48.
    near = measured(image_of([(33, 30, 40)], [(20, 30, 40)]))
    far = measured(image_of([(34, 30, 40)], [(20, 30, 40)]))
    assert (near.recall(), near.unexplained_share()) == (1, 0)
    assert (far.recall(), far.unexplained_share()) == (0, 1)


def test_landmark_error_is_a_share_of_the_eye_distance():
    # Moved by 4 and 3, so by 5 pixels.
    result = measured(image_of([(24, 33, 40)], [(20, 30, 40)]))
    assert result.error() == pytest.approx(5 / ((73.5318 - 38.2946) * 40 / 112), rel=1e-3)


def test_marks_replace_eyes_and_mouth_and_ignore_the_nose():
    points = torch.tensor(face_at(20, 30, 40)["landmarks"]).view(5, 2)
    marks = torch.cat([points[:2] + 3, torch.zeros(1, 2), points[3:].mean(0)[None] + 3])
    image = image_of([(20, 30, 40)], [(20, 30, 40)], marks=marks.flatten().tolist())
    eyes = float((points[0] - points[1]).norm())
    assert measured(image, marks=True).error() == pytest.approx(3 * math.sqrt(2) / eyes, rel=1e-3)
    unmarked = image_of([(20, 30, 40)], [(20, 30, 40)])
    assert math.isnan(measured(unmarked, marks=True).error())


def test_small_faces_are_ignored():
    seen = measured(image_of([(20, 30, 22)], [(20, 30, 22)]), min_face=24.0)
    unseen = measured(image_of([], [(20, 30, 22)]), min_face=24.0)
    for result in (seen, unseen):
        assert len(result.scores) == 0
        assert result.unexplained_share() == 0
    assert measured(image_of([(20, 30, 22)], [(20, 30, 22)])).recall() == 1


def test_detections_in_unsure_regions_are_ignored():
    result = measured(image_of([(20, 30, 40), (120, 100, 60)], [(20, 30, 40)], [(110, 95, 80)]))
    assert result.recall() == 1
    assert result.unexplained_share() == 0


def test_a_detected_face_counts_even_if_it_touches_an_unsure_region():
    result = measured(image_of([(20, 30, 40), (120, 30, 40)], [(20, 30, 40)], [(15, 25, 50)]))
    assert result.recall() == 1
    assert result.unexplained_share() == pytest.approx(1 / 2)


def test_images_are_compared_one_by_one_in_any_number():
    images = [image_of([(20, 30, 40)], [(20, 30, 40)])] * 33
    result = measured(*images, image_of([(120, 100, 60)], [(20, 30, 40)]))
    assert result.recall() == pytest.approx(33 / 34)
    assert result.unexplained_share() == pytest.approx(1 / 34)


def test_a_threshold_trades_recall_for_unexplained_detections():
    scores, none = torch.tensor([0.9, 0.6, 0.0, 0.8]), torch.zeros(4)
    result = Comparison(scores, none, none + 30, torch.tensor([0.9, 0.6, 0.8]), torch.tensor([0.7]))
    assert result.recall() == 3 / 4
    assert (result.recall(0.7), result.unexplained_share(0.7)) == (2 / 4, 0)
    assert result.recall_at(0.0) == (2 / 4, pytest.approx(0.7))
    assert result.recall_at(0.3) == (3 / 4, 0)


def test_only_the_central_face_of_lfw_counts(tmp_path):
    middle, aside, missed = (100, 30, 40), (20, 30, 40), (20, 100, 60)
    table = pa.Table.from_pylist(
        [
            {
                "image": png_of(*squares),
                "box": face_at(*middle)["box"],
                "landmarks": face_at(*middle)["landmarks"],
                "faces": [face_at(*face) for face in (aside, middle, missed)],
                "unsure": [],
            }
            for squares in ([middle, aside], [aside])
        ]
    )
    result = measured(*central_faces(table))
    assert result.scores.gt(0).tolist() == [True, False]
    assert result.unexplained_share() == 0


def png_of(*squares):
    return png(photo_of(*squares).numpy())


@pytest.mark.parametrize("degrees", [90, 180, -30])
def test_faces_rotate_with_the_image(degrees):
    image = image_of([(20, 60, 50)], [(20, 60, 50)])
    turned = rotate(image, degrees)
    bright = (turned.pixels[..., 0] > 127).nonzero().float()
    middle = bright.flip(1).mean(0)
    torch.testing.assert_close(
        (turned.boxes[0, :2] + turned.boxes[0, 2:]) / 2, middle, atol=0.6, rtol=0
    )
    nose = turned.landmarks[0, 2] - middle
    angle = math.radians(degrees)
    below = image.landmarks[0, 2] - torch.tensor([44.5, 84.5])
    expected = torch.tensor(
        [
            below[0] * math.cos(angle) + below[1] * math.sin(angle),
            below[1] * math.cos(angle) - below[0] * math.sin(angle),
        ]
    )
    torch.testing.assert_close(nose, expected, atol=0.6, rtol=0)


def oracle(images_and_points):
    """A finder that returns the landmarks of the next images, or no face for None."""
    rest = iter(images_and_points)

    def faces_of(images):
        points = [next(rest) for _ in images]
        index = torch.tensor([i for i, p in enumerate(points) if p is not None], dtype=torch.long)
        rows = [p for p in points if p is not None]
        landmarks = torch.stack(rows) if rows else torch.zeros(0, 5, 2)
        return Faces(torch.zeros(len(rows), 4), landmarks, torch.ones(len(rows)), index)

    return faces_of


def test_rotated_faces_need_landmarks_near_the_rotated_ones():
    image = image_of([(60, 60, 60)], [(60, 60, 60)])
    points = rotate(image, 30).landmarks[0]
    share, error = rotated_faces(oracle([points + 1, None, points + 30, points]), [image] * 4, 30)
    assert share == 1 / 2
    eyes = float((points[0] - points[1]).norm())
    assert error == pytest.approx(math.sqrt(2) / eyes / 2, rel=1e-3)


def test_misplaced_faces_have_a_box_on_the_face_and_landmarks_off_it():
    image = image_of([(60, 60, 60)], [(60, 60, 60)])
    turned = rotate(image, 180)
    right, upside_down = turned.landmarks[0], turned.landmarks[0].flip(0)
    elsewhere = right - 100

    def faces_of(images):
        assert all(torch.equal(pixels, turned.pixels) for pixels in images)
        boxes = turned.boxes.repeat(4, 1)
        boxes[3] -= 100
        points = torch.stack([right, upside_down, right, elsewhere])
        return Faces(boxes, points, torch.ones(4), torch.tensor([0, 1, 1, 2]))

    assert misplaced_faces(faces_of, [image] * 4, 180) == 1 / 4


def test_tight_crops_are_measured_at_every_side(tmp_path):
    write_faces_wild(tmp_path)
    table = read_pack(tmp_path / "faces_wild.parquet", "val")
    points = torch.tensor(table["landmarks"][0].as_py()).view(5, 2)
    near = (points - 33 + 0.5) * 42 / 84 - 0.5
    shares = tight_crops(oracle([near, None, near, near]), table, sides=(42, 84))
    assert shares == {42: 0.5, 84: 0.0}


def test_the_share_of_images_with_a_face_counts_images_and_not_faces(tmp_path):
    squares = ([(20, 20, 40), (100, 100, 40)], [], [(50, 50, 60)], [])
    table = pa.table({"image": [png_of(*s) for s in squares]})
    assert share_with_face(find, table) == 1 / 2


def test_every_metric_of_a_detector_is_a_number(tmp_path):
    for write in (write_lfw, write_groups, write_faces_wild, write_ferplus):
        write(tmp_path)
    points = torch.tensor(face_at(33, 33, 84)["landmarks"]).view(1, 5, 2)

    def faces_of(images):
        count = len(images)
        boxes = torch.tensor([[8.0, 10.0, 40.0, 42.0]]).repeat(count, 1)
        return Faces(boxes, points.repeat(count, 1, 1), torch.ones(count), torch.arange(count))

    metrics = detection(faces_of, tmp_path, "facezoo evaluate face-detector", crops=2)
    datasets = ["everyday images", "groups and crowds", "groups", "LFW", "faces_wild", "FER+"]
    assert list(dict.fromkeys(m.dataset for m in metrics)) == datasets
    assert all(0 <= m.value < 1e6 for m in metrics)
    assert {m.command for m in metrics} == {"facezoo evaluate face-detector"}
    assert len({(m.name, m.dataset, m.protocol) for m in metrics}) == len(metrics)
