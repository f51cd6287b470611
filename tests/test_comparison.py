"""Comparison of faces by identity: similarities, decisions and thresholds."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

import facezoo
from facezoo.errors import NoFaceError, UnsupportedError
from facezoo.evaluate.verification import threshold_at
from facezoo.hub.card import Card, Verification
from facezoo.models.ipd_fer import IPDFER
from facezoo.results import FaceEncoding

HOPPER = "examples/portraits/grace_hopper.jpg"
VERIFICATION = Verification(0.5, 0.01, 0.2, "LFW pairs", "some pairs")


@pytest.fixture
def model():
    return IPDFER("test_resnet.r160_in1k", 16, 8, None, None).eval()


@pytest.fixture
def crops():
    return list(torch.randint(0, 256, (3, 3, 112, 112), dtype=torch.uint8))


def test_similarities_are_cosines_of_identity_features(model, crops):
    found = facezoo.similarity(crops[:2], crops, model, aligned=True)
    features = model.encode_identity(crops, aligned=True)
    expected = torch.cosine_similarity(features[:2, None], features[None], dim=-1)
    torch.testing.assert_close(found, expected)
    assert found.shape == (2, 3)
    torch.testing.assert_close(found.diagonal(), torch.ones(2))


def test_a_model_of_meshes_raises_an_error():
    for compare in (facezoo.similarity, facezoo.verify):
        with pytest.raises(UnsupportedError, match="Adv3D takes meshes, not images"):
            compare(HOPPER, HOPPER, facezoo.load("adv3d", pretrained=False))
    with pytest.raises(UnsupportedError, match="int is not a model; pass a model of images"):
        facezoo.verify(HOPPER, HOPPER, 3)


def test_two_images_match_above_the_threshold(model, crops):
    value = float(facezoo.similarity(crops[0], crops[1], model, aligned=True))
    below = facezoo.verify(*crops[:2], model, threshold=value - 0.01, aligned=True)
    above = facezoo.verify(*crops[:2], model, threshold=(value + 1) / 2, aligned=True)
    assert (below.same, above.same) == (True, False)
    assert bool(below) is True
    assert bool(above) is False
    assert below.similarity == pytest.approx(value)
    assert below.false_match_rate is None


def test_the_threshold_and_its_rate_come_from_the_card(model, crops):
    model.card = replace(facezoo.info("ipd-fer"), verification=VERIFICATION)
    match = facezoo.verify(crops[0], crops[0], model, aligned=True)
    assert match.same
    assert (match.threshold, match.false_match_rate) == (0.5, 0.01)


def test_a_card_without_a_threshold_is_an_error_that_names_the_way_out(model, crops):
    with pytest.raises(ValueError, match=r"no verification threshold; give threshold="):
        facezoo.verify(*crops[:2], model, aligned=True)


def test_an_image_without_a_face_is_named_with_what_to_try(model):
    gray = np.full((120, 120, 3), 127, np.uint8)
    message = r"no face found in image \(numpy array.*; verify needs one in each image: try"
    with pytest.raises(NoFaceError, match=message) as caught:
        facezoo.verify(HOPPER, gray, model, threshold=0.5)
    assert "on_missing" not in str(caught.value)


@pytest.mark.parametrize("options", [{"faces": "all"}, {"on_missing": "nan"}])
def test_a_decision_needs_one_face_of_each_image(model, crops, options):
    name = next(iter(options))
    with pytest.raises(ValueError, match=rf"{name} must be .*call similarity\(\)"):
        facezoo.verify(*crops[:2], model, threshold=0.5, aligned=True, **options)
    with pytest.raises(ValueError, match="got a batch of several"):
        facezoo.verify(torch.stack(crops), crops[0], model, threshold=0.5, aligned=True)


def test_thresholds_are_plain_numbers(model, crops):
    match = facezoo.verify(*crops[:2], model, threshold=np.float32(0.5), aligned=True)
    assert json.loads(json.dumps(asdict(match)))["threshold"] == 0.5
    assert type(match.same) is bool
    for threshold in (float("nan"), np.float32("nan"), 44, -1.5):
        with pytest.raises(ValueError, match="threshold must be a cosine"):
            facezoo.verify(*crops[:2], model, threshold=threshold, aligned=True)
        with pytest.raises(ValueError, match="threshold must be a cosine"):
            facezoo.cluster(torch.eye(3), threshold=threshold)


def test_a_folder_is_taken_by_all_functions_and_loaded_again_after_a_change(
    model, crops, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    card = replace(facezoo.info("ipd-fer"), verification=VERIFICATION)
    for seed in (0, 1):
        torch.manual_seed(seed)
        network = IPDFER("test_resnet.r160_in1k", 16, 8, None, None).eval()
        network.save_pretrained("mine", card=card)
        expected = facezoo.similarity(*crops[:2], network, aligned=True)
        for name in ("mine", Path("mine")):
            found = facezoo.similarity(*crops[:2], name, aligned=True)
            torch.testing.assert_close(found, expected)
            match = facezoo.verify(*crops[:2], name, aligned=True)
            assert match.similarity == pytest.approx(float(expected))
            assert facezoo.cluster(torch.eye(3), model=name).tolist() == [0, 1, 2]
    network.card = card
    assert facezoo.cluster(torch.eye(3), model=network).tolist() == [0, 1, 2]


def test_the_bundled_checkpoint_recognizes_a_portrait():
    match = facezoo.verify(HOPPER, HOPPER)
    assert match.same
    assert match.similarity == pytest.approx(1, abs=1e-4)
    assert 0 < match.false_match_rate <= 0.01


def people(count, images, noise, seed=0):
    """Features of several people, shuffled, and the person of each row."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(count, 32, generator=generator)
    owner = torch.arange(count).repeat_interleave(images)[torch.randperm(count * images)]
    return means[owner] + noise * torch.randn(len(owner), 32, generator=generator), owner


