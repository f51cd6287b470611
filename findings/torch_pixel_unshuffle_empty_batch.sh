#!/usr/bin/env bash
# Believed: torch.nn.functional.pixel_unshuffle gives (B, C r^2, H/r, W/r) for (B, C, H, W) and a factor r,
# also for an empty batch, as convolutions and poolings do.
# So it is: for B = 0 it returns a tensor of the shape of its input. The next convolution then raises an
# error about the number of channels. A graph that is traced with two images fails later with none.
# Version and date: torch 2.13.0, 2026-12-01.
# What follows: take the pixels of each block by strided slices, which keep the shape for an empty batch.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.0" "numpy==2.4.6"
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import torch
import torch.nn.functional as F

shapes = {}
for count in (2, 0):
    images = torch.zeros(count, 3, 8, 8)
    shapes[count] = {
        "pixel_unshuffle": tuple(F.pixel_unshuffle(images, 2).shape),
        "avg_pool2d": tuple(F.avg_pool2d(images, 2).shape),
    }
    print(f"{count} images of (3, 8, 8):", shapes[count])
assert shapes[2] == {"pixel_unshuffle": (2, 12, 4, 4), "avg_pool2d": (2, 3, 4, 4)}
assert shapes[0] == {"pixel_unshuffle": (0, 3, 8, 8), "avg_pool2d": (0, 3, 4, 4)}
PYTHON
