"""Output of a measurement: the table, the JSON file and the card."""

import json
from dataclasses import replace

import pytest
import torch
from packs import write_ferplus, write_lfw

from facezoo.cli.main import main
from facezoo.evaluate import protocols, report
from facezoo.evaluate.protocols import Confusion, Measurements
from facezoo.evaluate.report import as_json, as_table, measure_checkpoint, write_card
from facezoo.hub.card import Metric, Verification, bundled_cards
from facezoo.results import EXPRESSIONS

CPU = torch.device("cpu")
METRIC = Metric("accuracy", 81.23456, "%", "FER+", "test", "majority rule", "facezoo evaluate x")
CONFUSION = Confusion(
    "FER+", "test", "majority rule", ("neutral", "anger"), [[3, 1], [0, 2]], "110111"
)
MEASURED = Measurements([METRIC], CONFUSION)


@pytest.fixture
def card():
    return next(card for card in bundled_cards().values() if card.model == "ipd-fer")


def test_the_json_file_contains_the_confusion_matrix_and_the_metrics(card):
    content = json.loads(as_json(card, MEASURED))
    assert [metric["name"] for metric in content["metrics"]] == ["accuracy"]
    assert content["confusion"] == {
        "dataset": "FER+",
        "split": "test",
        "protocol": "majority rule",
        "labels": ["neutral", "anger"],
        "counts": [[3, 1], [0, 2]],
        "right": "110111",
    }


def test_a_checkpoint_without_expressions_has_no_confusion_matrix_in_its_json(card):
    content = json.loads(as_json(card, Measurements([METRIC])))
    assert set(content) == {"checkpoint", "sha256", "commit", "seed", "metrics"}


def test_the_card_gets_the_metrics_in_place_of_its_own_and_no_confusion(card, tmp_path):
    path = tmp_path / "card.json"
    path.write_text(card.to_json(), encoding="utf-8")
    write_card(path, card, MEASURED)
    written = json.loads(path.read_text(encoding="utf-8"))
    assert [metric["value"] for metric in written["metrics"]] == [METRIC.value]
    assert "confusion" not in path.read_text(encoding="utf-8")


def test_a_card_of_other_weights_is_left_alone(card, tmp_path):
    path = tmp_path / "card.json"
    path.write_text(card.to_json(), encoding="utf-8")
    other = replace(card, weights=replace(card.weights, sha256="0" * 64))
    with pytest.raises(ValueError, match="other weights"):
        write_card(path, other, MEASURED)
    assert path.read_text(encoding="utf-8") == card.to_json()


def test_the_table_has_a_line_per_metric():
    lines = as_table(Measurements([METRIC, METRIC], CONFUSION)).splitlines()
    assert len(lines) == 2
    assert lines[0].split()[:4] == ["FER+", "test", "accuracy", "81.23"]


def test_a_checkpoint_is_measured_to_four_digits_and_keeps_its_confusion(card, monkeypatch):
    class Stub:
        def from_pretrained(self, name):
            return torch.nn.Identity()

    monkeypatch.setattr(report, "FaceModel", Stub())
    monkeypatch.setattr(report, "evaluate", lambda model, data, command: MEASURED)
    measured, found = measure_checkpoint(card.name, "DATA", CPU)
    assert measured == card
    assert [metric.value for metric in found.metrics] == [81.2346]
    assert found.confusion == CONFUSION


def test_the_command_writes_the_confusion_to_the_json_file(card, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "measure_checkpoint", lambda *_: (card, MEASURED))
    file = tmp_path / "numbers.json"
    assert main(["evaluate", "ipd-fer", "--data", "D", "--json", str(file), "--device", "cpu"]) == 0
    assert json.loads(file.read_text(encoding="utf-8"))["confusion"]["counts"] == [[3, 1], [0, 2]]
    assert "81.23" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--card", "{}/other.json"], "other weights than the measured ones"),
        (["--card", "{}/none.json"], "none.json"),
    ],
)
def test_unwritable_output_raises_an_error_before_the_measurement(
    card, tmp_path, monkeypatch, capsys, words, said
):
    other = replace(card, weights=replace(card.weights, sha256="0" * 64))
    (tmp_path / "other.json").write_text(other.to_json(), encoding="utf-8")
    monkeypatch.setattr(report, "measure_checkpoint", lambda *_: pytest.fail("it measured"))
    words = [word.format(tmp_path) for word in words]
    assert main(["evaluate", "ipd-fer", "--data", "D", *words, "--device", "cpu"]) == 1
    assert said.format(tmp_path) in capsys.readouterr().err


def test_missing_packs_raise_an_error_before_the_measurement(tmp_path, monkeypatch):
    write_lfw(tmp_path)
    write_ferplus(tmp_path)
    monkeypatch.setattr(protocols, "ferplus", lambda *_: pytest.fail("it measured"))
    with pytest.raises(FileNotFoundError, match=r"has no lfw_pairs_val.csv, london_expr.parquet"):
        protocols.evaluate(object(), tmp_path, "c")


def test_the_folder_of_the_json_file_need_not_exist(card, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "measure_checkpoint", lambda *_: (card, MEASURED))
    file = tmp_path / "new" / "numbers.json"
    assert main(["evaluate", "ipd-fer", "--data", "D", "--json", str(file), "--device", "cpu"]) == 0
    assert json.loads(file.read_text(encoding="utf-8"))["checkpoint"] == card.name


def test_everything_is_measured_that_the_model_is_able_to(monkeypatch):
    class Able:
        def __init__(self, *names, labels=EXPRESSIONS):
            self.names, self.labels = names, labels

        def capabilities(self):
            return [*self.names]

    called = []
    monkeypatch.setattr(protocols, "ferplus", lambda *_: called.append("ferplus") or MEASURED)
    threshold = Verification(0.5, 0.01, 0.2, "LFW pairs", "some pairs")
    pairs = Measurements([METRIC], verification=threshold)
    monkeypatch.setattr(protocols, "lfw_pairs", lambda *_: called.append("lfw_pairs") or pairs)
    for name in ("neutral_or_happy", "poses", "leakage"):
        monkeypatch.setattr(protocols, name, lambda *_, name=name: called.append(name) or [METRIC])
    monkeypatch.setattr(protocols, "check_packs", lambda *_: None)
    found = protocols.evaluate(Able("predict_expression", "encode_identity"), "D", "c")
    assert called == ["ferplus", "neutral_or_happy", "neutral_or_happy", "lfw_pairs", "leakage"]
    assert (len(found.metrics), found.confusion) == (5, CONFUSION)
    called.clear()
    alone = protocols.evaluate(Able("encode_identity"), "D", "c")
    assert called == ["lfw_pairs", "leakage"]
    assert alone.confusion is None
    called.clear()
    protocols.evaluate(Able("predict_pose"), "D", "c")
    assert called == ["poses", "leakage"]
    assert alone.verification == threshold
    for labels, wanted in (
        (EXPRESSIONS[:7], ["neutral_or_happy", "neutral_or_happy", "leakage"]),
        (("calm", "cross"), ["leakage"]),
    ):
        called.clear()
        with pytest.warns(UserWarning, match=f"predicts {', '.join(labels)}"):
            protocols.evaluate(Able("predict_expression", labels=labels), "D", "c")
        assert called == wanted
