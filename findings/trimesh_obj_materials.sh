#!/usr/bin/env bash
# Believed: with process=False and skip_materials=True, trimesh returns the mesh of an OBJ file with the vertices
# of the file, whether its faces use one material or two.
# So it is: two usemtl statements give a scene of two geometries. load_mesh joins them, and the vertices between
# the two materials are there twice, so the count and the order differ from the file.
# Version and date: trimesh 5.2.0, 2026-11-29.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "trimesh==5.2.0" "numpy==2.4.6"
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import trimesh

VERTICES = ["v 0 0 0", "v 1 0 0", "v 1 1 0", "v 0 1 0"]
FACES = {
    "one material": ["usemtl skin", "f 1 2 3", "f 1 3 4"],
    "two materials": ["usemtl skin", "f 1 2 3", "usemtl hair", "f 1 3 4"],
}
counts = {}
for name, faces in FACES.items():
    with open("square.obj", "w") as file:
        file.write("\n".join([*VERTICES, *faces]) + "\n")
    options = {"process": False, "skip_materials": True}
    loaded = trimesh.load("square.obj", **options)
    mesh = trimesh.load_mesh("square.obj", **options)
    counts[name] = len(mesh.vertices)
    print(
        f"{name}: load returns a {type(loaded).__name__}, load_mesh {counts[name]} vertices "
        f"of {len(VERTICES)} in the file: {mesh.vertices.tolist()}"
    )
assert counts == {"one material": 4, "two materials": 6}, "both have the vertices of the file now"
PYTHON
