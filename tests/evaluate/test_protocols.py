"""Protocols of expression on the packs: data, classes, and the text in the cards."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from packs import write_ferplus, write_lfw

from facezoo.data.packs import as_points, read_pack
from facezoo.evaluate import protocols
from facezoo.evaluate.embedding import ALIGNED, DETECTED
from facezoo.landmarks import head_pose
from facezoo.models.ipd_fer import IPDFER
from facezoo.results import EXPRESSIONS, PosePrediction


@pytest.fixture
def model():
    return IPDFER("test_resnet.r160_in1k", 8).eval()


def test_ferplus_is_scored_on_aligned_crops_and_on_whole_images(tmp_path, model, monkeypatch):
    write_ferplus(tmp_path, test=8)
    monkeypatch.setattr(protocols, "both_ways", lambda *_: iter(outcomes(8)))
    metrics = protocols.ferplus(model, tmp_path, "test", "facezoo evaluate ipd-fer").metrics
    values = {(m.name, m.protocol.split("; ")[1]): m.value for m in metrics}
    assert values["accuracy", ALIGNED] == 100
    assert values["accuracy", DETECTED] == pytest.approx(100 * 7 / 8)
    assert ("KL from votes", ALIGNED) in values
    assert ("KL from votes", DETECTED) not in values
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
    assert values["accuracy", ALIGNED] == 100
    assert values["accuracy", DETECTED] == pytest.approx(100 * 7 / 8)
    assert measured.confusion.labels == EXPRESSIONS
    assert torch.tensor(measured.confusion.counts).trace() == 8


def test_calibration_classes_and_confusion_of_ferplus_are_measured_on_aligned_crops(
    tmp_path, model, monkeypatch
):
    write_ferplus(tmp_path, test=8)
    aligned = dict(outcomes(8))[ALIGNED]
    aligned[0] = aligned[1]  # the first is predicted as the class of the second
    monkeypatch.setattr(protocols, "both_ways", lambda *_: iter([(ALIGNED, aligned)]))
    measured = protocols.ferplus(model, tmp_path, "test", "c")
    values = {m.name: m.value for m in measured.metrics}
    first, second = (EXPRESSIONS[row % 8] for row in (10, 11))
    assert values[f"recall of {first}"] == 0
    assert values[f"recall of {second}"] == 100
    top = float(aligned[2].softmax(0).max())
    assert values["expected calibration error"] == pytest.approx(100 * abs(7 / 8 - top), rel=1e-4)
    counts = torch.tensor(measured.confusion.counts)
    assert measured.confusion.labels == EXPRESSIONS
    assert counts[10 % 8, 11 % 8] == 1
    assert int(counts.diagonal().sum()) == 7
    assert measured.confusion.right == "01111111"
    path = tmp_path / "ferplus.parquet"
    pq.write_table(pq.read_table(path).drop_columns("yaw"), path)
    monkeypatch.setattr(protocols, "both_ways", lambda *_: iter([(ALIGNED, aligned)]))
    without = protocols.ferplus(model, tmp_path, "test", "c")
    assert any("yaw" in m.name for m in measured.metrics)
    assert not any("yaw" in m.name for m in without.metrics)


def test_ferplus_is_measured_by_yaw_if_the_pack_has_it(tmp_path, model, monkeypatch):
    write_ferplus(tmp_path, test=8)
    path = tmp_path / "ferplus.parquet"
    table = pq.read_table(path)
    yaw = [0.0] * 10 + [-35.0, 25.0, 15.0, 10.0, 5.0, None, 0.0, -12.0]
    pq.write_table(
        table.drop_columns("yaw").append_column("yaw", pa.array(yaw, pa.float32())), path
    )
    aligned = dict(outcomes(8))[ALIGNED]
    aligned[0] = aligned[1]
    monkeypatch.setattr(protocols, "both_ways", lambda *_: iter([(ALIGNED, aligned)]))
    measured = protocols.ferplus(model, tmp_path, "test", "c")
    by_yaw = {m.name: m for m in measured.metrics if "yaw" in m.name}
    assert {name: m.value for name, m in by_yaw.items()} == {
        "accuracy at any yaw": 87.5,
        "accuracy beyond 10 degrees of yaw": 75,
        "accuracy beyond 20 degrees of yaw": 50,
        "accuracy beyond 30 degrees of yaw": 0,
    }
    assert "4 images" in by_yaw["accuracy beyond 10 degrees of yaw"].protocol


def test_ferplus_raises_an_error_for_a_model_of_other_classes(tmp_path, model):
    write_ferplus(tmp_path, test=8)
    model.reset_classifier(labels=["calm", "cross"])
    with pytest.raises(ValueError, match="calm, cross"):
        protocols.ferplus(model, tmp_path, "test", "c")


def outcomes(count):
    """Logits that are all correct; the first whole image has no face."""
    # Rows of the test split come after six rows of train and four of val.
    aligned = torch.nn.functional.one_hot((torch.arange(count) + 10) % 8, 8).float() * 9
    detected = aligned.clone()
    detected[0] = torch.nan
    return [(ALIGNED, aligned), (DETECTED, detected)]


def test_neutral_or_happy_compares_two_classes_and_ignores_the_rest(tmp_path, model, monkeypatch):
    write_lfw(tmp_path, train=6, val=6)  # labels: neutral, happiness and none, twice each
    logits = torch.zeros(6, 8)
    logits[:, 4] = 50  # anger is the most probable class, and is ignored
    logits[[0, 3, 4], [0, 0, 0]] = 5
    logits[1, 1] = 5
    monkeypatch.setattr(protocols, "both_ways", lambda *_: iter([(ALIGNED, logits)]))
    metric, *recalls = protocols.neutral_or_happy(model, tmp_path, "lfw", "c")
    assert metric.value == pytest.approx(75)
    assert "4 images" in metric.protocol
    found = {recall.name: recall.value for recall in recalls}
    assert found == {"recall of neutral": 100, "recall of happiness": 50}
    assert (metric.dataset, metric.split) == ("LFW", "val")


def test_neutral_or_happy_goes_by_the_names_of_the_classes(tmp_path, model, monkeypatch):
    write_lfw(tmp_path, train=6, val=6)
    model.reset_classifier(labels=["anger", "happiness", "neutral"])
    logits = torch.zeros(6, 3)
    logits[[0, 3], 2] = 5  # the neutral ones
    logits[[1, 4], 1] = 5
    monkeypatch.setattr(protocols, "both_ways", lambda *_: iter([(ALIGNED, logits)]))
    metric, *_ = protocols.neutral_or_happy(model, tmp_path, "lfw", "c")
    assert metric.value == 100
    assert "4 images" in metric.protocol


def test_poses_are_compared_with_the_angles_of_the_landmarks(tmp_path, model, monkeypatch):
    write_lfw(tmp_path, train=6, val=6)
    table = read_pack(tmp_path / "lfw.parquet", "val")
    truth = head_pose(as_points(table["landmarks"].to_pylist(), 5))

    def predict_pose(images, *, aligned):
        assert aligned
        assert len(images) == 6
        return PosePrediction(truth[:, 0] + 3, truth[:, 1] - 2, truth[:, 2])

    monkeypatch.setattr(model, "predict_pose", predict_pose)
    metrics = {metric.name: metric for metric in protocols.poses(model, tmp_path, "c")}
    assert metrics["error of yaw"].value == pytest.approx(3, abs=1e-4)
    assert metrics["error of pitch"].value == pytest.approx(2, abs=1e-4)
    spread = (truth[:, 0] - truth[:, 0].median()).abs().mean()
    assert metrics["error of yaw, constant prediction"].value == pytest.approx(float(spread))
    assert {metric.unit for metric in metrics.values()} == {"degrees"}
    assert "6 images" in metrics["error of yaw"].protocol
