#!/usr/bin/env bash
# Believed: VideoFrame.time of decoded frames grows from frame to frame, since a decoder returns frames in the
# order in which they are shown.
# So it is: AVI stores no presentation times. With H.264 and B-frames the times of an .avi file go back and
# forth, and do not begin at 0. The same stream in .mp4 has growing times. A frame's number divided by the frame
# rate is right in both.
# Version and date: av 18.1.0, imageio-ffmpeg 0.8.1, 2026-11-29.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "av==18.1.0" "imageio-ffmpeg==0.8.1"
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import subprocess

import av
import imageio_ffmpeg

source = ["-f", "lavfi", "-i", "testsrc=size=64x64:rate=25:duration=0.6"]
codec = ["-c:v", "libx264", "-bf", "2", "-pix_fmt", "yuv420p"]
times = {}
for kind in ("mp4", "avi"):
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *source, *codec, f"video.{kind}"]
    subprocess.run(command, check=True)
    with av.open(f"video.{kind}") as container:
        times[kind] = [round(frame.time, 2) for frame in container.decode(video=0)]
    print(kind, times[kind][:8])
assert times["mp4"] == sorted(times["mp4"]), "the times of .mp4 do not grow"
assert times["avi"] != sorted(times["avi"]), "the times of .avi grow now"
assert sorted(times["avi"])[0] != 0, "the times of .avi begin at 0 now"
PYTHON
