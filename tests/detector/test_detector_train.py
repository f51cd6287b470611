"""Training of the detector on tiny packs: reading, one run, and exact resume."""

import csv
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from packs import face_at, photo_of, png, write_backgrounds, write_lfw

from facezoo.models.face_detector import scenes as scenery
from facezoo.models.face_detector import train as training
from facezoo.models.face_detector.train import DetectorConfig, StageConfig, join, read_photos, train
from facezoo.preprocess.detector import FaceDetector

CPU = torch.device("cpu")
CONFIG = DetectorConfig(
    width=8,
    tiled=StageConfig("tiled", epochs=2, rate=3e-3, natural=0.0),
    natural=StageConfig("natural", epochs=1, rate=1e-3, natural=0.7),
    batch_size=2,
)


@pytest.fixture
def small(monkeypatch):
    """Scenes of 64 pixels, which train in milliseconds."""
    for module in (scenery, training):
        monkeypatch.setattr(module, "CANVAS", 64)
    monkeypatch.setattr(training, "_SIDE", 64)


def packs(folder, train=6):
    write_lfw(folder, train=train, side=40)
    write_backgrounds(folder, side=40)
    return folder


def interrupt_after(monkeypatch, steps):
    """Ctrl-C once ``steps`` batches have been composed."""
    calls = []

    def counted(*arguments):
        calls.append(1)
        if len(calls) > steps:
            raise KeyboardInterrupt
        return scenery.scenes(*arguments)

    monkeypatch.setattr(training, "scenes", counted)


def differing(first, second):
    assert first.keys() == second.keys()
    return [key for key in first if not torch.equal(first[key], second[key])]


def table_of(pixels, faces, unsure=()):
    row = {"image": png(pixels), "faces": faces, "unsure": list(unsure)}
    return pa.Table.from_pylist([row])


def test_images_are_cut_to_their_middle_square_and_faces_move_along():
    # A white square in a wide photograph; 100 of its 180 columns are kept and enlarged 2.5 times.
    pixels = photo_of((70, 30, 40), height=100, width=180).numpy()
    box = {"box": [69.5, 29.5, 109.5, 69.5], "landmarks": face_at(70, 30, 40)["landmarks"]}
    photos = read_photos(table_of(pixels, [box], [[39.5, -0.5, 64.5, 19.5]]))
    assert [images.shape for images in photos.images] == [
        (1, 3, side, side) for side in (250, 125, 62, 31)
    ]
    torch.testing.assert_close(photos.boxes[0], torch.tensor([[74.5, 74.5, 174.5, 174.5]]))
    torch.testing.assert_close(photos.unsure[0], torch.tensor([[-0.5, -0.5, 62.0, 49.5]]))
    rows, columns = (photos.images[0][0, 0] > 127).nonzero().T
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (75, 174, 75, 174)
    points = torch.tensor(box["landmarks"]).view(5, 2)
    wanted = (points - torch.tensor([40.0, 0.0]) + 0.5) * 2.5 - 0.5
    torch.testing.assert_close(photos.landmarks[0][0], wanted)


def test_images_of_the_right_size_keep_their_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (250, 250, 3), np.uint8)
    photos = read_photos(table_of(pixels, [face_at(10, 10, 50)]))
    assert torch.equal(photos.images[0][0].permute(1, 2, 0), torch.from_numpy(pixels))


def test_joined_images_keep_their_faces(tmp_path):
    packs(tmp_path)
    people = read_photos(training.read_pack(tmp_path / "lfw.parquet"))
    scenery = read_photos(training.read_pack(tmp_path / "backgrounds.parquet"))
    both = join(people, scenery)
    assert [len(images) for images in both.images] == [13] * 4
    assert len(both.boxes) == len(both.landmarks) == len(both.unsure) == 13
    assert [len(boxes) for boxes in both.boxes] == [1] * 10 + [0] * 3
    assert [boxes.shape[1:] for boxes in both.boxes] == [(4,)] * 13
    assert [len(regions) for regions in both.unsure] == [0, 1] * 5 + [1, 0, 0]


