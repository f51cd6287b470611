"""Comparing two checkpoints: against sums over outcomes, and against drawing images one by one."""

from itertools import product

import numpy as np
import pytest
import torch

from facezoo.evaluate.comparison import bootstrap_interval, compare, mcnemar


def naive_mcnemar(only_first, only_second):
    """The share of all ways to toss a coin per differing image that are at least as uneven."""
    count = only_first + only_second
    uneven = abs(only_first - only_second)
    tosses = [abs(2 * sum(toss) - count) >= uneven for toss in product((0, 1), repeat=count)]
    return sum(tosses) / len(tosses)


@pytest.mark.parametrize("counts", [(0, 0), (1, 0), (3, 3), (2, 7), (9, 1), (0, 10)])
def test_mcnemar_is_the_share_of_coin_tosses_at_least_as_uneven(counts):
    assert mcnemar(*counts) == pytest.approx(naive_mcnemar(*counts))


def test_mcnemar_of_many_images_is_neither_nan_nor_zero():
    assert mcnemar(1500, 1500) == 1
    assert 0 < mcnemar(1700, 1300) < 1e-9


def naive_interval(first, second, confidence, resamples, seed):
    """Images drawn one by one."""
    draw = np.random.default_rng(seed)
    gain = second.numpy().astype(int) - first.numpy().astype(int)
    rows = draw.integers(0, len(gain), (resamples, len(gain)))
    differences = np.sort(gain[rows].mean(1))
    outside = (1 - confidence) / 2
    return differences[int(outside * resamples)], differences[int((1 - outside) * resamples) - 1]


def test_the_interval_is_that_of_drawing_images_one_by_one():
    draw = torch.Generator().manual_seed(3)
    first = torch.rand(400, generator=draw) < 0.7
    second = torch.where(torch.rand(400, generator=draw) < 0.2, ~first, first)
    found = compare(first, second, confidence=0.9)
    low, high = naive_interval(first, second, 0.9, 10_000, seed=5)
    # Both are quantiles of 10,000 draws; one image is 0.0025.
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.0026)
    assert found.low < found.difference < found.high


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    draw = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        # Only the first is right with 0.1, only the second with 0.15: they differ by 0.05.
        first, second, _ = draw.multinomial(500, [0.1, 0.15, 0.75])
        low, high = bootstrap_interval(int(first), int(second), 500, 0.95, 1000, trial)
        covered += low <= 0.05 <= high
    assert 0.91 <= covered / 300 <= 0.985


def test_a_comparison_counts_the_images_that_one_alone_has_right():
    first = torch.tensor([True, True, False, False, True, False])
    second = torch.tensor([True, False, True, True, True, True])
    found = compare(first, second)
    assert (found.images, found.only_first, found.only_second) == (6, 1, 3)
    assert found.difference == pytest.approx(2 / 6)
    assert found.p_value == pytest.approx(naive_mcnemar(1, 3))


def test_the_same_answers_do_not_differ():
    found = compare(torch.tensor([True, False]), torch.tensor([True, False]))
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_a_comparison_is_the_same_each_time_and_reads_as_percentage_points():
    first = torch.arange(1000) < 800
    second = (torch.arange(1000) >= 20) & (torch.arange(1000) < 827)
    assert compare(first, second) == compare(first, second)
    text = str(compare(first, second))
    assert text.startswith("+0.70 (95 % interval -")
    assert text.endswith(f"p = {mcnemar(20, 27):.3g})")


@pytest.mark.parametrize("shapes", [((3,), (4,)), ((0,), (0,)), ((2, 2), (2, 2))])
def test_answers_about_other_images_are_refused(shapes):
    first, second = (torch.ones(shape, dtype=torch.bool) for shape in shapes)
    with pytest.raises(ValueError, match="same images"):
        compare(first, second)
