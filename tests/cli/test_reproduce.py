"""The commands of cards: every bundled recipe runs a few steps, and errors are clear."""

import json
import shlex
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from command_lines import parse
from ict_pack import write_full_ict
from packs import write_ferplus, write_lfw, write_packs, write_pairs

from facezoo.cli import reproduce as module
from facezoo.cli.main import main
from facezoo.cli.reproduce import commands, reproduce
from facezoo.data.cut import cut_packs
from facezoo.errors import CardError
from facezoo.hub.card import Card, bundled_cards
from facezoo.training.run import REHEARSED, shortened


@pytest.fixture(scope="module")
def packs(tmp_path_factory):
    """More rows than the dimensions that the expression features are kept to."""
    folder = tmp_path_factory.mktemp("packs")
    write_packs(folder)
    write_ferplus(folder, train=24)
    write_lfw(folder, train=16)
    write_pairs(folder, train=16)
    return write_full_ict(folder)


def with_command(card, command):
    return replace(card, training=replace(card.training, command=command))


@pytest.mark.parametrize("name", bundled_cards())
def test_the_recipe_of_every_bundled_checkpoint_runs(name, packs, tmp_path, capfd):
    words = ["reproduce", name, "--data", str(packs), "--out", str(tmp_path / "out")]
    assert main([*words, "--smoke", "--device", "cpu"]) == 0
    assert "the recipe runs" in capfd.readouterr().out
    (path,) = (tmp_path / "out").rglob(f"{name}.json")
    new, old = Card.load(path), bundled_cards()[name]
    assert new.architecture.keys() == old.architecture.keys()
    assert new.weights.parameters == old.weights.parameters
    assert path.with_name(new.weights.file).stat().st_size == new.weights.size
    assert all("--smoke" in step for step in new.training.command.split(" && "))
    assert new.limits == (REHEARSED,)
    assert commands(new, Path("packs"), Path("new"))


@pytest.mark.parametrize("name", bundled_cards())
def test_the_command_of_every_bundled_card_parses(name):
    for words in commands(bundled_cards()[name], Path("packs"), Path("new")):
        options = parse(words)
        assert (options["data"], options["out"]) == (Path("packs"), Path("new"))


def test_commands_of_several_steps_are_run_in_turn(monkeypatch, tmp_path):
    card = next(iter(bundled_cards().values()))
    two = "facezoo train a --data DATA --out runs/a && facezoo train b --data DATA --out runs/a"
    ran = []

    def written(words):
        ran.append(shlex.join(words))
        (tmp_path / f"{card.name}.json").write_text(card.to_json())

    monkeypatch.setattr(module, "info", lambda name: with_command(card, two))
    monkeypatch.setattr(module, "_run", written)
    done = reproduce("x", tmp_path, tmp_path)
    assert ran == [f"train {kind} --data {tmp_path} --out {tmp_path}" for kind in "ab"]
    assert done.same_weights
    assert "equal to" in str(done)


def test_files_below_the_folder_of_the_card_are_those_of_the_new_run():
    """A second command starts from the result of the first, not from a bundled checkpoint."""
    card = next(iter(bundled_cards().values()))
    command = "facezoo train a --data DATA --out runs/a --start runs/a/a.x.safetensors --seed 0"
    ran = commands(with_command(card, command), Path("packs"), Path("new"))
    words = "train a --data packs --out new --start new/a.x.safetensors --seed 0"
    assert [shlex.join(run) for run in ran] == [words]


@pytest.mark.parametrize(
    "command", ["", "rm -r /", "facezoo publish x --out y", "python train.py --out x", "facezoo"]
)
def test_a_command_that_does_not_train_is_not_run(command):
    card = with_command(next(iter(bundled_cards().values())), command)
    with pytest.raises(CardError, match="can be run again"):
        commands(card, Path("data"), Path("out"))


def test_a_recipe_that_gives_another_model_is_an_error(monkeypatch, tmp_path):
    card = next(iter(bundled_cards().values()))
    other = replace(card, architecture={"width": 3})
    monkeypatch.setattr(module, "info", lambda name: card)
    written = tmp_path / f"{card.name}.json"
    monkeypatch.setattr(module, "_run", lambda words: written.write_text(other.to_json()))
    with pytest.raises(CardError, match=r"differs from .* in architecture"):
        reproduce("x", tmp_path, tmp_path)


