"""The command line: what it prints, what it writes and how it exits."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from test_extraction import fake_find_faces, stop_at, tiny_model, write_folder, write_photo

import facezoo
from facezoo.cli.main import main
from facezoo.extraction import stages
from facezoo.geometry.mesh_files import write_mesh
from facezoo.geometry.meshes import Mesh
from facezoo.hub.card import Hub
from facezoo.models.adv3d.networks import VAE
from facezoo.models.ipd_fer import train as ipd_fer
from facezoo.training import processes as training


def run_python(code_or_module, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(Path(facezoo.__file__).parent.parent)}
    command = [sys.executable, *code_or_module, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture
def tiny(monkeypatch):
    """A small model and a stand-in for the detector behind every command."""
    model = tiny_model()
    monkeypatch.setattr("facezoo.registry.load", lambda name, device=None: model)
    monkeypatch.setattr("facezoo.extraction.run.load", lambda name, device=None: model)
    monkeypatch.setattr(stages, "find_faces", fake_find_faces)
    monkeypatch.setattr("facezoo.models.base.find_faces", fake_find_faces)
    monkeypatch.setattr(stages, "fingerprint", lambda preprocessing, jpeg: "0123456789abcdef")
    monkeypatch.setattr("facezoo.extraction.run.PART_PHOTOS", 4)
    return model


# --- as people expect --------------------------------------------------------------------------

COMMANDS = [
    "list",
    "info",
    "predict",
    "extract",
    "download",
    "train",
    "evaluate",
    "publish",
    "convert",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_that_tells_the_exit_codes(command, capsys):
    with pytest.raises(SystemExit) as exit:
        main([command, "--help"])
    assert exit.value.code == 0
    assert "130 interrupted" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["extract", "photos"], ["info"]])
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert "usage: facezoo" in capsys.readouterr().err


def test_an_error_is_one_clean_line_and_exits_with_1(capsys):
    assert main(["info", "ipd-ferr"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("facezoo: error: no model or checkpoint named 'ipd-ferr'; did you mean")
    assert err.count("\n") == 1


def test_an_error_names_a_file_as_it_is_called(capsys):
    assert main(["extract", "two  blanks.jpg", "-o", "f.csv"]) == 1
    assert "'two  blanks.jpg'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--debug", "info", "x-y"], ["info", "--debug", "x-y"]])
def test_debug_shows_the_traceback(arguments):
    with pytest.raises(facezoo.errors.UnknownNameError):
        main(arguments)


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--version"])
    assert exit.value.code == 0
    assert capsys.readouterr().out == f"facezoo {facezoo.__version__}\n"


def test_list_runs_as_a_module_within_a_second_and_without_torch():
    code = (
        "import sys, time; t = time.perf_counter(); from facezoo.cli.main import main; main(['list']);"
        "assert not {'torch', 'timm', 'huggingface_hub', 'numpy'} & set(sys.modules)"
    )
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        done = run_python(["-m", "facezoo"], "list")
        seconds.append(time.perf_counter() - begin)
        assert done.returncode == 0, done.stderr
        assert "ipd-fer" in done.stdout.split()
    assert min(seconds) < 1
    assert run_python(["-c", code]).returncode == 0


def test_a_closed_pipe_is_no_error_to_shout_about():
    root = str(Path(facezoo.__file__).parent.parent)
    done = subprocess.run(
        f"{sys.executable} -m facezoo list | true",
        shell=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert done.stderr == ""


# --- list, info, download, publish, convert ----------------------------------------------------


def test_without_an_output_a_command_works_all_the_same(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)  # as after >&-, or in a service
    assert main(["list"]) == 0


def test_list_takes_a_pattern_and_says_when_nothing_matches(capsys):
    assert main(["list", "*fer*"]) == 0
    assert "ipd-fer" in capsys.readouterr().out.split()
    assert main(["list", "nothing*"]) == 1
    out, err = capsys.readouterr()
    assert (out, "no model matches 'nothing*'" in err) == ("", True)


def a_card(monkeypatch, model):
    """The card that a freshly built model would be saved with, as if it were in the package."""
    from facezoo import registry
    from facezoo.models import pretrained

    weights = facezoo.hub.card.Weights("model.safetensors", "0" * 64, 1000, "float32", 250)
    card = pretrained._card_of(model, weights, False, None)
    monkeypatch.setattr(registry, "card_named", lambda name, models=(): card)
    return card


def test_info_tells_licences_data_limits_and_size(tiny, monkeypatch, capsys):
    card = a_card(monkeypatch, tiny)
    assert main(["info", "ipd-fer"]) == 0
    told = capsys.readouterr().out
    for word in ("licences", "trained", "metric", "limit", "MB", "classes", card.weights.sha256):
        assert word in told


def test_info_names_a_repository_only_if_the_weights_are_there(tiny, monkeypatch, capsys):
    card = a_card(monkeypatch, tiny)
    for hub, told in (
        (Hub("org/name"), "in the package only"),
        (Hub("org/name", "a" * 40), "org/name at aaaaaaaaaaaa"),
    ):
        hosted = replace(card, hub=hub)
        monkeypatch.setattr("facezoo.registry.card_named", lambda *_, card=hosted: card)
        assert main(["info", "ipd-fer"]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == f"  hub       {told}"


def test_info_prints_the_card_itself_as_json(tiny, monkeypatch, capsys):
    card = a_card(monkeypatch, tiny)
    assert main(["info", "ipd-fer", "--json"]) == 0
    assert facezoo.Card.parse(json.loads(capsys.readouterr().out)) == card


def test_download_prints_where_each_file_is(monkeypatch, capsys):
    found = {"ipd-fer": Path("/cache/model.safetensors")}
    monkeypatch.setattr("facezoo.registry.download", lambda names: found)
    assert main(["download", "ipd-fer"]) == 0
    assert capsys.readouterr().out == "ipd-fer\t/cache/model.safetensors\n"


@pytest.mark.parametrize("send", [False, True])
def test_publish_only_sends_when_told_to(send, monkeypatch):
    called = {}
    monkeypatch.setattr("facezoo.hub.publish.publish", lambda names, **more: called.update(more))
    arguments = ["publish", "ipd-fer", "--organization", "someone"]
    assert main([*arguments, "--send"] if send else arguments) == 0
    assert called["dry_run"] is not send
    assert called["organization"] == "someone"


def test_convert_writes_safetensors_and_prints_the_file(tmp_path, capsys):
    torch.save({"state_dict": {"weight": torch.ones(2, 2)}}, tmp_path / "old.pth")
    assert main(["convert", str(tmp_path / "old.pth")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "old.safetensors")
    assert main(["convert", str(tmp_path / "old.pth")]) == 1
    assert "is there already" in capsys.readouterr().err


def test_train_hands_its_arguments_to_the_detectors_recipe(monkeypatch, tmp_path, capsys):
    called = []

    def recipe(data, out, *, seed, device, smoke):
        called.append((data, out, seed, device, smoke))
        return out / "card.json"

    monkeypatch.setattr("facezoo.models.face_detector.train.run", recipe)
    arguments = ["train", "face-detector", "--data", "packs", "--out", str(tmp_path)]
    assert main([*arguments, "--seed", "3", "--device", "cpu"]) == 0
    assert called == [(Path("packs"), tmp_path, 3, torch.device("cpu"), False)]
    assert capsys.readouterr().out.strip() == str(tmp_path / "card.json")
    for flags, named in ((["--seed", "1", "2"], "several seeds"), (["--fold", "1"], "--fold")):
        assert main([*arguments, *flags]) == 1
        assert f"leave out {named}" in capsys.readouterr().err


def test_train_hands_its_arguments_to_the_recipe_of_ipd_fer(monkeypatch, tmp_path, capsys):
    called = []

    def recipe(data, out, **options):
        called.append((data, out, options))
        return [out / "first.json", out / "second.json"]

    monkeypatch.setattr("facezoo.models.ipd_fer.train.run", recipe)
    arguments = ["train", "ipd-fer", "--data", "packs", "--out", str(tmp_path), "--device", "cpu"]
    assert main(arguments) == 0
    flags = ["--seed", "0", "1", "--recipe", "compact", "--without", "cos", "--without", "id"]
    assert (
        main(
            [*arguments, *flags, "--dataset", "ck+", "--fold", "3", "--start", "ipd-fer", "--smoke"]
        )
        == 0
    )
    plain, full = (options for _, _, options in called)
    nothing = {"without": (), "dataset": None, "fold": None, "start": None, "smoke": False}
    assert plain == {"seeds": [0], "device": torch.device("cpu"), "name": "paper", **nothing}
    assert full == {
        "seeds": [0, 1],
        "device": torch.device("cpu"),
        "name": "compact",
        "without": ("cos", "id"),
        "dataset": "ck+",
        "fold": 3,
        "start": "ipd-fer",
        "smoke": True,
    }
    cards = [str(tmp_path / name) for name in ("first.json", "second.json")]
    assert capsys.readouterr().out.split() == cards * 2


@pytest.mark.parametrize("model", ["adv3d", "latentface", "stylegan2", "face-detector"])
def test_several_processes_are_refused_where_each_would_write_the_same_files(
    monkeypatch, tmp_path, capsys, model
):
    monkeypatch.setattr(training.Processes, "present", classmethod(lambda cls: cls(1, 2)))
    arguments = ["train", model, "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(arguments) == 1
    assert f"{model} is trained by one process, and 2 were started" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_train_hands_its_arguments_to_the_stages_of_latentface(monkeypatch, tmp_path, capsys):
    called = []

    def recipe(data, out, **options):
        called.append(options)
        return out / "written"

    monkeypatch.setattr("facezoo.models.latentface.train.run", recipe)
    arguments = ["train", "latentface", "--data", "packs", "--out", str(tmp_path)]
    arguments += ["--device", "cpu"]
    assert main([*arguments, "--seed", "3"]) == 0
    assert main([*arguments, "--stage", "2", "--recipe", "compact"]) == 0
    shared = {"device": torch.device("cpu"), "smoke": False}
    assert called == [
        {"stage": 1, "seed": 3, "name": "paper", **shared},
        {"stage": 2, "seed": 0, "name": "compact", **shared},
    ]
    assert capsys.readouterr().out.split() == [str(tmp_path / "written")] * 2
    for flags, named in ((["--seed", "1", "2"], "several seeds"), (["--start", "x"], "--start")):
        assert main([*arguments, *flags]) == 1
        assert f"leave out {named}" in capsys.readouterr().err
    assert main(["train", "ipd-fer", *arguments[2:], "--stage", "1"]) == 1
    assert "ipd-fer knows no --stage" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "module", "name"),
    [
        ([], "facezoo.models.adv3d.train.ict", "ict"),
        (["--recipe", "ict-neutral"], "facezoo.models.adv3d.train.ict", "ict-neutral"),
        (["--recipe", "facescape"], "facezoo.models.adv3d.train.paper", "facescape"),
    ],
)
def test_train_hands_its_arguments_to_the_recipes_of_adv3d(
    monkeypatch, tmp_path, capsys, flags, module, name
):
    called = []

    def recipe(*arguments, **options):
        called.append((*arguments, options))
        return tmp_path / "card.json"

    monkeypatch.setattr(f"{module}.run", recipe)
    arguments = ["train", "adv3d", "--data", "ict", "--out", str(tmp_path), "--device", "cpu"]
    assert main([*arguments, *flags]) == 0
    options = {"seed": 0, "device": torch.device("cpu"), "smoke": False}
    assert called == [(name, Path("ict"), tmp_path, options)]
    assert main([*arguments, "--without", "id"]) == 1
    assert "leave out --without" in capsys.readouterr().err


def test_convert_of_adv3d_wants_what_the_published_file_lacks(tmp_path, capsys):
    torch.save(VAE(4, 3, 2).state_dict(), tmp_path / "theirs.pth")
    corners = [[0.0, 0, 0], [100, 0, 0], [0, 100, 0], [0, 0, 100]]
    mesh = Mesh(torch.tensor(corners), "mm", torch.tensor([[0, 1, 2], [0, 2, 3]]))
    write_mesh(tmp_path / "mean.obj", mesh)
    arguments = ["convert", str(tmp_path / "theirs.pth"), str(tmp_path / "ours")]
    assert main([*arguments, "--model", "adv3d"]) == 1
    assert "adv3d needs --template MESH" in capsys.readouterr().err
    assert main([*arguments, "--scale", "573"]) == 1
    assert "a plain state dict knows no --scale" in capsys.readouterr().err
    given = ["--model", "adv3d", "--template", str(tmp_path / "mean.obj"), "--scale", "573"]
    assert main([*arguments, *given]) == 0
    model = facezoo.load(tmp_path / "ours", device="cpu")
    assert model.encode_identity(mesh).shape == (1, 3)
    assert main([*arguments, *given]) == 1
    assert "has a checkpoint already" in capsys.readouterr().err


# --- predict -----------------------------------------------------------------------------------


def test_predict_prints_label_probabilities_and_box_of_every_face(tiny, tmp_path, capsys):
    write_photo(tmp_path / "two.png", 2)
    assert main(["predict", str(tmp_path / "two.png")]) == 0
    told = capsys.readouterr().out
    assert "face 0: " in told
    assert "face 1: " in told
    assert "box 4 5 30 34" in told
    assert all(name in told for name in tiny.labels)


def test_names_that_the_output_cannot_encode_are_escaped(tiny, tmp_path, monkeypatch):
    write_photo(tmp_path / "фото.png", 1)
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, "cp1252"))
    assert main(["predict", str(tmp_path / "фото.png")]) == 0
    assert rb"\u0444\u043e\u0442\u043e.png" in printed.getvalue()


def test_predict_json_holds_the_same_for_programs(tiny, tmp_path, capsys):
    write_photo(tmp_path / "two.png", 2)
    assert main(["predict", "--json", "--faces", "largest", str(tmp_path / "two.png")]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    (face,) = entry["faces"]
    assert face["box"] == [4, 5, 30, 34]
    assert sum(face["probabilities"].values()) == pytest.approx(1)
    assert face["label"] == max(face["probabilities"], key=face["probabilities"].get)


def test_predict_exits_with_1_only_if_no_photograph_has_a_face(tiny, tmp_path, capsys):
    none, one = tmp_path / "none.png", tmp_path / "one.png"
    write_photo(none, 0)
    write_photo(one, 1)
    assert main(["predict", str(none)]) == 1
    assert capsys.readouterr().out == f"{none}: no face found\n"
    assert main(["predict", str(none), str(one)]) == 0


def test_predict_goes_on_after_an_unreadable_file_and_exits_with_1(tiny, tmp_path, capsys):
    write_photo(tmp_path / "one.png", 1)
    (tmp_path / "bad.png").write_bytes(b"no image")
    assert main(["predict", str(tmp_path / "bad.png"), str(tmp_path / "one.png")]) == 1
    out, err = capsys.readouterr()
    assert "face 0" in out
    assert err.startswith("facezoo: error: ")
    assert "bad.png" in err


def test_predict_saves_an_annotated_picture(tiny, tmp_path, capsys):
    write_photo(tmp_path / "one.png", 1)
    out = tmp_path / "out.jpg"
    assert main(["predict", str(tmp_path / "one.png"), "--save", str(out)]) == 0
    with Image.open(out) as picture:
        assert picture.format == "JPEG"
        assert max(picture.size) >= 480


def test_predict_saves_pictures_of_several_photographs_into_a_folder(tiny, tmp_path, capsys):
    files = [str(path) for path in write_folder(tmp_path / "photos", [1, 0, 2]).iterdir()]
    assert main(["predict", *files, "--save", str(tmp_path / "out")]) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["000.png", "002.png"]
    told = capsys.readouterr().err
    assert told.count("nothing was drawn to") == 1
    assert "001.png" in told


def test_predict_refuses_to_save_over_a_photograph(tiny, tmp_path, capsys):
    write_photo(tmp_path / "one.png", 1)
    before = (tmp_path / "one.png").read_bytes()
    path = str(tmp_path / "one.png")
    assert main(["predict", path, "--save", path]) == 1
    assert "overwrite" in capsys.readouterr().err
    assert (tmp_path / "one.png").read_bytes() == before


# --- extract -----------------------------------------------------------------------------------


def test_extract_writes_a_table_and_says_what_it_did(tiny, tmp_path, capsys):
    folder, output = write_folder(tmp_path / "photos", [1, 2, 0]), tmp_path / "f.parquet"
    arguments = ["extract", str(folder), "-o", str(output), "--what", "expression", "--profile"]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert "3 rows from 3 photographs; 1 without a face, 0 unreadable" in told
    assert "encode" in told
    assert "identity" not in pq.read_schema(output).names


def test_extract_lists_unreadable_files_at_the_end_and_minds_them_if_strict(tiny, tmp_path, capsys):
    folder = write_folder(tmp_path / "photos", [1, 1])
    (folder / "bad.png").write_bytes(b"no image")
    assert main(["extract", str(folder), "-o", str(tmp_path / "a.csv")]) == 0
    assert "facezoo: unreadable: bad.png: is empty, or not an image" in capsys.readouterr().err
    assert main(["extract", str(folder), "-o", str(tmp_path / "b.csv"), "--strict"]) == 1
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_ctrl_c_exits_with_130_and_the_same_command_continues(tiny, tmp_path, capsys, monkeypatch):
    folder, output = write_folder(tmp_path / "photos", [1] * 9), tmp_path / "f.parquet"
    arguments = ["extract", str(folder), "-o", str(output), "--batch-size", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(stages, "find_faces", stop_at(3, lambda: signal.raise_signal(signal.SIGINT)))
        assert main(arguments) == 130
    assert "run the same command again to continue" in capsys.readouterr().err
    assert not output.exists()
    assert main(arguments) == 0
    assert "9 rows from 9 photographs, 4 of them by an earlier run" in capsys.readouterr().out
    assert pq.read_table(output)["file"].to_pylist() == [f"{n:03d}.png" for n in range(9)]


def test_extract_of_a_missing_folder_is_a_clean_error(tiny, tmp_path, capsys):
    assert main(["extract", str(tmp_path / "nowhere"), "-o", str(tmp_path / "f.csv")]) == 1
    assert capsys.readouterr().err.startswith("facezoo: error: no such file or folder")


def test_processes_that_train_together_have_a_gpu_each(tmp_path, monkeypatch):
    second = torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(training.Processes, "present", lambda: training.Processes(1, 2))
    monkeypatch.setattr(training.Processes, "device", lambda _: second)
    asked = []
    monkeypatch.setattr(ipd_fer, "run", lambda *_, device, **__: asked.append(device) or [])
    words = ["train", "ipd-fer", "--data", str(tmp_path), "--out", str(tmp_path)]
    assert main(words) == 0
    assert main([*words, "--device", "cpu"]) == 0
    assert asked == [second, torch.device("cpu")]
