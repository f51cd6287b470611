"""Extraction: rows, resuming after any interruption, and what is refused.

A stand-in finds faces: their number is written in the first pixel of a photograph.
"""

import csv
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import facezoo
from facezoo.errors import ImageError, UnsupportedError
from facezoo.extraction import extract, resume, run, sources, stages, writers
from facezoo.hub.tensors import digest_of
from facezoo.preprocess import pipeline, prefetch
from facezoo.results import EXPRESSIONS, Faces

LANDMARKS = torch.tensor([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.8], [0.65, 0.8]])


def fake_find_faces(photos, *, faces="largest", on_missing="raise", names=None, config=None):
    """As many faces as the first pixel says, side by side."""
    assert on_missing == "skip"
    boxes, index = [], []
    for number, photo in enumerate(photos):
        count = int(photo[0, 0, 0])
        for face in range(min(count, 1) if faces == "largest" else count):
            boxes.append([4.0 + 3 * face, 5.0, 30.0 + 3 * face, 34.0])
            index.append(number)
    box = torch.tensor(boxes).reshape(-1, 4)
    points = box[:, None, :2] + LANDMARKS * (box[:, None, 2:] - box[:, None, :2])
    return Faces(box, points, torch.full((len(box),), 0.75), torch.tensor(index).long())


def fake_detect(detector, images, config=None):
    return fake_find_faces(images, faces="all", on_missing="skip")


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch):
    monkeypatch.setattr(stages, "find_faces", fake_find_faces)
    monkeypatch.setattr(stages, "fingerprint", lambda preprocessing, jpeg: "0123456789abcdef")
    monkeypatch.setattr(run, "PART_PHOTOS", 4)


def tiny_model(seed=0):
    torch.manual_seed(seed)
    return facezoo.load(
        "ipd-fer", pretrained=False, backbone="test_resnet", feature_dim=8, device="cpu"
    )


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def write_photo(path, faces, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 44, 3), dtype=np.uint8)
    pixels[0, 0] = faces
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_folder(folder, counts):
    for number, faces in enumerate(counts):
        write_photo(folder / f"{number:03d}.png", faces, seed=number)
    return folder


@pytest.fixture
def folder(tmp_path):
    """13 photographs with 0, 1 or 2 faces."""
    return write_folder(tmp_path / "photos", [1, 0, 2, 1, 1, 0, 0, 2, 1, 1, 2, 0, 1])


def go(source, output, model, **options):
    return extract(source, output, model=model, batch_size=2, progress=False, **options)


def table(path):
    return pq.read_table(path).to_pylist()


def names_and_faces(path):
    return [(row["file"], row["face"]) for row in table(path)]


EXPECTED = [
    (f"{number:03d}.png", face)
    for number, count in enumerate([1, 0, 2, 1, 1, 0, 0, 2, 1, 1, 2, 0, 1])
    for face in range(count)
]


# --- rows --------------------------------------------------------------------------------------


def test_one_row_per_face_in_the_order_of_the_files(folder, tmp_path, model):
    report = go(folder, tmp_path / "f.parquet", model)
    assert names_and_faces(tmp_path / "f.parquet") == EXPECTED
    assert (report.rows, report.images, report.without_face) == (12, 13, 4)
    assert report.unreadable == []
    assert not resume.folder_of(report.output).exists()


def test_features_are_those_of_the_model(folder, tmp_path, model, monkeypatch):
    monkeypatch.setattr(pipeline, "detect", fake_detect)
    go(folder, tmp_path / "f.parquet", model)
    files = sorted(folder.iterdir())
    encoding = model.encode(files, faces="all", on_missing="skip", batch_size=2)
    prediction = model.predict_expression(files, faces="all", on_missing="skip", batch_size=2)
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
    assert {row["fingerprint"] for row in rows} == {"0123456789abcdef"}
    assert {row["checkpoint"] for row in rows} == {f"ipd-fer@{digest_of(model)[:12]}"}


def test_the_parquet_schema_has_fixed_size_lists_of_float32(folder, tmp_path, model):
    go(folder, tmp_path / "f.parquet", model)
    schema = pq.read_schema(tmp_path / "f.parquet")
    assert str(schema.field("expression").type).startswith("fixed_size_list")
    assert schema.field("identity").type.list_size == 8
    assert str(schema.field("identity").type.value_type) == "float"
    assert b"fingerprint" in schema.metadata[b"facezoo"]


