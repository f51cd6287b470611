"""Leakage: features that hold everything, nothing, or one thing are read as such."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from colours import ColourModel, write_colour_packs
from PIL import Image

from facezoo.evaluate import leakage as leaks
from facezoo.evaluate.benchmark import measure
from facezoo.evaluate.benchmark.splits import Packs
from facezoo.evaluate.embedding import embed_given
from facezoo.evaluate.leakage import (
    Reading,
    expression_from,
    identity_from,
    leakage,
    neutral_and_smiling,
    pairs_from,
    same_person_from,
)
from facezoo.evaluate.verification import Pairs

PEOPLE = torch.arange(6).repeat_interleave(8)


def hot(labels, noise=0.1):
    """Features that say a label and nothing else."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.one_hot(labels).float()
    return rows + noise * torch.randn(rows.shape, generator=draw)


def nothing(count):
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(1))


def test_identity_is_read_from_features_that_hold_it_and_not_from_noise():
    told = identity_from(hot(PEOPLE), PEOPLE)
    assert (told.accuracy, told.spread) == (1, 0)
    assert told.chance == pytest.approx(1 / 6)
    assert told.control < 0.45
    blind = identity_from(nothing(48), PEOPLE)
    assert blind.accuracy < 0.4
    assert blind.spread > 0


def test_people_with_fewer_than_four_photographs_are_left_out():
    # People 0 and 3 have four photographs; 1 and 2, whom nothing tells from them, have fewer.
    persons = torch.tensor([0] * 4 + [1] * 3 + [2] + [3] * 4)
    features = hot((persons == 3).long())
    assert identity_from(features, persons).accuracy == 1
    with pytest.raises(ValueError, match="1 of 3 people have 4 photographs or more"):
        identity_from(features[:8], persons[:8])


def test_each_half_has_half_of_every_persons_photographs_and_the_odd_one_is_fitted_to():
    persons = torch.tensor([0] * 4 + [1] * 5 + [2] * 7)
    draw = torch.Generator().manual_seed(0)
    halves = [leaks._halves(persons, draw) for _ in range(3)]
    for train, test in halves:
        assert persons[train].bincount().tolist() == [2, 3, 4]
        assert persons[test].bincount().tolist() == [2, 2, 3]
        assert sorted([*train.tolist(), *test.tolist()]) == list(range(16))
    assert len({tuple(test.tolist()) for _, test in halves}) > 1


def test_a_reading_is_the_same_each_time():
    assert identity_from(nothing(48), PEOPLE) == identity_from(nothing(48), PEOPLE)


def test_expression_is_read_across_people_and_chance_is_the_class_most_frequent_in_training():
    labels = torch.tensor([0, 0, 1] * 20)
    people = torch.arange(60) // 3
    train, test = torch.arange(45), torch.arange(45, 60)
    told = expression_from(hot(labels), labels, train, test, people)
    assert told.accuracy == 1
    assert told.spread is None
    assert told.chance == pytest.approx(2 / 3)
    assert told.control < 0.9


def test_people_in_train_and_test_are_refused():
    labels = torch.tensor([0, 0, 1] * 20)
    with pytest.raises(ValueError, match="train and in test"):
        expression_from(
            hot(labels), labels, torch.arange(45), torch.arange(45, 60), torch.arange(60) // 2
        )


def test_pairs_are_read_from_cosines_and_photographs_dealt_anew_are_at_chance():
    files = [f"{row}" for row in range(48)]
    first = torch.arange(0, 48, 2).repeat(2)
    second = torch.cat([torch.arange(1, 48, 2), torch.arange(1, 48, 2).roll(4)])
    same = PEOPLE[first] == PEOPLE[second]
    pairs = Pairs([files[i] for i in first], [files[i] for i in second], same, torch.arange(48) % 4)
    told = pairs_from(hot(PEOPLE), files, pairs)
    assert (told.accuracy, told.chance) == (1, 0.5)
    assert 0.25 < told.control < 0.75


def test_the_same_person_with_another_expression_is_the_nearest_by_cosine():
    faces = torch.randn(20, 9, generator=torch.Generator().manual_seed(2))
    told = same_person_from(faces, 3 * faces + 0.01)
    assert (told.accuracy, told.chance) == (1, 1 / 20)
    assert told.control < 0.3
    # Of the two, only the first smiling face is nearest to its own neutral one.
    swapped = same_person_from(torch.eye(2), torch.tensor([[1.0, 0.1], [1.0, 0.2]]))
    assert swapped.accuracy == 0.5


