"""Verification against a search over every threshold, and on a tiny pack."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packs import write_lfw, write_pairs

from facezoo.evaluate import protocols
from facezoo.evaluate.embedding import ALIGNED, DETECTED
from facezoo.evaluate.verification import (
    Pairs,
    best_threshold,
    learned_accuracy,
    read_pairs,
    ten_fold_accuracy,
    threshold_at,
    verification_accuracy,
)
from facezoo.models.ipd_fer import IPDFER

pair = st.tuples(st.integers(-8, 8), st.booleans())


def accuracy_at(threshold, similarity, same):
    called = [s > threshold for s in similarity]
    return sum(c == t for c, t in zip(called, same, strict=True)) / len(same)


def thresholds(similarity):
    """Every cut that makes a difference: below all values, and between neighbours."""
    values = sorted(set(similarity))
    between = [(a + b) / 2 for a, b in pairwise(values)]
    return [values[0] - 1, *between, values[-1]]


@given(st.lists(pair, min_size=1, max_size=20))
@settings(deadline=None)
def test_no_threshold_is_better_than_the_best_one(pairs):
    similarity, same = [s / 8 for s, _ in pairs], [t for _, t in pairs]
    threshold = best_threshold(torch.tensor(similarity), torch.tensor(same))
    best = max(accuracy_at(t, similarity, same) for t in thresholds(similarity))
    assert accuracy_at(threshold, similarity, same) == pytest.approx(best)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_adjacent_numbers_are_separated(kind):
    below = torch.rand(200, generator=torch.Generator().manual_seed(0)).to(kind)
    for low in below:
        high = torch.nextafter(low, low + 1)
        threshold = best_threshold(torch.stack([low, high]), torch.tensor([False, True]))
        assert low <= threshold < high


@pytest.mark.parametrize("seed", range(4))
def test_ten_fold_accuracy_matches_a_search(seed):
    generator = torch.Generator().manual_seed(seed)
    similarity = torch.randn(60, generator=generator)
    same = similarity + torch.randn(60, generator=generator) > 0
    fold = torch.arange(60) % 10
    values = []
    for fold_number in range(10):
        rest, inside = fold != fold_number, fold == fold_number
        others, truth = similarity[rest].tolist(), same[rest].tolist()
        # max() keeps the first of equally good cuts, which is the lowest.
        cut = max(thresholds(others), key=lambda t: accuracy_at(t, others, truth))
        values.append(accuracy_at(cut, similarity[inside].tolist(), same[inside].tolist()))
    mean = sum(values) / 10
    spread = (sum((v - mean) ** 2 for v in values) / 10) ** 0.5
    assert ten_fold_accuracy(similarity, same, fold) == pytest.approx((mean, spread))


def test_separable_pairs_are_all_correct():
    same = torch.tensor([True, False] * 10)
    result = ten_fold_accuracy(torch.where(same, 0.9, 0.1), same, torch.arange(20) % 10)
    assert result == (1.0, 0.0)


def test_the_threshold_of_a_fold_does_not_see_the_fold():
    # In the second fold everything is shifted up: the first fold's threshold accepts all pairs.
    similarity = torch.tensor([0.0, 0.2, 10.0, 10.2])
    same = torch.tensor([False, True, False, True])
    mean, _ = ten_fold_accuracy(similarity, same, torch.tensor([0, 0, 1, 1]))
    assert mean == pytest.approx(0.5)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float32])
def test_labels_may_be_0_and_1(dtype):
    similarity = torch.rand(200, generator=torch.Generator().manual_seed(2))
    same = torch.rand(200, generator=torch.Generator().manual_seed(3)) < similarity
    fold = torch.arange(200) % 4
    for measure in (
        lambda truth: threshold_at(similarity, truth, 0.01),
        lambda truth: best_threshold(similarity, truth),
        lambda truth: ten_fold_accuracy(similarity, truth, fold),
    ):
        assert measure(same.to(dtype)) == measure(same)


def test_nan_similarities_raise_an_error():
    similarity, same = torch.tensor([0.9, torch.nan, 0.1, 0.2]), torch.tensor([1, 1, 0, 0]).bool()
    for measure in (
        lambda: threshold_at(similarity, same, 0.0),
        lambda: best_threshold(similarity, same),
        lambda: ten_fold_accuracy(similarity, same, torch.tensor([0, 1, 0, 1])),
    ):
        with pytest.raises(ValueError, match=r"1 of 4 similarities are NaN.*nan_to_num\(-1\)"):
            measure()


def test_a_single_fold_raises_an_error():
    with pytest.raises(ValueError, match="two folds or more, got 1"):
        ten_fold_accuracy(torch.rand(4), torch.tensor([True, False] * 2), torch.zeros(4))


def test_pairs_are_read_from_their_file(tmp_path):
    text = "file_a,file_b,same,fold\na.jpg,b.jpg,1,0\na.jpg,c.jpg,0,9\n"
    (tmp_path / "pairs.csv").write_text(text, encoding="utf-8")
    pairs = read_pairs(tmp_path / "pairs.csv")
    assert (pairs.first, pairs.second) == (["a.jpg", "a.jpg"], ["b.jpg", "c.jpg"])
    assert pairs.same.tolist() == [True, False]
    assert pairs.fold.tolist() == [0, 9]


@pytest.mark.parametrize("word", ["True", "yes", "1.0", ""])
def test_same_must_be_0_or_1(tmp_path, word):
    text = f"file_a,file_b,same,fold\na.jpg,b.jpg,1,0\na.jpg,c.jpg,{word},9\n"
    (tmp_path / "pairs.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"pair 2 of .*pairs\.csv.* 0 or 1, got '{word}'"):
        read_pairs(tmp_path / "pairs.csv")


def test_features_are_looked_up_by_file_name_and_compared_by_cosine():
    files = ["c", "a", "b", "d"]
    features = torch.tensor([[0.0, 3.0], [1.0, 0.1], [5.0, 0.0], [0.1, 1.0]])
    pairs = Pairs(["a", "c", "a", "b"], ["b", "d", "c", "d"], *_truth())
    assert verification_accuracy(features, files, pairs) == (1.0, 0.0)


def _truth():
    return torch.tensor([True, True, False, False]), torch.tensor([0, 1, 0, 1])


def test_a_learned_classifier_finds_the_feature_that_separates_identities():
    generator = torch.Generator().manual_seed(0)
    persons = torch.arange(40)
    features = 5 * torch.randn(80, 6, generator=generator)
    features[:, 2] = persons.repeat(2).float()  # noise hides it in the cosine
    files = [str(row) for row in range(80)]
    fold = (persons % 4).repeat(2)
    firsts, others = files[:40] * 2, files[40:] + files[40:][20:] + files[40:][:20]
    pairs = Pairs(firsts, others, torch.arange(80) < 40, fold)
    learned = learned_accuracy(features, files, pairs)[0]
    assert learned > 0.95
    assert learned > verification_accuracy(features, files, pairs)[0] + 0.2


def test_a_pair_without_a_feature_raises_an_error_with_the_file():
    pairs = Pairs(["a"], ["gone.jpg"], torch.tensor([True]), torch.tensor([0]))
    with pytest.raises(KeyError, match=r"gone\.jpg"):
        verification_accuracy(torch.ones(1, 2), ["a"], pairs)


def test_lfw_pairs_are_measured_both_ways_and_a_missing_face_matches_nobody(tmp_path, monkeypatch):
    write_lfw(tmp_path, train=6, val=6)
    write_pairs(tmp_path, train=6, val=6)
    people = torch.eye(3).repeat_interleave(2, 0)
    missing = people.clone()
    missing[0] = torch.nan
    ways = [(ALIGNED, people), (DETECTED, missing)]
    monkeypatch.setattr(protocols, "both_ways", lambda *_: iter(ways))
    model = IPDFER("test_resnet.r160_in1k", 8)
    measured = protocols.lfw_pairs(model, tmp_path, "c")
    values = {(m.name, m.protocol.split("; ")[1]): m.value for m in measured.metrics}
    assert values["accuracy", ALIGNED] == 100
    assert values["accuracy", DETECTED] == pytest.approx(100 * (7 / 8 + 1) / 2)
    assert {m.unit for m in measured.metrics} == {"%"}
    missed = "false non-matches at a false-match rate of 1 %"
    assert values[missed, ALIGNED] == 0
    assert values[missed, DETECTED] == pytest.approx(100 / 3)  # the pair with a missing face
    assert measured.verification.protocol.endswith(DETECTED)
    assert measured.verification.false_match_rate == 0
