"""Probes against the conditions of their optima, loops, and data with a known answer."""

import math

import pytest
import torch

from facezoo.evaluate.probes import TEMPERATURE, linear_probe, nearest_neighbors
from facezoo.models.identity_removal import remove_identity


def clusters(classes=3, each=20, width=6, noise=0.5, dtype=torch.double):
    """Rows of several classes around their centers, and their labels."""
    generator = torch.Generator().manual_seed(1)
    centers = 2 * torch.randn(classes, width, generator=generator, dtype=dtype)
    labels = torch.arange(classes).repeat(each)
    rows = noise * torch.randn(len(labels), width, generator=generator, dtype=dtype)
    return centers[labels] + rows, labels


def fitted(features, labels, penalty):
    """Fit all rows; return standardized features and probabilities of the same rows."""
    rows = torch.arange(len(labels))
    probe = linear_probe(features, labels, rows, rows, penalties=[penalty])
    standardized = (features - features.mean(0)) / features.std(0, correction=0)
    return standardized, probe.probabilities.double()


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("penalty", [1.0, 0.1])
def test_the_fit_is_a_minimum_of_the_penalized_cross_entropy(classes, penalty):
    features, labels = clusters(classes=classes, noise=3.0)
    inputs, probabilities = fitted(features, labels, penalty)
    # At the minimum, the weights are -1 / penalty times the gradient of the cross-entropy.
    surplus = probabilities - torch.nn.functional.one_hot(labels)
    weight = -(inputs.T @ surplus) / len(labels) / penalty
    logits = inputs @ weight
    bias = (probabilities.log() - logits).mean(0)
    torch.testing.assert_close((logits + bias).softmax(1), probabilities, rtol=0, atol=2e-3)
    assert surplus.sum(0).abs().max() < 1e-3 * len(labels)


def test_constant_and_repeated_features_do_no_harm():
    features, labels = clusters()
    more = torch.cat([features, features, torch.full((60, 2), 7.0)], 1)
    rows = torch.arange(60)
    probe = linear_probe(more, labels, rows[:30], rows[30:])
    assert (probe.predicted == labels[30:]).all()
    nothing = linear_probe(torch.ones(60, 4), labels, rows[:30], rows[30:], penalties=[0.1])
    torch.testing.assert_close(nothing.probabilities, torch.full((30, 3), 1 / 3))


def test_rounding_errors_of_removed_features_are_not_read():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat(100)
    narrow = 3 * torch.randn(4, 3, generator=generator)[labels]
    narrow += torch.randn(400, 3, generator=generator)
    features = narrow @ torch.randn(3, 64, generator=generator)
    features += torch.randn(64, generator=generator)
    rest = remove_identity(features, torch.arange(80).repeat(5), directions=3)(features)
    assert 0 < rest.std(0).max() < 1e-5  # all three dimensions are removed, except for rounding
    rows = torch.arange(400)
    before = linear_probe(features, labels, rows[:200], rows[200:])
    assert (before.predicted == labels[200:]).double().mean() > 0.9
    probe = linear_probe(rest, labels, rows[:200], rows[200:])
    torch.testing.assert_close(probe.probabilities, torch.full((200, 4), 0.25), atol=1e-3, rtol=0)


@pytest.mark.parametrize("probe", [linear_probe, nearest_neighbors])
def test_clusters_are_classified_from_other_rows(probe):
    features, labels = clusters(dtype=torch.float)
    result = probe(features, labels, torch.arange(30), torch.arange(30, 60))
    assert (result.predicted == labels[30:]).all()
    assert result.probabilities.dtype == torch.float
    torch.testing.assert_close(result.probabilities.sum(1), torch.ones(30))


@pytest.mark.parametrize("probe", [linear_probe, nearest_neighbors])
def test_a_probe_is_repeatable_and_does_not_depend_on_test_rows(probe):
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


def test_a_class_that_is_not_in_train_has_hardly_any_probability():
    features, labels = clusters()
    train = (labels != 1).nonzero()[:, 0][:30]
    probe = linear_probe(features, labels, train, torch.arange(50, 60))
    assert probe.probabilities[:, 1].max() < 1e-6
    assert (probe.predicted == labels[50:])[labels[50:] != 1].all()


def test_neighbors_vote_with_the_exponent_of_their_cosine():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(12, 3, generator=generator, dtype=torch.double)
    labels = torch.tensor([0, 1, 2] * 4)
    result = nearest_neighbors(
        features, labels, torch.arange(9), torch.arange(9, 12), neighbors=[4]
    )
    for place, row in enumerate(features[9:]):
        cosines = [float(row @ f / row.norm() / f.norm()) for f in features[:9]]
        nearest = sorted(range(9), key=lambda i: -cosines[i])[:4]
        votes = [0.0] * 3
        for i in nearest:
            votes[int(labels[i])] += math.exp(cosines[i] / TEMPERATURE)
        shares = [vote / sum(votes) for vote in votes]
        assert result.probabilities[place].tolist() == pytest.approx(shares)


def test_the_setting_suits_rows_outside_the_fit():
    # A quarter of the labels is wrong: one neighbor is wrong as often, many outvote them.
    features, labels = clusters(classes=2, each=200, noise=0.1)
    wrong = torch.rand(400, generator=torch.Generator().manual_seed(2)) < 0.25
    noisy = torch.where(wrong, 1 - labels, labels)
    result = nearest_neighbors(features, noisy, torch.arange(300), torch.arange(300, 400))
    assert result.setting > 1
    assert (result.predicted == labels[300:]).double().mean() > 0.9


def test_more_neighbors_than_rows_are_all_rows():
    features, labels = clusters(each=4)
    train, test = torch.arange(6), torch.arange(6, 12)
    most, six = (
        nearest_neighbors(features, labels, train, test, neighbors=[k]).probabilities
        for k in (99, 6)
    )
    assert torch.equal(most, six)


def test_a_group_on_both_sides_raises_an_error():
    features, labels = clusters()
    groups = torch.arange(60) // 2
    with pytest.raises(ValueError, match="1 groups have rows in train and in test"):
        linear_probe(features, labels, torch.arange(31), torch.arange(31, 60), groups)


def test_the_setting_is_chosen_on_groups_outside_the_fit():
    # The labels of a quarter of the groups are wrong. A few neighbors repeat the label of the own
    # group, which is no help for other groups: there, many neighbors are better.
    features, labels = clusters(classes=2, each=100, noise=0.3)
    groups = torch.arange(200).repeat_interleave(4)
    wrong = torch.rand(200, generator=torch.Generator().manual_seed(2)) < 0.25
    noisy = torch.where(wrong, 1 - labels, labels)[groups]
    rows = features[groups] + 1e-4 * torch.randn(800, 6, dtype=torch.double)
    train, test = torch.arange(600), torch.arange(600, 800)
    assert nearest_neighbors(rows, noisy, train, test).setting <= 5
    assert nearest_neighbors(rows, noisy, train, test, groups).setting > 5


def test_features_without_a_face_raise_an_error():
    features, labels = clusters()
    rows = torch.arange(60)
    with pytest.raises(ValueError, match="without a face"):
        linear_probe(features / 0, labels, rows[:30], rows[30:])
