"""Measuring a detector: what counts as found, as wrong, and as neither."""

import math

import pyarrow as pa
import pytest
import torch
from packs import SquareDetector, face_at, photo_of, png, write_backgrounds, write_lfw

from facezoo.evaluate.detection import central_alone, measure
from facezoo.evaluate.protocols import detection
from facezoo.preprocess.detection import DetectionConfig

CPU = torch.device("cpu")


def row(squares, faces, unsure=()):
    """A photograph on which the detector sees ``squares``, and what is known about it."""
    return {
        "image": png(photo_of(*squares).numpy()),
        "faces": [moved_by_half(face_at(*face)) for face in faces],
        "unsure": [[x - 0.5, y - 0.5, x + s - 0.5, y + s - 0.5] for x, y, s in unsure],
    }


def moved_by_half(face):
    """Edges of a square of pixels lie half a pixel off their centres."""
    return {**face, "box": [value - 0.5 for value in face["box"]]}


SCHEMA = pa.schema(
    {
        "image": pa.binary(),
        "faces": pa.list_(
            pa.struct({"box": pa.list_(pa.float32()), "landmarks": pa.list_(pa.float32())})
        ),
        "unsure": pa.list_(pa.list_(pa.float32())),
    }
)


def measured(*rows, **options):
    return measure(SquareDetector(), pa.Table.from_pylist(list(rows), SCHEMA), CPU, **options)


def test_faces_that_are_where_they_should_be_are_found_without_error():
    result = measured(row([(20, 30, 40), (120, 100, 60)], [(20, 30, 40), (120, 100, 60)]))
    assert result["faces"] == 2
    assert result["recall"] == 1
    assert result["false_positives"] == 0
    assert result["landmark_error"] == pytest.approx(0, abs=1e-3)


def test_a_face_that_is_not_seen_lowers_recall():
    result = measured(row([(20, 30, 40)], [(20, 30, 40), (120, 100, 60)]))
    assert result["recall"] == pytest.approx(1 / 2)
    assert result["false_positives"] == 0


def test_a_detection_where_there_is_no_face_is_false():
    result = measured(row([(20, 30, 40), (120, 100, 60)], [(20, 30, 40)]), row([(50, 50, 50)], []))
    assert result["recall"] == 1
    assert result["false_positives"] == pytest.approx(2 / 3)


def test_half_an_overlap_is_needed():
    # A square of 40 moved by 13 keeps 0.51 of the union, by 14 only 0.48.
    near = measured(row([(33, 30, 40)], [(20, 30, 40)]))
    far = measured(row([(34, 30, 40)], [(20, 30, 40)]))
    assert (near["recall"], near["false_positives"]) == (1, 0)
    assert (far["recall"], far["false_positives"]) == (0, 1)


def test_landmark_error_is_a_share_of_the_distance_between_the_eyes():
    # Moved by 4 and 3, so by 5 pixels, and seen at one scale.
    once = DetectionConfig(again_above=256)
    result = measured(row([(24, 33, 40)], [(20, 30, 40)]), config=once)
    between = (73.5318 - 38.2946) * 40 / 112
    assert result["landmark_error"] == pytest.approx(5 / between, rel=1e-3)


def test_small_faces_count_neither_way():
    seen = measured(row([(20, 30, 22)], [(20, 30, 22)]))
    unseen = measured(row([], [(20, 30, 22)]))
    for result in (seen, unseen):
        assert result["faces"] == 0
        assert result["false_positives"] == 0
    counted = measured(row([(20, 30, 22)], [(20, 30, 22)]), smallest=12.0)
    assert (counted["faces"], counted["recall"]) == (1, 1)


def test_detections_in_unsure_regions_count_neither_way():
    result = measured(row([(20, 30, 40), (120, 100, 60)], [(20, 30, 40)], [(110, 95, 80)]))
    assert result["recall"] == 1
    assert result["false_positives"] == 0


def test_a_found_face_counts_even_if_it_touches_an_unsure_region():
    result = measured(row([(20, 30, 40), (120, 30, 40)], [(20, 30, 40)], [(15, 25, 50)]))
    assert result["recall"] == 1
    assert result["false_positives"] == pytest.approx(1 / 2)


def test_rows_are_measured_each_for_itself_however_many_there_are():
    # More photographs than are looked at at once, the last with a face at another's place.
    rows = [row([(20, 30, 40)], [(20, 30, 40)])] * 65 + [row([(120, 100, 60)], [(20, 30, 40)])]
    result = measured(*rows)
    assert result["faces"] == 66
    assert result["recall"] == pytest.approx(65 / 66)
    assert result["false_positives"] == pytest.approx(1 / 66)


def test_settings_reach_the_detector():
    dim = row([(20, 30, 40, 140)], [(20, 30, 40)])  # sure to 0.96
    assert measured(dim)["recall"] == 1
    assert measured(dim, config=DetectionConfig(score_threshold=0.99))["recall"] == 0


def test_photographs_without_any_face_have_no_landmark_error():
    result = measured(row([(20, 30, 40)], []))
    assert result["recall"] == 0
    assert result["false_positives"] == 1
    assert math.isnan(result["landmark_error"])


def test_the_central_face_can_be_looked_for_alone():
    middle, aside, missed = (100, 30, 40), (20, 30, 40), (20, 100, 60)
    one = row([middle, aside], [aside, middle, missed])
    known = one["faces"][1]
    one |= {"box": known["box"], "landmarks": known["landmarks"]}
    table = pa.Table.from_pylist([one, one | {"image": png(photo_of(aside).numpy())}])
    result = measure(SquareDetector(), central_alone(table), CPU)
    assert result["faces"] == 2
    assert result["recall"] == 1 / 2  # nobody stands in the middle of the second
    assert result["false_positives"] == 0
    assert result["landmark_error"] == pytest.approx(0, abs=1e-3)
    assert measure(SquareDetector(), table, CPU)["recall"] == 3 / 6


def test_every_metric_of_the_detector_is_a_number(tmp_path):
    # Noise holds no white square: nothing is found.
    write_lfw(tmp_path)
    write_backgrounds(tmp_path)
    metrics = detection(SquareDetector(), tmp_path, CPU, "facezoo evaluate face-detector")
    assert {m.dataset for m in metrics} == {"LFW", "backgrounds"}
    assert [m.name for m in metrics if "nearest the middle" in m.protocol] == ["recall"]
    assert all(math.isfinite(m.value) for m in metrics)
    assert {m.command for m in metrics} == {"facezoo evaluate face-detector"}