@pytest.mark.parametrize("key", ["autoencoding_commit", "commits", "training_commit"])
def test_a_recipe_may_be_trained_again_at_another_commit(monkeypatch, tmp_path, key):
    """Recipes of several parts name the commits of those before the last."""
    card = next(c for c in bundled_cards().values() if key in c.training.recipe)
    recipe = card.training.recipe

    def written(words, recipe):
        new = replace(card, training=replace(card.training, recipe=recipe))
        (tmp_path / f"{card.name}.json").write_text(new.to_json())

    monkeypatch.setattr(module, "info", lambda name: card)
    other = recipe | {key: json.loads(json.dumps(recipe[key]).replace("c", "d"))}
    assert other != recipe
    monkeypatch.setattr(module, "_run", lambda words: written(words, other))
    assert reproduce("x", tmp_path, tmp_path).same_weights
    monkeypatch.setattr(module, "_run", lambda words: written(words, other | {"rate": 3}))
    with pytest.raises(CardError, match=r"differs from .* in training.recipe"):
        reproduce("x", tmp_path, tmp_path)


def test_of_several_cards_of_the_name_that_of_the_seed_is_judged(monkeypatch, tmp_path):
    card = bundled_cards()["ipd-fer.ferplus-lfw"]
    for seed in (3, card.training.seed, 5, 4):
        folder = tmp_path / f"compact-seed{seed}"
        folder.mkdir()
        new = replace(card, training=replace(card.training, seed=seed))
        (folder / f"{card.name}.json").write_text(new.to_json())
    monkeypatch.setattr(module, "_run", lambda words: None)
    assert reproduce("ipd-fer", tmp_path, tmp_path).card.parent.name == "compact-seed0"


def test_a_command_that_fails_is_an_error(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(RuntimeError, match="ended with 1"):
        reproduce("face-detector", empty, tmp_path / "out", smoke=True)


def test_a_smoke_test_does_not_accept_an_existing_checkpoint(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_run", lambda words: pytest.fail("it ran"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "state.pt").touch()
    with pytest.raises(FileExistsError, match="is not empty"):
        reproduce("face-detector", tmp_path, tmp_path / "out", smoke=True)


def test_without_data_nothing_is_begun(tmp_path):
    with pytest.raises(FileNotFoundError, match="--data"):
        reproduce("face-detector", tmp_path / "none", tmp_path / "out", smoke=True)


def test_a_cut_keeps_the_first_rows_of_every_split_and_whole_pairs(packs, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(packs, source)
    (source / "notes.txt").write_text("kept")
    cut_packs(source, tmp_path / "cut", rows=2)
    files = pq.read_table(tmp_path / "cut" / "ferplus.parquet")["file"].to_pylist()
    assert files == ["fer0.png", "fer1.png", "fer24.png", "fer25.png", "fer28.png", "fer29.png"]
    kept = set(pq.read_table(tmp_path / "cut" / "lfw.parquet")["file"].to_pylist())
    lines = (tmp_path / "cut" / "lfw_pairs_val.csv").read_text().split()[1:]
    assert lines
    assert all({*line.split(",")[:2]} <= kept for line in lines)
    assert (tmp_path / "cut" / "notes.txt").read_text() == "kept"
    assert pq.read_schema(source / "lfw.parquet") == pq.read_schema(tmp_path / "cut/lfw.parquet")


@dataclass(frozen=True)
class Inner:
    epochs: int = 9
    rate: float = 0.1


@dataclass(frozen=True)
class Outer:
    first: Inner = Inner()
    second: Inner | None = None
    epochs: int = 5


def test_a_shortened_recipe_differs_in_the_named_fields_alone():
    short = shortened(Outer(), epochs=1)
    assert json.loads(json.dumps(asdict(short))) == {
        "first": {"epochs": 1, "rate": 0.1},
        "second": None,
        "epochs": 1,
    }
