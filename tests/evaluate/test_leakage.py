"""Leakage: probes find what features hold, and no more."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from colors import ColorModel, write_color_packs
from PIL import Image

from facezoo.evaluate import leakage as leaks
from facezoo.evaluate.embedding import embed_aligned
from facezoo.evaluate.leakage import (
    Score,
    expressions_from,
    identity_from,
    leakage,
    neutral_and_smiling,
    pairs_from,
    same_identity_from,
)
from facezoo.evaluate.packs import Packs
from facezoo.evaluate.verification import Pairs

PEOPLE = torch.arange(6).repeat_interleave(8)


def hot(labels, noise=0.1):
    """Features that hold a label and nothing else."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.one_hot(labels).float()
    return rows + noise * torch.randn(rows.shape, generator=generator)


def noise(count):
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(1))


def test_identity_is_found_in_features_that_hold_it_and_not_in_noise():
    score = identity_from(hot(PEOPLE), PEOPLE)
    assert (score.accuracy, score.spread) == (1, 0)
    assert score.chance == pytest.approx(1 / 6)
    assert score.control < 0.45
    of_noise = identity_from(noise(48), PEOPLE)
    assert of_noise.accuracy < 0.4
    assert of_noise.spread > 0


def test_identities_with_fewer_than_four_images_are_left_out():
    # Identities 0 and 3 have four images; 1 and 2 have fewer, and the same features as 0.
    persons = torch.tensor([0] * 4 + [1] * 3 + [2] + [3] * 4)
    features = hot((persons == 3).long())
    assert identity_from(features, persons).accuracy == 1
    with pytest.raises(ValueError, match="1 of 3 identities have 4 images or more"):
        identity_from(features[:8], persons[:8])


def test_each_half_has_half_of_the_images_of_every_identity_and_train_has_the_odd_one():
    persons = torch.tensor([0] * 4 + [1] * 5 + [2] * 7)
    generator = torch.Generator().manual_seed(0)
    halves = [leaks._halves(persons, generator) for _ in range(3)]
    for train, test in halves:
        assert persons[train].bincount().tolist() == [2, 3, 4]
        assert persons[test].bincount().tolist() == [2, 2, 3]
        assert sorted([*train.tolist(), *test.tolist()]) == list(range(16))
    assert len({tuple(test.tolist()) for _, test in halves}) > 1


def test_a_score_is_repeatable():
    assert identity_from(noise(48), PEOPLE) == identity_from(noise(48), PEOPLE)


def test_expression_is_found_across_identities_and_chance_is_the_most_frequent_class():
    labels = torch.tensor([0, 0, 1] * 20)
    people = torch.arange(60) // 3
    train, test = torch.arange(45), torch.arange(45, 60)
    score = expressions_from(hot(labels), labels, train, [test], people)[0]
    assert score.accuracy == 1
    assert score.spread is None
    assert score.chance == pytest.approx(2 / 3)
    assert score.control < 0.9


def test_identities_in_train_and_test_raise_an_error():
    labels = torch.tensor([0, 0, 1] * 20)
    with pytest.raises(ValueError, match="train and in test"):
        expressions_from(
            hot(labels), labels, torch.arange(45), [torch.arange(45, 60)], torch.arange(60) // 2
        )


def test_pairs_are_verified_by_cosine_and_permuted_images_are_at_chance():
    files = [f"{row}" for row in range(48)]
    first = torch.arange(0, 48, 2).repeat(2)
    second = torch.cat([torch.arange(1, 48, 2), torch.arange(1, 48, 2).roll(4)])
    same = PEOPLE[first] == PEOPLE[second]
    pairs = Pairs([files[i] for i in first], [files[i] for i in second], same, torch.arange(48) % 4)
    score = pairs_from(hot(PEOPLE), files, pairs)
    assert (score.accuracy, score.chance) == (1, 0.5)
    assert 0.25 < score.control < 0.75


def test_the_same_identity_with_another_expression_is_the_nearest_by_cosine():
    faces = torch.randn(20, 9, generator=torch.Generator().manual_seed(2))
    score = same_identity_from(faces, 3 * faces + 0.01)
    assert (score.accuracy, score.chance) == (1, 1 / 20)
    assert score.control < 0.3
    # Of the two, only the first smiling face is nearest to its own neutral one.
    swapped = same_identity_from(torch.eye(2), torch.tensor([[1.0, 0.1], [1.0, 0.2]]))
    assert swapped.accuracy == 0.5


