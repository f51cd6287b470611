#!/usr/bin/env bash
# Believed: cv2.imread gives the same gray pixels for two PNG files with the same color pixels, and its gray reading
# equals cvtColor of its color reading but for rounding, as it does for JPEG. Color readings of both files are equal.
# So it is: a gAMA or sRGB chunk, which image editors write, changes the gray pixels by up to 63 of 255 levels, since
# libpng then mixes the channels in linear light. The color reading ignores the chunk, and so does Pillow: the gray
# images of a face detector depend on the program that wrote them. Without a chunk the difference is one level. The
# documentation says that gray readings may differ from cvtColor, but not that two equal images do.
# Version and date: opencv-python-headless 5.0.0.93, pillow 13.0.0, 2026-11-30.
# What follows: read in color, then convert with cvtColor.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "opencv-python-headless==5.0.0.93" "pillow==13.0.0" "numpy==2.4.6"
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import struct

import cv2
import numpy as np
from PIL import Image, PngImagePlugin

PIXELS = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
WEIGHTS = np.array([0.299, 0.587, 0.114])
CHUNKS = {
    "no chunk": None,
    "gAMA 1/2.2": (b"gAMA", struct.pack(">I", 45455)),
    "sRGB": (b"sRGB", b"\0"),
}
encoded = PIXELS @ WEIGHTS
light = np.round(255 * (PIXELS / 255) ** 2.2) @ WEIGHTS  # libpng keeps 8 bits of linear light
linear = 255 * (np.round(light) / 255) ** (1 / 2.2)
off = {}
for name, chunk in CHUNKS.items():
    info = PngImagePlugin.PngInfo()
    if chunk:
        info.add(*chunk)
    Image.fromarray(PIXELS).save("face.png", pnginfo=info)
    color = cv2.imread("face.png", cv2.IMREAD_COLOR)
    gray = cv2.imread("face.png", cv2.IMREAD_GRAYSCALE).astype(float)
    assert np.array_equal(color[..., ::-1], PIXELS)
    pillow = np.asarray(Image.open("face.png").convert("L")).astype(float)
    assert abs(pillow - encoded).max() <= 1
    off[name] = {
        "cvtColor of color": abs(gray - cv2.cvtColor(color, cv2.COLOR_BGR2GRAY)).max(),
        "Pillow": abs(gray - pillow).max(),
        "weighted sum": abs(gray - encoded).max().round(1),
        "weighted sum in linear light": abs(gray - linear).max().round(1),
    }
    print(f"{name}: mean {gray.mean():.1f} instead of {encoded.mean():.1f}")
    print(f"{name}: IMREAD_GRAYSCALE is off by up to", {k: float(v) for k, v in off[name].items()})
assert off["no chunk"]["cvtColor of color"] <= 1
for name in ("gAMA 1/2.2", "sRGB"):
    assert off[name]["cvtColor of color"] > 30, f"gray readings of PNG files with {name} agree now"
    assert off[name]["weighted sum in linear light"] < 2
PYTHON
