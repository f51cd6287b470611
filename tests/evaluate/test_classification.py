"""Classification scores against hand counts and scikit-learn's definitions in loops."""

import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from packs import write_ferplus, write_lfw

from facezoo.evaluate import protocols
from facezoo.evaluate.classification import (
    accuracy,
    balanced_accuracy,
    confusion,
    confusion_of,
    expected_calibration_error,
    is_right,
    macro_f1,
    recalls,
    scores,
    vote_divergence,
)
from facezoo.models.ipd_fer import IPDFER
from facezoo.results import EXPRESSIONS

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
    predicted[3 * seed : 4 * seed] = [None] * seed
    result = scores(as_probabilities(predicted), torch.tensor(truth))
    wanted = naive_scores(predicted, truth, 4)
    assert list(result.values()) == pytest.approx(wanted)
    assert list(result) == ["accuracy", "balanced accuracy", "macro-F1"]


def test_no_prediction_is_a_wrong_one_even_if_the_first_class_is_true():
    truth = torch.tensor([0, 0, 3, 1])
    result = scores(as_probabilities([None, 0, None, 1]), truth)
    assert result["accuracy"] == pytest.approx(0.5)
    assert result["balanced accuracy"] == pytest.approx((0.5 + 0 + 1) / 3)
    # Class 0: found 1 of 2, called once; class 1: always right; class 3: never found or called.
    assert result["macro-F1"] == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_nothing_predicted_at_all_scores_0():
    result = scores(as_probabilities([None] * 4), torch.tensor([0, 1, 2, 3]))
    assert list(result.values()) == [0, 0, 0]


def test_recalls_are_shares_of_the_rows_and_unknown_for_a_class_that_does_not_occur():
    counts = torch.tensor([[3, 1, 0], [0, 0, 0], [1, 2, 1]])
    values = recalls(counts).tolist()
    assert values[0] == pytest.approx(3 / 4)
    assert math.isnan(values[1])
    assert values[2] == pytest.approx(1 / 4)


def test_a_missing_prediction_is_never_right_and_never_on_the_diagonal():
    truth = torch.tensor([0, 3, 1, 2])
    probabilities = as_probabilities([None, None, 1, 0])
    assert is_right(probabilities, truth).tolist() == [False, False, True, False]
    counts = confusion_of(probabilities, truth)
    assert counts.sum(1).tolist() == [1, 1, 1, 1]
    assert counts.sum(0).tolist() == [1, 1, 0, 0, 2], "the last column is of no class"
    assert counts.diagonal().tolist() == [0, 1, 0, 0]


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
def test_calibration_error_is_what_loops_give(bins):
    draw = torch.Generator().manual_seed(bins)
    probabilities = (4 * torch.randn(60, 5, generator=draw, dtype=torch.double)).softmax(1)
    truth = torch.randint(0, 5, (60,), generator=draw)
    wanted = naive_calibration_error(probabilities.tolist(), truth.tolist(), bins)
    assert wanted > 0.05
    assert expected_calibration_error(probabilities, truth, bins) == pytest.approx(wanted)


def test_one_who_is_as_often_right_as_he_says_has_no_calibration_error():
    probabilities = torch.tensor([[0.75, 0.25]] * 4, dtype=torch.double)
    assert expected_calibration_error(probabilities, torch.tensor([0, 0, 0, 1])) == 0
    sure = torch.tensor([[1.0, 0.0]] * 4)
    assert expected_calibration_error(sure, torch.tensor([0, 0, 0, 1])) == pytest.approx(0.25)


def test_a_probability_on_the_edge_of_two_bins_is_in_the_lower_one():
    # In one bin with 0.4 the errors would cancel: 0.5 is right once, 0.4 never.
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.4, 0.3, 0.3]], dtype=torch.double)
    truth = torch.tensor([0, 1])
    assert expected_calibration_error(probabilities, truth, 2) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("rows", "bins", "told"),
    [
        (torch.full((2, 3), torch.nan), 15, "rows with a prediction"),
        (torch.tensor([[9.0, -3.0, 2.0]] * 2), 15, r"probabilities in \[0, 1\]"),
        (torch.zeros(0, 3), 15, "0 rows"),
        (torch.full((2, 3), 1 / 3), 0, "bins=0"),
    ],
)
def test_calibration_error_refuses_what_is_not_of_probabilities(rows, bins, told):
    with pytest.raises(ValueError, match=told):
        expected_calibration_error(rows, torch.zeros(len(rows), dtype=torch.long), bins)


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
    monkeypatch.setattr(protocols, "both_ways", lambda *_: iter(outcomes(8)))
    metrics = protocols.ferplus(model, tmp_path, "test", "facezoo evaluate ipd-fer").metrics
    values = {(m.name, m.protocol.split("; ")[1]): m.value for m in metrics}
    assert values["accuracy", protocols.GIVEN] == 100
    assert values["accuracy", protocols.FOUND] == pytest.approx(100 * 7 / 8)
    assert ("KL from votes", protocols.GIVEN) in values
    assert ("KL from votes", protocols.FOUND) not in values
    assert {m.split for m in metrics} == {"test"}
    assert {m.command for m in metrics} == {"facezoo evaluate ipd-fer"}


