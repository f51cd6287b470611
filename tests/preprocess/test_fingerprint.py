"""The fingerprint changes with everything that changes the pixels a network sees."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from facezoo.hub.card import Preprocessing
from facezoo.preprocess import fingerprint as fingerprints
from facezoo.preprocess.detection import DetectionConfig
from facezoo.preprocess.fingerprint import fingerprint


@pytest.fixture
def detector_card(monkeypatch):
    """A card in place of the bundled detector's."""
    card = SimpleNamespace(weights=SimpleNamespace(sha256="a" * 64), architecture={"width": 8})
    monkeypatch.setattr(fingerprints, "card_named", lambda name: card)
    return card


def test_the_fingerprint_is_16_digits_and_stable(detector_card):
    first = fingerprint(Preprocessing())
    assert len(first) == 16
    assert set(first) <= set("0123456789abcdef")
    assert fingerprint(Preprocessing()) == first


@pytest.mark.parametrize(
    "change",
    [
        {"template": "ffhq"},
        {"size": 128},
        {"mean": (0.5, 0.5, 0.4)},
        {"std": (0.5, 0.4, 0.5)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_fingerprint_changes_with_every_setting(detector_card, change):
    assert fingerprint(replace(Preprocessing(), **change)) != fingerprint(Preprocessing())


@pytest.mark.parametrize(
    "change",
    [{"min_face": 30.0}, {"score_threshold": 0.9}, {"max_side": 1280}, {"rotations": (0, 90)}],
    ids=lambda change: next(iter(change)),
)
def test_the_fingerprint_changes_with_the_detectors_settings(detector_card, monkeypatch, change):
    before = fingerprint(Preprocessing())
    other = replace(DetectionConfig(), **change)
    monkeypatch.setattr(fingerprints, "DetectionConfig", lambda: other)
    changed = fingerprint(Preprocessing()) != before
    assert changed


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"min_face": 20.0}, {"min_face": 20}),
        ({"min_face": 20.0}, {"min_face": np.int64(20)}),
        ({"score_threshold": 0.5}, {"score_threshold": np.float32(0.5)}),
        ({"max_side": 1280}, {"max_side": 1280.0}),
        ({"max_side": 1280}, {"max_side": np.int64(1280)}),
        ({"rotations": (0, 90)}, {"rotations": (0, np.int64(90), 360)}),
    ],
)
def test_equal_settings_of_another_number_type_have_one_fingerprint(detector_card, one, other):
    marks = {
        fingerprint(Preprocessing(), detection=DetectionConfig.override(**settings))
        for settings in (one, other)
    }
    assert len(marks) == 1


def test_the_fingerprint_changes_with_detector_template_and_revision(detector_card, monkeypatch):
    seen = {fingerprint(Preprocessing())}
    detector_card.weights.sha256 = "b" * 64
    seen.add(fingerprint(Preprocessing()))
    monkeypatch.setattr(fingerprints, "REVISION", fingerprints.REVISION + 1)
    seen.add(fingerprint(Preprocessing()))
    points = fingerprints.template_points("arcface112", 112) + 1
    monkeypatch.setattr(fingerprints, "template_points", lambda name, size: points)
    seen.add(fingerprint(Preprocessing()))
    assert len(seen) == 4
