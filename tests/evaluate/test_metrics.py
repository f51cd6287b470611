"""Classification scores against loops, accuracy by yaw, and paired comparisons."""

import math
from itertools import product

import numpy as np
import pytest
import torch

from facezoo.evaluate.metrics import (
    YawBin,
    accuracy_by_yaw,
    compare,
    confusion,
    expected_calibration_error,
    predicted_classes,
    scores,
    vote_divergence,
)


def naive_scores(predicted, truth, classes):
    """Accuracy, balanced accuracy and macro-F1 in loops; None is no prediction."""
    pairs = list(zip(predicted, truth, strict=True))
    recalls, f1s = [], []
    for c in range(classes):
        hits = sum(p == c and t == c for p, t in pairs)
        actual, called = truth.count(c), predicted.count(c)
        if actual:
            recalls.append(hits / actual)
        if actual + called:
            f1s.append(2 * hits / (actual + called))
    right = sum(p == t for p, t in pairs) / len(pairs)
    return right, sum(recalls) / len(recalls), sum(f1s) / len(f1s)


def as_probabilities(predicted, classes=4):
    rows = torch.rand(len(predicted), classes) * 0.5
    for row, choice in enumerate(predicted):
        rows[row] = torch.nan if choice is None else rows[row]
        if choice is not None:
            rows[row, choice] = 1.0
    return rows


@pytest.mark.parametrize("seed", range(5))
def test_scores_match_loops(seed):
    generator = torch.Generator().manual_seed(seed)
    predicted, truth = torch.randint(0, 4, (2, 20), generator=generator).tolist()
    predicted[3 * seed : 4 * seed] = [None] * seed
    result = scores(as_probabilities(predicted), torch.tensor(truth))
    assert list(result.values()) == pytest.approx(naive_scores(predicted, truth, 4))
    assert list(result) == ["accuracy", "balanced accuracy", "macro-F1"]


def test_scores_take_classes_too():
    predicted, truth = torch.tensor([0, 2, -1, 1]), torch.tensor([0, 1, 2, 1])
    expected = naive_scores([0, 2, None, 1], truth.tolist(), 3)
    assert list(scores(predicted, truth).values()) == pytest.approx(expected)


def test_many_classes_in_small_integers_do_not_overflow():
    truth = torch.arange(20).repeat(5)
    predicted = truth.roll(3)
    wanted = scores(predicted, truth)
    assert scores(predicted.to(torch.uint8), truth.to(torch.uint8)) == wanted
    assert scores(predicted.to(torch.int8), truth) == wanted
    with pytest.raises(ValueError, match="1 predictions of 100 rows"):
        scores(predicted[:1], truth)


def test_a_missing_prediction_is_wrong_even_if_the_first_class_is_true():
    truth = torch.tensor([0, 0, 3, 1])
    result = scores(as_probabilities([None, 0, None, 1]), truth)
    assert result["accuracy"] == pytest.approx(0.5)
    assert result["balanced accuracy"] == pytest.approx((0.5 + 0 + 1) / 3)
    # F1 of class 0 is 2/3, of class 1 1, of class 3 0.
    assert result["macro-F1"] == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_scores_without_any_prediction_are_0():
    result = scores(as_probabilities([None] * 4), torch.tensor([0, 1, 2, 3]))
    assert list(result.values()) == [0, 0, 0]


def test_scores_are_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(0)
    predicted, truth = torch.randint(0, 5, (2, 200), generator=generator)
    assert list(scores(predicted, truth).values()) == pytest.approx(
        [
            metrics.accuracy_score(truth, predicted),
            metrics.balanced_accuracy_score(truth, predicted),
            metrics.f1_score(truth, predicted, average="macro"),
        ]
    )


def test_the_confusion_matrix_has_true_classes_in_rows_and_missing_predictions_last():
    predicted, truth = torch.tensor([0, 2, 2, 1, -1]), torch.tensor([0, 1, 1, 2, 0])
    assert confusion(predicted, truth, 3).tolist() == [[1, 0, 0, 1], [0, 0, 2, 0], [0, 1, 0, 0]]


def test_a_row_with_nan_has_no_class():
    rows = torch.tensor([[0.1, 0.9], [torch.nan, 0.2], [0.8, 0.2]])
    assert predicted_classes(rows).tolist() == [1, -1, 0]


def naive_calibration_error(probabilities, truth, bins):
    """Guo et al. 2017, eq. (3), in loops over bins ((m - 1) / M, m / M]."""
    error = 0.0
    for m in range(1, bins + 1):
        inside = [
            (max(row), row.index(max(row)) == t)
            for row, t in zip(probabilities, truth, strict=True)
            if (m - 1) / bins < max(row) <= m / bins
        ]
        if inside:
            confidence = sum(top for top, _ in inside) / len(inside)
            right = sum(hit for _, hit in inside) / len(inside)
            error += len(inside) / len(truth) * abs(right - confidence)
    return error


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_the_calibration_error_matches_loops(bins):
    generator = torch.Generator().manual_seed(bins)
    probabilities = (4 * torch.randn(60, 5, generator=generator, dtype=torch.double)).softmax(1)
    truth = torch.randint(0, 5, (60,), generator=generator)
    expected = naive_calibration_error(probabilities.tolist(), truth.tolist(), bins)
    assert expected > 0.05
    assert expected_calibration_error(probabilities, truth, bins) == pytest.approx(expected)


