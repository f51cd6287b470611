"""``facezoo train``: the options that reach the recipes of each family."""

from pathlib import Path

import pytest
import torch

from facezoo.cli.main import main
from facezoo.training.processes import Processes

CPU = torch.device("cpu")


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """Replace the training of every family; return the arguments of each call."""
    calls = []

    def run(*arguments, **options):
        calls.append((*arguments, options))
        return tmp_path / "card.json"

    for family in ("ipd_fer", "latentface", "latent_simclr"):
        monkeypatch.setattr(f"facezoo.models.{family}.train.run", run)
    monkeypatch.setattr("facezoo.models.adv3d.train.command.run", run)
    return calls


def train(model, *words, device="cpu"):
    return main(["train", model, "--data", "packs", "--out", "runs", "--device", device, *words])


def test_the_paths_of_the_training_are_printed(calls, tmp_path, capsys):
    assert train("latentface") == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "card.json")


def test_ipd_fer_takes_seeds_ablations_and_official_data(calls):
    flags = ["--seed", "0", "1", "--recipe", "compact", "--without", "cos", "--without", "id"]
    flags += ["--dataset", "ck+", "--fold", "3", "--start", "ipd-fer", "--smoke"]
    assert train("ipd-fer") == 0
    assert train("ipd-fer", *flags) == 0
    plain, full = calls
    nothing = dict.fromkeys(("dataset", "fold", "stage", "start"))
    nothing |= {"without": (), "smoke": False}
    folders = (Path("packs"), Path("runs"))
    assert plain == (*folders, {"seeds": [0], "device": CPU, "name": "paper", **nothing})
    options = {"without": ("cos", "id"), "dataset": "ck+", "fold": 3, "start": "ipd-fer"}
    options |= {"seeds": [0, 1], "device": CPU, "name": "compact", "smoke": True, "stage": None}
    assert full == (*folders, options)


def test_latentface_takes_a_stage(calls):
    assert train("latentface", "--seed", "3") == 0
    assert train("latentface", "--stage", "2", "--recipe", "compact") == 0
    assert train("latentface", "--stage", "neutral", "--start", "latentface.lfw") == 0
    shared = {"device": CPU, "smoke": False}
    assert [options for *_, options in calls] == [
        {"stage": "1", "start": None, "seed": 3, "name": "paper", **shared},
        {"stage": "2", "start": None, "seed": 0, "name": "compact", **shared},
        {"stage": "neutral", "start": "latentface.lfw", "seed": 0, "name": "paper", **shared},
    ]


@pytest.mark.parametrize("recipe", ["ict", "ict-neutral", "facescape", "ict-paper"])
def test_adv3d_takes_its_own_recipes_and_those_of_the_paper(calls, recipe):
    assert train("adv3d", "--recipe", recipe) == 0
    options = {"seed": 0, "device": CPU, "start": None, "smoke": False}
    assert calls == [(recipe, Path("packs"), Path("runs"), options)]


@pytest.mark.parametrize("part", ["stylegan2", "feature-style", "latent-simclr"])
def test_the_parts_of_latent_simclr_are_trained_by_name(calls, part):
    assert train(part, "--recipe", "preview") == 0
    assert calls[0][0] == part
    assert calls[0][-1]["name"] == "preview"


@pytest.mark.parametrize(
    ("model", "flags"),
    [
        ("latentface", ["--fold", "1"]),
        ("adv3d", ["--without", "id"]),
        ("ipd-fer", ["--stage", "1"]),
        ("face-detector", ["--fold", "1"]),
        ("ipd-fer", ["--recipe", "unknown"]),
        ("no-such-model", []),
    ],
)
def test_options_of_other_models_are_wrong_usage(calls, capsys, model, flags):
    assert train(model, *flags) == 2
    assert "Usage: facezoo train" in capsys.readouterr().err
    assert not calls


def test_one_seed_at_a_time_where_the_model_trains_one(calls, capsys):
    assert train("latentface", "--seed", "1", "2") == 1
    assert "one seed at a time" in capsys.readouterr().err


@pytest.mark.parametrize("model", ["adv3d", "latentface", "stylegan2"])
def test_several_processes_are_an_error_where_each_would_write_the_same_files(
    monkeypatch, calls, capsys, model
):
    monkeypatch.setattr(Processes, "present", classmethod(lambda cls: cls(1, 2)))
    assert train(model) == 1
    assert f"{model} trains in one process, but 2 were started" in capsys.readouterr().err
    assert not calls


def test_processes_that_train_together_have_a_gpu_each(calls, monkeypatch):
    second = torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(Processes, "present", lambda: Processes(1, 2))
    monkeypatch.setattr(Processes, "device", lambda _: second)
    assert main(["train", "ipd-fer", "--data", "packs", "--out", "runs"]) == 0
    assert train("ipd-fer") == 0
    assert [options["device"] for *_, options in calls] == [second, CPU]
