"""Generators and saved states of a run, its record, and the checkpoint that it writes."""

import csv
import json
import math
from dataclasses import asdict
from importlib import import_module

import pytest
import torch
from torch import nn

from facezoo.hub.card import Card, Licenses, Preprocessing
from facezoo.hub.tensors import load_into, read_tensors
from facezoo.training import run as training
from facezoo.training.run import begin_run, check_data, digest_of_files, write_checkpoint
from facezoo.training.state import batches, generator, load_state, log_row, save_state


def drawn(*place):
    return torch.rand(4, generator=generator(*place)).tolist()


def test_a_place_in_a_run_draws_the_same_numbers_every_time():
    assert drawn(3, 1, 7) == drawn(3, 1, 7)


def test_places_in_a_run_draw_different_numbers():
    steps = [(epoch, step) for epoch in range(4) for step in range(4)]
    places = [(7, epoch) for epoch in range(4)] + [(7, *step) for step in steps]
    assert len({tuple(drawn(*place)) for place in places}) == 20


def test_runs_of_different_seeds_draw_different_numbers():
    places = [(seed, epoch, step) for seed in range(4) for epoch in range(3) for step in range(3)]
    assert len({tuple(drawn(*place)) for place in places}) == 36


def test_batches_hold_every_row_once_and_drop_the_short_rest():
    parts = batches(10, 4, seed=0, epoch=0)
    assert [len(part) for part in parts] == [4, 4]
    rows = torch.cat(parts).tolist()
    assert len(set(rows)) == 8
    assert set(rows) <= set(range(10))
    assert sorted(torch.cat(batches(8, 4, 0, 0)).tolist()) == list(range(8))


