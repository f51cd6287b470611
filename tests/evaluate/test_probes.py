"""Probes against the conditions of their optima, loops, and data whose answer is known."""

import math

import pytest
import torch

from facezoo.evaluate.probes import (
    TEMPERATURE,
    fit_logistic,
    inner_split,
    linear_probe,
    nearest_neighbours,
)
from facezoo.models.identity_removal import remove_identity


def clusters(classes=3, each=20, width=6, noise=0.5, dtype=torch.double):
    """Rows of several classes around centres of their own, and their labels."""
    draw = torch.Generator().manual_seed(1)
    centres = 2 * torch.randn(classes, width, generator=draw, dtype=dtype)
    labels = torch.arange(classes).repeat(each)
    return centres[labels] + noise * torch.randn(
        len(labels), width, generator=draw, dtype=dtype
    ), labels


def naive_gradient(features, labels, weight, bias, penalty):
    """Derivatives of the objective, written out as sums over rows."""
    of_weight, of_bias = penalty * weight, torch.zeros_like(bias)
    for row, label in zip(features, labels.tolist(), strict=True):
        exponents = [math.exp(v) for v in (row @ weight + bias).tolist()]
        for k, value in enumerate(exponents):
            surplus = value / sum(exponents) - (k == label)
            of_weight[:, k] += surplus * row / len(features)
            of_bias[k] += surplus / len(features)
    return of_weight, of_bias


@pytest.mark.parametrize("penalty", [1.0, 0.1, 0.001])
@pytest.mark.parametrize("width", [6, 90])  # fewer and more features than rows
def test_the_fit_is_a_minimum_of_the_penalised_cross_entropy(penalty, width):
    features, labels = clusters(width=width, noise=3.0)
    weight, bias = fit_logistic(features, labels, 3, penalty)
    of_weight, of_bias = naive_gradient(features, labels, weight, bias, penalty)
    assert of_weight.abs().max() < 1e-4
    assert of_bias.abs().max() < 1e-4
    assert weight.abs().max() > 1e-3


def test_the_fit_is_scikit_learns():
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, labels = clusters(noise=3.0)
    weight, bias = fit_logistic(features, labels, 3, 0.01)
    theirs = linear_model.LogisticRegression(C=1 / (0.01 * len(labels)), tol=1e-8, max_iter=1000)
    wanted = theirs.fit(features.numpy(), labels.numpy()).predict_proba(features.numpy())
    found = (features @ weight + bias).softmax(1)
    torch.testing.assert_close(found, torch.from_numpy(wanted), rtol=0, atol=1e-3)


def test_features_that_do_not_vary_or_repeat_each_other_do_no_harm():
    features, labels = clusters()
    more = torch.cat([features, features, torch.full((60, 2), 7.0)], 1)
    rows = torch.arange(60)
    probe = linear_probe(more, labels, rows[:30], rows[30:])
    assert (probe.predicted == labels[30:]).all()
    nothing = linear_probe(torch.ones(60, 4), labels, rows[:30], rows[30:], penalties=[0.1])
    torch.testing.assert_close(nothing.probabilities, torch.full((30, 3), 1 / 3))


def test_what_rounding_leaves_of_removed_features_is_not_read():
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat(100)
    narrow = 3 * torch.randn(4, 3, generator=draw)[labels] + torch.randn(400, 3, generator=draw)
    features = narrow @ torch.randn(3, 64, generator=draw) + torch.randn(64, generator=draw)
    removal = remove_identity(features, torch.arange(80).repeat(5), directions=3)
    left = removal(features)
    assert 0 < left.std(0).max() < 1e-5  # of three dimensions all are gone, but for rounding
    rows = torch.arange(400)
    before = linear_probe(features, labels, rows[:200], rows[200:])
    assert (before.predicted == labels[200:]).double().mean() > 0.9
    probe = linear_probe(left, labels, rows[:200], rows[200:])
    torch.testing.assert_close(probe.probabilities, torch.full((200, 4), 0.25), atol=1e-3, rtol=0)


@pytest.mark.parametrize("probe", [linear_probe, nearest_neighbours])
def test_clusters_are_told_apart_from_rows_that_were_not_fitted_to(probe):
    features, labels = clusters(dtype=torch.float)
    result = probe(features, labels, torch.arange(30), torch.arange(30, 60))
    assert (result.predicted == labels[30:]).all()
    torch.testing.assert_close(result.probabilities.sum(1), torch.ones(30))