def test_parquet_csv_and_npz_hold_the_same_rows(folder, tmp_path, model, monkeypatch):
    monkeypatch.setattr(writers, "BLOCK", 5)
    for suffix in ("parquet", "csv", "npz"):
        go(folder, tmp_path / f"f.{suffix}", model, on_missing="nan")
    rows = table(tmp_path / "f.parquet")
    with np.load(tmp_path / "f.npz") as arrays:
        npz = dict(arrays)
    with (tmp_path / "f.csv").open(newline="") as file:
        text = list(csv.DictReader(file))
    assert len(rows) == len(text) == len(npz["file"]) == 12 + 4
    assert [r["file"] for r in rows] == [t["file"] for t in text] == npz["file"].tolist()
    assert [r["face"] for r in rows] == [int(t["face"]) for t in text] == npz["face"].tolist()
    labels = [r["label"] or "" for r in rows]
    assert labels == [t["label"] for t in text] == npz["label"].tolist()
    for name in ("expression", "identity"):
        expected = np.array([r[name] for r in rows], np.float32)
        np.testing.assert_array_equal(npz[name], expected)
        typed = [[t[f"{name}_{d}"] for d in range(8)] for t in text]
        np.testing.assert_array_equal(np.array(typed, np.float32), expected)
    for index, name in enumerate(EXPRESSIONS):
        expected = np.array([r[f"p_{name}"] for r in rows], np.float32)
        np.testing.assert_array_equal(npz["probabilities"][:, index], expected)
        np.testing.assert_array_equal(np.array([t[f"p_{name}"] for t in text], "f4"), expected)
    expected = np.array([r["landmarks"] for r in rows], np.float32)
    np.testing.assert_array_equal(npz["landmarks"].reshape(-1, 10), expected)
    assert npz["box"].shape == (16, 4)
    assert npz["classes"].tolist() == list(EXPRESSIONS)
    assert str(npz["checkpoint"]) == rows[0]["checkpoint"] == text[0]["checkpoint"]


def test_csv_and_npz_need_no_pyarrow_and_parquet_names_the_extra(
    folder, tmp_path, model, monkeypatch
):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    go(folder, tmp_path / "f.csv", model)
    go(folder, tmp_path / "f.npz", model)
    with pytest.raises(ImportError, match=r"facezoo\[parquet\]"):
        go(folder, tmp_path / "f.parquet", model)


def test_a_photograph_without_a_face_can_have_a_row_of_nan(folder, tmp_path, model):
    go(folder, tmp_path / "f.parquet", model, on_missing="nan")
    rows = table(tmp_path / "f.parquet")
    holes = [row for row in rows if row["face"] == -1]
    assert [row["file"] for row in holes] == ["001.png", "005.png", "006.png", "011.png"]
    assert all(np.isnan(row["expression"]).all() and row["label"] is None for row in holes)
    assert [row["file"] for row in rows] == sorted(row["file"] for row in rows)


