#!/usr/bin/env bash
# Believed: imageio returns the frames of a video file, and imread(path, index=n) frame n, whichever plugin reads it.
# So it is: the FFMPEG plugin, which reads .mp4 where imageio-ffmpeg is installed, turns a variable frame rate, as
# phones and video calls record it, into a constant one without a word: 60 stored frames become many more, most of them
# repeated, and labels of frames, such as one expression per frame, shift. count_frames still gives 60. The pyav plugin
# and PyAV give the 60 frames.
# Version and date: imageio 2.38.1, imageio-ffmpeg 0.8.1, av 18.1.0, 2026-11-30.
# What follows: imread(path, plugin="pyav"), or PyAV itself.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "imageio==2.38.1" "imageio-ffmpeg==0.8.1" "av==18.1.0" "numpy==2.4.6"
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
from fractions import Fraction

import av
import imageio.v3 as imageio
import numpy as np
from imageio.v2 import get_reader

FRAMES, MILLISECOND = 60, Fraction(1, 1000)


def write(path, times):
    """Write frames whose luma grows by 3 from frame to frame, at times in milliseconds."""
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "5"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = MILLISECOND
        for number, time in enumerate(times):
            planes = np.full((96, 64), 128, np.uint8)
            planes[:64] = 16 + 3 * number
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts, frame.time_base = int(time), MILLISECOND
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def number_of(frame):
    return round(frame[16:48, 16:48].mean() * 219 / 255 / 3)


gaps = np.random.default_rng(0).choice([17, 33, 50, 66], FRAMES - 1)
videos = {
    "constant.mp4": np.round(np.arange(FRAMES) * 1000 / 30),
    "variable.mp4": np.concatenate([[0], np.cumsum(gaps)]),
}
found = {}
for name, times in videos.items():
    write(name, times)
    with av.open(name) as container:
        stored = [number_of(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    assert stored == list(range(FRAMES))
    for plugin in ("pyav", "FFMPEG", None):
        frames = imageio.imread(name, plugin=plugin)
        tenth = number_of(imageio.imread(name, plugin=plugin, index=10))
        found[name, plugin] = len(frames), tenth
        print(
            f"{name}, plugin {plugin}: {len(frames)} frames, index=10 is frame {tenth}, the first are",
            [number_of(frame) for frame in frames[:12]],
        )
    with get_reader(name, "FFMPEG") as reader:
        counted = reader.count_frames()
    print(f"{name}: count_frames {counted}")
    assert counted == FRAMES
for plugin in ("pyav", "FFMPEG", None):
    assert found["constant.mp4", plugin] == (FRAMES, 10)
assert found["variable.mp4", "pyav"] == (FRAMES, 10)
assert found["variable.mp4", None] == found["variable.mp4", "FFMPEG"]
assert found["variable.mp4", "FFMPEG"][0] > 1.2 * FRAMES, "the stored frames are returned now"
assert found["variable.mp4", "FFMPEG"][1] != 10
PYTHON
