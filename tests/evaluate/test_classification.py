"""Classification scores against hand counts and scikit-learn's definitions in loops."""

import math

import pytest
import torch
from packs import write_ferplus, write_lfw

from facezoo.evaluate import protocols
from facezoo.evaluate.classification import (
    accuracy,
    balanced_accuracy,
    confusion,
    macro_f1,
    scores,
    vote_divergence,
)
from facezoo.models.ipd_fer import IPDFER

# Six of ten right: rows are the true classes.
COUNTS = torch.tensor([[3, 1, 0], [1, 2, 1], [0, 1, 1]])


@pytest.fixture
def model():
    return IPDFER("test_resnet.r160_in1k", 8).eval()


def naive_scores(predicted, truth, classes):
    """Accuracy, balanced accuracy and macro-F1 in loops; None stands for no prediction."""
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


def test_confusion_counts_true_classes_in_rows():
    counts = confusion(torch.tensor([0, 2, 2, 1]), torch.tensor([0, 1, 1, 2]), 3)
    assert counts.tolist() == [[1, 0, 0], [0, 0, 2], [0, 1, 0]]


def test_confusion_has_a_row_for_classes_that_never_occur():
    assert confusion(torch.tensor([0]), torch.tensor([0]), 3).shape == (3, 3)


def test_scores_of_a_small_table_are_those_counted_by_hand():
    assert accuracy(COUNTS) == pytest.approx(6 / 10)
    assert balanced_accuracy(COUNTS) == pytest.approx((3 / 4 + 2 / 4 + 1 / 2) / 3)
    assert macro_f1(COUNTS) == pytest.approx((6 / 8 + 4 / 8 + 2 / 4) / 3)


def test_classes_that_do_not_occur_do_not_count():
    counts = torch.tensor([[2, 0, 1], [0, 0, 0], [0, 0, 0]])
    assert balanced_accuracy(counts) == pytest.approx(2 / 3)
    # The third class was called once and never right: its F1 is 0; the second was never seen.
    assert macro_f1(counts) == pytest.approx((4 / 5 + 0) / 2)


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_what_loops_give(seed):
    draw = torch.Generator().manual_seed(seed)
    predicted, truth = torch.randint(0, 4, (2, 20), generator=draw).tolist()
    result = scores(as_probabilities(predicted), torch.tensor(truth))
    wanted = naive_scores(predicted, truth, 4)
    assert list(result.values()) == pytest.approx(wanted)
    assert list(result) == ["accuracy", "balanced accuracy", "macro-F1"]


def test_no_prediction_is_a_wrong_one_even_if_the_first_class_is_true():
    truth = torch.tensor([0, 0, 3, 1])
    result = scores(as_probabilities([None, 0, None, 1]), truth)
    assert result["accuracy"] == pytest.approx(0.5)
    assert result["balanced accuracy"] == pytest.approx((0.5 + 0 + 1) / 3)


def test_nothing_predicted_at_all_scores_0():
    result = scores(as_probabilities([None] * 4), torch.tensor([0, 1, 2, 3]))
    assert list(result.values()) == [0, 0, 0]


def test_divergence_from_votes_is_kullback_leiblers():
    probabilities, votes = torch.rand(5, 8), torch.rand(5, 8)
    votes[:, 3] = 0
    probabilities, votes = (x / x.sum(1, keepdim=True) for x in (probabilities, votes))
    wanted = sum(
        v * math.log(v / p)
        for row, vote in zip(probabilities.tolist(), votes.tolist(), strict=True)
        for p, v in zip(row, vote, strict=True)
        if v > 0
    )
    assert vote_divergence(probabilities, votes) == pytest.approx(wanted / 5, rel=1e-5)


def test_divergence_of_the_votes_from_themselves_is_0_and_of_impossible_ones_finite():
    votes = torch.eye(8)
    assert vote_divergence(votes, votes) == pytest.approx(0, abs=1e-6)
    assert math.isfinite(vote_divergence(votes.flip(1), votes))


def test_ferplus_is_scored_on_given_crops_and_on_whole_images(tmp_path, model, monkeypatch):
    write_ferplus(tmp_path, test=8)
    monkeypatch.setattr(protocols, "_both_ways", lambda *_: iter(outcomes(8)))
    metrics = protocols.ferplus(model, tmp_path, "test", "facezoo evaluate ipd-fer")
    values = {(m.name, m.protocol.split("; ")[1]): m.value for m in metrics}
    assert values["accuracy", protocols.GIVEN] == 100
    assert values["accuracy", protocols.FOUND] == pytest.approx(100 * 7 / 8)
    assert ("KL from votes", protocols.GIVEN) in values
    assert ("KL from votes", protocols.FOUND) not in values
    assert {m.split for m in metrics} == {"test"}
    assert {m.command for m in metrics} == {"facezoo evaluate ipd-fer"}


def outcomes(count):
    """Logits that are all right; of whole images the first has no face."""
    # Rows of the test split come after six rows of train and four of val.
    given = torch.nn.functional.one_hot((torch.arange(count) + 10) % 8, 8).float() * 9
    found = given.clone()
    found[0] = torch.nan
    return [(protocols.GIVEN, given), (protocols.FOUND, found)]


def test_neutral_or_happy_compares_two_classes_and_ignores_the_rest(tmp_path, model, monkeypatch):
    write_lfw(tmp_path, train=6, val=6)  # labels: neutral, happiness and none, twice each
    logits = torch.zeros(6, 8)
    logits[:, 4] = 50  # anger is the favourite everywhere, and not asked for
    logits[[0, 3, 4], [0, 0, 0]] = 5
    logits[1, 1] = 5
    monkeypatch.setattr(protocols, "_both_ways", lambda *_: iter([(protocols.GIVEN, logits)]))
    (metric,) = protocols.neutral_or_happy(model, tmp_path, "lfw", "c")
    assert metric.value == pytest.approx(75)
    assert "4 images" in metric.protocol
    assert (metric.dataset, metric.split) == ("LFW", "val")
