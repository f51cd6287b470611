"""Training of IPD-FER on tiny packs from the first round to the card, and exact resume."""

import csv
import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from interrupting import interrupted
from ipd_fer_tiny import BACKBONE, BASELINE, COMPACT, CPU, PAPER, differing
from packs import write_ferplus, write_packs
from PIL import Image

import facezoo
from facezoo.cli.main import main
from facezoo.data.expressions import with_labels
from facezoo.errors import UnsupportedError
from facezoo.evaluate.benchmark.encoders import training_data
from facezoo.evaluate.benchmark.report import contamination_of
from facezoo.models.ipd_fer import IPDFER
from facezoo.models.ipd_fer.train import (
    algorithm,
    decoder,
    expression,
    identity,
    redecode,
    run,
    sources,
)
from facezoo.models.ipd_fer.train import train as training
from facezoo.models.ipd_fer.train.data import Sources
from facezoo.models.ipd_fer.train.sources import from_packs, split_rows
from facezoo.models.ipd_fer.train.train import train
from facezoo.training.loop import fit


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_packs(tmp_path_factory.mktemp("packs"))


@pytest.fixture(scope="module")
def data(folder):
    return from_packs(folder)


STAGES = (identity, expression, algorithm, decoder, redecode)


@pytest.fixture
def saving_often(monkeypatch):
    """Save the state after every batch."""
    for module in STAGES:
        monkeypatch.setattr(module, "fit", partial(fit, save_every=0))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The results of runs that nothing interrupted, and their folders."""
    results = {}
    for name, chosen in (("paper", PAPER), ("compact", COMPACT), ("baseline", BASELINE)):
        out = tmp_path_factory.mktemp(name)
        model = train(chosen, data, out / "start", out, seed=3, device=CPU)
        results[name] = chosen, model.state_dict(), out
    return results


@pytest.mark.parametrize("name", ["paper", "compact", "baseline"])
def test_training_gives_a_model_and_a_log_of_every_round(whole, name):
    _, state, out = whole[name]
    assert all(torch.isfinite(value).all() for value in state.values())
    assert all(value.device == CPU for value in state.values())
    stages = {"start/identity": "verification", "main": "ferplus_score"}
    stages |= dict.fromkeys(("start/expression-1", "start/settle-1"), "ferplus_score")
    if name == "compact":
        stages |= dict.fromkeys(("start/expression-2", "start/settle-2"), "ferplus_score")
        stages |= {"decoder": "score"}
    for stage, metric in stages.items():
        with (out / stage / "log.csv").open(newline="") as file:
            log = list(csv.DictReader(file))
        assert [row["epoch"] for row in log] == ["1", "2"]
        assert all(0 <= float(row[metric]) <= 1 for row in log)
    assert (out / "start" / "soft-labels.pt").is_file() == (name == "compact")


def test_the_identity_encoder_stays_as_the_first_rounds_left_it(whole):
    states = [state for _, state, _ in whole.values()]
    of_identity = [{k: v for k, v in s.items() if k.startswith("identity")} for s in states]
    assert differing(of_identity[0], of_identity[1]) == []
    assert differing(of_identity[0], of_identity[2]) == []


@pytest.mark.parametrize(
    ("name", "after"),
    [("baseline", 3), ("baseline", 4), ("baseline", 13), ("paper", 18), ("compact", 25)],
    ids=["in identity", "before expression", "in the last", "in Algorithm 1", "in the last stages"],
)
def test_an_interrupted_run_ends_at_the_same_weights(
    data, whole, tmp_path, monkeypatch, saving_often, name, after
):
    chosen, state, _ = whole[name]
    with interrupted(monkeypatch, "descend", *STAGES, after=after):
        train(chosen, data, tmp_path / "start", tmp_path, seed=3, device=CPU)
    torch.manual_seed(77)
    resumed = train(chosen, data, tmp_path / "start", tmp_path, seed=3, device=CPU)
    assert differing(state, resumed.state_dict()) == []


def test_a_finished_run_is_not_trained_again(data, whole, monkeypatch):
    chosen, state, out = whole["compact"]
    for module in STAGES:
        monkeypatch.setattr(module, "descend", pytest.fail)
    again = train(chosen, data, out / "start", out, seed=3, device=CPU)
    assert differing(state, again.state_dict()) == []


def test_another_seed_gives_other_weights_from_the_same_start(data, whole, tmp_path):
    chosen, state, out = whole["compact"]
    other = train(chosen, data, out / "start", tmp_path, seed=4, device=CPU)
    changed = {key.split(".")[0] for key in differing(state, other.state_dict())}
    assert "expression_encoder" in changed
    assert "identity_encoder" not in changed


@pytest.fixture
def tiny_recipes(monkeypatch):
    tiny = {"paper": PAPER, "compact": COMPACT, "compact-baseline": BASELINE}
    monkeypatch.setattr(training, "recipe", lambda name, without: tiny[name])


def test_a_run_writes_a_checkpoint_for_every_seed_that_loads(folder, tmp_path, tiny_recipes):
    cards = run(folder, tmp_path, seeds=[0, 1], device=CPU, name="compact")
    assert [card.parent.name for card in cards] == ["compact-seed0", "compact-seed1"]
    card = json.loads(cards[1].read_text())
    assert card["tag"] == "ferplus-lfw"
    assert card["default"]
    assert card["training"]["command"] == (
        "facezoo train ipd-fer --data DATA --out runs/ipd-fer --recipe compact --seed 1"
    )
    model = facezoo.load(str(cards[1].with_suffix(".safetensors")))
    assert model.architecture["expression_rank"] == 4
    assert (tmp_path / "start" / "identity" / "state.pt").is_file()


def test_a_baseline_has_encoders_only_and_a_tag_of_its_own(folder, tmp_path, tiny_recipes):
    (path,) = run(folder, tmp_path, seeds=[0], device=CPU, name="compact-baseline")
    card = json.loads(path.read_text())
    assert (card["tag"], card["default"]) == ("ferplus-lfw-compact-baseline", False)
    model = facezoo.load(str(path.with_suffix(".safetensors")))
    assert {"reconstruct", "encode_pose"}.isdisjoint(model.capabilities())
    with pytest.raises(UnsupportedError, match="without a decoder"):
        model.reconstruct(torch.zeros(3, 112, 112), aligned=True)


def small_set(tmp_path, monkeypatch, **fields):
    """A data set of drawn images under the name raf-db, read by nobody's reader."""
    words = ["neutral", "happiness", "surprise", "sadness"] * 5
    files = [tmp_path / f"image{number}.png" for number in range(20)]
    for number, file in enumerate(files):
        Image.new("RGB", (40, 40), (10 * number, 99, 0)).save(file)
    splits = fields.pop("splits", ["train"] * 16 + ["test"] * 4)
    points = torch.rand(20, 5, 2) * 40
    data = with_labels("raf-db", files, words, splits, cropped=True, landmarks=points, **fields)
    monkeypatch.setattr(sources, "read_official", lambda name, root: data)
    return data


