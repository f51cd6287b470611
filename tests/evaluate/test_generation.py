"""Distances of distributions, variety and copies."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from facezoo.evaluate.generation import (
    diversity,
    frechet_distance,
    inception_features,
    nearest,
)


def test_the_frechet_distance_is_that_of_the_formula():
    draw = torch.Generator().manual_seed(0)
    first = torch.randn(200, 6, generator=draw) @ torch.randn(6, 6, generator=draw)
    second = torch.randn(150, 6, generator=draw) + 0.5
    a, b = (np.cov(side.double().numpy().T) for side in (first, second))
    means = [side.double().mean(0).numpy() for side in (first, second)]
    wanted = np.sum((means[0] - means[1]) ** 2) + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet_distance(first, second) == pytest.approx(wanted, rel=1e-6)
    assert 0 <= frechet_distance(first, first) < 1e-6


@pytest.mark.parametrize("seed", range(10))
def test_rounding_does_not_make_the_distance_negative(seed):
    rows = torch.randn(100, 40, generator=torch.Generator().manual_seed(seed))
    assert frechet_distance(rows, rows[torch.randperm(100)]) >= 0


def test_the_frechet_distance_wants_two_rows_and_equal_widths():
    with pytest.raises(ValueError, match="two rows or more"):
        frechet_distance(torch.zeros(1, 3), torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"\(4, 2\)"):
        frechet_distance(torch.zeros(4, 3), torch.zeros(4, 2))


def test_diversity_is_the_mean_over_pairs():
    rows = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    pairs = [
        1 - torch.cosine_similarity(rows[i], rows[j], dim=0)
        for i in range(7)
        for j in range(7)
        if i != j
    ]
    assert diversity(rows) == pytest.approx(float(torch.stack(pairs).mean()), rel=1e-5)
    assert diversity(rows[:1].expand(5, -1)) == pytest.approx(0, abs=1e-6)


def test_a_copy_is_found():
    rows = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    similarities, places = nearest(rows[[5, 2]] * 3, rows)
    assert places.tolist() == [5, 2]
    torch.testing.assert_close(similarities, torch.ones(2))


def test_the_standard_distance_is_that_of_torch_fidelity(tmp_path, monkeypatch):
    extractor = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    metric = pytest.importorskip("torch_fidelity.metric_fid")
    kind = extractor.FeatureExtractorInceptionV3
    with monkeypatch.context() as patched, torch.random.fork_rng():
        torch.manual_seed(0)
        patched.setattr(extractor, "load_state_dict_from_url", lambda *_, **__: {})
        patched.setattr(kind, "load_state_dict", lambda *_: None)
        torch.save(kind("drawn", ["2048"]).state_dict(), tmp_path / "inception.pth")
    draw = torch.Generator().manual_seed(1)
    images = torch.rand(8, 3, 32, 32, generator=draw) * 2 - 1
    features = inception_features(images, tmp_path / "inception.pth", batch_size=3)
    assert features.shape == (8, 2048)
    sides = features.split(4)
    theirs = [metric.fid_features_to_statistics(side) for side in sides]
    wanted = metric.fid_statistics_to_metric(*theirs, verbose=False)
    wanted = wanted["frechet_inception_distance"]
    assert frechet_distance(*sides) == pytest.approx(wanted, rel=1e-3)


def test_the_standard_distance_needs_its_network(tmp_path):
    pytest.importorskip("torch_fidelity")
    with pytest.raises(FileNotFoundError, match="inception"):
        inception_features(torch.zeros(2, 3, 8, 8), tmp_path / "inception.pth")
