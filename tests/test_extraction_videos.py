"""Extraction from videos: frames and their times, tracks, smoothing, resuming.

Films are drawn by the tests, with PyAV, from the portraits of the examples.
"""
# ruff: noqa: F811 (fixtures of another file)

import math
import struct
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_extraction import (  # noqa: F401
    _stand_ins,
    fake_find_faces,
    folder,
    go,
    interrupted,
    kill_after,
    model,
    table,
    write_photo,
)

from facezoo.cli.main import main
from facezoo.errors import ImageError
from facezoo.extraction import join_files, sources, stages, videos
from facezoo.extraction.resume import Block
from facezoo.extraction.tracks import PATIENCE, Tracked
from facezoo.preprocess.pipeline import find_faces

av = pytest.importorskip("av")

PORTRAITS = sorted((Path(__file__).parent.parent / "examples" / "portraits").glob("*.jpg"))
RATE = 10


def write_video(path, frames, codec="mpeg4", pixels="yuv420p"):
    """A film of RGB arrays (H, W, 3), ``RATE`` of them a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.codec_context.time_base = pixels, Fraction(1, RATE)
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format=pixels)
            picture.pts = number
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def counted(counts):
    """Frames whose first pixel says how many faces the stand-in finds."""
    draw = np.random.default_rng(0)
    frames = [draw.integers(0, 256, (40, 44, 3), dtype=np.uint8) for _ in counts]
    for frame, count in zip(frames, counts, strict=True):
        frame[0, 0] = count
    return frames


def moving(portrait, count):
    """A portrait that drifts to the right, at a size that is quick to search."""
    with Image.open(portrait) as image:
        image = image.convert("RGB")
        pixels = np.asarray(image.resize((160, round(160 * image.height / image.width) // 2 * 2)))
    return [np.roll(pixels, 3 * number, axis=1) for number in range(count)]


@pytest.fixture
def film(tmp_path):
    """Nine frames without loss, with 1, 1, 0, 2, ... faces."""
    frames = counted([1, 1, 0, 2, 1, 2, 0, 1, 1])
    return write_video(tmp_path / "film.mkv", frames, "ffv1", "bgr0")


# --- frames ------------------------------------------------------------------------------------


def test_frames_are_named_by_number_and_have_their_times(film, tmp_path, model):
    report = go(film, tmp_path / "f.parquet", model)
    rows = table(tmp_path / "f.parquet")
    numbers = [0, 1, 3, 3, 4, 5, 5, 7, 8]
    assert [row["file"] for row in rows] == [f"{film}::{n:08d}" for n in numbers]
    assert [row["time"] for row in rows] == pytest.approx([n / RATE for n in numbers], abs=1e-3)
    assert (report.images, report.without_face, report.unreadable) == (9, 2, [])


def test_the_rows_are_those_of_the_frames_as_photographs(film, tmp_path, model):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, pixels in enumerate(counted([1, 1, 0, 2, 1, 2, 0, 1, 1])):
        Image.fromarray(pixels).save(photos / f"{number}.png")
    go(film, tmp_path / "film.parquet", model, on_missing="nan")
    go(photos, tmp_path / "photos.parquet", model, on_missing="nan")
    moved, still = table(tmp_path / "film.parquet"), table(tmp_path / "photos.parquet")
    assert [row["face"] for row in moved].count(-1) == 2
    assert all(row["time"] is not None and not math.isnan(row["time"]) for row in moved)
    for key in set(still[0]) - {"file"}:
        np.testing.assert_array_equal([row[key] for row in moved], [row[key] for row in still])


def test_every_nth_frame_is_taken_from_the_first_on(film, tmp_path, model):
    report = go(film, tmp_path / "f.npz", model, every=4)
    assert report.images == 3
    with np.load(tmp_path / "f.npz") as stored:
        assert stored["file"].tolist() == [f"{film}::{n:08d}" for n in (0, 4, 8)]
        np.testing.assert_allclose(stored["time"], [0, 0.4, 0.8], atol=1e-3)
        assert (stored["time"].dtype, stored["track"].dtype) == (np.float64, np.int32)


def test_videos_photographs_and_patterns_go_together(film, folder, tmp_path, model):
    write_video(tmp_path / "other.mkv", counted([1, 1]), "ffv1", "bgr0")
    go([str(tmp_path / "*.mkv"), folder / "000.png"], tmp_path / "f.parquet", model)
    rows = table(tmp_path / "f.parquet")
    assert [row["file"].rpartition("/")[2].partition("::")[0] for row in rows] == [
        *["film.mkv"] * 9,
        *["other.mkv"] * 2,
        "000.png",
    ]
    assert math.isnan(rows[-1]["time"])
    assert rows[-1]["track"] == -1
    assert [row["track"] for row in rows[9:11]] == [0, 0]


def test_a_frame_asked_for_again_or_earlier_is_the_same(film):
    first = [videos.read_frame(film, f"{n:08d}")[0] for n in (2, 5, 5, 1)]
    wanted = counted([1, 1, 0, 2, 1, 2])
    for got, number in zip(first, (2, 5, 5, 1), strict=True):
        np.testing.assert_array_equal(got, wanted[number])


def turned(path, degrees):
    """Write into an .mp4 file that it is to be shown turned clockwise."""
    content = path.read_bytes()
    place = content.index(b"tkhd") + 4 + 40  # version and flags, times, layer, volume
    one = 1 << 16
    c, s = (
        round(math.cos(math.radians(degrees))) * one,
        round(math.sin(math.radians(degrees))) * one,
    )
    matrix = struct.pack(">9i", c, s, 0, -s, c, 0, 0, 0, 1 << 30)
    path.write_bytes(content[:place] + matrix + content[place + 36 :])


def test_a_film_from_a_phone_held_upright_is_upright(tmp_path):
    frame = np.zeros((32, 64, 3), np.uint8)
    frame[:, :16] = 255  # the left of what was stored is the top of what is shown
    path = write_video(tmp_path / "film.mp4", [frame] * 2)
    turned(path, 90)
    pixels, _ = videos.read_frame(path, "00000000")
    assert pixels.shape == (64, 32, 3)
    assert pixels[:12].mean() > 230
    assert pixels[20:].mean() < 25


# --- resuming ----------------------------------------------------------------------------------


@pytest.fixture
def _one_face_each(monkeypatch):
    """The stand-in reads the number of faces from a pixel, which no codec with loss would keep."""
    read = sources.read_frame

    def marked(path, key):
        pixels, time = read(path, key)
        pixels[0, 0] = 1
        return pixels, time

    monkeypatch.setattr(sources, "read_frame", marked)


@pytest.mark.usefixtures("_one_face_each")
@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_an_interrupted_run_ends_at_the_same_bytes(codec, tmp_path, model, monkeypatch):
    film = write_video(tmp_path / "film.mp4", moving(PORTRAITS[0], 24), codec)
    again, whole = tmp_path / "again.parquet", tmp_path / "whole.parquet"
    options = {"faces": "largest", "smooth": 0.5}
    for call in (4, 3):
        interrupted(film, again, model, monkeypatch, call=call, **options)
    assert go(film, again, model, **options).resumed == 6 + 4
    go(film, whole, model, **options)
    assert again.read_bytes() == whole.read_bytes()
    assert len(table(whole)) == 24


KILLED = """
import sys, time
sys.path.insert(0, {tests!r})
import test_extraction as t
def slow(*args, **options):
    time.sleep(0.1)
    return t.fake_find_faces(*args, **options)