def test_ferplus_is_scored_by_the_names_of_the_classes_whatever_their_order(
    tmp_path, model, monkeypatch
):
    write_ferplus(tmp_path, test=8)
    model.labels = tuple(sorted(EXPRESSIONS))
    order = [EXPRESSIONS.index(label) for label in model.labels]
    sorted_outcomes = [(how, logits[:, order]) for how, logits in outcomes(8)]
    monkeypatch.setattr(protocols, "both_ways", lambda *_: iter(sorted_outcomes))
    measured = protocols.ferplus(model, tmp_path, "test", "c")
    values = {(m.name, m.protocol.split("; ")[1]): m.value for m in measured.metrics}
    assert values["accuracy", protocols.GIVEN] == 100
    assert values["accuracy", protocols.FOUND] == pytest.approx(100 * 7 / 8)
    assert measured.confusion.labels == EXPRESSIONS
    assert torch.tensor(measured.confusion.counts).trace() == 8


def test_calibration_classes_and_confusion_of_ferplus_are_measured_on_given_crops(
    tmp_path, model, monkeypatch
):
    write_ferplus(tmp_path, test=8)
    given = dict(outcomes(8))[protocols.GIVEN]
    given[0] = given[1]  # the first, of sadness, is taken for the second's class
    monkeypatch.setattr(protocols, "both_ways", lambda *_: iter([(protocols.GIVEN, given)]))
    measured = protocols.ferplus(model, tmp_path, "test", "c")
    values = {m.name: m.value for m in measured.metrics}
    first, second = (EXPRESSIONS[row % 8] for row in (10, 11))
    assert values[f"recall of {first}"] == 0
    assert values[f"recall of {second}"] == 100
    top = float(given[2].softmax(0).max())
    assert values["expected calibration error"] == pytest.approx(100 * abs(7 / 8 - top), rel=1e-4)
    counts = torch.tensor(measured.confusion.counts)
    assert measured.confusion.labels == EXPRESSIONS
    assert counts[10 % 8, 11 % 8] == 1
    assert int(counts.diagonal().sum()) == 7
    assert measured.confusion.right == "01111111"
    path = tmp_path / "ferplus.parquet"
    pq.write_table(pq.read_table(path).drop_columns("yaw"), path)
    monkeypatch.setattr(protocols, "both_ways", lambda *_: iter([(protocols.GIVEN, given)]))
    without = protocols.ferplus(model, tmp_path, "test", "c")
    assert any("yaw" in m.name for m in measured.metrics)
    assert not any("yaw" in m.name for m in without.metrics)


def test_ferplus_is_measured_by_yaw_where_the_pack_knows_it(tmp_path, model, monkeypatch):
    write_ferplus(tmp_path, test=8)
    path = tmp_path / "ferplus.parquet"
    table = pq.read_table(path)
    yaw = [0.0] * 10 + [-35.0, 25.0, 15.0, 10.0, 5.0, None, 0.0, -12.0]
    pq.write_table(
        table.drop_columns("yaw").append_column("yaw", pa.array(yaw, pa.float32())), path
    )
    given = dict(outcomes(8))[protocols.GIVEN]
    given[0] = given[1]
    monkeypatch.setattr(protocols, "both_ways", lambda *_: iter([(protocols.GIVEN, given)]))
    measured = protocols.ferplus(model, tmp_path, "test", "c")
    by_yaw = {m.name: m for m in measured.metrics if "yaw" in m.name}
    assert {name: m.value for name, m in by_yaw.items()} == {
        "accuracy at any yaw": 87.5,
        "accuracy beyond 10 degrees of yaw": 75,
        "accuracy beyond 20 degrees of yaw": 50,
        "accuracy beyond 30 degrees of yaw": 0,
    }
    assert "4 images" in by_yaw["accuracy beyond 10 degrees of yaw"].protocol


def test_ferplus_refuses_a_model_of_other_classes(tmp_path, model):
    write_ferplus(tmp_path, test=8)
    model.reset_classifier(labels=["calm", "cross"])
    with pytest.raises(ValueError, match="calm, cross"):
        protocols.ferplus(model, tmp_path, "test", "c")


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
    monkeypatch.setattr(protocols, "both_ways", lambda *_: iter([(protocols.GIVEN, logits)]))
    (metric,) = protocols.neutral_or_happy(model, tmp_path, "lfw", "c")
    assert metric.value == pytest.approx(75)
    assert "4 images" in metric.protocol
    assert (metric.dataset, metric.split) == ("LFW", "val")


def test_neutral_or_happy_goes_by_the_names_of_the_classes(tmp_path, model, monkeypatch):
    write_lfw(tmp_path, train=6, val=6)
    model.reset_classifier(labels=["anger", "happiness", "neutral"])
    logits = torch.zeros(6, 3)
    logits[[0, 3], 2] = 5  # the neutral ones
    logits[[1, 4], 1] = 5
    monkeypatch.setattr(protocols, "both_ways", lambda *_: iter([(protocols.GIVEN, logits)]))
    (metric,) = protocols.neutral_or_happy(model, tmp_path, "lfw", "c")
    assert metric.value == 100
    assert "4 images" in metric.protocol
