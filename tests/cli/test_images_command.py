"""``facezoo predict`` and ``extract``: the output, the files and the exit codes."""

import csv
import io
import json
import signal
import sys
from copy import deepcopy
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
from fake_faces import (
    DETECT,
    LANDMARKS,
    fake_detect,
    replace_detector,
    stop_at,
    tiny_model,
    write_folder,
    write_image,
)
from PIL import Image

from facezoo.cli.main import main
from facezoo.plot import annotation
from facezoo.preprocess import pipeline
from facezoo.preprocess.bundled import load_detector
from facezoo.preprocess.detection import DetectionConfig
from facezoo.results import Faces


@pytest.fixture
def tiny(monkeypatch):
    """Use a small model and a detector of colored squares in every command."""
    model = tiny_model()

    def load(name, device=None, runtime="torch"):
        model.set_runtime(runtime)
        return model

    model.copies = []

    def load_own(*args, **options):  # which an extraction may change
        model.copies.append(deepcopy(load(*args, **options)))
        return model.copies[-1]

    monkeypatch.setattr("facezoo.registry.load", load)
    monkeypatch.setattr("facezoo.extraction.run.load", load_own)
    replace_detector(monkeypatch)
    return model


def test_predict_prints_label_probabilities_and_box_of_every_face(tiny, tmp_path, capsys):
    write_image(tmp_path / "two.png", 2)
    assert main(["predict", str(tmp_path / "two.png")]) == 0
    text = capsys.readouterr().out
    assert "face 0: " in text
    assert "face 1: " in text
    assert "box 4 5 30 34" in text
    assert all(name in text for name in tiny.labels)


def test_names_that_the_output_cannot_encode_are_escaped(tiny, tmp_path, monkeypatch):
    write_image(tmp_path / "фото.png", 1)
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, "cp1252"))
    assert main(["predict", str(tmp_path / "фото.png")]) == 0
    assert rb"\u0444\u043e\u0442\u043e.png" in printed.getvalue()


