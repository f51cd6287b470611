#!/usr/bin/env bash
# Believed: quadric simplification does not depend on the unit. The same surface in millimeters, meters and
# micrometers keeps the same vertices, and target_reduction=0.8 leaves a fifth of the triangles.
# So it is: the surviving vertices depend on the unit (2 % of them agree between millimeters and meters), and in
# micrometers far more triangles are left than asked for, without a warning. float64 input changes nothing.
# Version and date: fast-simplification 0.2.0, 2026-11-29.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "fast-simplification==0.2.0" "numpy==2.4.6" "scipy==1.17.1"
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import fast_simplification
import numpy as np
from scipy.spatial import cKDTree

ROWS = 60  # of a bumpy sphere of about 100 mm
polar, around = np.meshgrid(
    np.linspace(0, np.pi, ROWS), np.linspace(0, 2 * np.pi, 2 * ROWS, endpoint=False), indexing="ij"
)
radius = 100 + 4 * np.sin(5 * polar) * np.cos(7 * around) + 2 * np.cos(11 * around + 3 * polar)
parts = np.sin(polar) * np.cos(around), np.sin(polar) * np.sin(around), np.cos(polar)
vertices = np.stack([radius * part for part in parts], -1).reshape(-1, 3)
index = np.arange(len(vertices)).reshape(ROWS, 2 * ROWS)
a, b = index[:-1], index[1:]
c, d = np.roll(a, -1, 1), np.roll(b, -1, 1)
triangles = [np.stack(corners, -1).reshape(-1, 3) for corners in ((a, b, c), (c, b, d))]
triangles = np.concatenate(triangles).astype(np.int32)
asked = round(0.2 * len(triangles))
print(f"{len(triangles)} triangles, {asked} asked for")
kept, left = {}, {}
for unit, per_mm in {"mm": 1.0, "m": 1e-3, "um": 1e3}.items():
    points, faces = fast_simplification.simplify(
        vertices * per_mm, triangles, target_reduction=0.8
    )
    kept[unit], left[unit] = points / per_mm, len(faces)
    same = (cKDTree(kept["mm"]).query(kept[unit])[0] < 0.01).mean()
    print(f"{unit}: {len(faces)} triangles left, {100 * same:.0f} % of the vertices as in mm")
assert abs(left["mm"] - asked) < 0.01 * asked
assert left["um"] > 2 * asked, "micrometers reach the target now"
assert (cKDTree(kept["mm"]).query(kept["m"])[0] < 0.01).mean() < 0.5, "meters give the same vertices now"
PYTHON