def test_a_face_of_unknown_probabilities_has_no_label(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "detect", fake_detect)
    broken = tiny_model()
    for part in broken.modules():
        if isinstance(part, torch.nn.Linear):
            torch.nn.init.constant_(part.weight, torch.nan)
    files = sorted(folder.iterdir())
    told = broken.predict_expression(files, faces="all", on_missing="skip", batch_size=2)
    assert bool(told.probabilities.isnan().all())
    for suffix in ("parquet", "csv", "npz"):
        go(folder, tmp_path / f"f.{suffix}", broken)
    assert [row["label"] for row in table(tmp_path / "f.parquet")] == told.labels == [None] * 12
    with np.load(tmp_path / "f.npz") as arrays:
        assert arrays["label"].tolist() == [""] * 12
    with (tmp_path / "f.csv").open(newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == [""] * 12


def test_the_largest_face_alone(folder, tmp_path, model):
    report = go(folder, tmp_path / "f.parquet", model, faces="largest")
    assert report.rows == 9


def test_only_what_is_wanted_is_written(folder, tmp_path, model):
    go(folder, tmp_path / "f.parquet", model, what=["identity"])
    assert "expression" not in pq.read_schema(tmp_path / "f.parquet").names


def test_no_face_anywhere_gives_a_table_without_rows(tmp_path, model):
    source = write_folder(tmp_path / "photos", [0, 0, 0])
    for suffix in ("parquet", "csv", "npz"):
        report = go(source, tmp_path / f"f.{suffix}", model)
        assert (report.rows, report.without_face) == (0, 3)
    assert np.load(tmp_path / "f.npz")["expression"].shape == (0, 8)
    assert pq.read_table(tmp_path / "f.parquet").num_rows == 0


def test_a_crowd_is_cut_out_in_portions(tmp_path, model, monkeypatch):
    monkeypatch.setattr(pipeline, "FACES_AT_ONCE", 3)
    source = write_folder(tmp_path / "photos", [8, 1])
    go(source, tmp_path / "f.npz", model)
    monkeypatch.undo()
    monkeypatch.setattr(stages, "find_faces", fake_find_faces)
    go(source, tmp_path / "g.npz", model)
    a, b = np.load(tmp_path / "f.npz"), np.load(tmp_path / "g.npz")
    np.testing.assert_allclose(a["identity"], b["identity"], rtol=1e-4, atol=1e-5)
    assert a["face"].tolist() == [*range(8), 0]


# --- inputs ------------------------------------------------------------------------------------


def test_folders_are_searched_for_images_by_suffix_in_sorted_order(tmp_path):
    for name in ("b/2.JPG", "a/1.png", "c.jpeg", "notes.txt", ".hidden.png", ".cache/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert sources.list_photos(tmp_path).names == ["a/1.png", "b/2.JPG", "c.jpeg"]
    assert sources.list_photos(tmp_path, recursive=False).names == ["c.jpeg"]


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path):
    for name in ("elsewhere/1.png", "photos/a/2.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    photos = tmp_path / "photos"
    (photos / "linked").symlink_to("../elsewhere")
    (photos / "a" / "up").symlink_to("..")
    (tmp_path / "elsewhere" / "back").symlink_to("../photos")
    assert sources.list_photos(photos).names == ["a/2.png", "linked/1.png"]


def test_files_are_named_as_given_and_taken_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_photo(Path("photos/b.png"), 1)
    Path("photos/a").touch()
    given = ["photos/b.png", "photos", "photos/a"]
    assert sources.list_photos(given).names == ["photos/a", "photos/b.png"]


def test_a_missing_path_is_an_error(folder, tmp_path, model):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        go([folder, tmp_path / "nowhere"], tmp_path / "f.csv", model)


def test_an_empty_folder_is_an_error(tmp_path, model):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no photographs in"):
        go(tmp_path / "empty", tmp_path / "f.csv", model)
    assert not resume.folder_of(tmp_path / "f.csv").exists()


def test_unreadable_files_are_reported_with_reasons_and_cost_no_row(folder, tmp_path, model):
    (folder / "003.png").write_bytes(b"no image")
    (folder / "0035.png").write_bytes((folder / "004.png").read_bytes()[:900])
    report = go(folder, tmp_path / "f.parquet", model)
    assert names_and_faces(tmp_path / "f.parquet") == [e for e in EXPECTED if e[0] != "003.png"]
    assert [name for name, _ in report.unreadable] == ["003.png", "0035.png"]
    assert "not an image" in report.unreadable[0][1]
    assert report.without_face == 4


def test_strict_raises_after_the_output_is_complete(folder, tmp_path, model):
    (folder / "003.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"003\.png"):
        go(folder, tmp_path / "f.parquet", model, strict=True)
    assert len(table(tmp_path / "f.parquet")) == len(EXPECTED) - 1


@pytest.mark.skipif(sys.platform != "linux", reason="other systems want Unicode in file names")
def test_a_file_name_that_is_not_utf_8_is_escaped(tmp_path, model):
    write_photo(tmp_path / "photos" / os.fsdecode(b"caf\xe9.png"), 1)
    for suffix in ("parquet", "csv", "npz"):
        go(tmp_path / "photos", tmp_path / f"f.{suffix}", model)
    assert table(tmp_path / "f.parquet")[0]["file"] == "caf\\udce9.png"


def test_decoding_stays_a_bounded_number_of_photographs_ahead(monkeypatch):
    started = []

    def load(root, jpeg, name):
        started.append(name)
        return sources.Loaded(name, np.zeros((1000, 1000, 3), np.uint8), "", 0.0)

    monkeypatch.setattr(sources, "_load", load)
    names = [f"{n:03d}" for n in range(100)]
    furthest = 0
    for count, loaded in enumerate(sources.load_ahead(Path(), names, workers=2, ahead=8), 1):
        assert loaded.name == names[count - 1]
        time.sleep(0.001)
        furthest = max(furthest, len(started) - count)
    assert len(started) == 100
    assert furthest <= 8
    monkeypatch.setattr(prefetch, "PREFETCH_BYTES", 9_000_000)
    started.clear()
    photos = sources.load_ahead(Path(), names, workers=2, ahead=8)
    for count in range(1, 50):
        next(photos)
        time.sleep(0.001)
        assert len(started) - count <= 3
    photos.close()
    time.sleep(0.01)
    assert len(started) <= 53


def test_a_batch_of_very_large_photographs_is_closed_early(monkeypatch):
    monkeypatch.setattr(sources, "BATCH_BYTES", 1000)
    photos = [sources.Loaded(str(n), np.zeros((10, 20, 3), np.uint8), "", 0.0) for n in range(5)]
    assert [len(batch) for batch in sources.group(iter(photos), 4)] == [2, 2, 1]


def test_decoding_happens_in_other_threads(folder, tmp_path, model, monkeypatch):
    threads = set()
    load = sources._load

    def spy(root, jpeg, name):
        threads.add(threading.current_thread())
        return load(root, jpeg, name)

    monkeypatch.setattr(sources, "_load", spy)
    go(folder, tmp_path / "f.csv", model)
    assert threading.main_thread() not in threads


# --- interruptions -----------------------------------------------------------------------------


def stop_at(call, action):
    """A stand-in that does something else at one of its calls."""
    calls = []

    def find(*args, **options):
        calls.append(1)
        if len(calls) == call:
            action()
        return fake_find_faces(*args, **options)

    return find


def interrupted(source, output, model, monkeypatch, call=4, **options):
    with monkeypatch.context() as patch:
        patch.setattr(
            stages, "find_faces", stop_at(call, lambda: signal.raise_signal(signal.SIGINT))
        )
        with pytest.raises(KeyboardInterrupt):
            go(source, output, model, **options)


@pytest.mark.parametrize("suffix", ["parquet", "csv", "npz"])
def test_an_interrupted_run_ends_at_the_same_bytes(folder, tmp_path, model, monkeypatch, suffix):
    whole, again = tmp_path / f"whole.{suffix}", tmp_path / f"again.{suffix}"
    (folder / "002.png").write_bytes(b"no image")
    straight = go(folder, whole, model)
    for call in (2, 3, 1):
        interrupted(folder, again, model, monkeypatch, call)
    assert not again.exists()
    report = go(folder, again, model)
    assert again.read_bytes() == whole.read_bytes()
    assert report.resumed == 2 + 4
    assert (report.rows, report.without_face) == (straight.rows, straight.without_face)
    assert report.unreadable == straight.unreadable


def test_what_is_done_is_not_done_again(folder, tmp_path, model, monkeypatch):
    interrupted(folder, tmp_path / "f.csv", model, monkeypatch, call=5)
    seen = []
    load = sources._load
    monkeypatch.setattr(
        sources, "_load", lambda root, jpeg, name: seen.append(name) or load(root, jpeg, name)
    )
    go(folder, tmp_path / "f.csv", model)
    assert sorted(seen) == [f"{n:03d}.png" for n in range(8, 13)]


def test_an_error_in_the_middle_leaves_a_run_that_can_be_resumed(
    folder, tmp_path, model, monkeypatch
):
    def fail():
        raise RuntimeError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(stages, "find_faces", stop_at(6, fail))
        with pytest.raises(RuntimeError, match="out of memory"):
            go(folder, tmp_path / "f.parquet", model)
    assert go(folder, tmp_path / "f.parquet", model).resumed == 10
    assert names_and_faces(tmp_path / "f.parquet") == EXPECTED


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_extraction as t
def slow(*args, **options):
    time.sleep(0.1)
    return t.fake_find_faces(*args, **options)
t.stages.find_faces = slow
t.stages.fingerprint = lambda preprocessing, jpeg: "0123456789abcdef"
t.run.PART_PHOTOS = 4
t.go({folder!r}, {output!r}, t.tiny_model())
"""


def kill_after(command, output, count):
    """Start a run, and kill it once it has put so many parts on disk."""
    root = str(Path(facezoo.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", command], env=environment)
    deadline = time.monotonic() + 120
    while len(list(resume.folder_of(output).glob("*.npz"))) < count:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not output.exists()


def test_a_process_that_is_killed_twice_loses_and_repeats_no_row(tmp_path, model):
    counts = [n % 3 for n in range(60)]
    folder, output = write_folder(tmp_path / "photos", counts), tmp_path / "f.parquet"
    tests = str(Path(__file__).parent)
    code = KILLED.format(tests=tests, folder=str(folder), output=str(output))
    kill_after(code, output, 3)
    kill_after(code, output, 7)
    report = go(folder, output, model)
    assert 28 <= report.resumed < 60
    expected = [(f"{n:03d}.png", f) for n, count in enumerate(counts) for f in range(count)]
    assert names_and_faces(output) == expected
    go(folder, tmp_path / "whole.parquet", model)
    assert output.read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_leftovers_of_a_kill_during_writing_do_no_harm(folder, tmp_path, model, monkeypatch):
    output = tmp_path / "f.parquet"
    interrupted(folder, output, model, monkeypatch, call=5)
    left = resume.folder_of(output)
    assert sorted(p.name for p in left.glob("*.npz")) == ["000000000.npz", "000000004.npz"]
    whole = (left / "000000004.npz").read_bytes()
    (left / "000000008.npz.tmp").write_bytes(whole[:100])
    (left / "f.parquet.tmp").write_bytes(b"half a table")
    (left / "000000004.npz").write_bytes(whole[: len(whole) // 2])
    (left / "000000099.npz").write_bytes(whole)
    report = go(folder, output, model)
    assert report.resumed == 4
    assert names_and_faces(output) == EXPECTED
    assert not left.exists()


def test_a_kill_between_finishing_and_tidying_up_repeats_nothing(
    folder, tmp_path, model, monkeypatch
):
    output = tmp_path / "f.parquet"
    with monkeypatch.context() as patch:
        patch.setattr(resume.Parts, "remove", lambda self: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            go(folder, output, model)
    before = output.read_bytes()
    assert go(folder, output, model).resumed == 13
    assert output.read_bytes() == before
    assert not resume.folder_of(output).exists()


def test_an_interrupted_assembly_leaves_the_old_output(folder, tmp_path, model, monkeypatch):
    output = tmp_path / "f.csv"
    output.write_text("old")

    def stop(path, *args):
        path.write_text("half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "write_table", stop)
        with pytest.raises(KeyboardInterrupt):
            go(folder, output, model, overwrite=True)
    assert output.read_text() == "old"
    assert go(folder, output, model).resumed == 13
    assert output.read_text().startswith("file,face,")


# --- refusals ----------------------------------------------------------------------------------


def test_a_complete_output_is_not_replaced_unasked(folder, tmp_path, model):
    go(folder, tmp_path / "f.csv", model)
    with pytest.raises(FileExistsError, match="--overwrite"):
        go(folder, tmp_path / "f.csv", model)
    assert go(folder, tmp_path / "f.csv", model, overwrite=True).resumed == 0


def test_another_fingerprint_or_model_does_not_continue_a_run(folder, tmp_path, model, monkeypatch):
    output = tmp_path / "f.csv"
    interrupted(folder, output, model, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(stages, "fingerprint", lambda preprocessing, jpeg: "fedcba9876543210")
        with pytest.raises(FileExistsError, match=r"fingerprint was '0123456789abcdef'"):
            go(folder, output, model)
    with pytest.raises(FileExistsError, match=r"checkpoint was .*--overwrite"):
        go(folder, output, tiny_model(seed=1))
    with pytest.raises(FileExistsError, match="faces was 'all' and is now 'largest'"):
        go(folder, output, model, faces="largest")
    assert go(folder, output, model).resumed == 6


def test_other_photographs_do_not_continue_a_run(folder, tmp_path, model, monkeypatch):
    interrupted(folder, tmp_path / "f.csv", model, monkeypatch)
    (folder / "001.png").rename(folder / "zzz.png")
    with pytest.raises(FileExistsError, match=r"it had '001\.png' where '002\.png' is there now"):
        go(folder, tmp_path / "f.csv", model)
    assert go(folder, tmp_path / "f.csv", model, overwrite=True).resumed == 0


def test_photographs_of_the_same_names_elsewhere_do_not_continue_a_run(
    folder, tmp_path, model, monkeypatch
):
    other = write_folder(tmp_path / "others", [2] * 13)
    interrupted(folder, tmp_path / "f.csv", model, monkeypatch)
    with pytest.raises(FileExistsError, match=r"root was '.*photos' and is now '.*others'"):
        go(other, tmp_path / "f.csv", model)
    monkeypatch.chdir(folder.parent)
    assert go("photos/../photos", tmp_path / "f.csv", model).resumed == 6


def test_relative_names_belong_to_the_working_directory(folder, tmp_path, model, monkeypatch):
    write_folder(tmp_path / "away" / "photos", [2] * 13)
    monkeypatch.chdir(tmp_path)
    interrupted("photos/*.png", tmp_path / "f.csv", model, monkeypatch)
    interrupted(f"{folder}/*.png", tmp_path / "g.csv", model, monkeypatch)
    monkeypatch.chdir(tmp_path / "away")
    with pytest.raises(FileExistsError, match="root was"):
        go("photos/*.png", tmp_path / "f.csv", model)
    assert go(f"{folder}/*.png", tmp_path / "g.csv", model).resumed == 6


def test_photographs_replaced_in_place_do_not_continue_a_run(folder, tmp_path, model, monkeypatch):
    interrupted(folder, tmp_path / "f.csv", model, monkeypatch)
    write_photo(folder / "012.png", 2, seed=99)  # not done yet
    write_photo(folder / "001.png", 2, seed=99)
    with pytest.raises(FileExistsError, match=r"one of those from '000\.png' to '003\.png' was"):
        go(folder, tmp_path / "f.csv", model)
    assert go(folder, tmp_path / "f.csv", model, overwrite=True).resumed == 0


def test_parts_of_another_version_are_refused(folder, tmp_path, model, monkeypatch):
    interrupted(folder, tmp_path / "f.csv", model, monkeypatch)
    said = resume.folder_of(tmp_path / "f.csv") / resume.RUN
    said.write_text(said.read_text().replace('"format": 2,', ""))
    with pytest.raises(FileExistsError, match="another version of facezoo"):
        go(folder, tmp_path / "f.csv", model)
    assert go(folder, tmp_path / "f.csv", model, overwrite=True).resumed == 0


def test_photographs_that_come_later_in_the_order_are_taken_along(
    folder, tmp_path, model, monkeypatch
):
    interrupted(folder, tmp_path / "f.parquet", model, monkeypatch)
    write_photo(folder / "zzz.png", 1)
    go(folder, tmp_path / "f.parquet", model)
    assert names_and_faces(tmp_path / "f.parquet") == [*EXPECTED, ("zzz.png", 0)]


def test_two_runs_do_not_write_to_one_output(folder, tmp_path, model):
    settings = run._settings(stages.plan_for(model, ["identity"], "all", "skip"))
    with (
        resume.Parts(tmp_path / "f.csv", settings, [], False, lambda names: ""),
        pytest.raises(BlockingIOError, match="another process"),
    ):
        go(folder, tmp_path / "f.csv", model)


def test_a_damaged_part_is_named_at_the_end(folder, tmp_path, model, monkeypatch):
    output = tmp_path / "f.csv"
    write = writers.write_table

    def damage(path, suffix, stored, layout):
        stored.paths[1].write_bytes(b"rubbish")
        return write(path, suffix, stored, layout)

    with monkeypatch.context() as patch:
        patch.setattr(run, "write_table", damage)
        with pytest.raises(OSError, match=r"000000004\.npz is damaged"):
            go(folder, output, model)
    assert go(folder, output, model).rows == len(EXPECTED)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"faces": "some"}, "faces must be"),
        ({"on_missing": "raise"}, "on_missing must be 'skip' or 'nan'"),
        ({"batch_size": 0}, "batch_size must be 1 or more"),
        ({"workers": 0}, "workers must be 1 or more"),
    ],
)
def test_arguments_without_sense_are_refused(folder, tmp_path, model, options, message):
    with pytest.raises(ValueError, match=message):
        extract(folder, tmp_path / "f.csv", model=model, **options)


def test_an_output_of_unknown_kind_is_refused(folder, tmp_path, model):
    with pytest.raises(ValueError, match=r"\.parquet, \.csv, \.npz"):
        go(folder, tmp_path / "f.xlsx", model)


def test_an_embedding_that_the_model_lacks_is_refused(folder, tmp_path, model):
    known = "no embedding age; it has expression, identity, pose"
    with pytest.raises(UnsupportedError, match=known):
        go(folder, tmp_path / "f.csv", model, what=["age"])


# --- report ------------------------------------------------------------------------------------


def test_the_report_knows_the_share_of_each_stage(folder, tmp_path, model):
    report = go(folder, tmp_path / "f.csv", model, profile=True)
    assert set(report.seconds) == {"decode", "wait", "detect", "align", "encode", "write"}
    assert sum(report.shares().values()) == pytest.approx(1)
    assert report.images_per_second > 0
    assert "12 rows from 13 photographs" in str(report)
    assert "encode" in report.profile()