t.stages.find_faces = slow
t.stages.fingerprint = lambda preprocessing, jpeg: "0123456789abcdef"
t.run.PART_PHOTOS = 4
t.go({film!r}, {output!r}, t.tiny_model(), every=2, smooth=0.3)
"""


def test_a_process_that_is_killed_loses_and_repeats_no_frame(tmp_path, model):
    counts = [n % 3 for n in range(80)]
    film = write_video(tmp_path / "film.mkv", counted(counts), "ffv1", "bgr0")
    output, tests = tmp_path / "f.parquet", str(Path(__file__).parent)
    kill_after(KILLED.format(tests=tests, film=str(film), output=str(output)), output, 3)
    report = go(film, output, model, every=2, smooth=0.3)
    assert 12 <= report.resumed < 40
    go(film, tmp_path / "whole.parquet", model, every=2, smooth=0.3)
    assert output.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert len(table(output)) == sum(counts[::2])


def test_another_smoothing_or_step_does_not_continue_a_run(film, tmp_path, model, monkeypatch):
    interrupted(film, tmp_path / "f.csv", model, monkeypatch)
    with pytest.raises(FileExistsError, match="smooth was None and is now 1"):
        go(film, tmp_path / "f.csv", model, smooth=1)
    with pytest.raises(FileExistsError, match="other photographs"):
        go(film, tmp_path / "f.csv", model, every=2)


# --- tracks ------------------------------------------------------------------------------------


class Stored:
    """Rows of frames, as parts give them: a list of (x of each face) per frame."""

    def __init__(self, frames, video="a.mp4", cut=3):
        self.frames, self.video, self.cut = frames, video, cut

    def blocks(self, columns=None):
        for begin in range(0, len(self.frames), self.cut):
            part = self.frames[begin : begin + self.cut]
            rows = [(p, f, x) for p, xs in enumerate(part) for f, x in enumerate(xs)]
            photo, face = (np.array([r[i] for r in rows], np.int64) for i in (0, 1))
            x = np.array([r[2] for r in rows], np.float32)
            values = {
                "photo": photo,
                "face": face.astype(np.int32),
                "box": np.stack([x, 0 * x, x + 10, 0 * x + 10], 1),
                "time": (photo + begin) / RATE,
                "expression": np.stack([x, -x], 1),
            }
            wanted = values if columns is None else columns
            names = [f"{self.video}::{begin + n:08d}" for n in range(len(part))]
            yield Block(names, [], [], {key: values[key] for key in wanted})


def tracks_of(stored):
    parts = Tracked(stored, [], None).blocks(["track"])
    return np.concatenate([block.rows["track"] for block in parts]).tolist()


def test_faces_keep_their_tracks_whatever_their_order():
    assert tracks_of(Stored([[0, 50], [52, 2], [4, 54], [56]])) == [0, 1, 1, 0, 0, 1, 1]


def test_a_face_that_is_away_for_a_while_goes_on_its_track_and_then_no_more():
    assert tracks_of(Stored([[0], *[[]] * PATIENCE, [1]])) == [0, 0]
    assert tracks_of(Stored([[0], *[[]] * (PATIENCE + 1), [1]])) == [0, 1]


def test_tracks_do_not_depend_on_the_parts():
    frames = [[n, 40 + n][: 1 + n % 2] for n in range(12)]
    assert len({tuple(tracks_of(Stored(frames, cut=cut))) for cut in (1, 4, 12)}) == 1


def test_a_face_elsewhere_is_another_one():
    assert tracks_of(Stored([[0], [30], [0]])) == [0, 1, 0]


def test_photographs_in_shards_have_no_tracks_and_are_not_smoothed():
    stored = Stored([[1], [1], [1]], video="a.tar")
    (block,) = Tracked(stored, ["expression"], 1.0).blocks()
    assert block.rows["track"].tolist() == [-1] * 3
    (before,) = stored.blocks()
    np.testing.assert_array_equal(block.rows["expression"], before.rows["expression"])


def test_smoothing_is_a_mean_whose_weights_fall_by_e_in_the_given_time():
    seconds, xs = 0.25, [0.0, 2.0, 1.0, 3.0, 4.0]
    parts = Tracked(Stored([[x] for x in xs], cut=2), ["expression"], seconds).blocks(
        ["expression"]
    )
    got = np.concatenate([block.rows["expression"] for block in parts])
    weights = np.exp(-np.arange(len(xs)) / RATE / seconds)
    wanted = [np.average(xs[: n + 1], weights=weights[n::-1]) for n in range(len(xs))]
    np.testing.assert_allclose(got, np.stack([wanted, -np.array(wanted)], 1), rtol=1e-6)


def test_frames_of_equal_or_earlier_times_weigh_the_same():
    for step in (0.0, -1.0):
        stored = Stored([[0.0], [2.0], [4.0]])
        (block,) = stored.blocks()
        block.rows["time"] = np.arange(3) * step
        stored.blocks = lambda columns=None, block=block: iter([block])
        (smooth,) = Tracked(stored, ["expression"], 0.5).blocks()
        np.testing.assert_allclose(smooth.rows["expression"][:, 0], [0, 1, 2])


def test_the_face_of_a_film_is_one_track_and_smoothing_calms_its_features(
    tmp_path, model, monkeypatch
):
    monkeypatch.setattr(stages, "find_faces", find_faces)
    film = write_video(tmp_path / "film.mp4", moving(PORTRAITS[0], 5))
    for name, seconds in (("raw", None), ("smooth", 1.0)):
        go(film, tmp_path / f"{name}.parquet", model, faces="largest", smooth=seconds)
    raw, smooth = table(tmp_path / "raw.parquet"), table(tmp_path / "smooth.parquet")
    assert [row["track"] for row in raw] == [0] * 5
    assert [row["x0"] for row in raw] == sorted(row["x0"] for row in raw)
    before, after = (np.array([row["expression"] for row in rows]) for rows in (raw, smooth))
    np.testing.assert_array_equal(before[0], after[0])
    assert np.abs(np.diff(after, axis=0)).sum() < np.abs(np.diff(before, axis=0)).sum()
    names = [key for key in smooth[0] if key.startswith("p_")]
    assert [sum(row[key] for key in names) for row in smooth] == pytest.approx([1] * 5)
    labels = [max(names, key=row.get).removeprefix("p_") for row in smooth]
    assert [row["label"] for row in smooth] == labels
    assert [row["x0"] for row in raw] == [row["x0"] for row in smooth]


# --- refusals ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("_one_face_each")
def test_a_damaged_video_gives_the_frames_that_can_be_read(tmp_path, model):
    film = write_video(tmp_path / "film.avi", moving(PORTRAITS[0], 12))
    content = bytearray(film.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = b"\0" * 2000
    film.write_bytes(content)
    report = go(film, tmp_path / "f.csv", model)
    assert report.images == report.rows + len(report.unreadable) > 6
    again = go(film, tmp_path / "g.csv", model)
    assert (tmp_path / "f.csv").read_bytes() == (tmp_path / "g.csv").read_bytes()
    assert report.unreadable == again.unreadable


def test_a_broken_video_beside_another_is_reported(film, tmp_path, model):
    (tmp_path / "x.mp4").write_bytes(b"rubbish" * 100)
    report = go([film, tmp_path / "x.mp4"], tmp_path / "f.csv", model)
    ((name, reason),) = report.unreadable
    assert name == str(tmp_path / "x.mp4")
    assert reason.startswith("is no video")
    assert report.rows == 9


def test_frames_that_an_edit_list_cuts_off_are_not_named(tmp_path):
    whole = write_video(tmp_path / "whole.mp4", moving(PORTRAITS[0], 12), "libx264")
    with av.open(str(whole)) as source, av.open(str(tmp_path / "cut.mp4"), "w") as cut:
        stream = cut.add_stream_from_template(source.streams.video[0])
        shift = round(0.5 / source.streams.video[0].time_base)
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.dts, packet.pts = packet.dts - shift, packet.pts - shift
                packet.stream = stream
                cut.mux(packet)
    keys = videos.frame_keys(tmp_path / "cut.mp4")
    with av.open(str(tmp_path / "cut.mp4")) as cut:
        shown = sum(1 for _ in cut.decode(video=0))
    assert 0 < len(keys) == shown < 12
    videos.read_frame(tmp_path / "cut.mp4", keys[-1])


def test_a_frame_behind_the_end_is_unreadable(film, tmp_path, model, monkeypatch):
    with pytest.raises(ImageError, match="ends before frame 9"):
        videos.read_frame(film, "00000009")
    keys = videos.frame_keys
    monkeypatch.setattr(sources, "frame_keys", lambda path, every: [*keys(path, every), "00000009"])
    report = go(film, tmp_path / "f.csv", model)
    assert report.unreadable == [(f"{film}::00000009", "the video ends before frame 9")]


def test_what_is_no_video_is_refused(tmp_path, model):
    (tmp_path / "x.mp4").write_bytes(b"rubbish" * 100)
    with pytest.raises(ValueError, match=r"x\.mp4 is no video"):
        go(tmp_path / "x.mp4", tmp_path / "f.csv", model)
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        sound.sample_rate, sound.pts = 8000, 0
        container.mux(stream.encode(sound))
    with pytest.raises(ValueError, match="no stream of pictures"):
        go(tmp_path / "sound.mkv", tmp_path / "f.csv", model)


def test_options_of_videos_are_refused_without_one(folder, tmp_path, model):
    for options in ({"every": 2}, {"smooth": 1.0}):
        with pytest.raises(ValueError, match="about videos, and there is none"):
            go(folder, tmp_path / "f.csv", model, **options)
    with pytest.raises(ValueError, match="every must be 1 or more"):
        go(folder, tmp_path / "f.csv", model, every=0)
    with pytest.raises(ValueError, match="smooth must be above 0"):
        go(folder, tmp_path / "f.csv", model, smooth=0)


def test_without_the_extra_it_is_named(film, tmp_path, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"facezoo\[video\]"):
        go(film, tmp_path / "f.csv", model)


def test_a_folder_of_videos_alone_says_how_they_are_named(film, tmp_path, model):
    with pytest.raises(ValueError, match=r"pattern such as 'folder/\*\.mp4'"):
        go(tmp_path, tmp_path / "f.csv", model)


def test_smoothed_rows_and_others_are_not_joined(film, tmp_path, model):
    write_photo(tmp_path / "photos" / "a.png", 1)
    go(film, tmp_path / "a.parquet", model)
    go(film, tmp_path / "b.parquet", model, smooth=1)
    go(tmp_path / "photos", tmp_path / "c.parquet", model)
    (tmp_path / "a2.parquet").write_bytes((tmp_path / "a.parquet").read_bytes())
    both = [tmp_path / "a.parquet", tmp_path / "a2.parquet"]
    assert join_files(both, tmp_path / "all.parquet") == 18
    assert pq.read_table(tmp_path / "all.parquet").num_rows == 18
    for name, word in (("b", "smooth 1"), ("c", "videos False")):
        with pytest.raises(ValueError, match=f"has {word}"):
            join_files(
                [tmp_path / "a.parquet", tmp_path / f"{name}.parquet"], tmp_path / "x.parquet"
            )


def test_the_command_line_takes_videos(film, tmp_path, model, capsys):
    model.save_pretrained(tmp_path / "model")
    words = ["extract", str(film), "-o", str(tmp_path / "f.csv"), "--device", "cpu"]
    words += ["--model", str(tmp_path / "model"), "--every", "3", "--smooth", "0.5"]
    assert main(words) == 0
    assert "from 3 photographs" in capsys.readouterr().out
    header, first, *_ = (tmp_path / "f.csv").read_text().splitlines()
    assert header.startswith("file,face,time,track,x0,")
    assert first.startswith(f"{film}::00000000,0,0.0,0,")
