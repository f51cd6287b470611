"""Results per frame of videos and cameras, annotated videos, and timelines."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from fake_faces import run, write_image
from test_videos import COUNTS, RATE, frames_with, write_video

import facezoo
from facezoo import plot
from facezoo.cli.main import main
from facezoo.errors import ImageError, UnsupportedError
from facezoo.extraction import frames as frames_module
from facezoo.extraction import videos
from facezoo.extraction.videos import read_frame

av = pytest.importorskip("av")
pytestmark = pytest.mark.usefixtures("_fake_faces")


@pytest.fixture
def clip(tmp_path):
    """Nine frames without loss, with ``COUNTS`` faces."""
    return write_video(tmp_path / "clip.mkv", frames_with(COUNTS), "ffv1", "bgr0")


def camera(monkeypatch, counts, window=True):
    """Replace OpenCV by one with a camera of some frames, and a window that closes after three."""
    shown, frames = [], iter(frames_with(counts))

    class Capture:
        def __init__(self, number):
            self.isOpened = lambda: number == 0

        def read(self):
            frame = next(frames, None)
            return frame is not None, frame if frame is None else frame[..., ::-1]

        def release(self):
            shown.append("released")

    class Error(Exception):
        pass

    def imshow(_, pixels):
        if not window:
            raise Error("The function is not implemented")
        shown.append(pixels)

    keys = iter([-1, -1, ord("q")])
    cv2 = SimpleNamespace(VideoCapture=Capture, imshow=imshow, error=Error)
    cv2.waitKey, cv2.getWindowProperty = lambda _: next(keys), lambda *_: 1.0
    monkeypatch.setitem(sys.modules, "cv2", cv2)
    return shown


def test_each_frame_has_its_image_time_faces_expressions_and_tracks(clip, tiny):
    frames = list(facezoo.video(clip, tiny, batch_size=4))
    assert [frame.number for frame in frames] == list(range(len(COUNTS)))
    assert [len(frame.faces) for frame in frames] == COUNTS
    assert [frame.time for frame in frames] == pytest.approx(np.arange(9) / RATE, abs=1e-3)
    assert [frame.track.tolist() for frame in frames[:4]] == [[0], [0], [], [0, 1]]
    for frame, pixels in zip(frames, frames_with(COUNTS), strict=True):
        np.testing.assert_array_equal(frame.image, pixels)
        assert frame.faces.image_index.tolist() == [0] * len(frame.faces)
        assert len(frame.prediction.labels) == len(frame.faces)
    assert [row["track"] for row in frames[3].to_dict()] == [0, 1]


def test_frames_have_the_numbers_of_extraction(clip, tmp_path, tiny):
    options = {"every": 2, "smooth": 0.3, "faces": "largest"}
    run(clip, tmp_path / "f.csv", tiny, **options)
    table = pd.read_csv(tmp_path / "f.csv")
    rows = pd.DataFrame(
        [row for frame in facezoo.video(clip, tiny, **options) for row in frame.to_dict()]
    )
    assert [int(name[-8:]) for name in table["file"]] == rows["frame"].tolist()
    columns = ["time", "track", "x0", *(f"p_{name}" for name in tiny.labels)]
    np.testing.assert_allclose(table[columns], rows[columns], rtol=1e-5)


def test_what_is_not_a_video_is_an_error(tmp_path, tiny):
    with pytest.raises(ValueError, match="not named like a video"):
        facezoo.video(tmp_path / "a.jpg", tiny)
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(ImageError, match="is not a video"):
        facezoo.video(tmp_path / "a.mp4", tiny)
    with pytest.raises(ValueError, match="no options on_missing and aligned"):
        facezoo.video(tmp_path / "a.mp4", tiny, aligned=True)
    with pytest.raises(UnsupportedError):
        facezoo.video(tmp_path / "a.mp4", facezoo.load("latentface", pretrained=False))
    with pytest.raises(UnsupportedError, match="Adv3D takes meshes, not images; pass a model of"):
        facezoo.video(tmp_path / "a.mp4", facezoo.load("adv3d", pretrained=False))


def test_a_pattern_of_several_videos_raises_an_error_as_tracks_belong_to_one(clip, tiny):
    assert len(list(facezoo.video(clip.parent / "*.mkv", tiny))) == len(COUNTS)
    write_video(clip.parent / "other.mkv", frames_with(COUNTS), "ffv1", "bgr0")
    with pytest.raises(ValueError, match=r"matches 2 videos.*call video\(\) for each"):
        facezoo.video(clip.parent / "*.mkv", tiny)


def test_the_model_of_a_video_may_be_a_folder(clip, tiny, tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr(frames_module, "load", lambda name, device: loaded.append(name) or tiny)
    assert len(list(facezoo.video(clip, tmp_path / "mine"))) == len(COUNTS)
    assert loaded == [tmp_path / "mine"]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov", "webm"])
def test_an_annotated_video_has_the_same_frames_and_times(clip, tmp_path, tiny, suffix):
    frames = list(facezoo.video(clip, tiny, every=2))
    path = tmp_path / "out" / f"a.{suffix}"
    assert plot.save_video(frames, path) == 5
    pixels, times = zip(*(read_frame(path, str(n)) for n in range(5)), strict=True)
    assert times == pytest.approx([frame.time for frame in frames], abs=2e-3)
    assert pixels[0].shape == (40, 44, 3)
    with pytest.raises(ImageError):
        read_frame(path, "5")


def test_faces_whose_center_lies_outside_their_frame_are_drawn(clip, tmp_path, tiny):
    frame = list(facezoo.video(clip, tiny))[3]
    shift = torch.tensor([0.0, 25.0, 0.0, 40.0])
    faces = replace(frame.faces, boxes=frame.faces.boxes + shift)  # in a frame of 40 rows
    cut = replace(frame, faces=faces, prediction=replace(frame.prediction, faces=faces))
    assert plot.save_video([cut], tmp_path / "a.mp4") == 1


def test_colors_of_an_annotated_video_are_those_of_the_frames(tmp_path, tiny):
    gray = [np.full((64, 64, 3), (0, 180, 90), np.uint8)] * 2
    clip = write_video(tmp_path / "clip.mkv", gray, "ffv1", "bgr0")
    plot.save_video(facezoo.video(clip, tiny), tmp_path / "a.mp4")
    pixels, _ = read_frame(tmp_path / "a.mp4", "0")
    np.testing.assert_allclose(pixels.mean((0, 1)), (0, 180, 90), atol=3)


def test_a_video_of_another_kind_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="cannot be written as a video"):
        plot.save_video([], tmp_path / "a.txt")


def test_a_video_may_be_replaced_by_its_annotated_copy(tmp_path, tiny):
    clip = write_video(tmp_path / "clip.mkv", frames_with([1] * 96), "ffv1", "bgr0")
    assert plot.save_video(facezoo.video(clip, tiny, batch_size=4), clip) == 96
    assert len(videos.frame_keys(clip)) == 96
    assert list(tmp_path.iterdir()) == [clip]


@pytest.mark.parametrize("reason", [KeyboardInterrupt, OSError])
def test_a_stopped_copy_keeps_the_old_file_and_an_interrupted_one_its_frames(
    clip, tmp_path, tiny, reason
):
    def stopped():
        yield from list(facezoo.video(clip, tiny))[:3]
        raise reason

    before, new = clip.read_bytes(), tmp_path / "new.mp4"
    for path in (clip, new):
        with pytest.raises(reason):
            plot.save_video(stopped(), path)
    assert clip.read_bytes() == before
    if reason is KeyboardInterrupt:  # it ends the recording of a camera
        assert len(videos.frame_keys(new)) == 3
        new.unlink()
    assert list(tmp_path.iterdir()) == [clip]
    with pytest.raises(ValueError, match="is a folder; pass a file"):
        plot.save_video(facezoo.video(clip, tiny), tmp_path)


def decoded(monkeypatch):
    """List the frames that are decoded from now on."""
    frames, decode = [], videos._decode

    def listed(path):
        for frame in decode(path):
            frames.append(path)
            yield frame

    monkeypatch.setattr(videos, "_decode", listed)
    return frames


@pytest.mark.parametrize("count", [1, 3])
def test_videos_that_are_read_in_step_are_decoded_once_each(count, tmp_path, tiny, monkeypatch):
    paths = [tmp_path / f"{number % count}.mkv" for number in range(3)]
    for path in set(paths):
        write_video(path, frames_with([1] * 48), "ffv1", "bgr0")
    frames = decoded(monkeypatch)
    readings = [facezoo.video(path, tiny, batch_size=4) for path in paths]
    for step in zip(*readings, strict=True):
        assert len({frame.number for frame in step}) == 1
    assert len(frames) == 3 * 48


@pytest.mark.parametrize("name", ["cam::12.mkv", "12:30.mkv", "a.b::c/d.mkv"])
def test_names_of_videos_may_have_colons(name, tmp_path, tiny, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    write_video(path, frames_with([1] * 3), "ffv1", "bgr0")
    assert [frame.number for frame in facezoo.video(name, tiny)] == [0, 1, 2]
    assert not facezoo.extract(name, "features.csv", model=tiny).unreadable
    files = pd.read_csv("features.csv")["file"].tolist()
    assert files == [f"{name}::{number:08d}" for number in range(3)]


def test_predict_prints_frames_and_saves_an_annotated_video(clip, tmp_path, capsys, tiny):
    model, out = str(tiny.save_pretrained(tmp_path / "model")), tmp_path / "out.mp4"
    command = ["predict", str(clip), "--model", model, "--device", "cpu"]
    assert main([*command, "--json", "--save", str(out)]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [len(entry["faces"]) for entry in entries] == COUNTS
    assert entries[3]["file"] == f"{clip}::00000003"
    assert [face["track"] for face in entries[3]["faces"]] == [0, 1]
    assert read_frame(out, "8")[0].shape == (40, 44, 3)
    assert main([*command, "--csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + sum(COUNTS)
    assert main([*command, "--save", str(tmp_path / "out.png")]) == 1
    assert "of a video writes .mkv, .mov, .mp4, .webm" in capsys.readouterr().err


def test_predict_continues_after_a_video_that_cannot_be_saved(clip, tmp_path, capsys, tiny):
    model, out = str(tiny.save_pretrained(tmp_path / "model")), tmp_path / "out"
    write_image(tmp_path / "one.png", 1)
    (out / "clip.mkv").mkdir(parents=True)  # in the place of the annotated video
    files = [str(clip), str(tmp_path / "one.png")]
    assert main(["predict", *files, "--model", model, "--device", "cpu", "--save", str(out)]) == 1
    printed = capsys.readouterr()
    assert f"facezoo: error: {out / 'clip.mkv'} is not written: " in printed.err
    assert "one.png" in printed.out
    assert (out / "one.png").is_file()


def test_a_camera_is_read_until_it_ends(monkeypatch, tiny):
    shown = camera(monkeypatch, [1, 0, 2, 1])
    frames = list(facezoo.video(0, tiny, every=2))
    assert [(frame.number, len(frame.faces)) for frame in frames] == [(0, 1), (2, 2)]
    assert shown == ["released"]
    assert frames[1].track.tolist() == [0, 1]


def test_live_shows_frames_until_its_window_is_closed(monkeypatch, tmp_path, tiny, capsys):
    command = ["live", "--model", str(tiny.save_pretrained(tmp_path / "model")), "--device", "cpu"]
    shown = camera(monkeypatch, [1] * 9)
    assert main(command) == 0
    assert [getattr(frame, "shape", frame) for frame in shown] == [(40, 44, 3)] * 3 + ["released"]
    camera(monkeypatch, [1], window=False)
    assert main(command) == 1
    assert "not opencv-python-headless" in capsys.readouterr().err
    assert main([*command, "--camera", "7"]) == 1
    assert "camera 7 cannot be opened" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert main(command) == 1
    assert "pip install 'facezoo[live]'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["out.avi", "out.gif", "out"])
def test_videos_are_written_in_formats_that_keep_the_times(name, clip, tmp_path, tiny):
    with pytest.raises(ValueError, match=r"expected \.mkv, \.mov, \.mp4, \.webm"):
        plot.save_video(facezoo.video(clip, tiny), tmp_path / name)
    assert list(tmp_path.glob("out*")) == []


def test_a_timeline_has_a_panel_per_track_and_a_gap_where_it_was_lost(clip, tmp_path, tiny):
    frames = list(facezoo.video(clip, tiny))
    figure = plot.timeline(frames)
    assert [axes.get_ylabel() for axes in figure.axes] == ["#0", "#1"]
    run(clip, tmp_path / "f.parquet", tiny)
    table = pd.read_parquet(tmp_path / "f.parquet")
    gap = pd.DataFrame({"time": [0.0], "track": [None], **{f"p_{c}": [None] for c in tiny.labels}})
    with_gap = pd.concat([table, gap.astype(object)])
    for source in (table, iter(frames), with_gap, pa.Table.from_pandas(with_gap)):
        assert len(plot.timeline(source).axes[0].collections) == 3 * len(tiny.labels)
    with pytest.raises(ValueError, match="columns time, track and p_<class>"):
        plot.timeline(pd.DataFrame({"time": [0.0], "track": [0]}))
    with pytest.raises(ValueError, match="there is no face"):
        plot.timeline([frames[2]])
