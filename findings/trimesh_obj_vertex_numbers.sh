#!/usr/bin/env bash
# Believed: trimesh.load(..., process=False) keeps the vertices of an OBJ file, so that a landmark or a
# registered template can be named by its vertex number.
# So it is: where a vertex has two texture coordinates (a seam) it is written twice and all later
# numbers shift, and vertices that no face uses are dropped. maintain_order=True keeps one copy and the
# unused vertices, but for those at the end of the list.
# Version and date: trimesh 5.2.0, 2026-11-29.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "trimesh==5.2.0" "numpy==2.4.6" "pillow==13.0.0"
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import trimesh

lines = ["v 0 0 0", "v 9 9 9", "v 1 0 0", "v 1 1 0", "v 0 1 0", "v 8 8 8"]
# No face uses the second and the last vertex.
lines += ["vt 0 0", "vt 1 0", "vt 1 1", "vt 0 1", "vt 0.5 0.5"]
lines += ["f 1/1 3/2 4/3", "f 1/5 4/3 5/4"]  # a seam at the first vertex
with open("seam.obj", "w") as file:
    file.write("\n".join(lines) + "\n")

plain = trimesh.load("seam.obj", force="mesh", process=False)
ordered = trimesh.load("seam.obj", force="mesh", process=False, maintain_order=True)
for name, mesh in {"process=False": plain, "and maintain_order=True": ordered}.items():
    print(f"{name}: {len(mesh.vertices)} vertices {mesh.vertices.astype(int).tolist()}")
assert plain.vertices.astype(int).tolist() == [[0, 0, 0], [0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]
assert ordered.vertices.astype(int).tolist() == [
    [0, 0, 0],
    [9, 9, 9],
    [1, 0, 0],
    [1, 1, 0],
    [0, 1, 0],
]
PYTHON
