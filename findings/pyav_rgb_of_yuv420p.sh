#!/usr/bin/env bash
# Believed: the RGB pixels that PyAV makes of a uniform yuv420p frame are within half a level of the
# conversion formula, since no chroma has to be interpolated.
# So it is: to_ndarray(format="rgb24") is up to 2.5 levels and more off, and too dark on average. Going through
# yuv444p first gives at most 0.5 levels.
# Version and date: av 18.1.0, numpy 2.4.6, 2026-11-29.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "av==18.1.0" "numpy==2.4.6"
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import av
import numpy as np


def formula(y, u, v):
    """BT.601, limited range."""
    luma, blue, red = (y - 16) * 255 / 219, (u - 128) / 112 * 127.5, (v - 128) / 112 * 127.5
    rgb = luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue
    return np.array(rgb)


direct, through = [], []
generator = np.random.default_rng(0)
while len(direct) < 300:
    y, u, v = generator.integers([60, 100, 100], [200, 156, 156])
    expected = formula(y, u, v)
    if expected.min() < 1 or expected.max() > 254:
        continue
    planes = np.concatenate([np.full(32 * 32, y), np.full(16 * 16, u), np.full(16 * 16, v)])
    frame = av.VideoFrame.from_ndarray(planes.astype(np.uint8).reshape(48, 32), format="yuv420p")
    direct.append(frame.to_ndarray(format="rgb24")[8, 8] - expected)
    planar = frame.reformat(format="yuv444p")
    through.append(planar.to_ndarray(format="rgb24")[8, 8] - expected)
direct, through = np.array(direct), np.array(through)
print(f"rgb24 directly: largest error {np.abs(direct).max():.2f}, mean {direct.mean():+.2f} levels")
print(f"through yuv444p: largest error {np.abs(through).max():.2f}, mean {through.mean():+.2f}")
assert np.abs(direct).max() > 1.5, "the direct conversion is exact now"
assert direct.mean() < -0.5, "the direct conversion is no longer dark"
assert np.abs(through).max() < 1.0, "the way through yuv444p is no longer exact"
PYTHON
