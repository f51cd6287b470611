"""Extraction from videos: frames, times, colors, orientations, and resuming.

The tests encode small videos with PyAV.
"""

import math
import shutil
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from fake_faces import interrupt, kill, run, table, write_image
from PIL import Image

from facezoo.cli.main import main
from facezoo.errors import ImageError
from facezoo.extraction import join_files, sources, videos

av = pytest.importorskip("av")
pytestmark = pytest.mark.usefixtures("_fake_faces")

PORTRAITS = sorted((Path(__file__).parents[2] / "examples" / "portraits").glob("*.jpg"))
RATE = 10
COUNTS = [1, 1, 0, 2, 1, 2, 0, 1, 1]


def write_video(path, frames, codec="mpeg4", pixels="yuv420p", options=None, times=None):
    """Encode RGB arrays (H, W, 3), ``RATE`` a second or at ``times`` in units of 1 / ``RATE``."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE, options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.codec_context.time_base = pixels, Fraction(1, RATE)
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format=pixels)
            picture.pts = number if times is None else times[number]
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def frames_with(counts):
    """Make frames whose first pixel is the number of faces."""
    generator = np.random.default_rng(0)
    frames = [generator.integers(0, 256, (40, 44, 3), dtype=np.uint8) for _ in counts]
    for frame, count in zip(frames, counts, strict=True):
        frame[0, 0] = count
    return frames


def moving(portrait, count):
    """Shift a portrait to the right from frame to frame."""
    with Image.open(portrait) as image:
        image = image.convert("RGB")
        pixels = np.asarray(image.resize((160, round(160 * image.height / image.width) // 2 * 2)))
    return [np.roll(pixels, 3 * number, axis=1) for number in range(count)]


@pytest.fixture
def video(tmp_path):
    """Nine frames without loss, with ``COUNTS`` faces."""
    return write_video(tmp_path / "video.mkv", frames_with(COUNTS), "ffv1", "bgr0")


def read(path, number):
    return videos.read_frame(path, f"{number:08d}")


# --- frames ------------------------------------------------------------------------------------


def test_frames_are_named_by_number_and_have_times(video, tmp_path, tiny):
    report = run(video, tmp_path / "f.parquet", tiny)
    rows = table(tmp_path / "f.parquet")
    numbers = [0, 1, 3, 3, 4, 5, 5, 7, 8]
    assert [row["file"] for row in rows] == [f"{video}::{n:08d}" for n in numbers]
    assert [row["time"] for row in rows] == pytest.approx([n / RATE for n in numbers], abs=1e-3)
    assert (report.images, report.without_face, report.unreadable) == (9, 2, [])


def test_the_rows_are_those_of_the_frames_as_images(video, tmp_path, tiny):
    images = tmp_path / "images"
    images.mkdir()
    for number, pixels in enumerate(frames_with(COUNTS)):
        Image.fromarray(pixels).save(images / f"{number}.png")
    run(video, tmp_path / "video.parquet", tiny, on_missing="nan")
    run(images, tmp_path / "images.parquet", tiny, on_missing="nan")
    moved, still = table(tmp_path / "video.parquet"), table(tmp_path / "images.parquet")
    assert [row["face"] for row in moved].count(-1) == 2
    assert not any(math.isnan(row["time"]) for row in moved)
    for key in set(still[0]) - {"file", "fingerprint"}:
        np.testing.assert_array_equal([row[key] for row in moved], [row[key] for row in still])


def test_the_fingerprint_of_videos_has_the_conversion_of_colors(
    video, folder, tmp_path, tiny, monkeypatch
):
    run(folder, tmp_path / "a.csv", tiny)
    run(video, tmp_path / "b.csv", tiny)
    monkeypatch.setattr("facezoo.extraction.stages.CONVERSION", "another")
    run(video, tmp_path / "c.csv", tiny)
    ends = {path.read_text().split()[-1][-16:] for path in sorted(tmp_path.glob("?.csv"))}
    assert len(ends) == 3


def test_every_takes_each_nth_frame_from_the_first_on(video, tmp_path, tiny):
    assert run(video, tmp_path / "f.npz", tiny, every=4).images == 3
    with np.load(tmp_path / "f.npz") as stored:
        assert stored["file"].tolist() == [f"{video}::{n:08d}" for n in (0, 4, 8)]
        np.testing.assert_allclose(stored["time"], [0, 0.4, 0.8], atol=1e-3)
        assert (stored["time"].dtype, stored["track"].dtype) == (np.float64, np.int32)


def test_videos_images_and_patterns_can_be_mixed(video, folder, tmp_path, tiny):
    write_video(tmp_path / "other.mkv", frames_with([1, 1]), "ffv1", "bgr0")
    source = [str(tmp_path / "*.mkv"), folder / "000.png"]
    run(source, tmp_path / "f.parquet", tiny)
    run(source, tmp_path / "f.csv", tiny)
    rows = table(tmp_path / "f.parquet")
    names = [row["file"].rpartition("/")[2].partition("::")[0] for row in rows]
    assert names == ["000.png", *["other.mkv"] * 2, *["video.mkv"] * 9]
    assert math.isnan(rows[0]["time"])
    assert [row["track"] for row in rows[:3]] == [-1, 0, 0]
    assert (tmp_path / "f.csv").read_text().splitlines()[1].split(",")[1:4] == ["0", "", "-1"]


def test_a_frame_does_not_depend_on_the_order_of_reading(video):
    frames = frames_with(COUNTS)
    for number in (2, 5, 5, 1):
        np.testing.assert_array_equal(read(video, number)[0], frames[number])


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        (".3gp", "mpeg4"),
        (".asf", "wmv2"),
        (".avi", "mpeg4"),
        (".flv", "flv"),
        (".m2ts", "mpeg2video"),
        (".mov", "mpeg4"),
        (".MTS", "libx264"),
        (".ts", "mpeg2video"),
        (".webm", "libvpx"),
        (".wmv", "wmv2"),
    ],
)
def test_usual_video_formats_are_read_by_their_suffix(tmp_path, suffix, codec):
    count = 12
    frames = [np.full((64, 96, 3), 20 * number, np.uint8) for number in range(count)]
    options = {"r": "25"}
    path = tmp_path / f"a{suffix}"
    try:
        write_video(path, frames, codec, options=options)
    except av.error.FFmpegError:  # a codec or rate that this build does not have
        pytest.skip(f"this FFmpeg cannot write {suffix}")
    names = sources.list_images(path).names
    assert len(names) == count
    levels = [sources.read(Path(), name)[0].mean() for name in names]
    np.testing.assert_allclose(levels, [20 * n for n in range(count)], atol=8)


# --- colors and orientation --------------------------------------------------------------------


@pytest.mark.parametrize(("space", "kr", "kb"), [(5, 0.299, 0.114), (1, 0.2126, 0.0722)])
@pytest.mark.parametrize("limited", [True, False])
@pytest.mark.parametrize("pixels", ["yuv420p", "yuv422p"])
def test_colors_follow_the_matrix_and_range_of_the_video(space, kr, kb, limited, pixels):
    generator = np.random.default_rng(0)
    differences = []
    while len(differences) < 50:
        y, u, v = (int(generator.integers(*limits)) for limits in ((16, 236), (60, 200), (60, 200)))
        scale, offset, chroma = (219, 16, 224) if limited else (255, 0, 255)
        luma, blue, red = (y - offset) / scale, (u - 128) / chroma, (v - 128) / chroma
        r, b = luma + 2 * (1 - kr) * red, luma + 2 * (1 - kb) * blue
        g = (luma - kr * r - kb * b) / (1 - kr - kb)
        expected = 255 * np.array([r, g, b])
        if expected.min() < 0 or expected.max() > 255:
            continue
        frame = av.VideoFrame(32, 32, pixels)
        for plane, value in zip(frame.planes, (y, u, v), strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        frame.colorspace, frame.color_range = space, 1 if limited else 2
        differences.append(np.abs(videos.rgb(frame)[8:24, 8:24] - expected).max())
    assert max(differences) < 1


def test_colors_of_a_bt709_video_survive_the_file(tmp_path):
    levels = (200, 60, 90)
    frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), levels, np.uint8), format="rgb24")
    frame = frame.reformat(format="yuv444p", dst_colorspace="ITU709").reformat(format="yuv420p")
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = 1, 1
        frame.pts, frame.colorspace, frame.color_range = 0, 1, 1
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    pixels, _ = read(tmp_path / "a.mp4", 0)
    np.testing.assert_allclose(pixels[16:48, 16:48].mean((0, 1)), levels, atol=1.5)


CORNERS = np.array([["r", "g"], ["b", "w"]])
COLORS = {"r": (255, 0, 0), "g": (0, 255, 0), "b": (0, 0, 255), "w": (255, 255, 255)}
ORIENTATIONS = {
    "upright": ((1, 0, 0, 1), CORNERS),
    "mirrored": ((-1, 0, 0, 1), CORNERS[:, ::-1]),
    "upside down": ((-1, 0, 0, -1), CORNERS[::-1, ::-1]),
    "upside down and mirrored": ((1, 0, 0, -1), CORNERS[::-1]),
    "clockwise": ((0, 1, -1, 0), np.rot90(CORNERS, -1)),
    "counterclockwise": ((0, -1, 1, 0), np.rot90(CORNERS)),
    "transposed": ((0, 1, 1, 0), CORNERS.T),
    "transverse": ((0, -1, -1, 0), CORNERS[::-1, ::-1].T),
}


def write_oriented(path, matrix):
    """Encode a frame of four colors, and write a display matrix into the header of the track."""
    frame = np.zeros((64, 96, 3), np.uint8)
    for row, column in np.ndindex(2, 2):
        frame[32 * row :, 48 * column :] = COLORS[CORNERS[row, column]]
    frame[:32, :48], frame[:32, 48:] = COLORS["r"], COLORS["g"]
    frame[32:, :48], frame[32:, 48:] = COLORS["b"], COLORS["w"]
    write_video(path, [frame] * 2, options={"qscale": "1"})
    content = path.read_bytes()
    place = content.index(b"tkhd") + 4 + 40  # version and flags, times, layer, volume
    a, b, c, d = (value << 16 for value in matrix)
    numbers = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content[:place] + numbers + content[place + 36 :])


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_all_eight_orientations_are_shown_upright(tmp_path, name):
    matrix, corners = ORIENTATIONS[name]
    write_oriented(tmp_path / "a.mp4", matrix)
    pixels, _ = read(tmp_path / "a.mp4", 0)
    height, width = pixels.shape[:2]
    assert (height, width) == ((64, 96) if matrix[0] else (96, 64))
    for row, column in np.ndindex(2, 2):
        place = height // 4 + row * height // 2, width // 4 + column * width // 2
        np.testing.assert_allclose(pixels[place], COLORS[corners[row, column]], atol=12)


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="needs the command ffmpeg")
@pytest.mark.parametrize("name", ORIENTATIONS)
def test_orientations_are_those_of_ffmpeg(tmp_path, name):
    write_oriented(tmp_path / "a.mp4", ORIENTATIONS[name][0])
    command = ["ffmpeg", "-loglevel", "error", "-i", tmp_path / "a.mp4", "-frames:v", "1"]
    subprocess.run([*command, tmp_path / "a.png"], check=True)
    expected = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    pixels, _ = read(tmp_path / "a.mp4", 0)
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).mean() < 3


# --- times -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".avi", ".mp4", ".mkv"])
def test_times_grow_also_with_b_frames(tmp_path, suffix):
    options = {"x264-params": "b-adapt=0:bframes=2"}
    frames = [np.full((64, 96, 3), 20 * number, np.uint8) for number in range(12)]
    path = write_video(tmp_path / f"a{suffix}", frames, "libx264", options=options)
    with av.open(str(path)) as container:
        types = {int(frame.pict_type) for frame in container.decode(video=0)}
    assert 3 in types  # B-frames
    pixels, times = zip(*(read(path, number) for number in range(12)), strict=True)
    np.testing.assert_allclose(times, np.arange(12) / RATE, atol=1e-3)
    assert [int(p.mean() / 20 + 0.5) for p in pixels] == list(range(12))


def test_a_video_of_variable_frame_rate_has_its_stored_frames(tmp_path):
    frames = [np.full((64, 96, 3), 20 * number, np.uint8) for number in range(8)]
    times = [0, 1, 2, 12, 13, 25, 26, 40]
    path = write_video(tmp_path / "a.mp4", frames, times=times)
    assert len(videos.frame_keys(path)) == len(frames)
    pixels, found = zip(*(read(path, number) for number in range(8)), strict=True)
    assert [int(p.mean() / 20 + 0.5) for p in pixels] == list(range(8))
    np.testing.assert_allclose(found, np.array(times) / RATE, atol=1e-3)


def test_a_stream_without_times_has_number_divided_by_rate(tmp_path):
    frames = [np.full((64, 96, 3), 20 * number, np.uint8) for number in range(6)]
    path = write_video(tmp_path / "a.h264", frames, "libx264", options={"x264-params": "fps=10"})
    path = path.rename(tmp_path / "a.ts")  # read by its content
    times = [read(path, number)[1] for number in range(6)]
    assert times[0] == 0
    assert np.diff(times) == pytest.approx(times[1])
    assert times[1] > 0


# --- resuming ----------------------------------------------------------------------------------


@pytest.fixture
def _one_face_each(monkeypatch):
    """Write the number of faces into each frame, since a codec with loss would not keep it."""
    read_frame = sources.read_frame

    def marked(path, key):
        pixels, time = read_frame(path, key)
        pixels[0, 0] = 1
        return pixels, time

    monkeypatch.setattr(sources, "read_frame", marked)


@pytest.mark.usefixtures("_one_face_each")
@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_an_interrupted_run_ends_at_the_same_bytes(codec, tmp_path, tiny, monkeypatch):
    video = write_video(tmp_path / "video.mp4", moving(PORTRAITS[0], 24), codec)
    again, whole = tmp_path / "again.parquet", tmp_path / "whole.parquet"
    options = {"faces": "largest", "smooth": 0.5}
    for call in (4, 3):
        interrupt(video, again, tiny, monkeypatch, call=call, **options)
    assert run(video, again, tiny, **options).resumed == 6 + 4
    run(video, whole, tiny, **options)
    assert again.read_bytes() == whole.read_bytes()
    assert len(table(whole)) == 24


def test_a_process_that_is_killed_loses_and_repeats_no_frame(tmp_path, tiny):
    counts = [n % 3 for n in range(80)]
    video = write_video(tmp_path / "video.mkv", frames_with(counts), "ffv1", "bgr0")
    output = tmp_path / "f.parquet"
    kill(video, output, 3, every=2, smooth=0.3)
    assert 12 <= run(video, output, tiny, every=2, smooth=0.3).resumed < 40
    run(video, tmp_path / "whole.parquet", tiny, every=2, smooth=0.3)
    assert output.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert len(table(output)) == sum(counts[::2])


def test_a_run_does_not_resume_with_other_smoothing_or_frames(video, tmp_path, tiny, monkeypatch):
    interrupt(video, tmp_path / "f.csv", tiny, monkeypatch)
    with pytest.raises(FileExistsError, match="smooth was None and is now 1"):
        run(video, tmp_path / "f.csv", tiny, smooth=1)
    with pytest.raises(FileExistsError, match="other images"):
        run(video, tmp_path / "f.csv", tiny, every=2)


# --- errors ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_one_face_each")
def test_a_damaged_video_gives_the_frames_that_can_be_read(tmp_path, tiny):
    video = write_video(tmp_path / "video.avi", moving(PORTRAITS[0], 12))
    content = bytearray(video.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = b"\0" * 2000
    video.write_bytes(content)
    report = run(video, tmp_path / "f.csv", tiny)
    assert report.images == report.rows + len(report.unreadable) > 6
    again = run(video, tmp_path / "g.csv", tiny)
    assert (tmp_path / "f.csv").read_bytes() == (tmp_path / "g.csv").read_bytes()
    assert report.unreadable == again.unreadable


def test_a_broken_video_next_to_another_is_reported(video, tmp_path, tiny):
    (tmp_path / "x.mp4").write_bytes(b"rubbish" * 100)
    report = run([video, tmp_path / "x.mp4"], tmp_path / "f.csv", tiny)
    ((name, reason),) = report.unreadable
    assert name == str(tmp_path / "x.mp4")
    assert reason.startswith("is not a video")
    assert report.rows == 9


def test_frames_that_an_edit_list_cuts_off_are_not_listed(tmp_path):
    whole = write_video(tmp_path / "whole.mp4", moving(PORTRAITS[0], 12), "libx264")
    with av.open(str(whole)) as source, av.open(str(tmp_path / "cut.mp4"), "w") as cut:
        stream = cut.add_stream_from_template(source.streams.video[0])
        shift = round(0.5 / source.streams.video[0].time_base)
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.dts, packet.pts = packet.dts - shift, packet.pts - shift
                packet.stream = stream
                cut.mux(packet)
    keys = videos.frame_keys(str(tmp_path / "cut.mp4"))
    with av.open(str(tmp_path / "cut.mp4")) as cut:
        shown = sum(1 for _ in cut.decode(video=0))
    assert 0 < len(keys) == shown < 12
    videos.read_frame(tmp_path / "cut.mp4", keys[-1])


def test_a_frame_after_the_end_is_unreadable(video, tmp_path, tiny, monkeypatch):
    with pytest.raises(ImageError, match="ends before frame 9"):
        read(video, 9)
    keys = videos.frame_keys
    monkeypatch.setattr(sources, "frame_keys", lambda path, every: [*keys(path, every), "00000009"])
    report = run(video, tmp_path / "f.csv", tiny)
    assert report.unreadable == [(f"{video}::00000009", "the video ends before frame 9")]


def test_a_file_that_is_not_a_video_is_an_error(tmp_path, tiny):
    (tmp_path / "x.mp4").write_bytes(b"rubbish" * 100)
    with pytest.raises(ValueError, match=r"x\.mp4 is not a video"):
        run(tmp_path / "x.mp4", tmp_path / "f.csv", tiny)
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        sound.sample_rate, sound.pts = 8000, 0
        container.mux(stream.encode(sound))
    with pytest.raises(ValueError, match="no stream of pictures"):
        run(tmp_path / "sound.mkv", tmp_path / "f.csv", tiny)


def test_a_missing_or_old_pyav_is_named(video, tmp_path, tiny, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(av, "__version__", "16.1.0")
        with pytest.raises(ImportError, match=r"PyAV 16\.1\.0 ignores the color matrix"):
            run(video, tmp_path / "f.csv", tiny)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"facezoo\[video\]"):
        run(video, tmp_path / "f.csv", tiny)


def test_smoothed_rows_and_others_are_not_joined(video, tmp_path, tiny):
    write_image(tmp_path / "images" / "a.png", 1)
    run(video, tmp_path / "a.parquet", tiny)
    run(video, tmp_path / "b.parquet", tiny, smooth=1)
    run(tmp_path / "images", tmp_path / "c.parquet", tiny)
    (tmp_path / "a2.parquet").write_bytes((tmp_path / "a.parquet").read_bytes())
    both = [tmp_path / "a.parquet", tmp_path / "a2.parquet"]
    assert join_files(both, tmp_path / "all.parquet") == 18
    assert pq.read_table(tmp_path / "all.parquet").num_rows == 18
    for name, text in (("b", "smooth 1"), ("c", "has fingerprint")):
        with pytest.raises(ValueError, match=text):
            join_files([both[0], tmp_path / f"{name}.parquet"], tmp_path / "x.parquet")


def test_the_command_line_takes_videos(video, tmp_path, tiny, capsys):
    tiny.save_pretrained(tmp_path / "model")
    words = ["extract", str(video), "-o", str(tmp_path / "f.csv"), "--device", "cpu"]
    words += ["--model", str(tmp_path / "model"), "--every", "3", "--smooth", "0.5"]
    assert main(words) == 0
    assert "from 3 images" in capsys.readouterr().out
    header, first, *_ = (tmp_path / "f.csv").read_text().splitlines()
    assert header.startswith("file,face,time,track,x0,")
    assert first.startswith(f"{video}::00000000,0,0.0,0,")