def test_each_person_is_paired_with_himself_whatever_the_order_of_the_rows():
    labels, people = torch.tensor([1, 0, 0, 2, 1, 0, 1]), torch.tensor([7, 9, 7, 7, 5, 5, 9])
    neutral, smiling = neutral_and_smiling(labels, people)
    assert (neutral.tolist(), smiling.tolist()) == ([5, 2, 1], [4, 0, 6])
    for rows in ([0, 1, 3, 5, 6], [0, 1, 4, 6], [0, 0, 2, 2], [3]):
        with pytest.raises(ValueError, match="once neutral and once smiling"):
            neutral_and_smiling(labels[rows], people[rows])


def test_people_of_london_without_both_expressions_are_not_paired_with_others(packs):
    table = pq.read_table(packs / "london_expr.parquet")
    keep = [f not in ("3_neutral.jpg", "5_happiness.jpg") for f in table["file"].to_pylist()]
    pq.write_table(table.filter(keep), packs / "london_expr.parquet")
    with pytest.raises(ValueError, match="once neutral and once smiling"):
        leakage(ColourModel(), packs, "c")
    read = Packs.read(packs)
    features = {key: torch.eye(len(view.files)) for key, view in read.views.items()}
    with pytest.raises(ValueError, match="once neutral and once smiling"):
        measure._identity(features, read)


def test_a_reading_becomes_metrics_in_per_cent_with_what_it_is_compared_to():
    reading = Reading(accuracy=0.5, spread=0.02, chance=0.1, control=0.12)
    metrics = reading.metrics("identity from x", "LFW", "val", "rule", "c")
    assert {m.name: m.value for m in metrics} == pytest.approx(
        {
            "identity from x": 50,
            "identity from x, standard deviation": 2,
            "identity from x, chance": 10,
            "identity from x, control": 12,
            "identity from x, above chance": 40,
        }
    )
    once = Reading(0.5, None, 0.1, 0.12).metrics("x", "LFW", "val", "rule", "c")
    assert [m.name for m in once] == ["x", "x, chance", "x, control", "x, above chance"]


# --- the whole, on a small model and small packs -----------------------------------------------


@pytest.fixture
def packs(tmp_path):
    return write_colour_packs(tmp_path)


def test_a_model_of_two_separate_features_leaks_neither_way(packs):
    metrics = leakage(ColourModel(), packs, "facezoo evaluate colour")
    values = {(m.dataset, m.name): m.value for m in metrics}
    london = "Face Research Lab London Set"
    assert values["LFW", "identity from identity features"] == 100
    assert values["LFW", "identity from expression features"] < 60
    assert values["LFW", "identity from expression features, chance"] == 25
    assert values["LFW pairs", "verification by identity features"] == 100
    assert values["LFW pairs", "verification by expression features"] < 90
    assert values[london, "identity from identity features"] == 100
    assert values[london, "identity from expression features"] < 60
    assert values[london, "identity from expression features, chance"] == 20
    assert values["LFW", "expression from expression features"] == 100
    assert values["LFW", "expression from identity features"] < 85
    assert ("FER+", "expression from identity features, control") in values
    assert {m.command for m in metrics} == {"facezoo evaluate colour"}
    assert len({(m.dataset, m.name) for m in metrics}) == len(metrics)
    (rule,) = {m.protocol for m in metrics if m.dataset == "FER+"}
    assert "fitted to 48 images of train, 16 images" in rule


def test_training_rows_are_capped_and_test_rows_are_not(packs, monkeypatch):
    monkeypatch.setattr(leaks, "TRAINING_ROWS", 20)
    metrics = leakage(ColourModel(), packs, "c")
    rules = [m.protocol for m in metrics if m.dataset == "FER+"]
    assert all("fitted to 20 images of train, 16 images" in rule for rule in rules)


def test_a_model_without_identity_features_is_read_from_expression_alone(packs, monkeypatch):
    monkeypatch.delattr(ColourModel, "embed_identity")
    names = {m.name for m in leakage(ColourModel(), packs, "c")}
    assert "identity from expression features" in names
    assert not any("identity features" in name for name in names)


def test_what_is_embedded_is_each_rows_own(packs):
    table = pq.read_table(packs / "london_expr.parquet")
    found = embed_given(ColourModel(), table, ["encode_identity"])["encode_identity"]
    for row, image in zip(found, table["image"].to_pylist(), strict=True):
        red = np.array(Image.open(io.BytesIO(image)))[..., 0].mean() / 127.5 - 1
        wanted = (-40 * (red - torch.linspace(-1, 1, 8)).square()).exp()
        torch.testing.assert_close(row.double(), wanted.double(), rtol=0, atol=0.02)
