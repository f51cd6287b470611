"""Training of the detector on tiny packs: one run, and exact resume."""

import csv
from dataclasses import replace

import pytest
import torch
from interrupting import interrupted
from packs import write_faces_wild, write_ferplus, write_groups, write_lfw, write_negatives

from facezoo.hub.card import card_named
from facezoo.hub.files import find
from facezoo.hub.tensors import read_tensors
from facezoo.models.face_detector import train as training
from facezoo.models.face_detector.train import DetectorConfig, StageConfig, read_sources, train
from facezoo.preprocess.detector import FaceDetector

CPU = torch.device("cpu")
CONFIG = DetectorConfig(
    width=6,
    boxes=StageConfig("boxes", 2, 3e-3, 1.0, 0.8, 0.0, False),
    refine=StageConfig("refine", 1, 1e-3, 0.65, 1.0, 0.5, True),
    steps_per_epoch=2,
    pixels=2**14,
    sides=(64,),
    side_shares=(1.0,),
)


@pytest.fixture
def packs(tmp_path):
    write_lfw(tmp_path)
    write_groups(tmp_path)
    write_faces_wild(tmp_path)
    write_negatives(tmp_path)
    return tmp_path


def differing(first, second):
    assert first.keys() == second.keys()
    return [key for key in first if not torch.equal(first[key], second[key])]


def test_all_packs_are_read_and_the_shares_of_the_sources_add_up(packs):
    sources = read_sources(packs, CONFIG)
    assert sum(source.share for source in sources) == pytest.approx(1.0)
    assert [source.tight for source in sources].count(None) == len(sources) - 1
    assert all(len(source.images) for source in sources)


def test_training_gives_weights_that_a_detector_takes_and_a_row_per_epoch(packs):
    state = train(CONFIG, packs, packs / "run", seed=0, device=CPU)
    FaceDetector(CONFIG.width).load_state_dict(state)
    assert all(torch.isfinite(value).all() for value in state.values())
    with (packs / "run" / "boxes" / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert rows[0].keys() >= {"score", "box", "landmark", "everyday_error", "groups_recall_5"}


def test_training_changes_every_parameter(packs):
    config = replace(CONFIG, boxes=replace(CONFIG.boxes, epochs=3, lr=0.02))
    torch.manual_seed(0)
    before = FaceDetector(config.width).state_dict()
    after = train(config, packs, packs / "run", seed=0, device=CPU)
    assert set(differing(before, after)) == set(before)


def test_an_interrupted_run_ends_at_the_same_weights(packs, monkeypatch):
    whole = train(CONFIG, packs, packs / "whole", seed=1, device=CPU)
    loss, calls = training.detection_loss, []
    with interrupted(monkeypatch, "detection_loss", training, after=3):
        train(CONFIG, packs, packs / "run", seed=1, device=CPU, save_every=0.0)
    monkeypatch.setattr(training, "detection_loss", lambda *a: calls.append(1) or loss(*a))
    resumed = train(CONFIG, packs, packs / "run", seed=1, device=CPU)
    assert len(calls) == 3, "the first stage had one step left, the second two"
    assert differing(whole, resumed) == []


def test_other_images_are_no_continuation(packs, tmp_path, monkeypatch):
    with interrupted(monkeypatch, "train", training):
        training.run(packs, tmp_path / "out", seed=0, device=CPU)
    write_negatives(packs, count=5)
    with pytest.raises(ValueError, match=r"begun with other data .*sha256 was"):
        training.run(packs, tmp_path / "out", seed=0, device=CPU)


def test_a_recipe_can_start_from_a_checkpoint_and_learn_from_ferplus(packs):
    write_ferplus(packs)
    width = card_named("face-detector").architecture["width"]
    config = replace(CONFIG, width=width, ferplus=0.25, start="face-detector")
    sources = read_sources(packs, config)
    assert sum(source.share for source in sources) == pytest.approx(1.0)
    assert sources[-1].share == 0.25
    assert sources[-1].tight == (0.0, 48.0)
    still = replace(config.boxes, epochs=1, lr=1e-9), replace(config.refine, lr=1e-9)
    state = train(
        replace(config, boxes=still[0], refine=still[1]), packs, packs / "run", seed=0, device=CPU
    )
    start = read_tensors(find(card_named("face-detector")))
    learned = [key for key in state if key.endswith("weight")]
    assert all(torch.allclose(state[key], start[key].float(), atol=1e-6) for key in learned)
