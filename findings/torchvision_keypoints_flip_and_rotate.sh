#!/usr/bin/env bash
# Believed: the geometric functions of torchvision.transforms.v2 measure KeyPoints in one coordinate
# system. So two flips give the same points as a rotation by 180 degrees, and a point stays on its pixel.
# So it is: flips count from the centers of pixels (x becomes W - 1 - x), but rotate, affine and resize
# count from their edges (x becomes W - x, or is scaled), as all functions do for BoundingBoxes. Two flips
# keep a landmark on its pixel; the rotation moves it by one pixel. A landmark in the corner of a box
# leaves the corner at a flip.
# Version and date: torchvision 0.29.1, torch 2.14.1, 2026-12-01.
# What follows: augment landmarks by one affine matrix for image and points, in one coordinate system.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.14.1" "torchvision==0.29.1" "numpy==2.4.6"
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

HEIGHT, WIDTH = 80, 100
image = torch.zeros(1, HEIGHT, WIDTH)
image[0, 20, 10] = 1  # one bright pixel in column 10 and row 20
point = tv_tensors.KeyPoints(torch.tensor([[10.0, 20.0]]), canvas_size=(HEIGHT, WIDTH))
box = tv_tensors.BoundingBoxes(
    torch.tensor([[10.0, 20.0, 40.0, 60.0]]), format="XYXY", canvas_size=(HEIGHT, WIDTH)
)


def both_flips(inputs):
    return F.vertical_flip(F.horizontal_flip(inputs))


def half_turn(inputs):
    return F.rotate(inputs, 180)


def bright(inputs):
    row, column = (inputs[0] > 0.5).nonzero()[0].tolist()
    return [float(column), float(row)]


results = {
    "both flips": (bright(both_flips(image)), both_flips(point)[0].tolist()),
    "half turn": (bright(half_turn(image)), half_turn(point)[0].tolist()),
}
for name, (pixel, moved) in results.items():
    print(f"{name}: the pixel is at {pixel}, its point at {moved}")
corners = F.horizontal_flip(point)[0, 0].item(), F.horizontal_flip(box)[0, 2].item()
print("after a horizontal flip: the point has x = {}, the corner of its box x = {}".format(*corners))
assert results["both flips"] == ([89.0, 59.0], [89.0, 59.0])
assert results["half turn"] == ([89.0, 59.0], [90.0, 60.0])
assert corners == (89.0, 90.0)
PYTHON
