"""Training of the identity encoder: targets, batches, queue and the removal of expression."""

import pytest
import torch
from ipd_fer_tiny import CPU, IDENTITY, PAPER
from packs import write_packs

from facezoo.models.identity_removal import remove_identity
from facezoo.models.ipd_fer.train.data import Rows
from facezoo.models.ipd_fer.train.identity import (
    STRONG,
    EmbeddingQueue,
    choose_partners,
    expression_removal,
    identity_batches,
    identity_targets,
    number_identities,
    train_identity,
)
from facezoo.models.ipd_fer.train.sources import from_packs


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return from_packs(write_packs(tmp_path_factory.mktemp("packs")))


@pytest.fixture(scope="module")
def packs(sources):
    return {**sources.train, **sources.faces}


def rows_of(*identities, labels=None, teacher=None):
    count = len(identities)
    return Rows(
        crops=torch.zeros(count, 3, 128, 128, dtype=torch.uint8),
        landmarks=torch.zeros(count, 5, 2),
        teacher=torch.randn(count, 128) if teacher is None else teacher,
        expression=torch.zeros(count, 8),
        labels=torch.tensor(labels or [-1] * count),
        poses=torch.zeros(count),
        identities=list(identities),
        files=[""] * count,
    )


def test_identities_are_numbered_across_packs_if_they_have_two_images():
    numbers = number_identities([rows_of("b", "", "a"), rows_of("a", "c", "b", "d", "")])
    assert [n.tolist() for n in numbers] == [[1, -1, 0], [0, -1, 1, -1, -1]]


def test_images_of_one_identity_share_their_target():
    labels = [0, 0, 1, 1] * 5
    gray = rows_of(*[""] * 20, labels=labels)
    named = rows_of("a", "b", "a", "", "")
    targets = identity_targets([gray, named], directions=1)
    torch.testing.assert_close(targets[1][0], targets[1][2])
    assert not torch.allclose(targets[1][0], targets[1][1])
    assert not torch.allclose(targets[1][3], targets[1][4])


def test_targets_do_not_show_the_expression():
    labels = [0, 1] * 100
    teacher = torch.randn(200, 128)
    teacher[1::2, 7] += 20
    targets = identity_targets(
        [rows_of(*[""] * 200, labels=labels, teacher=teacher), rows_of("", "")], 1
    )
    means = targets[0][0::2].mean(0), targets[0][1::2].mean(0)
    torch.testing.assert_close(*means, atol=1e-3, rtol=0)


def test_a_partner_has_the_same_identity_and_another_expression_where_there_is_one():
    rows = rows_of("a", "a", "a", "b", "", "c", "c", labels=[0, 1, 0, 0, 0, 2, 2])
    partners = choose_partners(rows, torch.Generator().manual_seed(0)).tolist()
    assert partners[0] == partners[2] == 1
    assert partners[1] in (0, 2)
    assert partners[3:5] == [3, 4]
    assert partners[5:] == [6, 5]


def test_batches_hold_single_images_and_then_pairs_of_one_identity(packs):
    batches = identity_batches(packs, IDENTITY, seed=0, epoch=0)
    assert len(batches) == IDENTITY.batches
    names, parts = list(packs), list(packs.values())
    for batch in batches:
        assert [names[pack] for pack in batch[0, :4]] == ["faces_wild"] * 2 + ["ferplus"] * 2
        assert all(torch.isfinite(parts[p].teacher[r]).all() for p, r in batch[:, :4].T.tolist())
        first, second = batch[:, -4:].chunk(2, 1)
        for (p, r), (q, s) in zip(first.T.tolist(), second.T.tolist(), strict=True):
            assert parts[p].identities[r] == parts[q].identities[s] != ""
    again = identity_batches(packs, IDENTITY, seed=0, epoch=0)
    assert all(torch.equal(a, b) for a, b in zip(batches, again, strict=True))
    other = identity_batches(packs, IDENTITY, seed=0, epoch=1)
    assert not all(torch.equal(a, b) for a, b in zip(batches, other, strict=True))


def test_a_queue_holds_the_latest_rows():
    queue = EmbeddingQueue(3, 2, 1)
    assert queue.entries() is None
    queue.push(torch.ones(2, 2, requires_grad=True), torch.ones(2, 1))
    features, teacher = queue.entries()
    assert (features.shape, teacher.shape, features.requires_grad) == ((2, 2), (2, 1), False)
    queue.push(torch.full((2, 2), 5.0), torch.full((2, 1), 5.0))
    assert sorted(queue.entries()[1].flatten().tolist()) == [1, 5, 5]


def test_the_removal_takes_the_expressions_of_every_pack_out_of_f_id():
    labels = [torch.arange(40) % 3, torch.arange(30) % 2 - 1]
    features = [torch.randn(len(part), 16) for part in labels]
    removal = expression_removal(features, labels, directions=2)
    assert removal.directions == 2
    rest = removal(features[0] - features[0].mean(0))
    assert torch.linalg.matrix_rank(rest, tol=1e-4) == 14


def test_training_selects_an_epoch_and_returns_the_encoder_and_the_removal(sources, tmp_path):
    tensors = train_identity(PAPER, sources, tmp_path, seed=0, device=CPU)
    parts = {name.split(".")[0] for name in tensors}
    assert parts == {"identity_encoder", "expression_removal"}
    log = (tmp_path / "identity" / "log.csv").read_text().splitlines()
    assert len(log) == 3
    for name in ("regression", "matching", "ranking", "margin", "same_identity", "verification"):
        assert name in log[0].split(",")
    assert all(torch.isfinite(value).all() for value in tensors.values())


@pytest.mark.parametrize("size", [32, 64])
def test_strong_augmentation_stays_in_range_and_is_repeatable(size):
    crops = torch.randint(0, 256, (32, 3, 128, 128), dtype=torch.uint8)
    images = [STRONG(crops, size, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert images[0].shape == (32, 3, size, size)
    assert torch.equal(*images)
    assert torch.isfinite(images[0]).all()


def test_removing_directions_of_expressions_is_removing_those_of_classes():
    # The removal of identity serves for expressions: classes with other means become alike.
    features, classes = torch.randn(300, 6), torch.arange(300) % 3
    features[classes == 1, 2] += 9
    removed = remove_identity(features, classes, directions=2)(features)
    means = torch.stack([removed[classes == c].mean(0) for c in range(3)])
    assert (means - means.mean(0)).abs().max() < 1e-3
