"""Extraction: the rows, resuming after an interruption, and the errors."""

import csv
import os
import signal
import sys
import threading

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from fake_faces import (
    COUNTS,
    DETECT,
    EXPECTED,
    FINGERPRINT,
    fake_detect,
    interrupt,
    kill,
    names_and_faces,
    run,
    stop_at,
    table,
    tiny_model,
    write_folder,
    write_image,
)

from facezoo.errors import ImageError, UnsupportedError
from facezoo.extraction import extract, extract_each, resume, sources, stages
from facezoo.extraction import run as running
from facezoo.hub.tensors import digest_of
from facezoo.preprocess import pipeline
from facezoo.results import EXPRESSIONS

pytestmark = pytest.mark.usefixtures("_fake_faces")
SUFFIXES = ("parquet", "csv", "npz")


# --- rows --------------------------------------------------------------------------------------


def test_one_row_per_face_in_the_order_of_the_files(folder, tmp_path, tiny):
    report = run(folder, tmp_path / "f.parquet", tiny)
    assert names_and_faces(tmp_path / "f.parquet") == EXPECTED
    assert (report.rows, report.images, report.without_face) == (12, 13, 4)
    assert report.unreadable == []
    assert not resume.folder_of(report.output).exists()


def test_networks_of_a_named_model_are_freed_and_those_of_a_given_model_stay(
    folder, tmp_path, monkeypatch
):
    present = []

    def block(batch, task, *others):
        model = task.plans[0].model
        present.append([name for name in model.networks if getattr(model, name) is not None])
        return original(batch, task, *others)

    original = stages._block
    monkeypatch.setattr(stages, "_block", block)
    given, named = tiny_model(), tiny_model()
    monkeypatch.setattr(running, "load", lambda *_, **__: named)
    run(folder, tmp_path / "given.npz", given)
    assert present[-1] == list(given.networks)
    run(folder, tmp_path / "named.npz", "ipd-fer")
    assert present[-1] == ["identity_encoder", "expression_encoder"]
    assert named.identity_encoder is named.expression_encoder is None
    assert (tmp_path / "named.npz").read_bytes() == (tmp_path / "given.npz").read_bytes()


def test_features_are_those_of_the_model(folder, tmp_path, tiny):
    run(folder, tmp_path / "f.parquet", tiny)
    files = sorted(folder.iterdir())
    encoding = tiny.encode(files, faces="all", on_missing="skip", batch_size=2)
    prediction = tiny.predict_expression(files, faces="all", on_missing="skip", batch_size=2)
    rows = table(tmp_path / "f.parquet")
    for name in ("expression", "identity"):
        stored = torch.tensor([row[name] for row in rows])
        torch.testing.assert_close(stored, getattr(encoding, name), rtol=1e-4, atol=1e-5)
    stored = torch.tensor([[row[f"p_{c}"] for c in EXPRESSIONS] for row in rows])
    torch.testing.assert_close(stored, prediction.probabilities, rtol=1e-4, atol=1e-5)
    assert [row["label"] for row in rows] == prediction.labels
    boxes = torch.tensor([[row[k] for k in ("x0", "y0", "x1", "y1")] for row in rows])
    torch.testing.assert_close(boxes, prediction.faces.boxes)
    landmarks = torch.tensor([row["landmarks"] for row in rows]).reshape(-1, 5, 2)
    torch.testing.assert_close(landmarks, prediction.faces.landmarks)
    pose = torch.tensor([[row["yaw_deg"], row["pitch_deg"], row["roll_deg"]] for row in rows])
    torch.testing.assert_close(pose, prediction.faces.pose_deg)
    sharpness = torch.tensor([row["sharpness"] for row in rows])
    torch.testing.assert_close(sharpness, prediction.faces.sharpness)
    assert {row["fingerprint"] for row in rows} == {"0123456789abcdef"}
    assert {row["checkpoint"] for row in rows} == {f"ipd-fer@{digest_of(tiny)[:12]}"}