def test_an_official_set_trains_from_the_identity_encoder_of_a_checkpoint(
    whole, tmp_path, monkeypatch, tiny_recipes
):
    small_set(tmp_path, monkeypatch)
    monkeypatch.setattr(sources, "_VAL_SHARE", 0.3)
    model = IPDFER(BACKBONE, 16, 8, BACKBONE, 14, 8)
    model.save_pretrained(tmp_path / "begun")
    begun = json.loads((tmp_path / "begun" / "config.json").read_text())
    begun["training"]["data"] = ["LFW train"]
    (tmp_path / "begun" / "config.json").write_text(json.dumps(begun))
    monkeypatch.setattr(training, "recipe", lambda *_: replace(PAPER, lfw_trust=0.0))
    (path,) = run(
        tmp_path,
        tmp_path / "out",
        seeds=[0],
        device=CPU,
        dataset="raf-db",
        start=str(tmp_path / "begun"),
    )
    trained = facezoo.load(str(path.with_suffix(".safetensors")))
    before, after = model.identity_encoder.state_dict(), trained.identity_encoder.state_dict()
    assert differing(before, after) == []
    card = json.loads(path.read_text())
    assert card["tag"] == "raf-db-paper"
    assert "--dataset raf-db" in card["training"]["command"]
    assert card["training"]["base"] == "ipd-fer.untrained"
    assert card["training"]["data"][0] == "LFW train"  # what its identity encoder has learnt from
    assert contamination_of(training_data(trained.card))["LFW val"] == "train split"


def test_a_data_set_whose_name_is_not_a_tag_gives_a_checkpoint_too(tmp_path, monkeypatch):
    fold = torch.arange(20) % 10
    small_set(tmp_path, monkeypatch, splits=[""] * 20, fold=fold)
    IPDFER(BACKBONE, 16, 8, BACKBONE, 14, 8).save_pretrained(tmp_path / "its start")
    monkeypatch.setattr(training, "recipe", lambda *_: replace(PAPER, lfw_trust=0.0))
    (path,) = run(
        tmp_path,
        tmp_path / "out",
        seeds=[0],
        device=CPU,
        dataset="ck+",
        fold=3,
        start=str(tmp_path / "its start"),
    )
    card = json.loads(path.read_text())
    assert card["tag"] == "ck-plus-paper-fold3"
    assert "--dataset ck+ --fold 3 --start 'its start'" in card["training"]["command"]
    assert str(tmp_path) not in path.read_text()  # folders of this machine are nobody's business


