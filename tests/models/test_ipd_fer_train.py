"""Training of IPD-FER's encoders on tiny packs: what each stage changes, and exact resume."""

import csv
from functools import partial

import pytest
import torch
from packs import write_packs

from facezoo.models.ipd_fer import IPDFER
from facezoo.models.ipd_fer import train as training
from facezoo.models.ipd_fer.networks import Encoder
from facezoo.models.ipd_fer.train import Rows, StageConfig, TrainConfig, embed, read_rows, train

CPU = torch.device("cpu")
BACKBONE = "test_resnet.r160_in1k"
STAGE = StageConfig(epochs=2, sizes=((0, 32),), batch_size=4)
# Batches: 2 x 4 of 5 + 2 x 6 examples for identity, 2 x 1 of 6 for its second round, and 2 x 2 of
# 10 for expression.
CONFIG = TrainConfig(
    backbone=BACKBONE, feature_dim=16, identity=STAGE, polish=STAGE, expression=STAGE, settle=STAGE
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_packs(tmp_path_factory.mktemp("packs"))


@pytest.fixture(scope="module")
def rows(data):
    return [read_rows(data, pack, "train") for pack in ("ferplus", "lfw")]


@pytest.fixture
def saving_often(monkeypatch):
    """A saved state every second batch."""
    monkeypatch.setattr(training, "fit", partial(training.fit, save_every=2))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The result of a run that nothing interrupted, and its folder."""
    out = tmp_path_factory.mktemp("run")
    return train(CONFIG, data, out, seed=3, device=CPU), out


def differing(first, second):
    assert first.keys() == second.keys()
    return [key for key in first if not torch.equal(first[key], second[key])]


def interrupt_after(monkeypatch, steps):
    """Ctrl-C once ``steps`` batches have been augmented, over all stages."""
    pick, calls = training._pick, []

    def counted(*arguments):
        calls.append(1)
        if len(calls) > steps:
            raise KeyboardInterrupt
        return pick(*arguments)

    monkeypatch.setattr(training, "_pick", counted)


def stage_given(monkeypatch, stage, *arguments):
    """Parts, index and step function of each round that a stage wants of ``fit``."""
    rounds = []

    def caught(parts, config, index, step, *rest):
        rounds.append((parts, index, step))
        return parts.state_dict()

    monkeypatch.setattr(training, "fit", caught)
    stage(*arguments)
    return rounds


def one_step(parts, index, step):
    """Names of the parameters that one optimiser step changes."""
    for parameter in parts.parameters():  # timm starts residual branches at zero
        torch.nn.init.normal_(parameter, std=0.1)
    before = {name: p.detach().clone() for name, p in parts.named_parameters()}
    optimizer = torch.optim.AdamW(parts.parameters(), lr=0.01, weight_decay=0)
    parts.train()
    step(index, 32, torch.Generator().manual_seed(0)).backward()
    optimizer.step()
    return {n for n, p in parts.named_parameters() if not torch.equal(p, before[n])}


def test_rows_hold_crops_embeddings_labels_and_names(rows):
    ferplus, lfw = rows
    assert ferplus.crops.shape == (6, 1, 128, 128)
    assert lfw.crops.shape == (6, 3, 128, 128)
    assert torch.isfinite(ferplus.teacher).all(1).tolist() == [True, False] + [True] * 4
    assert ferplus.persons == [""] * 6
    assert lfw.persons == ["person0", "person0", "person1", "person1", "person2", "person2"]
    assert lfw.expression.sum(1).tolist() == [1, 1, 0, 1, 1, 0]


def test_the_identity_stage_trains_its_encoder_head_and_centres(rows, tmp_path, monkeypatch):
    (parts, index, step), (again, *_) = stage_given(
        monkeypatch, training.train_identity, CONFIG, rows, rows[1], None, tmp_path, 0, CPU
    )
    assert again is parts
    assert {n.split(".")[0] for n, _ in parts.named_parameters()} == {"encoder", "head", "centres"}
    assert one_step(parts, index, step) == {n for n, _ in parts.named_parameters()}


def test_the_identity_stage_shows_lfw_twice_and_then_once_more_alone(rows, tmp_path, monkeypatch):
    rounds = stage_given(
        monkeypatch, training.train_identity, CONFIG, rows, rows[1], None, tmp_path, 0, CPU
    )
    shown = [sorted(map(tuple, index.T.tolist())) for _, index, _ in rounds]
    ferplus, lfw = [(0, i) for i in (0, 2, 3, 4, 5)], [(1, i) for i in range(6)]
    assert shown == [sorted(ferplus + lfw * 2), lfw]


def test_the_expression_stage_starts_from_identity_and_leaves_it_alone(rows, tmp_path, monkeypatch):
    identity = Encoder(BACKBONE, 16).state_dict()
    before = {k: v.clone() for k, v in identity.items()}
    (parts, index, step), (again, *_) = stage_given(
        monkeypatch, training.train_expression, CONFIG, identity, rows, rows, tmp_path, 0, CPU
    )
    assert again is parts
    assert differing(parts["expression_encoder"].state_dict(), before) == []
    changed = one_step(parts, index, step)
    assert changed == {n for n, _ in parts.named_parameters()}
    assert {n.split(".")[0] for n in changed} == {"expression_encoder", "expression_classifier"}
    assert differing(identity, before) == []


def test_the_expression_stage_shows_only_faces_with_a_label(rows, tmp_path, monkeypatch):
    identity = Encoder(BACKBONE, 16).state_dict()
    rounds = stage_given(
        monkeypatch, training.train_expression, CONFIG, identity, rows, rows, tmp_path, 0, CPU
    )
    wanted = [(0, i) for i in range(6)] + [(1, i) for i in (0, 1, 3, 4)]
    for _, index, _ in rounds:
        assert sorted(map(tuple, index.T.tolist())) == wanted


def test_training_gives_a_state_that_the_model_takes(whole):
    state, out = whole
    model = IPDFER(BACKBONE, 16)
    model.load_state_dict(state)
    assert all(torch.isfinite(value).all() for value in state.values())
    assert all(value.device == CPU for value in state.values())
    metrics = {"identity": "verification", "polish": "verification"}
    for stage, metric in {
        **metrics,
        "expression": "ferplus_accuracy",
        "settle": "ferplus_accuracy",
    }.items():
        with (out / stage / "log.csv").open(newline="") as file:
            log = list(csv.DictReader(file))
        assert [row["epoch"] for row in log] == ["1", "2"]
        assert all(0 <= float(row[metric]) <= 1 for row in log)


@pytest.mark.parametrize(
    "after",
    [3, 9, 10, 13],
    ids=["within identity", "within its second round", "before expression", "in the last epoch"],
)
def test_an_interrupted_run_ends_at_the_same_weights(
    data, whole, tmp_path, monkeypatch, saving_often, after
):
    with monkeypatch.context() as patch:
        interrupt_after(patch, after)
        with pytest.raises(KeyboardInterrupt):
            train(CONFIG, data, tmp_path, seed=3, device=CPU)
    torch.manual_seed(77)
    resumed = train(CONFIG, data, tmp_path, seed=3, device=CPU)
    assert differing(whole[0], resumed) == []


def test_a_run_interrupted_while_it_validates_ends_at_the_same_weights(
    data, whole, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(training, "embed", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(CONFIG, data, tmp_path, seed=3, device=CPU)
    assert differing(whole[0], train(CONFIG, data, tmp_path, seed=3, device=CPU)) == []


def test_a_finished_run_is_not_trained_again(data, whole, monkeypatch):
    state, out = whole
    interrupt_after(monkeypatch, 0)
    assert differing(state, train(CONFIG, data, out, seed=3, device=CPU)) == []


def test_another_seed_gives_other_weights(data, whole, tmp_path):
    assert differing(whole[0], train(CONFIG, data, tmp_path, seed=4, device=CPU))


def test_the_crop_side_follows_the_recipe_and_the_best_epoch_at_the_last_side_is_kept(tmp_path):
    part = torch.nn.Linear(2, 1)
    sides, scores, states = [], iter([0.9, 0.5, 0.7, 0.6]), []

    def step(chosen, size, draw):
        sides.append(size)
        return part(torch.rand(len(chosen[0]), 2, generator=draw)).square().mean()

    def validate(network, *_):
        states.append({k: v.clone() for k, v in network.state_dict().items()})
        return {"score": next(scores)}

    config = StageConfig(epochs=4, sizes=((0, 8), (1, 16)), batch_size=2, rate=0.1)
    index = torch.zeros(2, 4, dtype=torch.long)
    kept = training.fit(part, config, index, step, validate, "score", tmp_path / "stage", 0)
    assert sides == [8, 8] + [16] * 6
    assert differing(kept, states[2]) == []


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
        return Rows(none, none, none, none, list(names), list(names))

    numbers = training._number_persons([rows_of("b", "", "a"), rows_of("a", "c", "b", "d", "")])
    assert [n.tolist() for n in numbers] == [[1, -1, 0], [0, -1, 1, -1, -1]]