def test_a_probability_on_the_edge_of_two_bins_is_in_the_lower_one():
    # In one bin with 0.4 the errors would cancel: 0.5 is correct once, 0.4 never.
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.4, 0.3, 0.3]], dtype=torch.double)
    assert expected_calibration_error(probabilities, torch.tensor([0, 1]), 2) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("rows", "bins"),
    [
        (torch.full((2, 3), torch.nan), 15),
        (torch.tensor([[9.0, -3.0, 2.0]] * 2), 15),
        (torch.zeros(0, 3), 15),
        (torch.full((2, 3), 1 / 3), 0),
    ],
)
def test_the_calibration_error_needs_probabilities(rows, bins):
    with pytest.raises(ValueError, match=r"probabilities in \[0, 1\]"):
        expected_calibration_error(rows, torch.zeros(len(rows), dtype=torch.long), bins)


def test_divergence_from_votes_is_kullback_leiblers():
    logits, votes = torch.randn(5, 8), torch.rand(5, 8)
    votes[:, 3] = 0
    votes = votes / votes.sum(1, keepdim=True)
    expected = sum(
        v * math.log(v / p)
        for row, vote in zip(logits.softmax(1).tolist(), votes.tolist(), strict=True)
        for p, v in zip(row, vote, strict=True)
        if v > 0
    )
    assert vote_divergence(logits, votes) == pytest.approx(expected / 5, rel=1e-5)


def test_divergence_is_exact_for_predictions_that_are_far_off():
    # softmax rounds the smallest of these to 0, whose logarithm is infinite.
    logits, votes = torch.tensor([[0.0, 200.0]]), torch.tensor([[1.0, 0.0]])
    assert vote_divergence(logits, votes) == pytest.approx(200)


@pytest.mark.parametrize("seed", range(3))
def test_accuracy_by_yaw_matches_loops(seed):
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.rand(80, 4, generator=generator)
    truth = torch.randint(0, 4, (80,), generator=generator)
    yaw = 30 * torch.randn(80, generator=generator)
    yaw[::7] = torch.nan
    bins = accuracy_by_yaw(probabilities, truth, yaw)
    assert [part.beyond_deg for part in bins] == [None, 10, 20, 30, 40]
    for part in bins:
        inside = [
            row.index(max(row)) == t
            for row, t, y in zip(probabilities.tolist(), truth.tolist(), yaw.tolist(), strict=True)
            if part.beyond_deg is None or y > part.beyond_deg or y < -part.beyond_deg
        ]
        assert part.images == len(inside)
        assert part.accuracy == pytest.approx(sum(inside) / len(inside))


def test_unknown_yaw_counts_among_all_faces_only_and_the_limit_itself_is_not_beyond():
    rows = torch.eye(2)[[0, 0, 0]]
    bins = accuracy_by_yaw(rows, torch.tensor([0, 0, 1]), torch.tensor([10.0, -10.5, torch.nan]))
    assert bins[0] == YawBin(None, 3, pytest.approx(2 / 3))
    assert bins[1] == YawBin(10, 1, 1.0)
    assert bins[2].images == 0
    assert math.isnan(bins[2].accuracy)


# --- two checkpoints ------------------------------------------------------------------------------


def naive_mcnemar(only_first, only_second):
    """The share of all ways to toss a coin per differing image that are at least as uneven."""
    count = only_first + only_second
    uneven = abs(only_first - only_second)
    tosses = [abs(2 * sum(toss) - count) >= uneven for toss in product((0, 1), repeat=count)]
    return sum(tosses) / len(tosses)


def answers(only_first, only_second, both=2):
    """Answers of two checkpoints with these counts of images."""
    first = [True] * only_first + [False] * only_second + [True] * both
    second = [False] * only_first + [True] * only_second + [True] * both
    return torch.tensor(first), torch.tensor(second)


@pytest.mark.parametrize("counts", [(0, 0), (1, 0), (3, 3), (2, 7), (9, 1), (0, 10)])
def test_the_p_value_is_the_share_of_coin_tosses_at_least_as_uneven(counts):
    result = compare(*answers(*counts), resamples=10)
    assert result.p_value == pytest.approx(naive_mcnemar(*counts))
    assert (result.only_first, result.only_second) == counts
    assert result.difference == pytest.approx((counts[1] - counts[0]) / (sum(counts) + 2))


def test_the_interval_covers_the_true_difference_about_as_often_as_stated():
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        # Only the first is right with 0.1, only the second with 0.15: they differ by 0.05.
        counts = generator.multinomial(500, [0.1, 0.15, 0.75]).tolist()
        result = compare(*answers(*counts), resamples=500, seed=trial)
        covered += result.low <= 0.05 <= result.high
    assert 0.90 <= covered / 200 <= 0.99


def test_equal_answers_do_not_differ():
    result = compare(torch.tensor([True, False]), torch.tensor([True, False]))
    assert (result.difference, result.low, result.high, result.p_value) == (0, 0, 0, 1)


def test_a_comparison_is_repeatable_and_prints_percentage_points():
    first = torch.arange(1000) < 800
    second = (torch.arange(1000) >= 20) & (torch.arange(1000) < 827)
    assert compare(first, second) == compare(first, second)
    text = str(compare(first, second))
    assert text.startswith("+0.70 (95 % interval -")
    assert text.endswith("p = 0.382)")


@pytest.mark.parametrize("shapes", [((3,), (4,)), ((0,), (0,)), ((2, 2), (2, 2))])
def test_answers_about_different_images_raise_an_error(shapes):
    first, second = (torch.ones(shape, dtype=torch.bool) for shape in shapes)
    with pytest.raises(ValueError, match="same images"):
        compare(first, second)