def test_batches_are_shuffled_in_every_epoch():
    first, again = (torch.cat(batches(32, 8, 5, 2)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, torch.cat(batches(32, 8, 5, 3)))
    assert not torch.equal(first, torch.cat(batches(32, 8, 6, 2)))


def test_fewer_rows_than_a_batch_are_an_error():
    with pytest.raises(ValueError, match="3 rows"):
        batches(3, 4, 0, 0)


def small_network():
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def test_a_state_comes_back_as_it_was_saved(tmp_path):
    path = tmp_path / "new" / "folder" / "state.pt"
    save_state(path, tensors={"a": torch.arange(3)}, position=[2, 5], best={"score": -math.inf})
    state = load_state(path)
    assert state["position"] == [2, 5]
    assert state["best"] == {"score": -math.inf}
    assert torch.equal(state["tensors"]["a"], torch.arange(3))
    assert [p.name for p in path.parent.iterdir()] == ["state.pt"]


def test_a_run_that_has_no_state_yet_has_none(tmp_path):
    assert load_state(tmp_path / "state.pt") is None


def test_an_interrupted_save_leaves_the_old_state(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    save_state(path, position=[1, 0])

    def half_written(state, file):
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(training.torch, "save", half_written)
    with pytest.raises(KeyboardInterrupt):
        save_state(path, position=[2, 0])
    assert load_state(path) == {"position": [1, 0]}


def test_log_rows_share_one_header(tmp_path):
    path = tmp_path / "runs" / "log.csv"
    log_row(path, {"epoch": 1, "loss": 0.5})
    log_row(path, {"epoch": 2, "loss": 0.25})
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{"epoch": "1", "loss": "0.5"}, {"epoch": "2", "loss": "0.25"}]


def test_a_resumed_run_replaces_the_rows_that_were_logged_after_its_saved_state(tmp_path):
    path = tmp_path / "log.csv"
    for step in (100, 200, 300):
        log_row(path, {"step": step, "loss": 1 / step})
    whole = path.read_text()
    for step in (200, 300):  # the state was saved after row 100
        log_row(path, {"step": step, "loss": 1 / step})
    assert path.read_text() == whole


def test_a_run_records_its_recipe_and_finds_it_again(tmp_path):
    recipe = {"rate": 0.1, "sizes": ((0, 32), (4, 64))}
    first = begin_run(tmp_path / "run", seed=4, recipe=recipe)
    assert first["seed"] == 4
    assert first["recipe"]["sizes"] == [[0, 32], [4, 64]]
    assert begin_run(tmp_path / "run", seed=4, recipe=recipe) == first
    assert json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8")) == first


@pytest.mark.parametrize("family", ["adv3d", "ipd_fer", "latent_simclr", "latentface"])
def test_every_recipe_can_be_written_to_a_card(tmp_path, family):
    recipes = import_module(f"facezoo.models.{family}.train.recipes").RECIPES
    for name, recipe in recipes.items():
        begin_run(tmp_path / name, seed=0, recipe=asdict(recipe))


def test_a_recipe_that_no_card_can_hold_is_an_error_before_the_training(tmp_path):
    with pytest.raises(ValueError, match="Out of range float values"):
        begin_run(tmp_path, seed=0, recipe={"limit": float("inf")})


@pytest.mark.parametrize(("seed", "rate"), [(5, 0.1), (4, 0.2)])
def test_a_run_of_another_recipe_or_seed_is_not_continued(tmp_path, seed, rate):
    begin_run(tmp_path, seed=4, recipe={"rate": 0.1})
    with pytest.raises(ValueError, match="another recipe or seed"):
        begin_run(tmp_path, seed=seed, recipe={"rate": rate})


def test_a_run_is_continued_with_the_data_it_was_begun_with_only(tmp_path):
    begin_run(tmp_path / "first", seed=4, recipe={})
    begin_run(tmp_path / "second", seed=4, recipe={})
    check_data(tmp_path / "first", {"files": 3})
    check_data(tmp_path / "first", {"files": 3})
    check_data(tmp_path / "second", {"files": 3}, tmp_path / "first")
    assert begin_run(tmp_path / "first", seed=4, recipe={})["data"] == {"files": 3}
    wanted = "first was begun with other data .data.files was 3 and is now 4.*--data.*--out"
    with pytest.raises(ValueError, match=wanted):
        check_data(tmp_path / "first", {"files": 4})
    begin_run(tmp_path / "third", seed=4, recipe={})
    with pytest.raises(ValueError, match=wanted):
        check_data(tmp_path / "third", {"files": 4}, tmp_path / "first")
    assert "data" not in begin_run(tmp_path / "third", seed=4, recipe={})


def test_files_are_known_by_their_names_and_contents_and_not_by_their_place(tmp_path):
    for folder, names in (("one", "ab"), ("same", "ab"), ("renamed", "ac"), ("fewer", "a")):
        (tmp_path / folder / "inside").mkdir(parents=True)
        for name in names:
            (tmp_path / folder / "inside" / name).write_text("pixels")
    (tmp_path / "changed" / "inside").mkdir(parents=True)
    for name in "ab":
        (tmp_path / "changed" / "inside" / name).write_text(f"pixels of {name}")
    said = {
        root.name: digest_of_files(root, sorted((root / "inside").iterdir()))
        for root in tmp_path.iterdir()
    }
    assert said["one"] == said.pop("same")
    assert len({str(value) for value in said.values()}) == 4
    assert (said["one"]["files"], said["fewer"]["files"]) == (2, 1)


@pytest.mark.parametrize(("precision", "error"), [("float32", 0.0), ("float16", 1e-3)])
def test_a_written_checkpoint_has_a_card_that_is_true_of_its_weights(tmp_path, precision, error):
    network = small_network()
    run = begin_run(tmp_path, seed=1, recipe={"rate": 0.1})
    path = write_checkpoint(
        network,
        tmp_path,
        run,
        model="ipd-fer",
        tag="tiny",
        architecture={"num_classes": 2},
        preprocessing=Preprocessing(),
        labels=("calm", "cross"),
        precision=precision,
        licenses=Licenses("Apache-2.0", "research-only", "research-only"),
        data=("noise",),
        intended_use="Tests.",
        citation="",
    )
    card = Card.load(path)
    assert path.name == "ipd-fer.tiny.json"
    assert card.weights.parameters == 12
    assert card.weights.size == (tmp_path / card.weights.file).stat().st_size
    assert card.training.seed == 1
    assert card.training.recipe == {"rate": 0.1}
    again = small_network()
    load_into(again, read_tensors(tmp_path / card.weights.file))
    for ours, theirs in zip(network.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(theirs, ours, atol=error, rtol=0)