@pytest.mark.parametrize("probe", [linear_probe, nearest_neighbours])
def test_a_probe_is_the_same_each_time_and_does_not_see_test_rows(probe):
    features, labels = clusters(noise=3.0, dtype=torch.float)
    train, test = torch.arange(40), torch.arange(40, 60)
    first = probe(features, labels, train, test)
    changed = features.clone()
    changed[50:] *= 100
    again = probe(changed, labels.clone(), train, test)
    assert again.setting == first.setting
    assert torch.equal(again.probabilities[:10], first.probabilities[:10])


def test_the_scale_of_a_feature_does_not_matter_to_the_linear_probe():
    features, labels = clusters(noise=3.0)
    train, test = torch.arange(40), torch.arange(40, 60)
    scaled = features * torch.tensor([1e-3, 1, 1e3, 5, 1, 1]) + 9
    first, second = (linear_probe(f, labels, train, test) for f in (features, scaled))
    torch.testing.assert_close(first.probabilities, second.probabilities, rtol=0, atol=1e-3)


def test_neighbours_vote_with_the_exponent_of_their_cosine():
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(12, 3, generator=draw, dtype=torch.double)
    labels = torch.tensor([0, 1, 2] * 4)
    found = nearest_neighbours(
        features, labels, torch.arange(9), torch.arange(9, 12), neighbours=[4]
    )
    for place, row in enumerate(features[9:]):
        cosines = [float(row @ f / row.norm() / f.norm()) for f in features[:9]]
        nearest = sorted(range(9), key=lambda i: -cosines[i])[:4]
        votes = [0.0] * 3
        for i in nearest:
            votes[int(labels[i])] += math.exp(cosines[i] / TEMPERATURE)
        shares = [vote / sum(votes) for vote in votes]
        assert found.probabilities[place].tolist() == pytest.approx(shares)


def test_the_setting_is_the_one_that_suits_rows_that_were_held_out():
    # A quarter of the labels is wrong: one neighbour is as often wrong, many outvote them.
    features, labels = clusters(classes=2, each=200, noise=0.1)
    wrong = torch.rand(400, generator=torch.Generator().manual_seed(2)) < 0.25
    noisy = torch.where(wrong, 1 - labels, labels)
    result = nearest_neighbours(features, noisy, torch.arange(300), torch.arange(300, 400))
    assert result.setting > 1
    assert (result.predicted == labels[300:]).double().mean() > 0.9


def test_more_neighbours_than_rows_are_all_rows():
    features, labels = clusters(each=4)
    every = nearest_neighbours(
        features, labels, torch.arange(6), torch.arange(6, 12), neighbours=[99]
    )
    six = nearest_neighbours(features, labels, torch.arange(6), torch.arange(6, 12), neighbours=[6])
    assert torch.equal(every.probabilities, six.probabilities)


def test_the_inner_split_holds_out_whole_groups():
    groups = torch.arange(40) // 4
    fit, held = inner_split(torch.zeros(40, dtype=torch.long), groups, seed=0)
    assert not set(groups[fit].tolist()) & set(groups[held].tolist())
    assert sorted([*fit.tolist(), *held.tolist()]) == list(range(40))
    assert len(held) == 8


def test_without_groups_a_quarter_of_each_class_is_held_out_and_a_single_row_stays():
    labels = torch.tensor([0] * 8 + [1] * 2 + [2])
    fit, held = inner_split(labels, None, seed=0)
    assert labels[held].bincount(minlength=3).tolist() == [2, 1, 0]
    assert labels[fit].bincount(minlength=3).tolist() == [6, 1, 1]


def test_a_group_on_both_sides_is_refused():
    features, labels = clusters()
    groups = torch.arange(60) // 2
    with pytest.raises(ValueError, match="1 groups have rows in train and in test"):
        linear_probe(features, labels, torch.arange(31), torch.arange(31, 60), groups)


def test_what_a_probe_cannot_use_is_refused_with_what_to_do():
    features, labels = clusters()
    rows = torch.arange(60)
    with pytest.raises(ValueError, match="no face was found"):
        linear_probe(features / 0, labels, rows[:30], rows[30:])
    with pytest.raises(ValueError, match=r"got \(60, 6\), \(59,\)"):
        linear_probe(features, labels[1:], rows[:30], rows[30:])
    with pytest.raises(ValueError, match="0 test rows"):
        linear_probe(features, labels, rows, rows[:0])
    with pytest.raises(ValueError, match="two rows of one class"):
        nearest_neighbours(features, rows, rows[:30], rows[30:])
    groups = (rows >= 30).long()
    with pytest.raises(ValueError, match="two groups"):
        linear_probe(features, labels, rows[:30], rows[30:], groups)
