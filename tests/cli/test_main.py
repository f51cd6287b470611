"""The command line as a whole: help, exit codes, speed, and the short commands."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import click
import pytest
import torch
from command_lines import run_python

import facezoo
from facezoo.cli.main import COMMANDS, cli, main
from facezoo.errors import UnknownNameError
from facezoo.geometry.mesh_files import write_mesh
from facezoo.geometry.meshes import Mesh
from facezoo.hub.card import Card, Hub, bundled_cards
from facezoo.hub.families import COMMANDS as FAMILY_COMMANDS
from facezoo.models.adv3d.networks import VAE

TRAININGS = [name for name in FAMILY_COMMANDS if name.startswith("train ")]


@pytest.mark.parametrize("command", [*COMMANDS, *TRAININGS, "fit-directions"])
def test_the_help_of_every_command_lists_the_exit_codes(command, capsys):
    assert main([*command.split(), "--help"]) == 0
    assert "130 interrupted" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("command", [*COMMANDS, "fit-directions"])
def test_options_explain_themselves(command):
    known = cli.get_command(click.Context(cli), command)
    for option in known.params:
        if isinstance(option, click.Option) and not isinstance(option.type, click.Choice):
            simple = option.name in ("seed", "batch_size")
            assert option.help or simple, f"facezoo {command}: {option.opts}"


@pytest.mark.parametrize("command", [*COMMANDS, *TRAININGS])
def test_the_output_has_the_same_names_in_every_command(command):
    known = cli
    for word in command.split():
        known = known.get_command(click.Context(known), word)
    names = [option.opts for option in known.params if {"-o", "--out", "--output"} & {*option.opts}]
    assert names in ([], [["-o", "--out", "--output"]])


@pytest.mark.parametrize(
    "arguments",
    [[], ["nonsense"], ["extract", "photos"], ["info"], ["train", "ipd-fer"], ["list", "--no"]],
)
def test_wrong_usage_exits_with_2(arguments, capsys):
    assert main(arguments) == 2
    assert "Usage: facezoo" in capsys.readouterr().err


def test_an_error_is_one_line_and_exits_with_1(capsys):
    assert main(["info", "ipd-ferr"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("facezoo: error: ")
    assert "'ipd-ferr'" in err
    assert err.count("\n") == 1


def test_an_error_keeps_the_blanks_of_a_file_name(capsys):
    assert main(["extract", "two  blanks.jpg", "-o", "f.csv"]) == 1
    assert "'two  blanks.jpg'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--debug", "info", "x-y"], ["info", "--debug", "x-y"]])
def test_debug_shows_the_traceback(arguments):
    with pytest.raises(UnknownNameError):
        main(arguments)


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"facezoo {facezoo.__version__}\n"


def test_ctrl_c_exits_with_130(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("facezoo.registry.list_models", interrupt)
    assert main(["list"]) == 130
    assert "facezoo: interrupted" in capsys.readouterr().err


def test_list_runs_within_a_second_and_without_torch():
    code = (
        "import sys; from facezoo.cli.main import main; main(['list']); main(['train', '--help']);"
        "assert not {'torch', 'timm', 'huggingface_hub', 'numpy'} & set(sys.modules)"
    )
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        done = run_python("-m", "facezoo", "list")
        seconds.append(time.perf_counter() - begin)
        assert done.returncode == 0, done.stderr
        assert "ipd-fer" in done.stdout.split()
    assert min(seconds) < 1
    assert run_python("-c", code).returncode == 0


def test_a_closed_pipe_prints_no_error():
    done = subprocess.run(
        f"{sys.executable} -m facezoo list | true",
        shell=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(facezoo.__file__).parent.parent)},
    )
    assert done.stderr == ""


def test_a_command_works_without_standard_output(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)  # as after >&-, or in a service
    assert main(["list"]) == 0


def test_list_takes_a_pattern_and_reports_when_nothing_matches(capsys):
    assert main(["list", "*fer*"]) == 0
    assert "ipd-fer" in capsys.readouterr().out.split()
    assert main(["list", "nothing*"]) == 1
    out, err = capsys.readouterr()
    assert (out, "no model matches 'nothing*'" in err) == ("", True)


def test_info_shows_licenses_data_limits_and_size(capsys):
    card = bundled_cards()["ipd-fer.ferplus-lfw"]
    assert main(["info", "ipd-fer"]) == 0
    text = capsys.readouterr().out
    for word in ("licen", "trained", "metric", "limit", "MB", "classes", "--all"):
        assert word in text
    assert main(["info", "ipd-fer", "--all"]) == 0
    full = " ".join(capsys.readouterr().out.split())
    assert card.weights.sha256 in full
    assert all(limit in full for limit in card.limits)
    assert all(metric.protocol in full for metric in card.metrics)


@pytest.mark.parametrize("name", sorted(bundled_cards()))
def test_info_fits_on_a_screen_and_repeats_no_name(name, capsys):
    for arguments in ([], ["--all"]):
        assert main(["info", name, *arguments]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= 100
        assert arguments or len(lines) <= 45
        names = [line for line in lines if line[:3].strip() and line.startswith("  ")]
        assert len(set(names)) == len(names)


def test_info_names_a_repository_only_if_the_weights_are_there(monkeypatch, capsys):
    card = bundled_cards()["ipd-fer.ferplus-lfw"]
    for hub, place in (
        (Hub("org/name"), "in the package only"),
        (Hub("org/name", "a" * 40), "org/name at aaaaaaaaaaaa"),
    ):
        hosted = replace(card, hub=hub)
        monkeypatch.setattr("facezoo.registry.info", lambda name, card=hosted: card)
        assert main(["info", "ipd-fer", "--all"]) == 0
        assert place in capsys.readouterr().out


def test_info_prints_the_card_as_json(tmp_path, capsys):
    assert main(["info", "ipd-fer", "--json"]) == 0
    (tmp_path / "card.json").write_text(capsys.readouterr().out)
    assert Card.load(tmp_path / "card.json") == bundled_cards()["ipd-fer.ferplus-lfw"]


def test_download_prints_the_path_of_each_file(monkeypatch, capsys):
    paths = {"ipd-fer": Path("/cache/model.safetensors")}
    monkeypatch.setattr("facezoo.registry.download", lambda names: paths)
    assert main(["download", "ipd-fer"]) == 0
    assert capsys.readouterr().out == f"ipd-fer\t{paths['ipd-fer']}\n"


@pytest.mark.parametrize("send", [False, True])
def test_publish_uploads_only_with_send(send, monkeypatch):
    options = {}
    monkeypatch.setattr("facezoo.hub.publish.publish", lambda names, **more: options.update(more))
    arguments = ["publish", "ipd-fer", "--organization", "someone"]
    assert main([*arguments, "--send"] if send else arguments) == 0
    assert options["dry_run"] is not send
    assert options["organization"] == "someone"


def test_convert_writes_safetensors_and_prints_the_file(tmp_path, capsys):
    torch.save({"state_dict": {"weight": torch.ones(2, 2)}}, tmp_path / "old.pth")
    assert main(["convert", str(tmp_path / "old.pth")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "old.safetensors")
    assert main(["convert", str(tmp_path / "old.pth")]) == 1
    assert main(["convert", str(tmp_path / "old.pth"), "--key", "state_dict", "--overwrite"]) == 0


def test_convert_of_adv3d_needs_a_template_and_a_scale(tmp_path, capsys):
    torch.save(VAE(4, 3, 2).state_dict(), tmp_path / "published.pth")
    corners = [[0.0, 0, 0], [100, 0, 0], [0, 100, 0], [0, 0, 100]]
    mesh = Mesh(torch.tensor(corners), "mm", torch.tensor([[0, 1, 2], [0, 2, 3]]))
    write_mesh(tmp_path / "mean.obj", mesh)
    arguments = ["convert", str(tmp_path / "published.pth"), str(tmp_path / "converted")]
    assert main([*arguments, "--model", "adv3d"]) == 1
    assert "adv3d needs --template MESH" in capsys.readouterr().err
    assert main([*arguments, "--scale", "573"]) == 1
    assert "a plain state dict has no option --scale" in capsys.readouterr().err
    own = ["--model", "adv3d", "--template", str(tmp_path / "mean.obj"), "--scale", "573"]
    assert main([*arguments, *own, "--key", "x"]) == 1
    assert "adv3d has no option --key" in capsys.readouterr().err
    assert main([*arguments, *own]) == 0
    model = facezoo.load(tmp_path / "converted", device="cpu")
    assert model.encode_identity(mesh).shape == (1, 3)