def test_each_identity_is_paired_with_itself_in_any_order_of_rows():
    labels, people = torch.tensor([1, 0, 0, 2, 1, 0, 1]), torch.tensor([7, 9, 7, 7, 5, 5, 9])
    neutral, smiling = neutral_and_smiling(labels, people)
    assert (neutral.tolist(), smiling.tolist()) == ([5, 2, 1], [4, 0, 6])
    for rows in ([0, 1, 3, 5, 6], [0, 1, 4, 6], [0, 0, 2, 2], [3]):
        with pytest.raises(ValueError, match="one neutral and one smiling image"):
            neutral_and_smiling(labels[rows], people[rows])


def test_identities_of_london_without_both_expressions_raise_an_error(packs):
    table = pq.read_table(packs / "london_expr.parquet")
    keep = [f not in ("3_neutral.jpg", "5_happiness.jpg") for f in table["file"].to_pylist()]
    pq.write_table(table.filter(keep), packs / "london_expr.parquet")
    with pytest.raises(ValueError, match="one neutral and one smiling image"):
        leakage(ColorModel(), packs, "c")
    read = Packs.read(packs)
    features = {key: torch.eye(len(split.files)) for key, split in read.splits.items()}
    with pytest.raises(ValueError, match="one neutral and one smiling image"):
        leaks.identity_scores(features, read)


def test_a_score_becomes_metrics_in_percent_with_chance_and_control():
    score = Score(accuracy=0.5, spread=0.02, chance=0.1, control=0.12)
    metrics = score.metrics("identity from x", "LFW", "val", "rule", "c")
    assert {m.name: m.value for m in metrics} == pytest.approx(
        {
            "identity from x": 50,
            "identity from x, standard deviation": 2,
            "identity from x, chance": 10,
            "identity from x, control": 12,
            "identity from x, above chance": 40,
        }
    )
    once = Score(0.5, None, 0.1, 0.12).metrics("x", "LFW", "val", "rule", "c")
    assert [m.name for m in once] == ["x", "x, chance", "x, control", "x, above chance"]


# --- the whole, on a small model and small packs -----------------------------------------------


@pytest.fixture
def packs(tmp_path):
    return write_color_packs(tmp_path)


def test_a_model_of_two_separate_features_leaks_neither_way(packs):
    metrics = leakage(ColorModel(), packs, "facezoo evaluate color")
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
    assert {m.command for m in metrics} == {"facezoo evaluate color"}
    assert len({(m.dataset, m.name) for m in metrics}) == len(metrics)
    (rule,) = {m.protocol for m in metrics if m.dataset == "FER+"}
    assert "fitted to 48 images of train, 16 images" in rule


def test_training_rows_are_capped_and_test_rows_are_not(packs, monkeypatch):
    monkeypatch.setattr(leaks, "TRAINING_ROWS", 20)
    metrics = leakage(ColorModel(), packs, "c")
    rules = [m.protocol for m in metrics if m.dataset == "FER+"]
    assert all("fitted to 20 images of train, 16 images" in rule for rule in rules)


def test_a_model_without_identity_features_is_measured_on_expression_features(packs, monkeypatch):
    monkeypatch.setattr(ColorModel, "provides", ("encode_expression",))
    names = {m.name for m in leakage(ColorModel(), packs, "c")}
    assert "identity from expression features" in names
    assert not any("identity features" in name for name in names)


def test_rows_keep_their_order_in_embeddings(packs):
    table = pq.read_table(packs / "london_expr.parquet")
    features = embed_aligned(ColorModel(), table, ["encode_identity"])["encode_identity"]
    for row, image in zip(features, table["image"].to_pylist(), strict=True):
        red = np.array(Image.open(io.BytesIO(image)))[..., 0].mean() / 127.5 - 1
        expected = (-40 * (red - torch.linspace(-1, 1, 8)).square()).exp()
        torch.testing.assert_close(row.double(), expected.double(), rtol=0, atol=0.02)