def test_a_run_with_other_packs_does_not_resume(folder, tmp_path, tiny_recipes, monkeypatch):
    with interrupted(monkeypatch, "descend", *STAGES, after=1):
        run(folder, tmp_path / "out", seeds=[0], device=CPU, name="compact")
    (tmp_path / "other").mkdir()
    other = write_packs(tmp_path / "other")
    write_ferplus(other, train=12)
    with pytest.raises(ValueError, match=r"begun with other data .*sha256 was"):
        run(other, tmp_path / "out", seeds=[0], device=CPU, name="compact")
    with pytest.raises(ValueError, match=r"start was begun with other data .*sha256 was"):
        run(other, tmp_path / "out", seeds=[1], device=CPU, name="compact")
    with interrupted(monkeypatch, "descend", *STAGES):
        run(folder, tmp_path / "out", seeds=[0], device=CPU, name="compact")


def test_a_run_with_another_official_set_does_not_resume(tmp_path, monkeypatch):
    data = small_set(tmp_path, monkeypatch)
    IPDFER(BACKBONE, 16, 8, BACKBONE, 14, 8).save_pretrained(tmp_path / "begun")
    monkeypatch.setattr(training, "recipe", lambda *_: replace(PAPER, lfw_trust=0.0))
    monkeypatch.setattr(sources, "_VAL_SHARE", 0.3)
    again = partial(
        run,
        tmp_path,
        tmp_path / "out",
        seeds=[0],
        device=CPU,
        dataset="raf-db",
        start=str(tmp_path / "begun"),
    )
    with interrupted(monkeypatch, "descend", *STAGES):
        again()
    other = replace(data, labels=data.labels.roll(1))
    monkeypatch.setattr(sources, "read_official", lambda name, root: other)
    with pytest.raises(ValueError, match="labels was"):
        again()
    monkeypatch.setattr(sources, "read_official", lambda name, root: data)
    IPDFER(BACKBONE, 16, 8, BACKBONE, 14, 8).save_pretrained(tmp_path / "begun")
    with pytest.raises(ValueError, match="start was"):
        again()
    monkeypatch.setattr(sources, "read_official", lambda name, root: data)
    Image.new("RGB", (40, 40), (1, 2, 3)).save(data.files[0])
    with pytest.raises(ValueError, match="sha256 was"):
        again()


def test_a_fold_of_the_packs_raises_an_error(folder, tmp_path, tiny_recipes):
    with pytest.raises(ValueError, match="the packs have no folds, got fold 3"):
        run(folder, tmp_path, seeds=[0], device=CPU, name="compact", fold=3)


@pytest.mark.parametrize(
    ("start", "said"), [("adv3d", "is a checkpoint of"), ("ipd-fer", "encoders of resnet18")]
)
def test_a_start_that_does_not_suit_raises_an_error_before_the_data_are_read(
    tmp_path, monkeypatch, tiny_recipes, capsys, start, said
):
    monkeypatch.setattr(sources, "read_official", lambda *_: pytest.fail("it read"))
    words = ["train", "ipd-fer", "--data", str(tmp_path), "--dataset", "raf-db", "--start", start]
    monkeypatch.setattr(training, "recipe", lambda *_: replace(PAPER, lfw_trust=0.0))
    assert main([*words, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 1
    assert said in capsys.readouterr().err


def test_an_official_set_without_a_start_raises_an_error(tmp_path, tiny_recipes):
    with pytest.raises(ValueError, match="--start CHECKPOINT"):
        run(tmp_path, tmp_path, seeds=[0], device=CPU, dataset="raf-db")


def test_rows_that_validate_are_apart_from_those_that_train_and_from_the_test(
    tmp_path, monkeypatch
):
    data = small_set(tmp_path, monkeypatch)
    monkeypatch.setattr(sources, "_VAL_SHARE", 0.3)
    train_rows, val_rows = split_rows(data, None)
    assert sorted([*train_rows.tolist(), *val_rows.tolist()]) == list(range(16))
    assert 0 < len(val_rows) < 10


def test_folds_leave_one_for_testing_and_one_for_validation(tmp_path, monkeypatch):
    fold = torch.arange(20) % 10
    data = small_set(tmp_path, monkeypatch, splits=[""] * 20, fold=fold)
    train_rows, val_rows = split_rows(data, 9)
    assert set(fold[val_rows].tolist()) == {0}
    assert set(fold[train_rows].tolist()) == set(range(1, 9))
    with pytest.raises(ValueError, match="is split into folds, and no fold was given"):
        split_rows(data, None)
    with pytest.raises(ValueError, match="fold must be 0 to 9"):
        split_rows(data, 10)


def test_sources_describe_themselves(data):
    assert isinstance(data, Sources)
    assert data.descriptions[0].startswith("FER+ train")