def test_training_gives_weights_that_a_detector_takes_and_a_row_per_epoch(tmp_path, small):
    state = train(CONFIG, packs(tmp_path), tmp_path / "run", seed=0, device=CPU)
    FaceDetector(CONFIG.width).load_state_dict(state)
    assert all(torch.isfinite(value).all() for value in state.values())
    with (tmp_path / "run" / "tiled" / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(float(row["loss"]) > 0 for row in rows)
    assert rows[0].keys() >= {"recall", "landmark_error"}


def test_training_changes_every_parameter(tmp_path, small):
    config = replace(CONFIG, tiled=replace(CONFIG.tiled, epochs=4, rate=0.02))
    torch.manual_seed(0)
    before = FaceDetector(config.width).state_dict()
    after = train(config, packs(tmp_path), tmp_path / "run", seed=0, device=CPU)
    assert set(differing(before, after)) == set(before)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path, small):
    packs(tmp_path)
    first = train(CONFIG, tmp_path, tmp_path / "a", seed=5, device=CPU)
    torch.manual_seed(99)
    assert differing(first, train(CONFIG, tmp_path, tmp_path / "b", seed=5, device=CPU)) == []
    assert differing(first, train(CONFIG, tmp_path, tmp_path / "c", seed=6, device=CPU))


@pytest.mark.parametrize("after", [0, 2, 4], ids=["first epoch", "first batch", "second epoch"])
def test_an_interrupted_run_ends_at_the_same_weights(tmp_path, small, monkeypatch, after):
    packs(tmp_path)
    whole = train(CONFIG, tmp_path, tmp_path / "whole", seed=1, device=CPU)
    with monkeypatch.context() as patch:
        interrupt_after(patch, after)
        with pytest.raises(KeyboardInterrupt):
            train(CONFIG, tmp_path, tmp_path / "run", seed=1, device=CPU)
    resumed = train(CONFIG, tmp_path, tmp_path / "run", seed=1, device=CPU)
    assert differing(whole, resumed) == []


def test_a_run_resumes_within_an_epoch(tmp_path, small, monkeypatch):
    packs(tmp_path, train=6)
    for module in (scenery, training):  # a batch of one needs more than one cell per level
        monkeypatch.setattr(module, "CANVAS", 128)
    tiled, natural = replace(CONFIG.tiled, epochs=1), replace(CONFIG.natural, epochs=0)
    config = replace(CONFIG, tiled=tiled, natural=natural, batch_size=1)
    options = {"seed": 1, "device": CPU, "save_every": 0.0}
    whole = train(config, tmp_path, tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path, tmp_path / "run", **options)
    interrupt_after(monkeypatch, 3)  # no more than two batches remain
    resumed = train(config, tmp_path, tmp_path / "run", **options)
    assert differing(whole, resumed) == []
    logs = [(tmp_path / name / "tiled" / "log.csv").read_text() for name in ("whole", "run")]
    assert logs[0] == logs[1]


def test_a_finished_run_is_not_trained_again(tmp_path, small, monkeypatch):
    packs(tmp_path)
    first = train(CONFIG, tmp_path, tmp_path / "run", seed=2, device=CPU)
    interrupt_after(monkeypatch, 0)
    assert differing(first, train(CONFIG, tmp_path, tmp_path / "run", seed=2, device=CPU)) == []


def test_a_run_with_other_images_does_not_resume(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", interrupted)
    for name, count in (("some", 6), ("more", 8)):
        (tmp_path / name).mkdir()
        packs(tmp_path / name, train=count)
    with pytest.raises(KeyboardInterrupt):
        training.run(tmp_path / "some", tmp_path / "out", seed=0, device=CPU)
    with pytest.raises(ValueError, match=r"begun with other data .*sha256 was"):
        training.run(tmp_path / "more", tmp_path / "out", seed=0, device=CPU)
    with pytest.raises(KeyboardInterrupt):
        training.run(tmp_path / "some", tmp_path / "out", seed=0, device=CPU)