@pytest.mark.parametrize("method", ["average", "hdbscan"])
def test_clusters_are_the_people(method):
    features, owner = people(5, 6, 0.2)
    groups = facezoo.cluster(features.numpy(), threshold=0.5, method=method)
    assert groups.dtype == torch.int64
    assert torch.equal(groups[:, None] == groups, owner[:, None] == owner)


def test_the_largest_cluster_is_the_first_and_rows_of_nan_have_none():
    features, owner = people(2, 3, 0.1)
    features = torch.cat([features, features[owner == 1], torch.full((1, 32), torch.nan)])
    groups = facezoo.cluster(features)  # with the threshold of the card
    assert groups[:-1].bincount().tolist() == [6, 3]
    assert int(groups[-1]) == -1
    assert facezoo.cluster(features[:1]).tolist() == [0]
    assert facezoo.cluster(features[:0]).tolist() == []


def test_clusters_take_data_frames():
    features, _ = people(3, 4, 0.1)
    expected = facezoo.cluster(features, threshold=0.5)
    for frame in (pd.DataFrame(features.numpy()), pl.DataFrame(features.numpy())):
        assert torch.equal(facezoo.cluster(frame, threshold=0.5), expected)


def test_clusters_of_wrong_input_are_errors():
    with pytest.raises(ValueError, match=r"must be numbers \(N, D\), .* got FaceEncoding"):
        facezoo.cluster(FaceEncoding(torch.eye(2), torch.eye(2)))
    with pytest.raises(ValueError, match=r"features must be \(N, D\), got \(3,\)"):
        facezoo.cluster(torch.zeros(3))
    with pytest.raises(ValueError, match="'average' or 'hdbscan'"):
        facezoo.cluster(torch.zeros(3, 2), method="kmeans")
    with pytest.raises(ValueError, match="has no verification threshold"):
        facezoo.cluster(torch.ones(3, 2), model="face-detector")


def test_a_card_keeps_its_threshold_in_json():
    card = replace(facezoo.info("ipd-fer"), verification=VERIFICATION)
    assert Card.parse(json.loads(card.to_json())) == card
    old = json.loads(card.to_json())
    del old["verification"]
    assert Card.parse(old).verification is None


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5])
def test_the_threshold_keeps_the_false_match_rate(rate):
    rng = np.random.default_rng(0)
    same = torch.arange(400) % 2 == 0
    values = torch.from_numpy(rng.standard_normal(400)) + same
    threshold, missed = threshold_at(values, same, rate)
    assert (values[~same] > threshold).double().mean() <= rate
    assert missed == pytest.approx(float((values[same] <= threshold).double().mean()))
    # A lower threshold would take more different pairs for one identity.
    assert (values[~same] > threshold - 0.1).double().mean() > rate


def test_equal_similarities_do_not_exceed_the_rate():
    values, same = torch.tensor([0.1, 0.9, 0.9, 0.9, 0.95]), torch.tensor([0, 0, 0, 0, 1]) > 0
    threshold, missed = threshold_at(values, same, 0.25)
    assert (values[~same] > threshold).double().mean() <= 0.25
    assert missed == 0
    with pytest.raises(ValueError, match="pairs of one identity and pairs of two"):
        threshold_at(values, torch.zeros(5, dtype=torch.bool), 0.01)