def test_an_image_without_a_face_can_have_a_row_of_nan(folder, tmp_path, tiny):
    run(folder, tmp_path / "f.parquet", tiny, on_missing="nan")
    rows = table(tmp_path / "f.parquet")
    missing = [row for row in rows if row["face"] == -1]
    assert [row["file"] for row in missing] == ["001.png", "005.png", "006.png", "011.png"]
    assert all(np.isnan(row["expression"]).all() and row["label"] is None for row in missing)
    assert [row["file"] for row in rows] == sorted(row["file"] for row in rows)
    assert [(row["file"], row["face"]) for row in rows if row["face"] >= 0] == EXPECTED


def test_a_face_with_nan_probabilities_has_no_label(folder, tmp_path):
    broken = tiny_model()
    for part in broken.modules():
        if isinstance(part, torch.nn.Linear):
            torch.nn.init.constant_(part.weight, torch.nan)
    for suffix in SUFFIXES:
        run(folder, tmp_path / f"f.{suffix}", broken)
    assert [row["label"] for row in table(tmp_path / "f.parquet")] == [None] * 12
    with np.load(tmp_path / "f.npz") as arrays:
        assert arrays["label"].tolist() == [""] * 12
    with (tmp_path / "f.csv").open(newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == [""] * 12


def test_largest_keeps_one_face_per_image(folder, tmp_path, tiny):
    assert run(folder, tmp_path / "f.parquet", tiny, faces="largest").rows == 9


def test_what_selects_the_embeddings(folder, tmp_path, tiny):
    run(folder, tmp_path / "f.parquet", tiny, what=["identity"])
    assert "expression" not in pq.read_schema(tmp_path / "f.parquet").names


def test_images_without_faces_give_a_table_without_rows(tmp_path, tiny):
    source = write_folder(tmp_path / "images", [0, 0, 0])
    for suffix in SUFFIXES:
        report = run(source, tmp_path / f"f.{suffix}", tiny)
        assert (report.rows, report.without_face) == (0, 3)
    assert np.load(tmp_path / "f.npz")["expression"].shape == (0, 8)
    assert pq.read_table(tmp_path / "f.parquet").num_rows == 0


def test_a_crowd_is_encoded_in_several_parts(tmp_path, tiny, monkeypatch):
    source = write_folder(tmp_path / "images", [8, 1])
    run(source, tmp_path / "g.npz", tiny)
    monkeypatch.setattr(pipeline, "FACES_AT_ONCE", 3)
    run(source, tmp_path / "f.npz", tiny)
    a, b = np.load(tmp_path / "f.npz"), np.load(tmp_path / "g.npz")
    np.testing.assert_allclose(a["identity"], b["identity"], rtol=1e-4, atol=1e-5)
    assert a["face"].tolist() == [*range(8), 0]


def test_unreadable_files_are_reported_with_reasons_and_have_no_row(folder, tmp_path, tiny):
    (folder / "003.png").write_bytes(b"not an image")
    (folder / "0035.png").write_bytes((folder / "004.png").read_bytes()[:900])
    report = run(folder, tmp_path / "f.parquet", tiny, on_missing="nan")
    rows = [row for row in names_and_faces(tmp_path / "f.parquet") if row[1] >= 0]
    assert rows == [e for e in EXPECTED if e[0] != "003.png"]
    assert [name for name, _ in report.unreadable] == ["003.png", "0035.png"]
    assert "not an image" in report.unreadable[0][1]
    assert report.without_face == 4


def test_strict_raises_after_the_output_is_complete(folder, tmp_path, tiny):
    (folder / "003.png").write_bytes(b"not an image")
    with pytest.raises(ImageError, match=r"003\.png"):
        run(folder, tmp_path / "f.parquet", tiny, strict=True)
    assert len(table(tmp_path / "f.parquet")) == len(EXPECTED) - 1


def test_files_that_pillow_cannot_open_are_counted_and_named(folder, tmp_path, tiny):
    for name in ("a.HEIC", "deep/b.dng"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    with pytest.warns(UserWarning, match=r"skipped 2 files .*such as a\.HEIC"):
        report = run(folder, tmp_path / "f.csv", tiny)
    assert report.skipped == ("a.HEIC", "deep/b.dng")
    assert "2 files skipped" in str(report)
    assert report.images == 13


@pytest.mark.skipif(sys.platform != "linux", reason="other systems need Unicode file names")
def test_a_file_name_that_is_not_utf_8_is_escaped(tmp_path, tiny):
    write_image(tmp_path / "images" / os.fsdecode(b"caf\xe9.png"), 1)
    for suffix in SUFFIXES:
        run(tmp_path / "images", tmp_path / f"f.{suffix}", tiny)
    assert table(tmp_path / "f.parquet")[0]["file"] == "caf\\udce9.png"


def test_images_are_decoded_in_threads(folder, tmp_path, tiny, monkeypatch):
    threads, read = set(), sources.read

    def spy(*args):
        threads.add(threading.current_thread())
        return read(*args)

    monkeypatch.setattr(sources, "read", spy)
    run(folder, tmp_path / "f.csv", tiny)
    assert threads
    assert threading.main_thread() not in threads


# --- interruptions -----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_interrupted_run_ends_at_the_same_bytes(folder, tmp_path, tiny, monkeypatch, suffix):
    whole, again = tmp_path / f"whole.{suffix}", tmp_path / f"again.{suffix}"
    (folder / "002.png").write_bytes(b"not an image")
    straight = run(folder, whole, tiny)
    for call in (2, 3, 1):
        interrupt(folder, again, tiny, monkeypatch, call)
    assert not again.exists()
    report = run(folder, again, tiny)
    assert again.read_bytes() == whole.read_bytes()
    assert report.resumed == 2 + 4
    assert (report.rows, report.without_face) == (straight.rows, straight.without_face)
    assert report.unreadable == straight.unreadable


def test_finished_images_are_not_read_again(folder, tmp_path, tiny, monkeypatch):
    interrupt(folder, tmp_path / "f.csv", tiny, monkeypatch, call=5)
    names, read = [], sources.read
    monkeypatch.setattr(
        sources, "read", lambda root, name, jpeg: names.append(name) or read(root, name, jpeg)
    )
    run(folder, tmp_path / "f.csv", tiny)
    assert sorted(names) == [f"{n:03d}.png" for n in range(8, 13)]


def test_a_run_resumes_after_an_error(folder, tmp_path, tiny, monkeypatch):
    def fail():
        raise RuntimeError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(DETECT, stop_at(6, fail))
        with pytest.raises(RuntimeError, match="out of memory"):
            run(folder, tmp_path / "f.parquet", tiny)
    assert run(folder, tmp_path / "f.parquet", tiny).resumed == 10
    assert names_and_faces(tmp_path / "f.parquet") == EXPECTED


def test_a_process_that_is_killed_twice_loses_and_repeats_no_row(tmp_path, tiny):
    counts = [n % 3 for n in range(60)]
    folder, output = write_folder(tmp_path / "images", counts), tmp_path / "f.parquet"
    kill(folder, output, 3)
    kill(folder, output, 7)
    report = run(folder, output, tiny)
    assert 28 <= report.resumed < 60
    expected = [(f"{n:03d}.png", f) for n, count in enumerate(counts) for f in range(count)]
    assert names_and_faces(output) == expected
    run(folder, tmp_path / "whole.parquet", tiny)
    assert output.read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_incomplete_files_of_a_kill_are_ignored(folder, tmp_path, tiny, monkeypatch):
    output = tmp_path / "f.parquet"
    interrupt(folder, output, tiny, monkeypatch, call=5)
    left = resume.folder_of(output)
    assert sorted(p.name for p in left.glob("*.npz")) == ["000000000.npz", "000000004.npz"]
    whole = (left / "000000004.npz").read_bytes()
    (left / "000000008.npz.tmp").write_bytes(whole[:100])
    (left / "f.parquet.tmp").write_bytes(b"half a table")
    (left / "000000004.npz").write_bytes(whole[: len(whole) // 2])
    (left / "000000099.npz").write_bytes(whole)
    assert run(folder, output, tiny).resumed == 4
    assert names_and_faces(output) == EXPECTED
    assert not left.exists()


@pytest.mark.parametrize("counted", [False, True])
def test_ctrl_c_while_a_part_is_written_loses_and_repeats_no_row(
    folder, tmp_path, tiny, monkeypatch, counted
):
    count, calls = resume.Parts._count, []

    def interrupted(self, *args):
        calls.append(1)
        if counted or len(calls) > 1:
            count(self, *args)
        if len(calls) == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(resume.Parts, "_count", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(folder, tmp_path / "f.parquet", tiny)
    assert run(folder, tmp_path / "f.parquet", tiny).resumed == 4
    assert names_and_faces(tmp_path / "f.parquet") == EXPECTED


def test_a_kill_before_the_parts_are_removed_repeats_nothing(folder, tmp_path, tiny, monkeypatch):
    output = tmp_path / "f.parquet"
    with monkeypatch.context() as patch:
        patch.setattr(resume.Parts, "remove", lambda self: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            run(folder, output, tiny)
    before = output.read_bytes()
    assert run(folder, output, tiny).resumed == 13
    assert output.read_bytes() == before
    assert not resume.folder_of(output).exists()


def test_an_interrupted_write_keeps_the_old_output(folder, tmp_path, tiny, monkeypatch):
    output = tmp_path / "f.csv"
    output.write_text("old")

    def stop(path, *args):
        path.write_text("half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(running, "write_table", stop)
        with pytest.raises(KeyboardInterrupt):
            run(folder, output, tiny, overwrite=True)
    assert output.read_text() == "old"
    assert run(folder, output, tiny).resumed == 13
    assert output.read_text().startswith("file,face,")


# --- several models ----------------------------------------------------------------------------


def run_each(source, outputs, models, **options):
    options = {"batch_size": 2, "progress": False, **options}
    return extract_each(source, dict(zip(outputs, models, strict=True)), **options)


def test_two_models_write_the_files_that_each_writes_alone(folder, tmp_path, tiny, monkeypatch):
    calls = []
    monkeypatch.setattr(DETECT, lambda *a, **o: calls.append(1) or fake_detect(*a, **o))
    models = [tiny, tiny_model(seed=1)]
    both = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    reports = run_each(folder, both, models)
    assert len(calls) == 7  # batches of two of 13 images
    assert [report.output for report in reports] == both
    for path, model in zip(both, models, strict=True):
        run(folder, tmp_path / "alone.parquet", model, overwrite=True)
        assert path.read_bytes() == (tmp_path / "alone.parquet").read_bytes()


@pytest.mark.parametrize("written", [0, 1])
def test_a_run_of_two_models_resumes_at_the_same_bytes(
    folder, tmp_path, tiny, monkeypatch, written
):
    models = [tiny, tiny_model(seed=1)]
    whole = [tmp_path / "whole_a.npz", tmp_path / "whole_b.npz"]
    (folder / "002.png").write_bytes(b"not an image")
    run_each(folder, whole, models)
    both = [tmp_path / "a.npz", tmp_path / "b.npz"]
    write, calls = running.write_table, []

    def stop(*args):
        calls.append(1)
        if len(calls) > written:
            raise KeyboardInterrupt
        return write(*args)

    with monkeypatch.context() as patch:
        patch.setattr(DETECT, stop_at(4, lambda: signal.raise_signal(signal.SIGINT)))
        with pytest.raises(KeyboardInterrupt):
            run_each(folder, both, models)
    with monkeypatch.context() as patch:
        patch.setattr(running, "write_table", stop)
        with pytest.raises(KeyboardInterrupt):
            run_each(folder, both, models)
    assert both[0].exists() == bool(written)
    for report in run_each(folder, both, models):
        assert (report.images, report.resumed, len(report.unreadable)) == (13, 13, 1)
    for path, expected in zip(both, whole, strict=True):
        assert path.read_bytes() == expected.read_bytes()
    assert not list(tmp_path.glob("*.parts"))


def test_a_complete_output_of_another_run_is_not_replaced(folder, tmp_path, tiny, monkeypatch):
    both = [tmp_path / "a.npz", tmp_path / "b.npz"]
    run(folder, both[0], tiny)
    interrupt(folder, both[1], tiny, monkeypatch)
    with pytest.raises(FileExistsError, match=r"a\.npz exists and is complete"):
        run_each(folder, both, [tiny, tiny])


def test_outputs_are_checked(folder, tmp_path, tiny, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"f\.npz is named twice"):
        extract_each(folder, {"f.npz": tiny, tmp_path / "f.npz": tiny})
    with pytest.raises(ValueError, match="no output"):
        extract_each(folder, {})
    bare = tiny.__class__("test_resnet", 8, pose_backbone=None, decoder_size=None)
    with pytest.raises(UnsupportedError, match="pose"):
        run_each(folder, ["a.npz", "b.npz"], [tiny, bare], what=["pose"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images"]


# --- errors ------------------------------------------------------------------------------------


def test_a_complete_output_is_replaced_only_on_request(folder, tmp_path, tiny):
    run(folder, tmp_path / "f.csv", tiny)
    with pytest.raises(FileExistsError, match="--overwrite"):
        run(folder, tmp_path / "f.csv", tiny)
    assert run(folder, tmp_path / "f.csv", tiny, overwrite=True).resumed == 0


def test_a_run_does_not_resume_with_other_settings(folder, tmp_path, tiny, monkeypatch):
    output = tmp_path / "f.csv"
    interrupt(folder, output, tiny, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(FINGERPRINT, lambda *_, **__: "fedcba9876543210")
        with pytest.raises(FileExistsError, match=r"fingerprint was '0123456789abcdef'"):
            run(folder, output, tiny)
    with pytest.raises(FileExistsError, match=r"checkpoint was .*--overwrite"):
        run(folder, output, tiny_model(seed=1))
    with pytest.raises(FileExistsError, match="faces was 'all' and is now 'largest'"):
        run(folder, output, tiny, faces="largest")
    assert run(folder, output, tiny).resumed == 6


def test_a_run_does_not_resume_with_other_images(folder, tmp_path, tiny, monkeypatch):
    output = tmp_path / "f.csv"
    interrupt(folder, output, tiny, monkeypatch)
    with pytest.raises(FileExistsError, match=r"root was '.*images' and is now '.*others'"):
        run(write_folder(tmp_path / "others", COUNTS), output, tiny)
    write_image(folder / "012.png", 2, seed=99)  # not finished yet
    write_image(folder / "001.png", 2, seed=99)
    with pytest.raises(FileExistsError, match=r"an image from '000\.png' to '003\.png' was repl"):
        run(folder, output, tiny)
    (folder / "001.png").rename(folder / "zzz.png")
    with pytest.raises(FileExistsError, match=r"it had '001\.png', now '002\.png'"):
        run(folder, output, tiny)
    assert run(folder, output, tiny, overwrite=True).resumed == 0


def test_relative_names_belong_to_the_working_directory(folder, tmp_path, tiny, monkeypatch):
    write_folder(tmp_path / "away" / "images", [2] * 13)
    monkeypatch.chdir(tmp_path)
    interrupt("images/*.png", tmp_path / "f.csv", tiny, monkeypatch)
    interrupt(f"{folder}/*.png", tmp_path / "g.csv", tiny, monkeypatch)
    monkeypatch.chdir(tmp_path / "away")
    with pytest.raises(FileExistsError, match="root was"):
        run("images/*.png", tmp_path / "f.csv", tiny)
    assert run(f"{folder}/*.png", tmp_path / "g.csv", tiny).resumed == 6


def test_parts_of_another_version_are_rejected(folder, tmp_path, tiny, monkeypatch):
    interrupt(folder, tmp_path / "f.csv", tiny, monkeypatch)
    settings = resume.folder_of(tmp_path / "f.csv") / resume.RUN
    settings.write_text(settings.read_text().replace(f'"format": {resume.FORMAT},', '"format": 2,'))
    with pytest.raises(FileExistsError, match="another version of facezoo"):
        run(folder, tmp_path / "f.csv", tiny)
    assert run(folder, tmp_path / "f.csv", tiny, overwrite=True).resumed == 0


def test_images_that_come_later_in_the_order_can_be_added(folder, tmp_path, tiny, monkeypatch):
    interrupt(folder, tmp_path / "f.parquet", tiny, monkeypatch)
    write_image(folder / "zzz.png", 1)
    run(folder, tmp_path / "f.parquet", tiny)
    assert names_and_faces(tmp_path / "f.parquet") == [*EXPECTED, ("zzz.png", 0)]


def test_two_runs_do_not_write_to_one_output(folder, tmp_path, tiny):
    parts = resume.Parts(tmp_path / "f.csv", {}, [], False, lambda names: "")
    with pytest.raises(BlockingIOError, match="another process"):
        run(folder, tmp_path / "f.csv", tiny)
    parts.close()


def test_a_damaged_part_is_named(folder, tmp_path, tiny, monkeypatch):
    output, write = tmp_path / "f.csv", running.write_table

    def damage(path, suffix, rows):
        rows._parts.paths[1].write_bytes(b"rubbish")
        return write(path, suffix, rows)

    with monkeypatch.context() as patch:
        patch.setattr(running, "write_table", damage)
        with pytest.raises(OSError, match=r"000000004\.npz is damaged"):
            run(folder, output, tiny)
    assert run(folder, output, tiny).rows == len(EXPECTED)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"faces": "some"}, "faces must be"),
        ({"on_missing": "raise"}, "on_missing must be 'skip' or 'nan'"),
        ({"batch_size": 0}, "batch_size must be 1 or more"),
        ({"workers": 0}, "workers must be 1 or more"),
        ({"every": 0}, "every must be 1 or more"),
        ({"smooth": 0}, "smooth must be above 0"),
        ({"every": 2}, "for videos, and there is no video"),
        ({"engine": "spark"}, "engine must be 'local' or 'ray', got 'spark'"),
    ],
)
def test_an_option_without_such_a_value_is_an_error(folder, tmp_path, tiny, options, message):
    with pytest.raises(ValueError, match=message):
        extract(folder, tmp_path / "f.csv", model=tiny, **options)


def test_an_unknown_output_format_or_embedding_is_an_error(folder, tmp_path, tiny):
    with pytest.raises(ValueError, match=r"\.parquet, \.csv, \.npz"):
        run(folder, tmp_path / "f.xlsx", tiny)
    with pytest.raises(UnsupportedError, match="no embedding age; it has expression, identity"):
        run(folder, tmp_path / "f.csv", tiny, what=["age"])


def test_the_report_has_the_share_of_each_stage(folder, tmp_path, tiny):
    report = run(folder, tmp_path / "f.csv", tiny, profile=True)
    assert set(report.seconds) == {"decode", "wait", "detect", "align", "encode", "write"}
    assert all(report.seconds.values())
    assert sum(report.shares().values()) == pytest.approx(1)
    assert report.images_per_second > 0
    assert "12 rows from 13 images" in str(report)
    assert "encode" in report.profile()
