#!/usr/bin/env bash
# Believed: VideoFrame.rotation is enough to show a frame as players do; a video is either rotated or not.
# So it is: a display matrix can also hold a reflection, as front cameras write it. The property reports the
# angle of one axis only: -180 for a mirrored video (as for an upside-down one), and 0 for a vertically flipped
# one. The matrix in the side data of the frame tells all eight orientations apart.
# Version and date: av 18.1.0, imageio-ffmpeg 0.8.1, numpy 2.4.6, 2026-11-29.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "av==18.1.0" "imageio-ffmpeg==0.8.1" "numpy==2.4.6"
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import subprocess

import av
import imageio_ffmpeg
import numpy as np


def ffmpeg(*arguments):
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *arguments]
    subprocess.run(command, check=True)


ffmpeg("-f", "lavfi", "-i", "testsrc=size=64x32:rate=5:duration=1", "-c:v", "mpeg4", "plain.mp4")
options = {
    "upside down": ["-display_rotation", "180"],
    "mirrored": ["-display_hflip"],
    "vertically flipped": ["-display_vflip"],
    "rotated": ["-display_rotation", "90"],
    "rotated and mirrored": ["-display_rotation", "90", "-display_hflip"],
}
rotations, matrices = {}, {}
for name, option in options.items():
    ffmpeg(*option, "-i", "plain.mp4", "-c", "copy", "oriented.mp4")
    with av.open("oriented.mp4") as container:
        frame = next(container.decode(video=0))
        data = next(item for item in frame.side_data if item.type.name == "DISPLAYMATRIX")
        matrix = np.frombuffer(bytes(data), np.int32).reshape(3, 3)[:2, :2] // 65536
    rotations[name], matrices[name] = frame.rotation, matrix.tolist()
    print(f"{name}: rotation {frame.rotation}, matrix {matrix.tolist()}")
assert abs(rotations["mirrored"]) == abs(rotations["upside down"]) == 180, "reflections differ now"
assert rotations["vertically flipped"] == 0, "a vertical flip is reported now"
assert rotations["rotated"] == rotations["rotated and mirrored"], "the mirror is reported now"
assert len({str(matrix) for matrix in matrices.values()}) == 5
PYTHON
