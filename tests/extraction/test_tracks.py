"""Tracks of faces in videos, and smooth features along them."""

import numpy as np
import pytest
from fake_faces import DETECT, run, table
from test_videos import PORTRAITS, RATE, moving, write_video

from facezoo.extraction.tracks import PATIENCE, Tracker
from facezoo.preprocess import pipeline

DETECTOR = pipeline.detect


def follow(frames, smooth=None, cut=3, video="a.mp4", step=1 / RATE):
    """Return the rows of frames, each a list of the x of every face, in parts of ``cut`` frames."""
    tracker, parts = Tracker(smooth), []
    for start in range(0, len(frames), cut):
        part = frames[start : start + cut]
        rows = [(p, f, x) for p, xs in enumerate(part) for f, x in enumerate(xs)]
        image, face = (np.array([row[i] for row in rows], np.int64) for i in (0, 1))
        x = np.array([row[2] for row in rows], np.float32)
        columns = {
            "image": image,
            "face": face.astype(np.int32),
            "box": np.stack([x, 0 * x, x + 10, 0 * x + 10], 1),
            "time": (image + start) * step,
            "expression": np.stack([x, -x], 1),
        }
        names = [f"{video}::{start + n:08d}" for n in range(len(part))]
        parts.append(tracker.follow(names, columns, ["expression"]))
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def tracks(frames, **options):
    return follow(frames, **options)["track"].tolist()


def test_faces_keep_their_tracks_in_any_order():
    assert tracks([[0, 50], [52, 2], [4, 54], [56]]) == [0, 1, 1, 0, 0, 1, 1]


def test_a_face_returns_to_its_track_within_the_patience():
    assert tracks([[0], *[[]] * PATIENCE, [1]]) == [0, 0]
    assert tracks([[0], *[[]] * (PATIENCE + 1), [1]]) == [0, 1]


def test_tracks_do_not_depend_on_the_parts():
    frames = [[n, 40 + n][: 1 + n % 2] for n in range(12)]
    assert len({tuple(tracks(frames, cut=cut)) for cut in (1, 4, 12)}) == 1


def test_a_face_in_another_place_starts_a_track():
    assert tracks([[0], [30], [0]]) == [0, 1, 0]


def test_images_in_shards_have_no_tracks_and_are_not_smoothed():
    rows = follow([[1], [1], [3]], smooth=1.0, video="a.tar")
    assert rows["track"].tolist() == [-1] * 3
    assert rows["expression"][:, 0].tolist() == [1, 1, 3]


def test_smoothing_is_a_mean_with_exponential_weights():
    seconds, xs = 0.25, [0.0, 2.0, 1.0, 3.0, 4.0]
    smooth = follow([[x] for x in xs], seconds, cut=2)["expression"]
    weights = np.exp(-np.arange(len(xs)) / RATE / seconds)
    means = [np.average(xs[: n + 1], weights=weights[n::-1]) for n in range(len(xs))]
    np.testing.assert_allclose(smooth, np.stack([means, -np.array(means)], 1), rtol=1e-6)


@pytest.mark.parametrize("step", [0.0, -1.0])
def test_frames_of_equal_or_earlier_times_have_equal_weights(step):
    smooth = follow([[0.0], [2.0], [4.0]], 0.5, step=step)["expression"]
    np.testing.assert_allclose(smooth[:, 0], [0, 1, 2])


@pytest.mark.usefixtures("_fake_faces")
def test_the_face_of_a_video_is_one_track_and_smoothing_reduces_changes(
    tmp_path, tiny, monkeypatch
):
    monkeypatch.setattr(DETECT, DETECTOR)
    video = write_video(tmp_path / "video.mp4", moving(PORTRAITS[0], 5))
    for name, seconds in (("raw", None), ("smooth", 1.0)):
        run(video, tmp_path / f"{name}.parquet", tiny, faces="largest", smooth=seconds)
    raw, smooth = table(tmp_path / "raw.parquet"), table(tmp_path / "smooth.parquet")
    assert [row["track"] for row in raw] == [0] * 5
    assert [row["x0"] for row in raw] == sorted(row["x0"] for row in raw)
    before, after = (np.array([row["expression"] for row in rows]) for rows in (raw, smooth))
    np.testing.assert_array_equal(before[0], after[0])
    assert np.abs(np.diff(after, axis=0)).sum() < np.abs(np.diff(before, axis=0)).sum()
    names = [key for key in smooth[0] if key.startswith("p_")]
    assert [sum(row[key] for key in names) for row in smooth] == pytest.approx([1] * 5)
    labels = [max(names, key=row.get).removeprefix("p_") for row in smooth]
    assert [row["label"] for row in smooth] == labels
    assert [row["x0"] for row in raw] == [row["x0"] for row in smooth]


@pytest.mark.usefixtures("_fake_faces")
def test_scalars_of_numpy_give_the_rows_of_plain_numbers(tmp_path, tiny):
    video = write_video(tmp_path / "video.mp4", moving(PORTRAITS[0], 5))
    plain, numpy = tmp_path / "plain.csv", tmp_path / "numpy.csv"
    run(video, plain, tiny, smooth=0.5, every=2, min_face=20)
    run(video, numpy, tiny, smooth=np.float32(0.5), every=np.int64(2), min_face=np.int64(20))
    assert plain.read_text() == numpy.read_text()