def test_predict_prints_json(tiny, tmp_path, capsys):
    write_image(tmp_path / "two.png", 2)
    assert main(["predict", "--json", "--faces", "largest", str(tmp_path / "two.png")]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    (face,) = entry["faces"]
    assert face["box"] == [4, 5, 30, 34]
    assert sum(face["probabilities"].values()) == pytest.approx(1)
    assert face["label"] == max(face["probabilities"], key=face["probabilities"].get)


def test_predict_prints_a_csv_row_per_face(tiny, tmp_path, capsys):
    folder = write_folder(tmp_path / "images", [1, 0, 2])
    assert main(["predict", "--csv", str(folder)]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    names = [str(folder / name) for name in ("000.png", "002.png", "002.png")]
    assert [row["file"] for row in rows] == names
    assert [row["face"] for row in rows] == ["0", "0", "1"]
    assert {"label", "score", "x0", *(f"p_{name}" for name in tiny.labels)} <= rows[0].keys()


def test_predict_prints_the_header_of_a_csv_table_without_rows(tiny, tmp_path, capsys):
    write_image(tmp_path / "one.png", 1)
    assert main(["predict", "--csv", str(tmp_path / "one.png")]) == 0
    expected = capsys.readouterr().out.splitlines()[0]
    write_image(tmp_path / "none.png", 0)
    assert main(["predict", "--csv", str(tmp_path / "none.png")]) == 1
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [expected]
    assert f"no face found in {tmp_path / 'none.png'}" in printed.err


@pytest.mark.parametrize("command", ["predict", "extract"])
def test_settings_of_the_detector_reach_it(tiny, tmp_path, monkeypatch, command):
    write_image(tmp_path / "two.png", 2)
    configs = []

    def detect(detector, images, config):
        configs.append(config)
        return fake_detect(detector, images, config)

    monkeypatch.setattr(DETECT, detect)
    output = ["-o", str(tmp_path / "features.csv")] if command == "extract" else []
    words = ["--min-face", "30", "--score-threshold", "0.5", "--max-side", "400"]
    words += ["--rotations", "0,180"]
    assert main([command, str(tmp_path / "two.png"), *output, *words]) == 0
    assert configs == [
        DetectionConfig(min_face=30.0, score_threshold=0.5, max_side=400, rotations=(0, 180))
    ]


@pytest.mark.parametrize("command", ["predict", "extract"])
def test_the_runtime_computes_networks_and_detector(tiny, tmp_path, monkeypatch, command):
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    runtimes = []
    detector = load_detector(torch.device("cpu"))
    monkeypatch.setattr(pipeline, "detector_in", lambda name: runtimes.append(name) or detector)
    write_image(tmp_path / "two.png", 2)
    words = [command, str(tmp_path / "two.png"), "--runtime", "onnxruntime"]
    words += ["-o", str(tmp_path / "features.csv")] if command == "extract" else []
    assert main(words) == 0
    assert [*tiny.copies, tiny][0].runtime == "onnxruntime"
    assert runtimes == ["onnxruntime"]
    assert list((tmp_path / "cache").rglob("*.onnx"))


def test_an_unknown_runtime_is_wrong_usage(capsys):
    assert main(["predict", "x.png", "--runtime", "tensorrt"]) == 2
    assert "'torch', 'onnxruntime', 'openvino'" in capsys.readouterr().err


def test_settings_of_the_detector_out_of_range_are_errors(tiny, tmp_path, capsys):
    write_image(tmp_path / "two.png", 2)
    assert main(["predict", str(tmp_path / "two.png"), "--rotations", "left"]) == 2
    assert "expected degrees such as 0,90,180,270, got 'left'" in capsys.readouterr().err
    assert main(["predict", str(tmp_path / "two.png"), "--rotations", "45"]) == 1
    assert "multiples of 90 degrees" in capsys.readouterr().err


def test_verify_prints_a_decision_with_its_threshold_and_rates(capsys):
    images = ["examples/portraits/grace_hopper.jpg", "examples/portraits/eileen_collins.jpg"]
    assert main(["verify", *images]) == 0
    text = capsys.readouterr().out
    assert text.startswith("different identities: similarity 0.")
    assert "%" in text.splitlines()[1]
    assert main(["verify", images[0], images[0], "--threshold", "0.9", "--json"]) == 0
    match = json.loads(capsys.readouterr().out)
    assert (match["same"], match["threshold"], match["false_match_rate"]) == (True, 0.9, None)
    assert main(["verify", *images, "--score-threshold", "0.999999"]) == 1
    assert "eileen" not in (error := capsys.readouterr().err)
    assert "grace_hopper.jpg'; verify needs one in each image" in error


def test_predict_takes_folders_and_patterns(tiny, tmp_path, capsys):
    folder = write_folder(tmp_path / "images", [1, 1])
    write_image(folder / "in [brackets].png", 1)
    for source in (folder, folder / "*.png"):
        assert main(["predict", "--json", str(source)]) == 0
        assert len(json.loads(capsys.readouterr().out)) == 3
    assert main(["predict", "--json", str(folder / "in [brackets].png")]) == 0


def test_predict_names_broken_videos_and_patterns_without_a_match(tiny, tmp_path, capsys):
    (tmp_path / "clip.mp4").touch()
    assert main(["predict", str(tmp_path / "clip.mp4")]) == 1
    assert "clip.mp4 is not a video" in capsys.readouterr().err
    assert main(["predict", str(tmp_path / "*.jpg")]) == 1
    assert "no file matches" in capsys.readouterr().err


def test_predict_exits_with_1_only_if_no_image_has_a_face(tiny, tmp_path, capsys):
    none, one = tmp_path / "none.png", tmp_path / "one.png"
    write_image(none, 0)
    write_image(one, 1)
    assert main(["predict", str(none)]) == 1
    assert capsys.readouterr().out == f"{none}: no face found\n"
    assert main(["predict", str(none), str(one)]) == 0
    capsys.readouterr()
    assert main(["predict", str(none), str(one), "--on-missing", "raise"]) == 1
    said = f"facezoo: error: no face found in {none}; pass --on-missing skip to continue, or a "
    assert capsys.readouterr().err == f"{said}smaller --min-face\n"


def test_predict_continues_after_an_unreadable_file_and_exits_with_1(tiny, tmp_path, capsys):
    write_image(tmp_path / "one.png", 1)
    (tmp_path / "bad.png").write_bytes(b"no image")
    assert main(["predict", str(tmp_path / "bad.png"), str(tmp_path / "one.png")]) == 1
    out, err = capsys.readouterr()
    assert "face 0" in out
    assert err.startswith("facezoo: error: ")
    assert "bad.png" in err


def test_predict_saves_an_annotated_image(tiny, tmp_path):
    write_image(tmp_path / "one.png", 1)
    out = tmp_path / "out.jpg"
    assert main(["predict", str(tmp_path / "one.png"), "--save", str(out)]) == 0
    with Image.open(out) as image:
        assert image.format == "JPEG"
        assert max(image.size) >= 480


def test_predict_saves_several_images_into_a_folder(tiny, tmp_path, capsys):
    folder = write_folder(tmp_path / "images", [1, 0, 2])
    assert main(["predict", str(folder), "--save", str(tmp_path / "out")]) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["000.png", "002.png"]
    assert "no face in" in capsys.readouterr().err


def detect_at(*boxes):
    """Make a fake detector that returns these boxes in every image."""

    def detect(detector, images, config=None):
        box = torch.tensor(boxes, dtype=torch.float32).repeat(len(images), 1)
        points = box[:, None, :2] + LANDMARKS * (box[:, None, 2:] - box[:, None, :2])
        index = torch.arange(len(images)).repeat_interleave(len(boxes))
        return Faces(box, points, torch.full((len(box),), 0.75), index)

    return detect


def test_predict_saves_faces_whose_center_lies_outside_their_image(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(DETECT, detect_at([10, 25, 30, 70], [38, 4, 60, 24]))
    write_image(tmp_path / "cut.png", 2)
    out = tmp_path / "out.png"
    assert main(["predict", str(tmp_path / "cut.png"), "--save", str(out)]) == 0
    assert out.exists()


def test_predict_continues_after_an_image_that_cannot_be_saved(tiny, tmp_path, capsys):
    folder, out = write_folder(tmp_path / "images", [1, 1, 1]), tmp_path / "out"
    (out / "001.png").mkdir(parents=True)  # in the place of the picture
    assert main(["predict", str(folder), "--save", str(out)]) == 1
    printed = capsys.readouterr()
    assert printed.out.count("face 0: ") == 3
    assert printed.err.startswith(f"facezoo: error: {out / '001.png'} is not written: ")
    assert (out / "000.png").is_file()
    assert (out / "002.png").is_file()
    assert main(["predict", str(folder), "--save", str(out), "--json"]) == 1
    assert [len(entry["faces"]) for entry in json.loads(capsys.readouterr().out)] == [1, 1, 1]


def test_several_faces_have_the_printed_number_in_the_saved_picture(tiny, tmp_path, monkeypatch):
    titles, draw = [], annotation._draw_text
    monkeypatch.setattr(
        annotation, "_draw_text", lambda *a: titles.append((a[1].box[0], a[1].title)) or draw(*a)
    )
    write_image(tmp_path / "two.png", 2)
    write_image(tmp_path / "one.png", 1)
    command = ["predict", "--save", str(tmp_path / "out.png")]
    assert main([*command, str(tmp_path / "two.png")]) == 0
    assert [title.split()[0] for _, title in sorted(titles)] == ["0", "1"]
    titles.clear()
    assert main([*command, str(tmp_path / "one.png")]) == 0
    assert titles[0][1].split()[0] in tiny.labels


def test_predict_does_not_save_over_an_image(tiny, tmp_path, capsys):
    path = tmp_path / "one.png"
    write_image(path, 1)
    before = path.read_bytes()
    assert main(["predict", str(path), "--save", str(path)]) == 1
    assert "overwrite" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_extract_writes_a_table_and_a_report(tiny, tmp_path, capsys):
    folder, output = write_folder(tmp_path / "images", [1, 2, 0]), tmp_path / "f.parquet"
    arguments = ["extract", str(folder), "-o", str(output), "--what", "expression", "--profile"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "3 rows from 3 " in text
    assert "encode" in text
    assert "identity" not in pq.read_schema(output).names


def test_extract_reports_unreadable_files_which_are_an_error_if_strict(tiny, tmp_path, capsys):
    folder = write_folder(tmp_path / "images", [1, 1])
    (folder / "bad.png").write_bytes(b"no image")
    assert main(["extract", str(folder), "-o", str(tmp_path / "a.csv")]) == 0
    assert "facezoo: unreadable: bad.png: " in capsys.readouterr().err
    assert main(["extract", str(folder), "-o", str(tmp_path / "b.csv"), "--strict"]) == 1
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_ctrl_c_exits_with_130_and_the_same_command_resumes(tiny, tmp_path, capsys, monkeypatch):
    folder, output = write_folder(tmp_path / "images", [1] * 9), tmp_path / "f.parquet"
    arguments = ["extract", str(folder), "-o", str(output), "--batch-size", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(DETECT, stop_at(3, lambda: signal.raise_signal(signal.SIGINT)))
        assert main(arguments) == 130
    advice = "facezoo: interrupted; run the same command again to continue\n"
    assert capsys.readouterr().err == advice
    assert not output.exists()
    assert main(arguments) == 0
    assert pq.read_table(output)["file"].to_pylist() == [f"{n:03d}.png" for n in range(9)]


def test_extract_writes_one_file_per_model(monkeypatch, tmp_path):
    outputs = []

    def extract_each(sources, files, **options):
        outputs.append(files)
        return [SimpleNamespace(unreadable=[], none_readable=False)]

    monkeypatch.setattr("facezoo.extraction.extract_each", extract_each)
    models = ["--model", "ipd-fer", "--model", "latentface"]
    assert main(["extract", "images", "-o", str(tmp_path / "f.csv"), *models]) == 0
    names = {tmp_path / "f.ipd-fer.csv": "ipd-fer", tmp_path / "f.latentface.csv": "latentface"}
    assert outputs == [names]
