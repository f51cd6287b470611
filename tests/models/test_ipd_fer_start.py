"""The rounds before the last: what each trains, from what, and on which rows."""

from dataclasses import replace

import pytest
import torch
from ipd_fer_tiny import BACKBONE, BASELINE, CPU, differing, shaken
from packs import write_packs

from facezoo.models.ipd_fer.networks import Encoder
from facezoo.models.ipd_fer.train import pretraining
from facezoo.models.ipd_fer.train.dataset import Rows, embed, read_rows, targets
from facezoo.models.ipd_fer.train.pretraining import ExpressionRound, train_identity


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    data = write_packs(tmp_path_factory.mktemp("packs"))
    return [read_rows(data, pack, "train") for pack in ("ferplus", "lfw")]


def rounds_of(monkeypatch, stage, *arguments):
    """Parts, index and loss of each round that a stage wants."""
    rounds = []

    def caught(parts, config, index, loss, *rest):
        rounds.append((parts, index, loss))
        return parts.state_dict()

    monkeypatch.setattr(pretraining, "_round", caught)
    stage(*arguments)
    return rounds


def one_step(parts, index, loss):
    """Names of the parameters that one optimiser step changes."""
    before = {name: p.detach().clone() for name, p in shaken(parts).named_parameters()}
    optimizer = torch.optim.AdamW(parts.parameters(), lr=0.01, weight_decay=0)
    parts.train()
    loss(index, 32, torch.Generator().manual_seed(0)).backward()
    optimizer.step()
    return {n for n, p in parts.named_parameters() if not torch.equal(p, before[n])}


def test_rows_hold_crops_embeddings_labels_poses_and_names(rows):
    ferplus, lfw = rows
    assert ferplus.crops.shape == (6, 1, 128, 128)
    assert lfw.crops.shape == (6, 3, 128, 128)
    assert torch.isfinite(ferplus.teacher).all(1).tolist() == [True, False] + [True] * 4
    assert ferplus.persons == [""] * 6
    assert lfw.persons == ["person0", "person0", "person1", "person1", "person2", "person2"]
    assert lfw.expression.sum(1).tolist() == [1, 1, 0, 1, 1, 0]
    assert all(len(part.poses) == 6 and part.poses.max() <= 4 for part in rows)


def test_hard_targets_are_the_majority_and_soft_ones_the_votes(rows):
    ferplus, _ = rows
    assert targets(ferplus, soft=True) is ferplus.expression
    hard = targets(ferplus, soft=False)
    assert (hard.sum(1) == 1).tolist() == (ferplus.labels >= 0).tolist()
    known = ferplus.labels >= 0
    assert hard[known].argmax(1).tolist() == ferplus.labels[known].tolist()


def test_the_identity_rounds_train_encoder_head_and_centres(rows, tmp_path, monkeypatch):
    (parts, index, loss), (again, *_) = rounds_of(
        monkeypatch, train_identity, BASELINE, rows, rows[1], None, tmp_path, 0, CPU
    )
    assert again is parts
    assert {n.split(".")[0] for n, _ in parts.named_parameters()} == {"encoder", "head", "centres"}
    assert one_step(parts, index, loss) == {n for n, _ in parts.named_parameters()}


def test_the_identity_rounds_show_lfw_twice_and_then_once_more_alone(rows, tmp_path, monkeypatch):
    rounds = rounds_of(monkeypatch, train_identity, BASELINE, rows, rows[1], None, tmp_path, 0, CPU)
    shown = [sorted(map(tuple, index.T.tolist())) for _, index, _ in rounds]
    ferplus, lfw = [(0, i) for i in (0, 2, 3, 4, 5)], [(1, i) for i in range(6)]
    assert shown == [sorted(ferplus + lfw * 2), lfw]


def expression_round(rows, **changes):
    identity = Encoder(BACKBONE, 16).state_dict()
    named = dict(zip(("ferplus", "lfw"), rows, strict=True))
    return identity, ExpressionRound(replace(BASELINE, **changes), rows, named, identity, CPU)


def test_an_expression_round_starts_from_the_given_encoder_and_leaves_it_alone(rows):
    identity, whole = expression_round(rows)
    before = {k: v.clone() for k, v in identity.items()}
    assert differing(whole.parts["expression_encoder"].state_dict(), before) == []
    changed = one_step(whole.parts, whole.index, whole.loss)
    assert changed == {n for n, _ in whole.parts.named_parameters()}
    assert {n.split(".")[0] for n in changed} == {"expression_encoder", "expression_classifier"}
    assert differing(identity, before) == []


def test_an_expression_round_shows_only_faces_with_a_label(rows):
    _, whole = expression_round(rows)
    wanted = [(0, i) for i in range(6)] + [(1, i) for i in (0, 1, 3, 4)]
    assert sorted(map(tuple, whole.index.T.tolist())) == wanted


def test_without_trust_in_its_labels_lfw_is_not_shown(rows):
    _, whole = expression_round(rows, lfw_trust=0.0)
    assert set(whole.index[0].tolist()) == {0}


def test_features_do_not_depend_on_the_batch_they_are_computed_in():
    crops = torch.randint(0, 256, (5, 3, 128, 128), dtype=torch.uint8)
    encoder = Encoder(BACKBONE, 16).eval()
    together = embed(encoder, crops, CPU)
    assert together.shape == (5, 16)
    assert together.dtype == torch.float32
    torch.testing.assert_close(embed(encoder, crops, CPU, batch=2), together, atol=2e-2, rtol=2e-2)


def test_persons_are_numbered_across_packs_if_they_have_two_photographs():
    def rows_of(*names):
        none = torch.zeros(len(names), 0)
        return Rows(none, none, none, none, none, list(names), list(names))

    numbers = pretraining._number_persons([rows_of("b", "", "a"), rows_of("a", "c", "b", "d", "")])
    assert [n.tolist() for n in numbers] == [[1, -1, 0], [0, -1, 1, -1, -1]]
