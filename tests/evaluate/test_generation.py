"""Distances of distributions, variety and copies."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from facezoo.evaluate.generation import diversity, frechet_distance, nearest


def test_the_frechet_distance_is_that_of_the_formula():
    draw = torch.Generator().manual_seed(0)
    first = torch.randn(200, 6, generator=draw) @ torch.randn(6, 6, generator=draw)
    second = torch.randn(150, 6, generator=draw) + 0.5
    a, b = (np.cov(side.double().numpy().T) for side in (first, second))
    means = [side.double().mean(0).numpy() for side in (first, second)]
    wanted = np.sum((means[0] - means[1]) ** 2) + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet_distance(first, second) == pytest.approx(wanted, rel=1e-6)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-6)


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
